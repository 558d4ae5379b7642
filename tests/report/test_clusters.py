import base64
import dataclasses
import io
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from limbeck.errors import LimbeckError
from limbeck.report.blocks import Chart, Charts, Gallery, Section, Table, Text
from limbeck.report.folder import load
from limbeck.report.sections.clusters import clusters

from .folders import Digits, run_folder


@pytest.fixture
def clustered(tmp_path: Path, digits: Digits) -> Path:
    """A run of four clusters in the place of logits: the digits 0 and 1, 2 to 4, 5 to 9 and nothing."""
    run_folder(tmp_path, digits, "ce", 1, teacher=False)
    stage = next(tmp_path.glob("seed-0/*/predictions.safetensors"))
    stage.unlink()
    label = digits.data.test.labels
    training = torch.zeros(4, 10, dtype=torch.int64)
    for digit, size in enumerate(range(100, 0, -10)):
        training[_cluster(torch.tensor(digit)), digit] = size
    tensors = {
        "cluster": _cluster(label),
        "probability": torch.linspace(0.3, 0.9, len(label)),
        "label": label,
        "index": digits.data.test.indices,
        "training": training,
    }
    save_file(tensors, stage.parent / "clusters.safetensors")
    return tmp_path


def _cluster(digit: torch.Tensor) -> torch.Tensor:
    return (digit > 1).long() + (digit > 4).long()


def parts(section: Section | None) -> tuple[Gallery, list[Chart], list[Table], str]:
    assert section is not None
    gallery = section.blocks[0]
    assert isinstance(gallery, Gallery)
    charts = [chart for block in section.blocks if isinstance(block, Charts) for chart in block.charts]
    tables = [block for block in section.blocks if isinstance(block, Table)]
    return gallery, charts, tables, " ".join(block.text for block in section.blocks if isinstance(block, Text))


def test_a_strip_of_the_surest_images_a_cluster(clustered: Path, digits: Digits) -> None:
    gallery, _, _, note = parts(clusters(load(clustered), digits.data))
    assert [picture.caption for picture in gallery.pictures] == ["Cluster 2", "Cluster 1", "Cluster 0"]
    test = digits.data.test
    for picture, digit, (size, share) in zip(
        gallery.pictures, (5, 2, 0), ((150, 33), (210, 38), (190, 53)), strict=True
    ):
        training, tested = picture.opinions
        assert (training.says, training.confidence) == (str(digit), f"{share} % of {size}")
        members = test.labels[_cluster(test.labels) == _cluster(torch.tensor(digit))]
        counts = members.bincount(minlength=10)
        assert tested.says == str(int(counts.argmax()))
        assert tested.confidence == f"{100 * float(counts.max() / counts.sum()):.0f} % of {len(members)}"
    assert "1 of 4 clusters have no test image" in note
    # Of the last cluster the last ones of the test set, the very last first; eight of 8 pixels, enlarged six times.
    strip = Image.open(io.BytesIO(base64.b64decode(gallery.pictures[2].source.partition(",")[2])))
    assert strip.size == (6 * 80, 6 * 8)
    last = torch.nonzero(test.labels < 2)[-1]
    pixels = torch.tensor([[strip.getpixel((6 * x + 8, 6 * y + 2)) for x in range(8)] for y in range(8)])
    assert torch.equal(pixels, (255 * test.fetch(last)["image"][0, 0]).round().long())


def test_sizes_of_clusters_against_those_of_classes(clustered: Path, digits: Digits) -> None:
    _, (ranks, pairs), (table,), _ = parts(clusters(load(clustered), digits.data))
    classes, sizes = ranks.figure["data"]
    assert classes["y"] == list(range(100, 0, -10))
    assert (sizes["x"], sizes["y"]) == ([1, 2, 3], [210, 190, 150])
    assert (pairs.figure["data"][1]["x"], pairs.figure["data"][1]["y"]) == ([100, 80, 50], [190, 210, 150])
    assert table.rows[0] == ("1", "210", "2", "38.1 %", "80")
    assert table.rows[3] == ("3", "0", "\u2013", "\u2013", "\u2013")


def test_without_any_truth_the_pictures_stay(clustered: Path, digits: Digits) -> None:
    path = next(clustered.glob("seed-0/*/clusters.safetensors"))
    held = load_file(path)
    held["label"].fill_(-1)
    del held["training"]
    save_file(held, path)
    gallery, charts, tables, _ = parts(clusters(load(clustered), digits.data))
    assert [picture.opinions for picture in gallery.pictures] == [()] * 3
    assert not charts
    assert not tables


def test_other_data_and_damaged_files_are_refused(clustered: Path, digits: Digits) -> None:
    other = dataclasses.replace(digits.data, test=digits.data.validation)
    with pytest.raises(LimbeckError, match="not the one that was clustered"):
        clusters(load(clustered), other)
    next(clustered.glob("seed-0/*/clusters.safetensors")).write_bytes(b"{}")
    with pytest.raises(LimbeckError, match=r"clusters\.safetensors does not hold"):
        clusters(load(clustered), digits.data)


def test_runs_without_clusters_have_no_such_section(run: Path) -> None:
    assert clusters(load(run), None) is None
