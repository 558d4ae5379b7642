"""Where pairs of sentences come from: SICK, the STS benchmark, and pairs that need no download."""

import json
import re
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

import numpy as np
import torch

from limbeck.data.pairs import PairData, PairSamples
from limbeck.data.places import existing
from limbeck.data.random import derive, permutation, uniforms
from limbeck.errors import LimbeckError
from limbeck.models.text_task import TextTask, words


def sick(
    seed: int,
    root: str = "$LIMBECK_DATA/sick",
    train_size: int | None = None,
    transductive: bool = False,
    vocabulary: int = 8000,
    max_length: int = 32,
) -> PairData:
    """SICK: 4,500 pairs for training, 500 for validation, 4,927 for the test; relatedness 1 to 5 as 0 to 1.

    Marelli et al., "A SICK cure for the evaluation of compositional distributional semantic models", LREC 2014.
    The scores of the training pairs are hidden.

    Args:
        seed: seed of the run; decides which pairs train_size keeps.
        root: folder that holds SICK_train.txt, SICK_trial.txt and SICK_test_annotated.txt.
        train_size: number of training pairs; null keeps all.
        transductive: train on the pairs of validation and test too, without their scores, as the paper of
            trans-encoder does.
        vocabulary: most tokens of the tokenizer, which knows the words of the training pairs.
        max_length: tokens of the longest sentence, [CLS] and [SEP] included.

    Raises:
        LimbeckError: a file is missing, or one that cannot be read.
    """
    names = ("SICK_train.txt", "SICK_trial.txt", "SICK_test_annotated.txt")
    parts = [_rows(Path(root) / name, _sick_row) for name in names]
    return _split(parts, seed, train_size, transductive, vocabulary, max_length)


def stsb(
    seed: int,
    root: str = "$LIMBECK_DATA/stsb-cc",
    train_size: int | None = None,
    transductive: bool = False,
    vocabulary: int = 8000,
    max_length: int = 32,
) -> PairData:
    """The STS benchmark, or other pairs in its form: scores 0 to 5 as 0 to 1.

    Cer et al., "SemEval-2017 Task 1", arXiv 1708.00055. The folder holds train.jsonl, dev.jsonl and test.jsonl with
    sentence1, sentence2 and score. A training row may lack the score, which is hidden anyway, and the second
    sentence, which is then the first one again.

    Args:
        seed: seed of the run; decides which pairs train_size keeps.
        root: the folder.
        train_size: number of training pairs; null keeps all.
        transductive: train on the pairs of validation and test too, without their scores, as the paper of
            trans-encoder does.
        vocabulary: most tokens of the tokenizer, which knows the words of the training pairs.
        max_length: tokens of the longest sentence, [CLS] and [SEP] included.

    Raises:
        LimbeckError: a file is missing, or one that cannot be read.
    """
    parts = [_rows(Path(root) / f"{name}.jsonl", _stsb_row) for name in ("train", "dev", "test")]
    return _split(parts, seed, train_size, transductive, vocabulary, max_length)


def description_pairs(seed: int, pairs: int = 600, vocabulary: int = 4000, max_length: int = 32) -> PairData:
    """Sentences of the descriptions of scikit-learn's own data sets, there without any download: for tests.

    The second sentence is the first one with a share of its words replaced by those of another sentence; the score
    is the overlap of the two sets of words (Jaccard). A tenth of the pairs is for validation, a fifth for the test.

    Args:
        seed: seed of the run; not used, the pairs are the same in every run.
        pairs: how many.
        vocabulary: most tokens of the tokenizer, which knows the words of the training pairs.
        max_length: tokens of the longest sentence, [CLS] and [SEP] included.

    Raises:
        LimbeckError: fewer than 20 pairs.
    """
    if pairs < 20:
        raise LimbeckError(f"pairs is {pairs}; description_pairs needs at least 20, to have two for validation")
    folder = resources.files("sklearn.datasets.descr")
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".rst")), key=lambda file: file.name)
    text = " ".join(file.read_text(encoding="utf-8") for file in files)
    found = (re.findall(r"[A-Za-z]+", part.lower()) for part in re.split(r"[.:;|]\s|\n\n|--+|==+", text))
    sentences = [words for words in found if 5 <= len(words) <= 25]
    rows = []
    for number in range(pairs):
        one, other = (
            sentences[int(draw * len(sentences))]
            for draw in uniforms(derive(0, "sentences"), np.array([number]), draws=2)[0]
        )
        swap, order = uniforms(derive(0, "words"), np.array([number]), draws=1)[0, 0], permutation(number, len(one))
        changed = {int(place) for place in order[: round(swap * len(one))]}
        second = [other[i % len(other)] if i in changed else word for i, word in enumerate(one)]
        overlap = len({*one} & {*second}) / len({*one} | {*second})
        rows.append((" ".join(one), " ".join(second), overlap))
    cuts = (pairs - pairs // 10 - pairs // 5, pairs - pairs // 5)
    return _split(
        [rows[: cuts[0]], rows[cuts[0] : cuts[1]], rows[cuts[1] :]], seed, None, False, vocabulary, max_length
    )


Row = tuple[str, str, float]
"""Sentence a, sentence b, score (NaN where unknown)."""


def _sick_row(line: str) -> Row | None:
    _, first, second, score, *_ = line.split("\t")
    return None if score == "relatedness_score" else (first, second, (float(score) - 1) / 4)


def _stsb_row(line: str) -> Row:
    row = json.loads(line)
    return row["sentence1"], row.get("sentence2", row["sentence1"]), float(row.get("score", "nan")) / 5


def _rows(path: Path, read: Callable[[str], Row | None]) -> list[Row]:
    file, rows = existing(path), []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = read(line) if line.strip() else None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LimbeckError(f"{file}, line {number}: no pair of sentences with a score ({error!r})") from None
        if row is not None:
            rows.append(row)
    return rows


def _split(
    parts: Sequence[Sequence[Row]],
    seed: int,
    train_size: int | None,
    transductive: bool,
    vocabulary: int,
    max_length: int,
) -> PairData:
    """The data of a run; training pairs that occur twice are taken once, by their texts."""
    pool = [row for part in parts for row in part] if transductive else parts[0]
    train = list({row[:2]: row for row in pool}.values())
    task = TextTask(words((text for first, second, _ in train for text in (first, second)), vocabulary), max_length)
    whole = _samples(train, task).unlabel()
    if train_size is not None:
        if not 1 <= train_size <= len(whole):
            raise LimbeckError(f"train_size is {train_size}; there are 1 to {len(whole)} training pairs to choose from")
        chosen = permutation(derive(seed, "train_size"), len(whole))[:train_size]
        whole = whole.subset(torch.from_numpy(np.sort(chosen)))
    return PairData(whole, _samples(parts[1], task), _samples(parts[2], task))


def _samples(rows: Sequence[Row], task: TextTask) -> PairSamples:
    first, second, numbers = zip(*rows, strict=True) if rows else ((), (), ())
    scores = torch.tensor(numbers)
    unknown = bool(scores.isnan().any())  # of training pairs only, where it is hidden anyway
    return PairSamples(
        first, second, task, scores=None if unknown else scores, hidden_scores=scores if unknown else None
    )
