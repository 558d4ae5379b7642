import dataclasses

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.models.text_task import SPECIALS, TextTask, characters, words

TEXT = "To be, or\tnot to be:\nthat is é the question."


@pytest.fixture(scope="module")
def task() -> TextTask:
    return TextTask(characters([TEXT]), 48)


def test_characters_and_their_ids(task: TextTask) -> None:
    assert task.size == len(SPECIALS) + len(set(TEXT))
    assert [task.pad_id, task.unk_id, task.bos_id, task.eos_id, task.sep_id, task.cls_id, task.mask_id] == [*range(7)]
    (ids,) = task.encode([TEXT])
    assert len(ids) == len(TEXT)
    assert ids == [7 + sorted(set(TEXT)).index(character) for character in TEXT]
    assert task.decode(ids) == TEXT
    assert task.decode(torch.tensor([task.bos_id, *ids, task.eos_id, 0, 0])) == TEXT
    assert task.encode(["Z", ""]) == [[task.unk_id], []]


def test_words_are_the_most_frequent() -> None:
    task = TextTask(words(["b a. b A, b", "a c"], size=7 + 3), 48)
    # a and b occur three times each; of what occurs once, "," is first in the order of Unicode.
    assert task.encode(["a B , c ."]) == [[7, 8, 9, 1, 1]]
    assert task.decode([7, 8]) == "a b"
    assert words(["b a"], size=9) == words(["a b"], size=9)


def test_padding(task: TextTask) -> None:
    ids, mask = task.pad([[7, 8, 9], [10]])
    assert ids.tolist() == [[7, 8, 9], [10, 0, 0]]
    assert mask.tolist() == [[True] * 3, [True, False, False]]
    assert task.pad([[7]], length=3)[0].tolist() == [[7, 0, 0]]
    with pytest.raises(LimbeckError, match="2 tokens does not fit into 1"):
        task.pad([[7, 8]], length=1)


def test_is_plain_data_that_says_what_is_wrong(task: TextTask) -> None:
    assert TextTask(**dataclasses.asdict(task)) == task
    with pytest.raises(LimbeckError, match="max_length"):
        TextTask(task.tokenizer, 0)
    with pytest.raises(LimbeckError, match=r"tokenizer\.json"):
        TextTask("bert-base", 10)
    with pytest.raises(LimbeckError, match="cannot read this tokenizer"):
        _ = TextTask('{"model": 3}', 10).size
    with pytest.raises(LimbeckError, match=r"pass \[text\]"):
        task.encode("one text")
    with pytest.raises(LimbeckError, match=r"pass \[text\]"):
        characters("one text")
    with pytest.raises(LimbeckError, match="above 7"):
        words(["a"], size=7)


def test_a_pretrained_tokenizer_pads_with_its_end_token() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<|endoftext|>": 0, "a": 1}, unk_token="<|endoftext|>"))
    made.enable_truncation(1)
    task = TextTask(made.to_str(), 8)
    assert (task.pad_id, task.eos_id) == (0, 0)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    assert TextTask(made.to_str(), 8).encode(["a a a"]) == [[1, 1, 1]]
    with pytest.raises(LimbeckError, match="no mask token"):
        _ = task.mask_id
