import json
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.data.load import load
from limbeck.data.pairs import PairData
from limbeck.errors import LimbeckError

from .shared_data import needs_shared

ROWS: dict[str, list[dict[str, Any]]] = {
    "train": [
        {"sentence1": "a cat sits", "sentence2": "a cat sits down", "score": 4.0},
        {"sentence1": "a dog", "sentence2": "no dog", "score": 1.0},
        {"sentence1": "a dog", "sentence2": "no dog", "score": 1.0},
    ],
    "dev": [
        {"sentence1": "a bird", "sentence2": "the bird", "score": 5.0},
        {"sentence1": "x", "sentence2": "y", "score": 0},
    ],
    "test": [
        {"sentence1": "a cow", "sentence2": "cows", "score": 2.5},
        {"sentence1": "z", "sentence2": "y", "score": 0},
    ],
}


def write(folder: Path, rows: dict[str, list[dict[str, Any]]]) -> str:
    for name, part in rows.items():
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in part) + "\n", encoding="utf-8")
    return str(folder)


def opened(name: str, **options: Any) -> PairData:
    data = load(name, seed=0, **options)
    assert isinstance(data, PairData)
    return data


def test_stsb_from_a_folder(tmp_path: Path) -> None:
    data = opened("stsb", root=write(tmp_path, ROWS))
    assert data.train.first == ("a cat sits", "a dog")  # the same pair counts once
    assert data.train.scores is None
    assert data.train.hidden_scores is not None
    assert data.train.hidden_scores.tolist() == [pytest.approx(0.8), pytest.approx(0.2)]
    assert data.validation.scores is not None
    assert data.validation.scores.tolist() == [1, 0]
    assert data.test.scores is not None
    assert data.test.scores.tolist() == [0.5, 0]
    assert data.task.encode(["bird"]) == [[data.task.unk_id]]  # of training words only


def test_transductive_data_hold_the_pairs_of_the_test_without_their_scores(tmp_path: Path) -> None:
    data = opened("stsb", root=write(tmp_path, ROWS), transductive=True)
    assert set(zip(data.train.first, data.train.second, strict=True)) == {
        (row["sentence1"], row["sentence2"]) for part in ROWS.values() for row in part
    }
    assert data.train.scores is None
    assert len(data.test) == 2


def test_training_rows_need_neither_score_nor_second_sentence(tmp_path: Path) -> None:
    data = opened("stsb", root=write(tmp_path, ROWS | {"train": [{"sentence1": "a cat"}, {"sentence1": "a dog"}]}))
    assert data.train.first == data.train.second == ("a cat", "a dog")
    assert data.train.hidden_scores is not None
    assert bool(data.train.hidden_scores.isnan().all())


def test_train_size_takes_some_pairs_by_the_seed(tmp_path: Path) -> None:
    many = [{"sentence1": f"number {n}", "sentence2": "b"} for n in range(30)]
    root = write(tmp_path, ROWS | {"train": many})
    parts = [load("stsb", seed=seed, root=root, train_size=10).train for seed in (0, 0, 1)]
    assert [len(part) for part in parts] == [10] * 3
    assert torch.equal(parts[0].indices, parts[1].indices)
    assert not torch.equal(parts[0].indices, parts[2].indices)
    with pytest.raises(LimbeckError, match="train_size is 31; there are 1 to 30"):
        load("stsb", seed=0, root=root, train_size=31)


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    with pytest.raises(LimbeckError, match=r"holds no 'train\.jsonl'"):
        load("stsb", seed=0, root=str(tmp_path))
    root = write(tmp_path, ROWS)
    (tmp_path / "dev.jsonl").write_text('{"sentence1": "a", "sentence2": "b", "score": 1}\n{"sentence2": "b"}\n')
    with pytest.raises(LimbeckError, match=r"dev\.jsonl, line 2: no pair"):
        load("stsb", seed=0, root=root)
    with pytest.raises(LimbeckError, match="at least 20"):
        load("description_pairs", seed=0, pairs=5)


def test_description_pairs_need_no_data_and_score_by_overlap() -> None:
    data = opened("description_pairs", pairs=100)
    assert (len(data.validation), len(data.test)) == (10, 20)
    assert 60 <= len(data.train) <= 70  # equal pairs count once
    assert data.test.scores is not None
    for a, b, score in zip(data.test.first, data.test.second, data.test.scores.tolist(), strict=True):
        one, other = set(a.split()), set(b.split())
        assert score == pytest.approx(len(one & other) / len(one | other), abs=1e-6)  # float32
    assert data.test.scores.std() > 0.2
    assert opened("description_pairs", pairs=100).train.first == data.train.first


@needs_shared
def test_sick_as_it_is() -> None:
    data = opened("sick")
    # 4,500 rows, 30 of which repeat a pair.
    assert (len(data.train), len(data.validation), len(data.test)) == (4470, 500, 4927)
    first = (data.test.first[0], data.test.second[0])
    assert first[0] == "There is no boy playing outdoors and there is no man smiling"
    assert data.test.scores is not None
    assert data.test.scores[0].item() == pytest.approx((3.3 - 1) / 4)
    assert data.train.scores is None
    assert bool(data.train.hidden_scores.min() >= 0) if data.train.hidden_scores is not None else False


@needs_shared
def test_stsb_as_it_is() -> None:
    data = opened("stsb")
    assert (len(data.train), len(data.validation), len(data.test)) == (999, 375, 375)
    assert data.validation.scores is not None
    assert data.validation.scores[0].item() == pytest.approx(3.6 / 5)
