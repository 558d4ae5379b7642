"""The objective: what a fit optimises."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from limbeck.data.stream import Stream
from limbeck.errors import LimbeckError
from limbeck.losses.reduction import Mean
from limbeck.models.model import Model
from limbeck.stages.digest import is_plain
from limbeck.teachers.frozen import Frozen
from limbeck.teachers.stored import is_stored

if TYPE_CHECKING:
    from limbeck.stages.fit import Engine

Batch = Mapping[str, Tensor]
Terms = dict[str, Tensor | Mean]


@dataclass(frozen=True)
class Plan:
    """What a fit is going to do, handed to :meth:`Objective.begin`.

    Attributes:
        num_samples: rows that a per-sample table needs (``index`` runs from 0 to ``num_samples - 1``).
        num_classes: number of classes of the data.
        updates: total number of optimiser updates.
        epochs: total passes over the training samples (may be fractional).
        class_counts: labelled training samples of each class; empty where they are not known.
    """

    num_samples: int
    num_classes: int
    updates: int
    epochs: float
    class_counts: tuple[int, ...] = ()

    def class_sizes(self) -> Tensor:
        """``class_counts`` as int64 [C], for losses that divide by them or take their logarithm.

        Raises:
            LimbeckError: they are not known, or a class has no sample.
        """
        if not self.class_counts:
            raise LimbeckError("how many training samples each class has is not known: give Plan(class_counts=...)")
        if not all(self.class_counts):
            empty = [number for number, count in enumerate(self.class_counts) if not count]
            raise LimbeckError(
                f"of the {len(self.class_counts)} classes those number {empty} (from 0) have no labelled training "
                "sample, so that their share is 0: leave them out of the data"
            )
        return torch.tensor(self.class_counts)


class Objective(nn.Module):
    """A student, its teachers and its losses.

    A subclass sets ``self.student`` and writes :meth:`terms`; teachers that are modules (frozen, EMA, past
    predictions) are plain attributes. It works in anybody's own loop: call ``begin`` once, sum the terms,
    step, and call ``finish``. A paper with a single fit is this class and nothing else.
    """

    student: Model
    watched: bool = True
    """Whether :meth:`observe` calls functions at the present update; the engine of a fit says so."""
    progress: ClassVar[tuple[str, str]] = ("nll", "lower")
    """The validation metric that improves while the method learns, and its better direction."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Remember what the constructor was given: two objectives that differ in it are two different fits."""
        made = super().__new__(cls)
        parameters = inspect.signature(cls.__init__).bind_partial(made, *args, **kwargs).arguments
        made.__dict__["_given"] = {name: value for name, value in list(parameters.items())[1:] if is_plain(value)}
        return made

    @property
    def given(self) -> dict[str, Any]:
        """The plain arguments of the constructor, its hyperparameters, wherever it has put them."""
        found: dict[str, Any] = self.__dict__["_given"]
        return found

    def begin(self, plan: Plan) -> None:
        """Called once before the first update, and before a saved state is restored."""

    def terms(self, batch: Batch) -> Terms:
        """The named terms of the loss, already weighted: their sum is minimised.

        Args:
            batch: what the streams of :meth:`streams` give; of images ``image [B, C, H, W]`` (further views by
                name), ``label [B]`` (-1 where unlabelled), ``index [B]``, ``epoch [B]`` (from 0).

        Returns:
            Scalars (means over the batch) or :class:`~limbeck.losses.reduction.Mean` where only a part of
            the batch counts: sums and counts are then reduced over micro-batches and processes, exactly.
        """
        raise NotImplementedError(f"{type(self).__name__} has no terms")

    def forward(self, batch: Batch, terms: str = "terms") -> Terms:
        """``terms`` by name: the one door through which DDP, FSDP and autocast see every loss."""
        return getattr(self, terms)(batch)

    def step(self, batch: Batch, engine: "Engine") -> None:
        """One update. Override for several optimisers or a look-ahead; see :class:`Engine`."""
        engine.minimise(batch)

    def after_update(self, batch: Batch) -> None:
        """What belongs to an update: EMA, memories. ``batch`` also holds what :meth:`keep` was given."""

    def parameter_groups(self) -> dict[str, Iterable[nn.Parameter]]:
        """Parameters by optimiser; one optimiser, ``main``, over all that train unless overridden."""
        return {"main": (p for p in self.parameters() if p.requires_grad)}

    def trained(self) -> Model:
        """The model that is validated, measured and kept; the student, unless the paper keeps its average."""
        return self.student

    def summary(self) -> dict[str, float]:
        """Further numbers for ``result.json``, asked for after the last update."""
        return {}

    def streams(self, data: Any, batch_size: int, seed: int) -> Stream | dict[str, Stream]:
        """What the fit reads: by default the training samples in the training views of the method's data.

        Several streams are a dict: the batch is then a dict of batches under the same names.
        """
        return Stream(data.train, batch_size, seed, views=data.training_views, flip=data.flip)

    def teachers(self) -> dict[str, Frozen]:
        """Frozen teachers by name; they are measured before training and beside the student at the end.

        Stored labels are not among them: they say nothing of other samples.
        """
        frozen = {name: child for name, child in self.named_children() if isinstance(child, Frozen)}
        return {name: child for name, child in frozen.items() if not is_stored(child)}

    @torch.no_grad()
    def finish(self, batch: Batch) -> None:
        """Close an update: hand what :meth:`keep` was given over to :meth:`after_update`."""
        kept = {name: parts[0] if len(parts) == 1 else torch.cat(parts) for name, parts in self.kept.items()}
        self.after_update({**batch, **kept})
        self.kept.clear()
        self.observed.clear()

    def keep(self, **values: Tensor) -> None:
        """Hand values of ``terms``, one a sample or one a micro-batch (first dimension), over to ``after_update``."""
        for name, value in values.items():
            self.kept.setdefault(name, []).append(value.detach())

    def observe(self, **values: Tensor | Mean | Callable[[], Tensor | Mean]) -> None:
        """Log what is no loss: coverage and precision of pseudo labels, the state of a schedule.

        A ``Mean`` over nothing is left out of the log. A function is called at the updates that are watched, ten for
        each row of the log: for what costs as much as a small loss. Observing changes no result.
        """
        for name, value in values.items():
            if callable(value):
                if not self.watched:
                    continue
                value = value()
            self.observed.setdefault(name, []).append(value.detach())

    @property
    def observed(self) -> dict[str, list[Tensor | Mean]]:
        """What :meth:`observe` collected since the last update."""
        return self.__dict__.setdefault("_observed", {})

    @property
    def kept(self) -> dict[str, list[Tensor]]:
        """What :meth:`keep` collected since the last update, one entry a micro-batch."""
        return self.__dict__.setdefault("_kept", {})
