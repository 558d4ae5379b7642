"""Images with a probability for every class: one-hot where the label is known, what a teacher said where it is not."""

import hashlib
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from limbeck.data.data import Batch
from limbeck.data.samples import Samples, concat
from limbeck.errors import LimbeckError
from limbeck.labels.types import one_hot


class SoftSamples(Samples):
    """Samples whose batches hold ``target`` float32 [B, C] beside what they hold anyway.

    Args:
        samples: the images; their labels stay what they are, -1 where there is none.
        targets: float32 [N, C], probabilities.

    Raises:
        LimbeckError: another number of targets than of samples or classes, or numbers that are no probabilities.
    """

    def __init__(self, samples: Samples, targets: Tensor) -> None:
        super().__init__(**samples.arguments)
        expected = [len(samples), len(samples.classes)]
        if list(targets.shape) != expected:
            raise LimbeckError(f"targets have shape {list(targets.shape)}, expected {expected} (samples, classes)")
        wrong = ~((targets >= 0).all(1) & ((targets.sum(1) - 1).abs() < 1e-3))
        if wrong.any():
            at = int(wrong.nonzero()[0])
            raise LimbeckError(f"the target of index {int(self.indices[at])} is no probability: {targets[at].tolist()}")
        self.targets = targets.float()

    @classmethod
    def labelled(cls, samples: Samples) -> Self:
        """Samples with their own labels as targets.

        Raises:
            LimbeckError: one of them has no label.
        """
        if (samples.labels < 0).any():
            index = int(samples.indices[samples.labels < 0][0])
            raise LimbeckError(f"the training data has no label at index {index} (-1); leave out what has none")
        return cls(samples, one_hot(samples.labels, len(samples.classes), torch.float32))

    def joined(self, samples: Samples, targets: Tensor) -> Self:
        """These samples and after them others with their ``targets``; see :func:`limbeck.data.samples.concat`."""
        return type(self)(concat([self, samples]), torch.cat([self.targets, targets.float()]))

    def fetch(self, positions: Tensor) -> Batch:
        """The samples at ``positions``, with their targets."""
        return {**super().fetch(positions), "target": self.targets.index_select(0, positions)}

    def subset(self, positions: Tensor | Sequence[int]) -> "SoftSamples":
        """The samples at ``positions``, with their indices and targets."""
        at = torch.as_tensor(positions, dtype=torch.int64)
        return SoftSamples(super().subset(at), self.targets[at])

    def update_hash(self, digest: "hashlib._Hash") -> None:
        """Add images, labels and targets."""
        super().update_hash(digest)
        digest.update(self.targets.numpy().tobytes())
