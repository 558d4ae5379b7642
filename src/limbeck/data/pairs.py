"""Pairs of sentences with a similarity score, known or hidden, and the sets of them that a run needs."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.data.data import Batch, Data, Records
from limbeck.errors import LimbeckError
from limbeck.models.text_task import TextTask


class PairSamples(Records):
    """Pairs of sentences (a, b), encoded for one tokenizer; every pair has a stable ``index``.

    A sentence becomes [CLS] tokens [SEP], cut to the task's ``max_length``. Scores are real numbers: the gold
    score, or what a teacher said about the pair.

    Args:
        first: N sentences a.
        second: N sentences b.
        task: tokenizer and longest sentence, [CLS] and [SEP] included.
        scores: float [N]; None for pairs without a score.
        hidden_scores: float [N], the truth behind missing or noisy scores: for metrics, never for training. NaN
            where it is not known.
        indices: int64 [N], the pairs' stable positions in the source; in order where not given.
        num_samples: the size of the source, which is the number of rows a per-sample table needs.

    Raises:
        LimbeckError: no pairs, lengths that differ, scores that are not finite, or no room for a word.
    """

    def __init__(
        self,
        first: Sequence[str],
        second: Sequence[str],
        task: TextTask,
        *,
        scores: Tensor | None = None,
        hidden_scores: Tensor | None = None,
        indices: Tensor | None = None,
        num_samples: int | None = None,
    ) -> None:
        self.first, self.second, self.task = tuple(first), tuple(second), task
        self.scores = None if scores is None else scores.float()
        self.hidden_scores = None if hidden_scores is None else hidden_scores.float()
        self.indices = torch.arange(len(self.first)) if indices is None else indices
        self.num_samples = len(self.first) if num_samples is None else num_samples
        self._check()
        # Many pairs share sentences: each is encoded once.
        known = {text: row for row, text in enumerate(dict.fromkeys((*self.first, *self.second)))}
        room = task.max_length - 2
        rows = [[task.cls_id, *tokens[:room], task.sep_id] for tokens in task.encode(list(known))]
        self._ids, self._mask = task.pad(rows, task.max_length)
        self._a = torch.tensor([known[text] for text in self.first])
        self._b = torch.tensor([known[text] for text in self.second])

    def _check(self) -> None:
        count = len(self.first)
        if count == 0:
            raise LimbeckError("there are no pairs of sentences")
        parts = {"second sentences": self.second, "indices": self.indices}
        parts |= {"scores": self.scores, "hidden scores": self.hidden_scores}  # type: ignore[dict-item]  # None: none
        for name, part in parts.items():
            if part is not None and len(part) != count:
                raise LimbeckError(f"there are {count} first sentences but {len(part)} {name}: give one of each a pair")
        if self.scores is not None and not bool(self.scores.isfinite().all()):
            row = int((~self.scores.isfinite()).nonzero()[0])
            raise LimbeckError(
                f"the pair of index {int(self.indices[row])} has the score {float(self.scores[row])}; it must be finite"
            )
        if self.task.max_length < 3:
            raise LimbeckError(
                f"max_length is {self.task.max_length}; a sentence takes at least 3 tokens, [CLS] and [SEP] among them"
            )

    def fetch(self, positions: Tensor) -> Batch:
        """The pairs at ``positions``, int64 [B], as one batch.

        Returns:
            ``a_ids`` and ``b_ids`` int64 [B, L], ``a_mask`` and ``b_mask`` bool [B, L] (true where there is a
            token; L is the task's ``max_length``), ``index`` int64 [B], and where they are known ``score`` and
            ``hidden_score`` float32 [B].
        """
        a, b = self._a[positions], self._b[positions]
        batch = {
            "a_ids": self._ids[a],
            "a_mask": self._mask[a],
            "b_ids": self._ids[b],
            "b_mask": self._mask[b],
            "index": self.indices[positions],
        }
        for name, values in (("score", self.scores), ("hidden_score", self.hidden_scores)):
            if values is not None:
                batch[name] = values[positions]
        return batch

    @property
    def lengths(self) -> Tensor:
        """Tokens of both sentences together, int64 [N]."""
        each = self._mask.sum(1)
        return each[self._a] + each[self._b]

    def update_hash(self, digest: "hashlib._Hash") -> None:
        """Texts, tokenizer, scores and indices; not the hidden scores, which decide nothing."""
        digest.update(repr((self.task, self.num_samples)).encode())
        for text in (*self.first, *self.second):
            digest.update(f"{len(text)}:{text}".encode())
        for values in (self.indices, self.scores):
            digest.update(b"none" if values is None else values.numpy().tobytes())

    def subset(self, positions: Tensor) -> "PairSamples":
        """The pairs at ``positions``, int64 [K], with their indices.

        Raises:
            LimbeckError: there are none.
        """
        rows = positions.tolist()
        return self._of(
            [self.first[row] for row in rows],
            [self.second[row] for row in rows],
            self.indices[positions],
            None if self.scores is None else self.scores[positions],
            None if self.hidden_scores is None else self.hidden_scores[positions],
        )

    def relabel(self, scores: Tensor) -> "PairSamples":
        """The same pairs with other ``scores``, float [N]; the truth, as far as known, is hidden."""
        return self._of(self.first, self.second, self.indices, scores, self._truth())

    def unlabel(self) -> "PairSamples":
        """The same pairs without scores; the truth, as far as known, is hidden."""
        return self._of(self.first, self.second, self.indices, None, self._truth())

    def swapped(self) -> "PairSamples":
        """2N rows: every (a, b), then every (b, a) with the score and the index of its pair."""
        return self._of(
            [*self.first, *self.second],
            [*self.second, *self.first],
            torch.cat([self.indices, self.indices]),
            None if self.scores is None else torch.cat([self.scores, self.scores]),
            None if self.hidden_scores is None else torch.cat([self.hidden_scores, self.hidden_scores]),
        )

    def sentences(self) -> "PairSamples":
        """Every different sentence, in the order of first appearance, paired with itself; no scores.

        A source of its own: the indices count the sentences.
        """
        texts = list(dict.fromkeys(text for pair in zip(self.first, self.second, strict=True) for text in pair))
        return PairSamples(texts, texts, self.task)

    def encoded(self, task: TextTask) -> "PairSamples":
        """The same pairs for the tokenizer of another model; these themselves where it is the same."""
        if task == self.task:
            return self
        return PairSamples(
            self.first,
            self.second,
            task,
            scores=self.scores,
            hidden_scores=self.hidden_scores,
            indices=self.indices,
            num_samples=self.num_samples,
        )

    def _truth(self) -> Tensor | None:
        return self.scores if self.hidden_scores is None else self.hidden_scores

    def _of(
        self, first: Sequence[str], second: Sequence[str], indices: Tensor, scores: Tensor | None, hidden: Tensor | None
    ) -> "PairSamples":
        return PairSamples(
            first,
            second,
            self.task,
            scores=scores,
            hidden_scores=hidden,
            indices=indices,
            num_samples=self.num_samples,
        )


@dataclass(frozen=True)
class PairData(Data):
    """The pairs of one run; all splits are encoded for one tokenizer.

    Attributes:
        train: what is trained on: without scores where the method makes its own.
        validation: with gold scores, for choices.
        test: with gold scores, for the final numbers.
        unlabeled: further pairs without scores, where there are any.
        classes: none.
    """

    train: PairSamples
    validation: PairSamples
    test: PairSamples
    unlabeled: PairSamples | None = None
    classes: tuple[str, ...] = ()

    @property
    def task(self) -> TextTask:
        """The tokenizer and the longest sentence."""
        return self.train.task

    def encoded(self, task: TextTask) -> "PairData":
        """The same data for the tokenizer of another model; these themselves where it is the same."""
        if task == self.task:
            return self
        others = None if self.unlabeled is None else self.unlabeled.encoded(task)
        return PairData(self.train.encoded(task), self.validation.encoded(task), self.test.encoded(task), others)
