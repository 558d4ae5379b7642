import base64
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from limbeck.errors import LimbeckError
from limbeck.report.blocks import Gallery
from limbeck.report.folder import load
from limbeck.report.sections.instance_bags import instance_bags

from .folders import Digits, run_folder


@pytest.fixture
def bags(tmp_path: Path, digits: Digits) -> Path:
    """A run of one seed with two bags, of three instances and of two, in the place of logits."""
    run_folder(tmp_path, digits, "ce", 1, teacher=False)
    stage = next(tmp_path.glob("seed-0/*/predictions.safetensors"))
    stage.unlink()
    tensors = {
        "logits": torch.tensor([[0.0, 1.0], [3.0, 0.0]]),
        "label": torch.tensor([1, 0]),
        "index": torch.tensor([7, 4]),
        "size": torch.tensor([3, 2]),
        "score": torch.tensor([0.2, 0.5, 1.0, 0.0, 0.1]),
        "instance": torch.arange(5),
        "truth": torch.tensor([0, 1, 0, 0, 0]),
        "shown": torch.tensor([0, 1]),
        "image": torch.full((5, 1, 8, 8), 255, dtype=torch.uint8)
        * torch.tensor([0, 1, 0, 1, 1]).byte()[:, None, None, None],
    }
    save_file(tensors, stage.parent / "instance_bags.safetensors")
    return tmp_path


def test_bags_show_their_instances_by_score(bags: Path) -> None:
    section = instance_bags(load(bags), None)
    assert section is not None
    gallery = section.blocks[0]
    assert isinstance(gallery, Gallery)
    first, second = gallery.pictures
    assert [opinion.says for opinion in first.opinions] == ["positive", "positive", "rank 2"]
    assert first.opinions[1].confidence == "73 %"
    assert second.opinions[1].right
    assert second.opinions[2].says == "none"
    assert first.caption == "Test bag 7, 3 images"
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(first.source.partition(",")[2]))))
    assert pixels.shape == (70, 3 * 62 + 2 * 6, 3)
    # The second of three is the positive one: an orange frame, a white image, and a bar over half of its width.
    middles = [68 * place + 31 for place in range(3)]
    assert [pixels[30, middle, 0] for middle in middles] == [0, 255, 0]
    assert pixels[0, middles[1]].tolist() == [232, 118, 18]
    assert pixels[0, middles[0]].tolist() == [170, 170, 170]
    bar = pixels[-1, 68 : 68 + 62]
    assert (bar == [46, 110, 200]).all(1).sum() == 31


def test_without_truth(bags: Path) -> None:
    path = next(bags.glob("seed-0/*/instance_bags.safetensors"))
    held = load_file(path)
    del held["truth"]
    save_file(held, path)
    section = instance_bags(load(bags), None)
    assert section is not None
    assert isinstance(section.blocks[0], Gallery)
    assert len(section.blocks[0].pictures[0].opinions) == 2


def test_runs_without_bags_have_no_such_section(tmp_path: Path, digits: Digits) -> None:
    run_folder(tmp_path, digits, "ce", 1, teacher=False)
    assert instance_bags(load(tmp_path), None) is None


def test_a_damaged_file_is_named(bags: Path) -> None:
    path = next(bags.glob("seed-0/*/instance_bags.safetensors"))
    shutil.copy(next(bags.glob("seed-0/*/result.json")), path)
    with pytest.raises(LimbeckError, match=r"instance_bags\.safetensors does not hold"):
        instance_bags(load(bags), None)
