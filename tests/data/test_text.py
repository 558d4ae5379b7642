import hashlib
import json
from pathlib import Path

import pytest
import torch

from limbeck.data.load import load
from limbeck.data.text import TextData, TokenSamples, by_character
from limbeck.errors import LimbeckError
from limbeck.models.text_task import TextTask, characters

from .shared_data import needs_shared


def samples(**options: torch.Tensor) -> TokenSamples:
    """Rows 10..14, 15..16, 17..19 of a sequence that starts at 10."""
    return TokenSamples(torch.arange(10, 20), torch.tensor([0, 5, 7]), torch.tensor([5, 2, 3]), pad_id=0, **options)


def digest(of: TokenSamples | TextData) -> str:
    found = hashlib.sha256()
    of.update_hash(found)
    return found.hexdigest()


def test_rows_are_padded_on_the_right_and_say_what_counts() -> None:
    batch = samples(given=torch.tensor([2, 0, 1])).fetch(torch.tensor([2, 0]))
    assert batch["input_ids"].tolist() == [[17, 18, 19, 0, 0], [10, 11, 12, 13, 14]]
    assert batch["labels"].tolist() == [[-100, 18, 19, -100, -100], [-100, -100, 12, 13, 14]]
    assert batch["index"].tolist() == [2, 0]
    assert {value.dtype for value in batch.values()} == {torch.int64}
    # As long as the longest of the batch.
    assert samples().fetch(torch.tensor([1]))["input_ids"].tolist() == [[15, 16]]


def test_hash_is_of_all_that_decides() -> None:
    same = digest(samples())
    assert same == digest(samples())
    assert same != digest(samples(given=torch.tensor([1, 0, 0])))
    assert same != digest(samples(indices=torch.tensor([0, 1, 3])))
    text = "abcabc " * 100
    assert digest(by_character(text, 8, 0.1)) != digest(by_character(text.replace("a", "z"), 8, 0.1))


def test_refuses_rows_without_anything_to_predict() -> None:
    with pytest.raises(LimbeckError, match="row 1 has 2 tokens, 2 of them given"):
        samples(given=torch.tensor([0, 2, 0]))
    with pytest.raises(LimbeckError, match="no rows"):
        TokenSamples(torch.arange(3), torch.tensor([]), torch.tensor([]), pad_id=0)


def test_a_text_is_cut_by_position() -> None:
    text = "".join(chr(97 + number % 26) for number in range(1000))
    data = by_character(text, 10, 0.1)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [81, 9, 10]
    for part, start in ((data.train, 0), (data.validation, 810), (data.test, 900)):
        batch = part.fetch(torch.arange(len(part)))
        assert "".join(data.task.decode(row) for row in batch["input_ids"]) == text[start : start + 10 * len(part)]
        assert torch.equal(batch["labels"], batch["input_ids"])
    assert data.task.max_length == 10
    assert data.classes == ()
    assert data.training_views == {}
    with pytest.raises(LimbeckError, match="length is 101"):
        by_character(text, 101, 0.5)
    with pytest.raises(LimbeckError, match="validation is 0"):
        by_character(text, 10, 0.0)


def test_descriptions_need_no_data() -> None:
    data = load("descriptions", seed=0)
    again = load("descriptions", seed=1)
    assert digest(data.train) == digest(again.train)
    assert isinstance(data, TextData)
    assert len(data.train) > 500
    whole = data.task.decode(data.train.tokens)
    assert "Wisconsin" in whole
    assert data.task.unk_id not in data.train.tokens


def write(folder: Path, **parts: list[dict[str, str]]) -> Path:
    for name, rows in parts.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def problems(count: int) -> list[dict[str, str]]:
    return [{"question": f"What is {n} + 1?", "answer": f"It is {n + 1}. #### {n + 1}"} for n in range(count)]


