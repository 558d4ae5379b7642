"""What a language model does on text it is not trained on, and what it writes itself."""

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.data.stream import eval_batches
from limbeck.data.text import TextData, TokenSamples
from limbeck.errors import LimbeckError
from limbeck.losses.tokens import IGNORED
from limbeck.metrics import cost
from limbeck.metrics.language import distinct_n, perplexity, token_nll
from limbeck.models.causal_lm import CausalLM
from limbeck.stages.evaluation.shipped import as_shipped
from limbeck.stages.files import write_json

ROWS = 64
"""Rows of a forward pass."""
SAMPLES, PROMPT, NEW, GRAM, SHOWN = 128, 16, 32, 5, 8
"""Continuations that are sampled, tokens of prompt and continuation, n of distinct n-grams, continuations kept."""
FILE = "samples.json"


def validate(model: nn.Module, data: TextData, device: torch.device) -> dict[str, float]:
    """``token_nll`` (nats) and ``perplexity`` on the validation split."""
    return _quality(model, data.validation, device)


def report(
    model: nn.Module, teachers: Mapping[str, nn.Module], data: TextData, folder: Path, device: torch.device
) -> dict[str, float]:
    """The final numbers of student and teachers, and samples of what they write.

    ``token_nll`` and ``perplexity`` are those of the test split. Up to 128 of its rows give a prompt of 16 tokens
    each (less in short rows), which every model continues by 32 tokens at temperature 1, always with the same
    draws: ``distinct_5`` is the share of different 5-grams, ``teacher_nll`` the first teacher's NLL of the
    student's tokens. The first eight go into ``samples.json``.
    """
    metrics = _measure(model, data, device)
    for name, teacher in teachers.items():
        metrics |= {f"{name}/{key}": value for key, value in _measure(teacher, data, device).items()}
    prompts = _prompts(data.test)
    new = min(NEW, data.task.max_length - prompts.shape[1])
    written = {"student": _generate(model, prompts, new, device)}
    written |= {name: _generate(teacher, prompts, new, device) for name, teacher in teachers.items()}
    if new >= GRAM:
        metrics["distinct_5"] = distinct_n(written["student"][:, -new:].tolist(), GRAM)
    for teacher in islice(teachers.values(), 1):
        metrics["teacher_nll"] = _nll_of(teacher, written["student"], prompts.shape[1], device)
    decode = data.task.decode
    rows = [
        {"prompt": decode(prompt), **{name: decode(rows[at, len(prompt) :]) for name, rows in written.items()}}
        for at, prompt in enumerate(prompts[:SHOWN])
    ]
    write_json(folder / FILE, {"format_version": 1, "samples": rows})
    return metrics


def _measure(model: nn.Module, data: TextData, device: torch.device) -> dict[str, float]:
    metrics = _quality(model, data.test, device)
    metrics |= {f"validation/{name}": value for name, value in _quality(model, data.validation, device).items()}
    return metrics | {"parameters": float(cost.parameters(model))}


def _quality(model: nn.Module, samples: TokenSamples, device: torch.device) -> dict[str, float]:
    total = count = 0.0
    with as_shipped(model, device) as place:
        for batch in eval_batches(samples, ROWS):
            projection = model({"input_ids": batch["input_ids"].to(place)}).projection
            mean = token_nll(projection, batch["labels"].to(place))
            total, count = total + float(mean.total), count + float(mean.count)
    nll = total / count
    if nll != nll:
        raise LimbeckError("the model gives logits that are not numbers: broken weights, or diverged training")
    return {"token_nll": nll, "perplexity": perplexity(nll)}


def _prompts(samples: TokenSamples) -> Tensor:
    """The first tokens of evenly spaced rows, int64 [N, P]: what every model continues."""
    length = min(PROMPT, max(1, int(samples.lengths.max()) // 3))
    long_enough = torch.nonzero(samples.lengths >= length)[:, 0]
    chosen = torch.linspace(0, len(long_enough) - 1, min(SAMPLES, len(long_enough))).long()
    return samples.fetch(long_enough[chosen])["input_ids"][:, :length]


def _generate(model: nn.Module, prompts: Tensor, new: int, device: torch.device) -> Tensor:
    body: Any = getattr(model, "model", model)  # what a frozen teacher holds
    assert isinstance(body, CausalLM)
    with as_shipped(body, device) as place:
        return body.generate(prompts.to(place), new, torch.Generator().manual_seed(0)).cpu()


def _nll_of(model: nn.Module, rows: Tensor, prompt: int, device: torch.device) -> float:
    labels = rows.clone()
    labels[:, :prompt] = IGNORED
    with as_shipped(model, device) as place:
        return float(token_nll(model({"input_ids": rows.to(place)}).projection, labels.to(place)).value)
