"""Which unlabelled images a student is distilled on: those that a teacher is surest of, the same number a class."""

import dataclasses
from collections.abc import Mapping

from torch import Tensor, nn

from limbeck.data.samples import ImageData
from limbeck.errors import LimbeckError
from limbeck.labels.select import most_confident_per_class
from limbeck.labels.types import Labels, TopK
from limbeck.stages.score import Score
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Program
from limbeck.teachers.frozen import Frozen


class BestClass(nn.Module):
    """The most probable class of every sample, ``class`` [B], and its probability, ``score`` [B].

    Args:
        reference: a classifier.
    """

    def __init__(self, reference: Frozen) -> None:
        super().__init__()
        self.reference = reference

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Both columns of a batch."""
        score, best = self.reference(batch).logits.float().softmax(dim=-1).max(dim=-1)
        return {"score": score, "class": best}


def choose_transfer_set(
    data: ImageData, reference: Frozen, k: int, duplicates: Tensor, settings: FitSettings
) -> Program:
    """Score the unlabelled images (stage ``score``) and keep of each class the k with the highest score.

    Args:
        data: with unlabelled images.
        reference: names a class for every image; its classes are those of the data.
        k: images a class, at most.
        duplicates: images to leave out whatever their score, bool [N].
        settings: of the fit that they are chosen for; they are scored where it runs.

    Returns:
        The data with the chosen images as the unlabelled ones, and numbers about the choice: ``pool/size``,
        ``pool/duplicates``, ``selected/size`` and, where the truth is hidden in them, the share of images of no class
        in ``pool/outliers`` and ``selected/outliers``.

    Raises:
        LimbeckError: every image is a duplicate.
    """
    pool = data.unlabeled
    assert pool is not None
    said = yield Score("score", BestClass(reference), pool, settings)
    best = TopK(said["class"].long()[:, None], said["score"].log()[:, None], 1 - said["score"])
    labels = most_confident_per_class(Labels(best).weighted(~duplicates), k)
    kept = labels.weights.nonzero()[:, 0]
    if not len(kept):
        raise LimbeckError(f"all {len(pool)} unlabelled images are marked as duplicates of others; none is left")
    chosen = pool.subset(kept)
    counts = {"pool/size": len(pool), "pool/duplicates": int(duplicates.sum()), "selected/size": len(chosen)}
    scores = {name: float(count) for name, count in counts.items()}
    for name, samples in (("pool", pool), ("selected", chosen)):
        if samples.hidden_labels is not None:
            scores[f"{name}/outliers"] = float((samples.hidden_labels < 0).float().mean())
    return dataclasses.replace(data, unlabeled=chosen), scores
