"""What every model has in common, whatever its task: how it was built, so that it can be saved and loaded."""

from typing import Any, ClassVar, Protocol

from torch import nn


class Spec(Protocol):
    """What a model is built for (classes and images, a vocabulary ...): a frozen dataclass of plain data."""

    @property
    def __dataclass_fields__(self) -> dict[str, Any]: ...


class Model(nn.Module):
    """A student or a teacher: takes a batch (a dict of tensors) and returns a small named tuple of its task.

    Args:
        spec: what it is built for; written beside the weights, so that loading can build it again.

    Attributes:
        task: which evaluation measures it (:mod:`limbeck.stages.evaluation.index`).
        classes: names of the classes; empty where the task has none.
        factory: name under which :func:`limbeck.models.build` made it; None for a module of your own.
        arguments: the arguments of that factory, as plain data.
    """

    task: ClassVar[str]

    def __init__(self, spec: Spec | None) -> None:
        super().__init__()
        self.spec = spec
        self.classes: tuple[str, ...] = tuple(getattr(spec, "classes", ()))
        self.factory: str | None = None
        self.arguments: dict[str, Any] = {}
