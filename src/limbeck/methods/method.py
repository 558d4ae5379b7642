"""Methods: short programs that yield stages and receive their artefacts."""

import copy
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch

from limbeck.data.data import Data
from limbeck.models.model import Model
from limbeck.stages.fit import Fit
from limbeck.stages.objective import Objective
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Program
from limbeck.teachers.frozen import Frozen
from limbeck.teachers.stored import Stored


class Method(Protocol):
    """Anything with a program; its return value is the model that is kept."""

    def program(self) -> Program:
        """Yield stages; each ``yield`` gives back the stage's artefact."""


class Ready:
    """A teacher that exists: its program has no stages.

    Args:
        model: the trained model.
    """

    def __init__(self, model: Model) -> None:
        self.model = model

    def program(self) -> Program:
        """Nothing is left to do."""
        return self.model
        yield

    def sketch(self) -> Model:
        """The model itself."""
        return self.model


class SingleFit:
    """The method of a paper with one fit: its objective is all there is.

    Args:
        objective: class of the objective.
        arguments: its hyperparameters.
        models: its models by argument, made when the fit begins.
        teachers: its teachers by argument; each may have stages of its own, which run first.
        data: what the student is trained, validated and tested on.
        fit: how it is trained.
    """

    def __init__(
        self,
        objective: type[Objective],
        arguments: Mapping[str, Any],
        models: Mapping[str, Callable[[], Model]],
        teachers: Mapping[str, "Ready | Nested"],
        data: Data,
        fit: FitSettings,
    ) -> None:
        self.objective = objective
        self.arguments = arguments
        self.models = models
        self.teachers = teachers
        self.data = data
        self.fit = fit

    def program(self) -> Program:
        """Train the teachers that need it, then the student; with stored labels on the views that were labelled."""
        if any(not isinstance(teacher, Ready) for teacher in self.teachers.values()):
            self.sketch()  # what is wrong with the arguments is said before a teacher is trained
        data = self.data
        models = {name: make() for name, make in self.models.items()}
        teachers = {}
        for name, method in self.teachers.items():
            model = yield from method.program()
            if isinstance(model, Stored):
                data = model.replay(data)
            teachers[name] = Frozen(model, classes=data.classes)
        objective = self.objective(**models, **teachers, **self.arguments)
        return (yield Fit("fit", objective, data, self.fit))

    def sketch(self) -> Model | None:
        """What the program would return, but nothing is trained; None where only a teacher's program knows what it is.

        Raises:
            LimbeckError: the arguments, or models and teachers, do not go together.
        """
        with torch.random.fork_rng(devices=[]):
            models = {name: copy.deepcopy(make()) for name, make in self.models.items()}
            teachers = {}
            for name, method in self.teachers.items():
                model = method.sketch()
                if model is None:
                    return None
                teachers[name] = Frozen(model, classes=self.data.classes)
            return self.objective(**models, **teachers, **self.arguments).trained()


class Nested:
    """A method as an ingredient of another one: its stages have its name before theirs, as in ``teacher-fit``.

    Args:
        name: what the outer method calls it.
        method: the method.
    """

    def __init__(self, name: str, method: Method) -> None:
        self.name = name
        self.method = method

    def program(self) -> Program:
        """The method's own program."""
        program = self.method.program()
        artefact = None
        while True:
            try:
                stage = program.send(artefact)
            except StopIteration as finished:
                return finished.value
            stage.name = f"{self.name}-{stage.name}"
            artefact = yield stage

    def sketch(self) -> Model | None:
        """See :func:`sketch`."""
        return sketch(self.method)


def sketch(method: Method) -> Model | None:
    """What a method's program would return, but nothing is trained; None where only the program knows what it is.

    Raises:
        LimbeckError: as far as it is known by then, what the program would raise after long work.
    """
    known = getattr(method, "sketch", None)
    return None if known is None else known()
