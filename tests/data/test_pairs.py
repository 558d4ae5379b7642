import hashlib

import pytest
import torch

from limbeck.data.fingerprint import fingerprint
from limbeck.data.pairs import PairData, PairSamples
from limbeck.data.stream import Stream
from limbeck.errors import LimbeckError
from limbeck.models.text_task import TextTask, words

FIRST = ["a cat sits", "two dogs run in the park", "a cat sits", "nobody sings"]
SECOND = ["the cat sits down", "a dog runs", "two dogs run in the park", "a cat sits"]


@pytest.fixture(scope="module")
def task() -> TextTask:
    return TextTask(words([*FIRST, *SECOND], 100), 6)


def samples(task: TextTask, **others: object) -> PairSamples:
    return PairSamples(FIRST, SECOND, task, **{"scores": torch.tensor([0.9, 0.5, 0.1, 0.0]), **others})  # type: ignore[arg-type]


def digest(pairs: PairSamples) -> str:
    found = hashlib.sha256()
    pairs.update_hash(found)
    return found.hexdigest()


def test_a_batch_holds_both_sentences_between_cls_and_sep_cut_and_padded(task: TextTask) -> None:
    batch = samples(task).fetch(torch.tensor([1, 0]))
    assert batch["a_ids"].shape == batch["b_mask"].shape == (2, 6)
    for row, (a, b) in enumerate([(FIRST[1], SECOND[1]), (FIRST[0], SECOND[0])]):
        for side, text in (("a", a), ("b", b)):
            expected = [task.cls_id, *task.encode([text])[0][:4], task.sep_id]
            assert batch[f"{side}_ids"][row].tolist() == expected + [task.pad_id] * (6 - len(expected))
            assert batch[f"{side}_mask"][row].tolist() == [True] * len(expected) + [False] * (6 - len(expected))
    assert batch["index"].tolist() == [1, 0]
    assert batch["score"].tolist() == [0.5, pytest.approx(0.9)]
    assert "hidden_score" not in batch
    assert samples(task).lengths.tolist() == [5 + 6, 6 + 5, 5 + 6, 4 + 5]


def test_relabel_hides_the_truth_and_unlabel_takes_the_score_out(task: TextTask) -> None:
    pairs = samples(task)
    labels = torch.tensor([0.1, -0.2, 0.3, 0.4])
    once = pairs.relabel(labels)
    twice = once.relabel(labels + 1)
    everything = torch.arange(4)
    for found, score in ((once, labels), (twice, labels + 1)):
        batch = found.fetch(everything)
        assert torch.equal(batch["score"], score)
        assert pairs.scores is not None
        assert torch.equal(batch["hidden_score"], pairs.scores)
    assert "score" not in once.unlabel().fetch(everything)
    assert torch.equal(once.unlabel().fetch(everything)["hidden_score"], pairs.scores)


def test_swapped_has_2n_rows_and_each_swap_the_label_of_its_pair(task: TextTask) -> None:
    pairs = samples(task, indices=torch.tensor([7, 3, 5, 0]), num_samples=9)
    both = pairs.swapped()
    assert len(both) == 8
    assert both.num_samples == 9
    straight, turned = both.fetch(torch.arange(4)), both.fetch(torch.arange(4, 8))
    assert torch.equal(straight["a_ids"], turned["b_ids"])
    assert torch.equal(straight["b_mask"], turned["a_mask"])
    assert not torch.equal(straight["a_ids"], turned["a_ids"])
    assert torch.equal(straight["score"], turned["score"])
    assert straight["index"].tolist() == turned["index"].tolist() == [7, 3, 5, 0]


def test_sentences_are_the_different_ones_each_with_itself(task: TextTask) -> None:
    found = samples(task).sentences()
    assert found.first == found.second
    assert list(found.first) == [FIRST[0], SECOND[0], FIRST[1], SECOND[1], FIRST[3]]
    assert found.indices.tolist() == [0, 1, 2, 3, 4]
    assert set(found.fetch(torch.tensor([0]))) == {"a_ids", "a_mask", "b_ids", "b_mask", "index"}


def test_subset_keeps_indices_and_a_stream_reads_it(task: TextTask) -> None:
    part = samples(task).subset(torch.tensor([2, 0]))
    assert part.indices.tolist() == [2, 0]
    assert part.num_samples == 4
    batch = Stream(part, 4, 0).batch(0)
    assert sorted(batch["index"].tolist()) == [0, 0, 2, 2]
    assert batch["epoch"].tolist() == [0, 0, 1, 1]
    with pytest.raises(LimbeckError, match="has no views"):
        Stream(part, 2, 0, views={"a_ids": "weak"})


def test_encoded_for_another_tokenizer(task: TextTask) -> None:
    other = TextTask(words(FIRST, 12), 8)
    data = PairData(samples(task), samples(task), samples(task))
    again = data.encoded(other)
    assert again.task == again.test.task == other
    assert again.validation.fetch(torch.tensor([0]))["a_ids"].shape == (1, 8)
    assert again.train.scores is not None
    assert torch.equal(again.train.scores, torch.tensor([0.9, 0.5, 0.1, 0.0]))
    assert data.encoded(task) is data


def test_the_hash_sees_what_decides_a_training_and_not_the_truth(task: TextTask) -> None:
    pairs = samples(task)
    scores = torch.tensor([0.9, 0.5, 0.1, 0.0])
    assert digest(pairs.unlabel()) == digest(samples(task, scores=None, hidden_scores=scores.flip(0)))
    others = [
        pairs.unlabel(),
        pairs.relabel(scores + 0.1),
        pairs.swapped(),
        samples(task, indices=torch.tensor([1, 0, 2, 3])),
        pairs.encoded(TextTask(task.tokenizer, 7)),
        PairSamples(["a cat sit", *FIRST[1:]], SECOND, task, scores=scores),
    ]
    assert len({digest(pairs), *(digest(other) for other in others)}) == 7
    assert fingerprint(PairData(pairs, pairs, pairs)) != fingerprint(PairData(pairs.unlabel(), pairs, pairs))


def test_wrong_input(task: TextTask) -> None:
    with pytest.raises(LimbeckError, match="no pairs"):
        PairSamples([], [], task)
    with pytest.raises(LimbeckError, match="4 first sentences but 3 second sentences"):
        PairSamples(FIRST, SECOND[:3], task)
    with pytest.raises(LimbeckError, match="but 2 scores"):
        samples(task, scores=torch.zeros(2))
    with pytest.raises(LimbeckError, match="the pair of index 6 has the score nan"):
        samples(task, scores=torch.tensor([0.0, float("nan"), 0.0, 0.0]), indices=torch.tensor([5, 6, 7, 8]))
    with pytest.raises(LimbeckError, match="max_length is 2"):
        samples(TextTask(task.tokenizer, 2))
