"""What a model that scores pairs of sentences does on data it is not trained on."""

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from limbeck.data.pairs import PairData, PairSamples
from limbeck.errors import LimbeckError
from limbeck.metrics import cost
from limbeck.metrics.similarity import summary
from limbeck.models.text_encoder import TextEncoder
from limbeck.stages.evaluation.shipped import as_shipped
from limbeck.stages.files import write_atomically

SCORES = "similarity.safetensors"
"""Scores of the test pairs: ``score`` and ``gold`` float32 [N], ``index`` int64 [N], and ``TEACHER_score``."""


def predict_scores(
    model: nn.Module, samples: PairSamples, batch_size: int = 256, device: torch.device | str | None = None
) -> Tensor:
    """The score of every pair, float32 [N] on the CPU, in the order of the pairs.

    Args:
        model: a :class:`~limbeck.models.text_encoder.TextEncoder`, or a frozen one; it reads the pairs through its
            own tokenizer.
        samples: what to score.
        batch_size: pairs a forward pass.
        device: where to compute; by default where the model is. The model ends where it was.

    Raises:
        LimbeckError: the model does not score pairs, or gives scores that are not numbers.
    """
    encoder = getattr(model, "model", model)  # inside of a frozen teacher
    if not isinstance(encoder, TextEncoder):
        raise LimbeckError(f"a {type(encoder).__name__} does not score pairs of sentences: use a bi- or cross-encoder")
    own = samples.encoded(encoder.spec)
    # Pairs of like lengths together: less padding to compute.
    order = own.lengths.argsort(stable=True)
    scores = torch.empty(len(own))
    with as_shipped(model, device) as place:
        for positions in order.split(batch_size):
            batch = {name: value.to(place) for name, value in own.fetch(positions).items()}
            scores[positions] = model(batch).score.float().cpu()
    broken = ~scores.isfinite()
    if broken.any():
        raise LimbeckError(
            f"the model gives NaN or infinite scores for {int(broken.sum())} of {len(samples)} pairs, first for index "
            f"{int(samples.indices[broken][0])}: broken weights, or diverged training"
        )
    return scores


def quality(scores: Tensor, samples: PairSamples) -> dict[str, float]:
    """What :func:`limbeck.metrics.similarity.summary` says about scores of labelled pairs.

    Raises:
        LimbeckError: pairs without a gold score.
    """
    if samples.scores is None:
        raise LimbeckError("the pairs have no gold scores, and metrics need them")
    return summary(scores, samples.scores)


def validate(model: nn.Module, data: PairData, device: torch.device) -> dict[str, float]:
    """Correlations (and AUC) on the validation pairs, during training."""
    return quality(predict_scores(model, data.validation, device=device), data.validation)


def report(
    model: nn.Module, teachers: Mapping[str, nn.Module], data: PairData, folder: Path, device: torch.device
) -> dict[str, float]:
    """The metrics of student and teachers; writes ``similarity.safetensors`` into ``folder``."""
    test = predict_scores(model, data.test, device=device)
    metrics = quality(test, data.test)
    metrics |= {f"validation/{name}": value for name, value in validate(model, data, device).items()}
    metrics["parameters"] = float(cost.parameters(model))
    others = {name: predict_scores(teacher, data.test, device=device) for name, teacher in teachers.items()}
    for name, scores in others.items():
        metrics |= {f"{name}/{key}": value for key, value in quality(scores, data.test).items()}
    every = {"score": test, **{f"{name}_score": scores for name, scores in others.items()}}
    write_scores(folder / SCORES, data.test, every)
    return metrics


def write_scores(path: Path, samples: PairSamples, scores: Mapping[str, Tensor]) -> None:
    """Write scores of pairs, with the gold scores as far as known, for the report page."""
    gold = samples.hidden_scores if samples.scores is None else samples.scores
    tensors = {**scores, "index": samples.indices, **({} if gold is None else {"gold": gold})}
    content = safetensors.torch.save({name: value.contiguous() for name, value in tensors.items()})
    write_atomically(path, lambda part: part.write_bytes(content))
