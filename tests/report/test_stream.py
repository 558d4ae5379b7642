"""The section of a stream: on answers whose errors are known."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from limbeck.errors import LimbeckError
from limbeck.report.blocks import Charts, Table
from limbeck.report.sections.stream import stream

ORDER = ["gaussian_noise", "contrast", "gaussian_noise"]


def _arm(name: str, folder: Path, wrong: list[list[int]]) -> Any:
    """Two rounds of three visits of two batches of four: ``wrong[seed][visit]`` wrong answers of eight."""
    seeds = []
    for number, counts in enumerate(wrong):
        place = folder / name / str(number)
        place.mkdir(parents=True)
        label = torch.zeros(48, dtype=torch.int64)
        logits = torch.tensor([[1.0, 0.0]]).repeat(48, 1)
        for visit, count in enumerate(counts):
            logits[8 * visit : 8 * visit + count] = torch.tensor([0.0, 1.0])
        at = torch.arange(48)
        tensors = {"logits": logits, "label": label, "round": at // 24, "domain": at // 8 % 3, "update": at // 4}
        save_file(tensors, place / "stream.safetensors", {"order": json.dumps(ORDER)})
        seeds.append(SimpleNamespace(final=SimpleNamespace(folder=place)))
    return SimpleNamespace(name=name, seeds=tuple(seeds))


def _loaded(*arms: Any) -> Any:
    return SimpleNamespace(arms=arms)


def test_errors_by_batch_visit_round_and_domain(tmp_path: Path) -> None:
    arms = [_arm("a", tmp_path, [[8, 0, 4, 8, 0, 0], [8, 0, 0, 8, 0, 0]]), _arm("<b>", tmp_path, [[0, 8, 0, 0, 8, 0]])]
    section = stream(_loaded(*arms), None)
    assert section is not None
    over, rounds, table, _ = section.blocks
    assert isinstance(over, Charts)
    assert isinstance(rounds, Charts)
    assert isinstance(table, Table)
    assert [name for name, _ in over.keys] == ["a", "<b>"]
    batches, levels = over.charts[0].figure["data"][:2]
    # Means over two seeds: of the third visit's first batch one seed has all wrong.
    assert batches["y"] == [100, 100, 0, 0, 50, 0, 100, 100, 0, 0, 0, 0]
    assert [y for y in levels["y"][::3]] == [100, 0, 25, 100, 0, 0]  # noqa: C416
    assert levels["x"][:3] == [0.5, 2.5, None]
    layout = over.charts[0].figure["layout"]
    assert [(band["x0"], band["x1"]) for band in layout["shapes"]] == [(0.5, 2.5), (4.5, 6.5), (8.5, 10.5)]
    assert [mark["text"] for mark in layout["annotations"]] == [name.replace("_", " ") for name in 2 * ORDER]
    a, b = rounds.charts[0].figure["data"]
    assert a["y"] == pytest.approx([125 / 3, 100 / 3], abs=1e-2)
    assert b["y"] == pytest.approx([100 / 3, 100 / 3], abs=1e-2)
    assert b["name"] == "&lt;b&gt;"
    # The noise comes twice a round: (100 + 25 + 100 + 0) / 4.
    assert table.rows == (("gaussian_noise", "56.2 %", "0.0 %"), ("contrast", "0.0 %", "100.0 %"))


def test_nothing_without_a_stream_and_words_for_a_damaged_one(tmp_path: Path) -> None:
    arm = _arm("a", tmp_path, [[0] * 6])
    path = arm.seeds[0].final.folder / "stream.safetensors"
    path.write_bytes(b"damaged")
    with pytest.raises(LimbeckError, match="does not hold the answers to a stream"):
        stream(_loaded(arm), None)
    path.unlink()
    assert stream(_loaded(arm), None) is None
