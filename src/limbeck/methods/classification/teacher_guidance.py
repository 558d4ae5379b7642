"""Self-distillation over generations, with the ground truth as guidance."""

import itertools
from collections.abc import Generator, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from limbeck.data.samples import ImageData, Samples
from limbeck.data.stream import Stream
from limbeck.errors import LimbeckError
from limbeck.labels.refine import optimal_mix_weight
from limbeck.labels.types import one_hot
from limbeck.losses.feature import mse
from limbeck.losses.penalty import norm_penalty
from limbeck.losses.reduction import Mean
from limbeck.models.classifier import Classifier
from limbeck.models.twin import twin
from limbeck.stages.evaluation import predict_logits, quality
from limbeck.stages.fit import Fit
from limbeck.stages.objective import Batch, Objective, Terms
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Program
from limbeck.teachers.frozen import Frozen


class GuidedStep(Objective):
    """One generation: ``alpha MSE(p, y) + (1 - alpha) MSE(p, t) + rho sum_l ||W_l||_2``.

    p and t are the probabilities of student and teacher on the same view, MSE is the mean over samples and classes.
    ``scores`` of earlier steps go into the result beside this one's.
    """

    student: Classifier
    progress: ClassVar[tuple[str, str]] = ("brier", "lower")

    def __init__(
        self,
        student: Classifier,
        teacher: Frozen | None,
        alpha: float,
        rho: float,
        step: int,
        scores: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher
        self.alpha, self.rho, self.step_number = alpha, rho, step
        self.scores = tuple((scores or {}).items())  # plain data: part of what decides the result

    def streams(self, data: ImageData, batch_size: int, seed: int) -> Stream | dict[str, Stream]:
        """The training samples in their view."""
        self._data = data
        return super().streams(data, batch_size, seed)

    def terms(self, batch: Batch) -> Terms:
        """Squared errors of the probabilities, and the norms of the weights."""
        given = None if self.teacher is None else self.teacher(batch).logits.float().softmax(dim=-1)
        predicted = self.student(batch).logits.float().softmax(dim=-1)

        labelled = batch["label"] >= 0
        truth = one_hot(batch["label"], predicted.shape[-1], predicted.dtype)
        terms: Terms = {"truth": Mean.of(mse(predicted, truth, reduction="none"), labelled).times(self.alpha)}
        if given is not None:
            terms["teacher"] = (1 - self.alpha) * mse(predicted, given)
        return {**terms, "norms": self.rho * norm_penalty(p for p in self.student.parameters() if p.requires_grad)}

    def summary(self) -> dict[str, float]:
        """What the generations did: test metrics of each, the best of them, and how confident each was."""
        scores = {**dict(self.scores), **step_scores(self.student, self._data, self.step_number)}
        accuracy, confidence = (
            [scores[f"step-{n}/{name}"] for n in range(1, self.step_number + 1) if f"step-{n}/{name}" in scores]
            for name in ("accuracy", "confidence")
        )
        rises = [after - before for before, after in itertools.pairwise(confidence)]
        return {
            **scores,
            "best_step/accuracy": max(accuracy),
            **({"confidence/largest_rise": max(rises)} if rises else {}),
        }


def step_scores(model: Classifier, data: ImageData, step: int) -> dict[str, float]:
    """Test accuracy and Brier score of a generation, and its mean largest probability on the training samples."""
    test = quality(predict_logits(model, data.test))
    confidence = float(_probabilities(model, data.train).amax(-1).mean())
    found = {"accuracy": test["accuracy"], "brier": test["brier"], "confidence": confidence}
    return {f"step-{step}/{name}": value for name, value in found.items()}


def _probabilities(model: Classifier, samples: Samples) -> Tensor:
    return predict_logits(model, samples).logits.softmax(dim=-1)


class TeacherGuidance:
    """The same network again and again, from new weights, learns from the truth and from its predecessor.

    Source: Borup, Andersen, "Even your Teacher Needs Guidance: Ground-Truth Targets Dampen Regularization Imposed by
    Self-Distillation", arXiv 2102.13088 (NeurIPS 2021). Step 1 is the plain fit, alpha = 1. Step t > 1 starts from new
    first weights, with the last weights f_{t-1} of the step before as frozen teacher: with p = softmax(z),
    t = softmax(z_teacher) of the same view and y = onehot(label),

        L = alpha MSE(p, y) + (1 - alpha) MSE(p, t) + rho sum_l ||W_l||_2,

    MSE the mean over samples and classes, norms not squared, over all weights that train. Pure self-distillation
    (alpha 0) regularises more and more and collapses; the ground truth stops that. In kernel ridge regression all of it
    is exact: :mod:`limbeck.models.kernel_ridge`.

    Estimated weight: a network is trained with alpha 0 first; with its probabilities v and those u of f_1 on the
    validation data, ``alpha* = <y - v, u - v> / ||u - v||^2`` in [0, 1], and then the step is trained with alpha*.
    The rule is derived from linearity (exact for kernels), its use for networks is a reconstruction. A grid search
    trains a network for each weight instead, takes the weight of the least squared error on the validation data, and
    then trains the step in the same way; one that keeps its best network saves one fit a step.

    Differs from the released code: the teacher is in eval mode (there Lightning puts it into training mode, so that it
    uses batch statistics and moves its running ones), samples are shuffled (there the order is fixed), and held-out
    data are not the test data.

    Args:
        data: training, validation and test images.
        student: trained in step 1; later steps have new weights of the same architecture.
        fit: of every step (released code: Adam 1e-4, batches of 16, 75 epochs).
        steps: generations, the plain fit included.
        alpha: weight of the ground truth from step 2 on (0.6: the example of the released code), "estimated" in each
            step, or from a "grid" search in each step.
        rho: weight of the norms.
        grid: weights that a grid search tries, evenly spaced from 0 to 1.
    """

    def __init__(
        self,
        data: ImageData,
        student: Classifier,
        fit: FitSettings,
        steps: int = 5,
        alpha: float | Literal["estimated", "grid"] = 0.6,
        rho: float = 1e-4,
        grid: int = 5,
    ) -> None:
        if steps < 1:
            raise LimbeckError(f"steps is {steps}; it must be at least 1")
        if not isinstance(alpha, str) and not 0 <= alpha <= 1:
            raise LimbeckError(f"alpha is {alpha}; it must lie between 0 and 1")
        if not rho >= 0:
            raise LimbeckError(f"rho is {rho}; it must be 0 or more")
        if grid < 2:
            raise LimbeckError(f"grid is {grid}; it must be at least 2, the ends 0 and 1")
        with torch.random.fork_rng(devices=[]):
            twin(student)  # refused now, if at all, not after the first step
        self.data, self.student, self.fit, self.steps = data, student, fit, steps
        self.alpha, self.rho, self.grid = alpha, rho, grid

    def program(self) -> Program:
        """The plain fit, then step after step, each with a search for its weight where one is asked for."""
        scores = {"fits": 1.0}
        objective = GuidedStep(self.student, None, 1.0, self.rho, 1, scores)
        first = model = yield Fit("step-1", objective, self.data, self.fit)
        for step in range(2, self.steps + 1):
            scores |= step_scores(model, self.data, step - 1)
            alpha, searched = yield from self.weight(step, first, model)
            scores |= {f"step-{step}/alpha": alpha, "fits": scores["fits"] + searched + 1}
            model = yield self.distil(f"step-{step}", step, model, alpha, scores)
        return model

    def distil(
        self, name: str, step: int, teacher: Classifier, alpha: float, scores: Mapping[str, float] | None = None
    ) -> Fit:
        """A new network that learns from the truth and from ``teacher``."""
        objective = GuidedStep(twin(self.student), Frozen(teacher, self.data.classes), alpha, self.rho, step, scores)
        return Fit(name, objective, self.data, self.fit)

    def weight(self, step: int, first: Classifier, teacher: Classifier) -> Generator[Any, Any, tuple[float, int]]:
        """The weight of the ground truth in a step, and how many fits it took to find it."""
        if not isinstance(self.alpha, str):
            return float(self.alpha), 0
        held_out = self.data.validation
        if self.alpha == "estimated":
            pure = yield self.distil(f"step-{step}-alpha-0", step, teacher, 0.0)
            u, v = _probabilities(first, held_out), _probabilities(pure, held_out)
            return float(optimal_mix_weight(held_out.labels, u, v)), 1
        errors: dict[float, float] = {}
        for alpha in torch.linspace(0, 1, self.grid, dtype=torch.float64).tolist():
            tried = yield self.distil(f"step-{step}-alpha-{alpha:g}", step, teacher, alpha)
            errors[alpha] = quality(predict_logits(tried, held_out))["brier"]
        return min(errors, key=errors.__getitem__), self.grid
