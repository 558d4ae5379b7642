"""What every kind of data has in common: rows by position, and the sets of them that a run needs."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from limbeck.errors import LimbeckError

Batch = dict[str, Tensor]


class Records(Dataset[dict[str, Any]]):
    """Samples by position, map-style, each with its stable ``index``.

    A subclass sets the attributes and writes :meth:`fetch` and :meth:`update_hash`; one whose samples can be
    augmented writes :meth:`augment` and :meth:`check_view` too.

    Attributes:
        indices: int64 [N], the sample's stable position in the source data set.
        num_samples: the size of the source, which is the number of rows a per-sample table needs.
    """

    indices: Tensor
    num_samples: int

    def __len__(self) -> int:
        return len(self.indices)

    def fetch(self, positions: Tensor) -> Batch:
        """The samples at ``positions``, int64 [B], as one batch without augmentation.

        Returns:
            Tensors whose first dimension is the batch, ``index`` among them; all fresh memory.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot fetch")

    def augment(self, batch: Batch, views: Mapping[str, str], *, seed: int, epochs: Tensor, flip: bool) -> Batch:
        """A fetched batch with its views: key in the batch -> name of a view.

        What is random about a view depends on (seed, epoch, index, full name of the view) only.

        Args:
            batch: what :meth:`fetch` returned.
            views: which views, under which keys.
            seed: the seed of the run.
            epochs: int64 [B].
            flip: whether views may mirror.
        """
        return batch

    def check_view(self, view: str) -> None:
        """Refuse a view that these samples do not have.

        Raises:
            LimbeckError: there is no such view.
        """
        raise LimbeckError(f"{type(self).__name__} has no views, so none called {view!r}")

    def update_hash(self, digest: "hashlib._Hash") -> None:
        """Add to a hash all that decides a training on these samples."""
        raise NotImplementedError(f"{type(self).__name__} has no hash")


@dataclass(frozen=True)
class Data:
    """The data of one run.

    Attributes:
        train: what is trained on, with labels.
        validation: for settings and choices.
        test: for the final numbers.
        unlabeled: what is trained on without labels, where there is any.
        classes: the names of the classes; empty where there are none.
    """

    train: Records
    validation: Records
    test: Records
    unlabeled: Records | None
    classes: tuple[str, ...]

    @property
    def task(self) -> Any:
        """What a model needs to know of the data: the first argument of every builder."""
        raise NotImplementedError(f"{type(self).__name__} does not say what a model is built for")

    @property
    def training_views(self) -> Mapping[str, str]:
        """The views of plain supervised training: key in the batch -> name of the view."""
        return {}

    @property
    def flip(self) -> bool:
        """Whether a mirrored sample is still one of its class."""
        return False

    @property
    def class_counts(self) -> tuple[int, ...]:
        """Labelled training samples of each class; empty where there are no classes to count."""
        return ()

    @property
    def long_tailed(self) -> bool:
        """Whether some classes have clearly more labelled training samples than others, and none is without.

        The largest has at least twice the samples of the smallest, and more than it by five standard deviations of the
        difference of two Poisson numbers: a small draw of even classes is often as uneven as the first.
        """
        most, least = max(self.class_counts, default=0), min(self.class_counts, default=0)
        return least > 0 and most >= 2 * least and most - least > 5 * math.sqrt(most + least)

    def update_hash(self, digest: "hashlib._Hash") -> None:
        """Add to a hash what decides a training beside the samples themselves."""
        digest.update(f"{type(self).__name__} {self.classes} {dict(self.training_views)} {self.flip}".encode())


@dataclass(frozen=True)
class ViewedData(Data):
    """The data of one run whose images plain supervised training sees in one view.

    Attributes:
        view: the augmentation of training images, a name of :mod:`limbeck.data.views`.
        flip: whether views may mirror images.
    """

    view: str = "weak"
    flip: bool = False

    @property
    def training_views(self) -> Mapping[str, str]:
        """``image`` in the view of plain supervised training."""
        return {"image": self.view}
