"""Sequences of tokens for language models, and three sources of them."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.data.data import Batch, Data, Records
from limbeck.data.places import existing
from limbeck.data.random import derive, permutation
from limbeck.errors import LimbeckError
from limbeck.losses.tokens import IGNORED
from limbeck.models.hub import download
from limbeck.models.text_task import TextTask, characters, words

_PIECE = 4096
"""Characters, or texts, that are encoded at a time: one long text, or very many at once, take a lot of memory."""


class TokenSamples(Records):
    """Rows of tokens, each a piece of one long sequence, with their stable ``index``.

    Args:
        tokens: int [T], all tokens one after the other.
        starts: int64 [N], where each row begins.
        lengths: int64 [N], tokens of each row, at least 2: one to read and one to predict.
        pad_id: the token that fills shorter rows of a batch.
        given: int64 [N], leading tokens of a row that are not to be predicted (a prompt); default none.
        indices: int64 [N], the row's stable position in its source; default in order.
        num_samples: rows of the source; default N.

    Raises:
        LimbeckError: no rows, or a row that leaves nothing to predict.
    """

    def __init__(
        self,
        tokens: Tensor,
        starts: Tensor,
        lengths: Tensor,
        *,
        pad_id: int,
        given: Tensor | None = None,
        indices: Tensor | None = None,
        num_samples: int | None = None,
    ) -> None:
        if len(starts) == 0:
            raise LimbeckError("there are no rows of tokens")
        self.tokens, self.starts, self.lengths, self.pad_id = tokens.to(torch.int32), starts, lengths, pad_id
        self.given = torch.zeros_like(starts) if given is None else given
        self.indices = torch.arange(len(starts)) if indices is None else indices
        self.num_samples = len(starts) if num_samples is None else num_samples
        nothing = torch.nonzero((lengths < 2) | (self.given >= lengths))[:, 0]
        if len(nothing):
            at = int(nothing[0])
            raise LimbeckError(
                f"row {int(self.indices[at])} has {int(lengths[at])} tokens, {int(self.given[at])} of them given: it "
                "leaves nothing to predict"
            )

    def fetch(self, positions: Tensor) -> Batch:
        """The rows at ``positions``, int64 [B], padded on the right to the longest of them.

        Returns:
            ``input_ids`` int64 [B, L], ``labels`` int64 [B, L] (the tokens again, -100 where they are given or
            padding) and ``index`` int64 [B].
        """
        lengths = self.lengths.index_select(0, positions).unsqueeze(1)
        place = torch.arange(int(lengths.max()))
        inside = place < lengths
        at = self.starts.index_select(0, positions).unsqueeze(1) + place
        tokens = self.tokens[at.clamp(max=len(self.tokens) - 1)].long().masked_fill(~inside, self.pad_id)
        wanted = inside & (place >= self.given.index_select(0, positions).unsqueeze(1))
        return {
            "input_ids": tokens,
            "labels": tokens.masked_fill(~wanted, IGNORED),
            "index": self.indices.index_select(0, positions),
        }

    def update_hash(self, digest: "hashlib._Hash") -> None:
        """Add tokens, rows and indices."""
        digest.update(f"{len(self)} {self.num_samples} {self.pad_id}".encode())
        for values in (self.tokens, self.starts, self.lengths, self.given, self.indices):
            digest.update(values.contiguous().numpy().tobytes())


@dataclass(frozen=True)
class TextData(Data):
    """The texts of one run.

    Attributes:
        text: tokenizer and longest row.
    """

    train: TokenSamples
    validation: TokenSamples
    test: TokenSamples
    unlabeled: TokenSamples | None
    classes: tuple[str, ...]
    text: TextTask

    @property
    def task(self) -> TextTask:
        """Tokenizer and longest row."""
        return self.text

    def update_hash(self, digest: "hashlib._Hash") -> None:
        """Add the tokenizer, which gives the tokens their meaning."""
        super().update_hash(digest)
        digest.update(f"{self.text.max_length} {self.text.tokenizer}".encode())


def shakespeare(
    seed: int, length: int = 48, validation: float = 0.05, root: str = "$LIMBECK_DATA/tinyshakespeare"
) -> TextData:
    """Tiny Shakespeare by character: the first 90 % are for training, the last 10 % for the test.

    Args:
        seed: seed of the run; not used, the splits go by position.
        length: characters of a row; rows do not overlap.
        validation: share of the first 90 % that is held out, at their end.
        root: folder that holds input.txt; ``~`` and variables such as ``$LIMBECK_DATA`` are filled in.

    Raises:
        LimbeckError: no such folder, or too little text for the rows asked for.
    """
    file = existing(Path(root) / "input.txt")
    return by_character(file.read_text(encoding="utf-8"), length, validation)


def descriptions(seed: int, length: int = 48, validation: float = 0.05) -> TextData:
    """The descriptions of scikit-learn's own data sets by character: 43,000, there without any download.

    Args:
        seed: seed of the run; not used, the splits go by position.
        length: characters of a row; rows do not overlap.
        validation: share of the first 90 % that is held out, at their end.

    Raises:
        LimbeckError: too little text for the rows asked for.
    """
    folder = resources.files("sklearn.datasets.descr")
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".rst")), key=lambda file: file.name)
    return by_character("\n".join(file.read_text(encoding="utf-8") for file in files), length, validation)


def gsm8k(
    seed: int,
    length: int = 256,
    vocabulary: int | None = 4000,
    tokenizer: str | None = None,
    mask_prompt: bool = True,
    validation: float = 0.05,
    train_size: int | None = None,
    root: str = "$LIMBECK_DATA/gsm8k",
) -> TextData:
    """Grade-school mathematics, question and worked answer.

    Args:
        seed: seed of the run: which problems are held out for validation, and which are kept of the rest.
        length: tokens of the longest row; longer problems are left out.
        vocabulary: words of a tokenizer made from the training problems; null makes one of characters.
        tokenizer: used instead: a file tokenizer.json, or a repository of the Hugging Face hub that holds one.
        mask_prompt: whether only the answer is to be predicted, or the question too.
        validation: share of the training problems that is held out.
        train_size: training problems that are kept; default all.
        root: folder that holds train.jsonl and test.jsonl; variables such as ``$LIMBECK_DATA`` are filled in.

    Raises:
        LimbeckError: no such folder, a file that is not what it should be, or no problem is short enough.
    """
    parts = {part: _problems(existing(Path(root) / f"{part}.jsonl")) for part in ("train", "test")}
    order = permutation(derive(seed, "validation"), len(parts["train"]))
    count = check_share(validation, len(parts["train"]))
    held_out, kept = sorted(order[:count].tolist()), sorted(order[count:][:train_size].tolist())
    train = [parts["train"][at] for at in kept]
    if tokenizer is not None:
        text = read_tokenizer(tokenizer)
    elif vocabulary is None:
        text = characters(side for pair in train for side in pair)
    else:
        text = words((side for pair in train for side in pair), vocabulary)
    return prompts_and_responses(
        train,
        [parts["train"][at] for at in held_out],
        parts["test"],
        task=TextTask(text, length),
        mask_prompt=mask_prompt,
    )


def by_character(text: str, length: int, validation: float) -> TextData:
    """A text cut into rows of ``length`` characters: train, validation and test one after the other.

    The tokenizer knows the characters of the training part.

    Raises:
        LimbeckError: too little text for a row in each part.
    """
    end = int(0.9 * len(text))
    middle = end - check_share(validation, end)
    cut = {"train": text[:middle], "validation": text[middle:end], "test": text[end:]}
    shortest = min(len(part) for part in cut.values())
    if not 2 <= length <= shortest:
        raise LimbeckError(f"length is {length}; it must be from 2 to {shortest}, the characters of the smallest part")
    task = TextTask(characters([cut["train"]]), length)
    parts = {}
    for name, part in cut.items():
        pieces = [part[at : at + _PIECE] for at in range(0, len(part), _PIECE)]
        tokens = torch.tensor([token for piece in task.encode(pieces) for token in piece])
        starts = torch.arange(0, len(tokens) - length + 1, length)
        parts[name] = TokenSamples(tokens, starts, torch.full_like(starts, length), pad_id=task.pad_id)
    return TextData(parts["train"], parts["validation"], parts["test"], None, (), task)


def prompts_and_responses(
    train: Sequence[tuple[str, str]],
    validation: Sequence[tuple[str, str]],
    test: Sequence[tuple[str, str]],
    *,
    task: TextTask,
    mask_prompt: bool,
    response_length: int | None = None,
) -> TextData:
    """Rows of prompt, response and end token; what is longer than the task's rows is left out, as in TAID's code.

    Args:
        train: prompts with their responses.
        validation: the same for validation.
        test: the same for the final numbers.
        task: tokenizer and longest row.
        mask_prompt: whether only responses are to be predicted.
        response_length: tokens of the longest response; default any.

    Raises:
        LimbeckError: nothing is short enough.
    """
    made = [
        _rows(part, task, mask_prompt, response_length, name)
        for name, part in (("training", train), ("validation", validation), ("test", test))
    ]
    return TextData(made[0], made[1], made[2], None, (), task)


def read_tokenizer(source: str) -> str:
    """A tokenizer as JSON text: from a file tokenizer.json, or from a repository of the Hugging Face hub.

    Raises:
        LimbeckError: there is no such file or repository.
    """
    if source.endswith(".json"):
        return existing(source).read_text(encoding="utf-8")
    return (download(source, ("tokenizer.json",)) / "tokenizer.json").read_text(encoding="utf-8")


def check_share(validation: float, available: int) -> int:
    """How many of ``available`` are held out.

    Raises:
        LimbeckError: none, or all.
    """
    count = round(validation * available)
    if not 0 < count < available:
        raise LimbeckError(f"validation is {validation}; it must be a share above 0 and below 1 of {available}")
    return count


def _rows(
    pairs: Sequence[tuple[str, str]], task: TextTask, mask_prompt: bool, response_length: int | None, name: str
) -> TokenSamples:
    longest = task.max_length if response_length is None else response_length
    rows: list[NDArray[np.int32]] = []
    given, kept = [], []
    for first in range(0, len(pairs), _PIECE):
        piece = pairs[first : first + _PIECE]
        prompts, responses = task.encode([prompt for prompt, _ in piece]), task.encode([answer for _, answer in piece])
        for at, (prompt, response) in enumerate(zip(prompts, responses, strict=True), start=first):
            if len(prompt) + len(response) < task.max_length and len(response) < longest:
                rows.append(np.asarray([*prompt, *response, task.eos_id], dtype=np.int32))
                given.append(len(prompt))
                kept.append(at)
    if not kept:
        raise LimbeckError(f"none of the {len(pairs)} {name} texts fits into {task.max_length} tokens: raise length")
    lengths = torch.tensor([len(row) for row in rows])
    return TokenSamples(
        torch.from_numpy(np.concatenate(rows)),
        lengths.cumsum(0) - lengths,
        lengths,
        pad_id=task.pad_id,
        given=torch.tensor(given) if mask_prompt else None,
        indices=torch.tensor(kept),
        num_samples=len(pairs),
    )


def _problems(file: Path) -> list[tuple[str, str]]:
    problems = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            problems.append((f"Question: {row['question']}\nAnswer: ", str(row["answer"])))
        except (ValueError, KeyError, TypeError):
            raise LimbeckError(f"{file}, line {number}: expected a JSON object with question and answer") from None
    return problems