def test_gsm8k_masks_questions_and_splits_by_the_seed(tmp_path: Path) -> None:
    root = write(tmp_path, train=problems(40), test=problems(6))
    options = {"root": str(root), "vocabulary": None, "length": 64, "validation": 0.25}
    data = load("gsm8k", seed=0, **options)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [30, 10, 6]
    assert data.train.num_samples == 30
    batch = data.test.fetch(torch.tensor([3]))
    row, labels = batch["input_ids"][0], batch["labels"][0]
    assert data.task.decode(row) == "Question: What is 3 + 1?\nAnswer: It is 4. #### 4"
    assert data.task.decode(labels[labels >= 0]) == "It is 4. #### 4"
    assert int(row[-1]) == int(labels[-1]) == data.task.eos_id
    whole = load("gsm8k", seed=0, mask_prompt=False, **options)
    assert torch.equal(whole.test.fetch(torch.tensor([3]))["labels"][0], row)

    other = load("gsm8k", seed=1, **options)
    assert digest(other.train) != digest(data.train)
    assert digest(load("gsm8k", seed=0, **options).train) == digest(data.train)
    assert len(load("gsm8k", seed=0, train_size=7, **options).train) == 7


def test_gsm8k_leaves_long_rows_out_and_takes_a_tokenizer(tmp_path: Path) -> None:
    long = {"question": "?" * 50, "answer": "!"}
    root = write(tmp_path, train=[long, *problems(12)], test=[*problems(3), long])
    tokenizer = characters(["0123456789 WhatisQuesonAnwer:+?#.I\n"])
    (tmp_path / "tokenizer.json").write_text(tokenizer)
    options = {"root": str(root), "tokenizer": str(tmp_path / "tokenizer.json"), "validation": 0.25}
    data = load("gsm8k", seed=0, length=56, **options)
    assert data.task == TextTask(tokenizer, 56)
    assert data.test.indices.tolist() == [0, 1, 2]
    assert data.test.num_samples == 4
    with pytest.raises(LimbeckError, match="none of the 10 training texts fits into 8 tokens"):
        load("gsm8k", seed=0, length=8, **options)
    (tmp_path / "train.jsonl").write_text('{"question": "a"}\n')
    with pytest.raises(LimbeckError, match=r"train\.jsonl, line 1: expected a JSON object"):
        load("gsm8k", seed=0, **options)


@needs_shared
def test_the_real_sets() -> None:
    data = load("shakespeare", seed=0)
    # 65 characters and 7 special tokens; 1,115,394 characters, of which 10 % are the test.
    assert data.task.size == 72
    assert len(data.test) == 111540 // 48
    assert data.task.decode(data.train.fetch(torch.tensor([0]))["input_ids"][0]).startswith("First Citizen:\nBefore")
    problems = load("gsm8k", seed=0, train_size=200)
    assert len(problems.test) > 1200
    assert 1000 < problems.task.size < 4000  # words of 200 problems


def test_instructions_from_a_local_folder(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "tokenizer.json").write_text(characters(["abcdefgh<|user>istn\n "]))
    rows = [
        {"messages": [{"role": "user", "content": "ab" * (1 + n % 3)}, {"role": "assistant", "content": "c" * n}]}
        for n in range(1, 13)
    ]
    folder = tmp_path / "set"
    folder.mkdir()
    write(folder, train=rows, test=rows)
    options = {"dataset": str(folder), "tokenizer": str(tmp_path / "tokenizer.json"), "validation": 0.25}
    data = load("instructions", seed=0, template="<{prompt}>", length=20, response_length=9, **options)
    assert len(data.train) + len(data.validation) == 8  # responses of 1 to 8 and the end token
    assert data.test.num_samples == 12
    batch = data.test.fetch(torch.tensor([0]))
    assert data.task.decode(batch["input_ids"][0]) == "<abab>c"
    assert torch.equal(batch["labels"], batch["input_ids"])
    with pytest.raises(LimbeckError, match="no split 'tests'"):
        load("instructions", seed=0, test_split="tests", **options)
    with pytest.raises(LimbeckError, match="no column 'message'"):
        load("instructions", seed=0, column="message", **options)
    with pytest.raises(LimbeckError, match=r"must hold \{prompt\}"):
        load("instructions", seed=0, template="", **options)
