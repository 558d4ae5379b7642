import base64
import io
from pathlib import Path

import torch
from PIL import Image

from limbeck.data.load import load
from limbeck.report.blocks import Gallery, Text
from limbeck.report.folder import Arm, Loaded, Seed, Stage
from limbeck.report.sections.synthetic import synthetic
from limbeck.stages.files import write_json
from limbeck.stages.pixels import PixelSettings, PixelSynthesiser
from limbeck.stages.stage import Context, Program, drive
from limbeck.stages.synthesise import Synthesise

REAL = load("digits", seed=0)
METRICS = {"verifier/nll": 0.5, "verifier/accuracy": 0.75, "hlr": 0.2, "ior": -0.05, "lrs": 0.25}


class Shades(PixelSynthesiser):
    """Images of class c have the brightness c / 10."""

    def start(self, number: int) -> torch.Tensor:
        return (self.chunks[number] / 10).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)


def loaded(folder: Path, stages: tuple[str, ...]) -> Loaded:
    chunks = [torch.tensor([0, 3, 3]), torch.tensor([3, 9])]

    def program() -> Program:
        for name in stages:
            yield Synthesise(name, Shades(REAL.task, chunks, PixelSettings(iterations=0)))

    drive(program(), Context(folder / "seed-0", "sre2l", seed=0))
    write_json(folder / "seed-0/fit/result.json", {"format_version": 1, "metrics": METRICS})
    made = tuple(Stage(name, folder / "seed-0" / name) for name in (*stages, "fit"))
    seed = Seed(folder / "seed-0", 0, {"final": "fit"}, made)
    arm = Arm("sre2l", "sre2l", {}, {}, [1.0], (seed,))
    return Loaded(folder, "sre2l", (arm,), None, (), "", {}, ())


def test_one_strip_a_class(tmp_path: Path) -> None:
    section = synthetic(loaded(tmp_path, ("random", "recover")), None)
    assert section is not None
    gallery, note = section.blocks
    assert isinstance(gallery, Gallery)
    assert isinstance(note, Text)
    assert [picture.caption for picture in gallery.pictures] == list(REAL.classes)
    assert gallery.pictures[3].alt == "3 synthetic images of 3"
    assert gallery.pictures[1].alt == "no synthetic images of 1"
    strip = Image.open(io.BytesIO(base64.b64decode(gallery.pictures[3].source.partition(",")[2])))
    # Three images of 8 pixels between white borders of one, enlarged six times.
    assert strip.size == (6 * 30, 6 * 8)
    assert strip.getpixel((6 * 5, 20)) == round(0.3 * 255)
    assert strip.getpixel((2, 20)) == 255
    assert "5 synthetic images of 10 classes" in note.text
    assert "cross-entropy 0.500 (accuracy 75.0 %)" in note.text
    assert "HLR +20.0 points, IOR -5.0 points, LRS 0.250" in note.text


def test_nothing_where_nothing_was_made(tmp_path: Path) -> None:
    assert synthetic(loaded(tmp_path, ()), None) is None
