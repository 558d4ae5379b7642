"""A teacher whose batch normalisation looks at the batch that it labels."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from limbeck.errors import LimbeckError
from limbeck.models.classifier import ClassifierOutput
from limbeck.teachers.frozen import Frozen


class BatchStatistics(Frozen):
    """Batch-specific soft labels: normalised by the statistics of the current batch (CV-DD, arXiv 2501.07575).

    Only batch normalisation is in training mode: dropout stays off, which the released code leaves on. Running
    statistics are not touched (there they move, so that its teachers must not be used again).

    Args:
        model: as of :class:`~limbeck.teachers.frozen.Frozen`.
        classes: as of :class:`~limbeck.teachers.frozen.Frozen`.
        parts: equal parts in which a batch is passed, one after the other, as a student sees it whose batches are
            split into as many micro-batches.

    Raises:
        LimbeckError: parts below one, or as of :class:`~limbeck.teachers.frozen.Frozen`.
    """

    def __init__(self, model: nn.Module, classes: Sequence[str] | None = None, parts: int = 1) -> None:
        if parts < 1:
            raise LimbeckError(f"parts is {parts}; it must be at least 1")
        super().__init__(model, classes)
        self.parts = parts
        self.layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]

    @torch.no_grad()
    def forward(self, batch: Mapping[str, Tensor] | Tensor) -> ClassifierOutput:
        """Logits ``[B, C]`` and features, part by part.

        Raises:
            LimbeckError: parts of less than two images, whose statistics say nothing, or not equal.
        """
        images = batch if isinstance(batch, Tensor) else batch["image"]
        if len(images) % self.parts or len(images) < 2 * self.parts:
            raise LimbeckError(
                f"a batch of {len(images)} images cannot be labelled with the statistics of {self.parts} equal parts "
                f"of at least 2; use a batch size that is a multiple of {2 * self.parts}"
            )
        with self._of_the_batch():
            found = [super(BatchStatistics, self).forward(part) for part in images.chunk(self.parts)]
        features = [output.features for output in found if output.features is not None]
        return ClassifierOutput(
            torch.cat([output.logits for output in found]), torch.cat(features) if len(features) == len(found) else None
        )

    @contextmanager
    def _of_the_batch(self) -> Iterator[None]:
        """Batch normalisation that neither uses nor moves its running statistics."""
        before = [(layer, layer.training, layer.track_running_stats) for layer in self.layers]
        try:
            for layer in self.layers:
                layer.training, layer.track_running_stats = True, False
            yield
        finally:
            for layer, training, tracks in before:
                layer.training, layer.track_running_stats = training, tracks
