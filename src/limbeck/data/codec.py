"""Labels in few bytes: what of a teacher's logits is kept, and in which numbers (arXiv 2112.01528, section 3.3)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.labels.types import TopK, to_dense, top_k

Kept = Literal["dense", "top_k", "hard"]
Storage = Literal["float32", "float16", "uint8"]
Tail = Literal["smooth", "renormalize"]
Columns = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Codec:
    """How logits [B, C] become columns of numbers, and what comes back.

    - ``dense``: all logits. In uint8 a row's logits are 256 even steps between its smallest and its largest: off by
      half a step, (max - min) / 510, at most.
    - ``top_k``: the k most probable classes and their probabilities, in uint8 as 255ths.
    - ``hard``: the most probable class.

    Args:
        kept: see above.
        num_classes: C.
        storage: type of the logits or probabilities.
        k: classes kept by ``top_k``, in [1, C].

    Raises:
        LimbeckError: k out of range.
    """

    kept: Kept
    num_classes: int
    storage: Storage = "float16"
    k: int = 0

    def __post_init__(self) -> None:
        if self.kept == "top_k" and not 1 <= self.k <= self.num_classes:
            raise LimbeckError(f"top_k is {self.k}; it must lie between 1 and the {self.num_classes} classes")

    @property
    def columns(self) -> dict[str, tuple[np.dtype[Any], int]]:
        """Name, type and numbers a row of each column."""
        values, index = np.dtype(self.storage), _index_type(self.num_classes)
        if self.kept == "hard":
            return {"classes": (index, 1)}
        if self.kept == "top_k":
            return {"classes": (index, self.k), "probabilities": (values, self.k)}
        steps = {"low": (np.dtype("float32"), 1), "step": (np.dtype("float32"), 1)}
        return {"logits": (values, self.num_classes), **(steps if self.storage == "uint8" else {})}

    def encode(self, logits: Tensor) -> dict[str, NDArray[Any]]:
        """Columns [B, width] of logits [B, C].

        Raises:
            LimbeckError: a logit that is not finite, or too large for the storage (naming the row of the batch).
        """
        logits = logits.detach().float().cpu()
        if self.kept == "dense" and self.storage != "uint8":
            with np.errstate(over="ignore"):  # refused below, by name
                stored = logits.numpy().astype(self.storage)
            _check_finite(stored, self.storage)
            return {"logits": stored}
        _check_finite(logits.numpy(), "float32")
        if self.kept == "dense":
            return _steps(logits.numpy())
        kept = top_k(logits.softmax(-1), 1 if self.kept == "hard" else self.k)
        classes = {"classes": kept.indices.numpy().astype(_index_type(self.num_classes))}
        if self.kept == "hard":
            return classes
        probabilities = kept.log_probs.exp().numpy()
        scaled = np.rint(probabilities * 255) if self.storage == "uint8" else probabilities
        return {**classes, "probabilities": scaled.astype(self.storage)}

    def decode(self, columns: Columns, tail: Tail = "smooth") -> Tensor:
        """Logits float32 [B, C]; where only probabilities were kept their logarithms, -inf for a probability of 0.

        Args:
            columns: as :meth:`encode` gave them.
            tail: of ``top_k``: what is missing to 1 goes to the other classes evenly (marginal smoothing), or the k
                are divided by their sum (marginal renormalisation).
        """
        if self.kept == "dense":
            logits = columns["logits"].astype(np.float32)
            return torch.from_numpy(logits * columns["step"] + columns["low"] if self.storage == "uint8" else logits)
        indices = torch.from_numpy(columns["classes"].astype(np.int64))
        probabilities = torch.ones(indices.shape)
        if self.kept == "top_k":
            probabilities = torch.from_numpy(columns["probabilities"].astype(np.float32))
            probabilities = probabilities / 255 if self.storage == "uint8" else probabilities
        sums = probabilities.sum(-1)
        # Rounded probabilities may sum to more than 1: then nothing is left for the others.
        rest = (1 - sums).clamp(min=0) if tail == "smooth" and self.k < self.num_classes else torch.zeros_like(sums)
        probabilities = probabilities / (sums + rest)[:, None]
        return to_dense(TopK(indices, probabilities.log(), rest / (sums + rest)), self.num_classes).log()


def _index_type(count: int) -> np.dtype[Any]:
    return np.dtype("uint8" if count <= 1 << 8 else "uint16" if count <= 1 << 16 else "int32")


def _steps(logits: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    low = logits.min(1, keepdims=True)
    step = (logits.max(1, keepdims=True) - low) / 255
    codes = np.rint((logits - low) / np.where(step > 0, step, 1))
    return {"logits": codes.astype(np.uint8), "low": low, "step": step}


def _check_finite(values: NDArray[Any], storage: str) -> None:
    wrong = ~np.isfinite(values).all(1)
    if wrong.any():
        raise LimbeckError(
            f"a logit of label {int(wrong.argmax())} of the batch is not finite in {storage}: a broken teacher"
            + (", or take storage float32" if storage == "float16" else "")
        )
