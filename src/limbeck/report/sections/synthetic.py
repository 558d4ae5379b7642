"""The images that a method made, class by class."""

import torch

from limbeck.data import Data
from limbeck.data.samples import Samples
from limbeck.data.synthetic import INDEX, read_synthetic
from limbeck.report.blocks import Gallery, Picture, Section, Text
from limbeck.report.folder import Loaded, Stage
from limbeck.report.pictures import strip

_EACH = 10  # images of a class
_CLASSES = 20
_STRIP = 480  # pixels; images of a class side by side are enlarged to about this


def synthetic(loaded: Loaded, data: Data | None) -> Section | None:
    """One strip a class: the first seed of the featured arm, else of the first arm that made images."""
    arms = [loaded.featured, *loaded.arms]
    found = next(((arm, seed, stage) for arm in arms for seed in arm.seeds if (stage := _made(seed.stages))), None)
    if found is None:
        return None
    arm, seed, stage = found
    samples = read_synthetic(stage.folder)
    pictures = tuple(_strip(samples, number) for number in range(min(_CLASSES, len(samples.classes))))
    note = f"{len(samples)} synthetic images of {len(samples.classes)} classes: {arm.name}, seed {seed.seed}"
    shown = [f"the first {_EACH} of a class"] if len(samples) > _EACH * len(samples.classes) else []
    shown += [f"{_CLASSES} classes"] if len(samples.classes) > _CLASSES else []
    note += f"; shown: {', '.join(shown)}." if shown else "."
    metrics = seed.final.metrics
    if "verifier/nll" in metrics:
        note += " A network that had no part in making them, trained on the real data, finds their labels with "
        note += f"cross-entropy {metrics['verifier/nll']:.3f} (accuracy {100 * metrics['verifier/accuracy']:.1f} %)."
    if "lrs" in metrics:
        hlr, ior = (f"{name.upper()} {100 * metrics[name]:+.1f} points" for name in ("hlr", "ior"))
        note += f" {hlr}, {ior}, LRS {metrics['lrs']:.3f}."
    return Section("synthetic", "The images that were made", (Gallery(pictures, wide=True), Text(note, "note")))


def _made(stages: tuple[Stage, ...]) -> Stage | None:
    """The stage whose images the student learned from: not those of a comparison within the run."""
    made = [stage for stage in stages if (stage.folder / INDEX).is_file()]
    return next((stage for stage in made if stage.name == "recover"), made[0] if made else None)


def _strip(samples: Samples, label: int) -> Picture:
    positions = torch.nonzero(samples.labels == label)[:_EACH, 0]
    name = samples.classes[label]
    alt = f"{len(positions)} synthetic images of {name}"
    if not len(positions):
        return Picture(strip(torch.ones(1, 1, 8, 8), 8), f"no synthetic images of {name}", name, (), pixelated=True)
    images = samples.fetch(positions)["image"]
    side = _STRIP // _EACH
    return Picture(strip(images, side), alt, name, (), pixelated=min(images.shape[-2:]) < side)
