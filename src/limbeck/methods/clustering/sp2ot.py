"""SP2OT: clustering by transport that gives similar samples similar clusters."""

from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.data.samples import ImageData
from limbeck.errors import LimbeckError
from limbeck.labels.assign.semantic import among, semantic_transport, similar_samples
from limbeck.methods.clustering.p2ot import P2OT
from limbeck.methods.clustering.self_labelling import SelfLabelling
from limbeck.models.classifier import Classifier
from limbeck.models.clusterer import Clusterer
from limbeck.stages.settings import FitSettings


class SemanticSelfLabelling(SelfLabelling):
    """Self-labelling by semantic transport; see SP2OT for the arguments."""

    place: Tensor
    neighbours: Tensor
    similarities: Tensor

    def __init__(
        self,
        student: Clusterer,
        data: ImageData,
        lambda_0: float,
        schedule: Literal["decay", "constant"],
        neighbours: int,
        width: float,
        shift: bool,
        steps: int,
        tolerance: float,
        momentum: float,
        **options: Any,
    ) -> None:
        super().__init__(student, data, **options)
        self.lambda_0, self.schedule = lambda_0, schedule
        self.linearisation: dict[str, Any] = {"shift": shift, "max_steps": steps}
        self.linearisation |= {"tolerance": tolerance, "momentum": momentum}
        positions, similarities = similar_samples(self.features, neighbours, width)
        place = torch.zeros(self.samples.num_samples, dtype=torch.int64)
        place[self.samples.indices] = torch.arange(len(self.samples))
        for name, value in (("place", place), ("neighbours", positions), ("similarities", similarities)):
            self.register_buffer(name, value, persistent=False)

    @property
    def strength(self) -> float:
        """``lambda_t``."""
        return self.lambda_0 if self.schedule == "constant" else self.lambda_0 * (1 - self.rho)

    def assign(self, cost: Tensor, rows: Tensor, index: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """The plan [N, K] for one head, and its column potentials; ``index`` [N] says which samples the rows are."""
        # Empty rows of the bank (index -1) have no weight: wherever they seem to be, their part of the plan is 0.
        positions, similarities = among(self.neighbours, self.similarities, self.place[index])
        found = semantic_transport(
            cost,
            self.epsilon,
            positions,
            similarities,
            self.strength,
            gamma=self.gamma,
            mass=self.rho,
            rows=rows,
            start=start,
            **self.linearisation,
        )
        return found.transport.plan, found.transport.potential


class SP2OT(P2OT):
    """P2OT with a semantic regulariser: samples that were similar before the training share their clusters.

    Source: Zhang, Ren, He, "SP2OT: Semantic-Regularized Progressive Partial Optimal Transport for Imbalanced
    Clustering", arXiv 2404.03446 (2024), as released; of the paper the abstract was read. To P2OT's objective comes

        - lambda_t <S, Q Q^T>,   S_ij = exp(-||f_i - f_j||^2 / (2 width^2 D)),   lambda_t = lambda_0 (1 - rho_t),

    with the first features f of the training images (dimension D), a zero diagonal and the 20 largest entries of each
    row. It is minimised by linearisation (:func:`limbeck.labels.assign.semantic.semantic_transport`), at most 100
    steps, until the objective changes by less than 1e-6; where similarities are strong it may take all steps and
    alternate. The rest is P2OT's, with one head. lambda_0 belongs to a bank of 5,120 samples: a row of Q is as large as
    1 / N, so a smaller bank wants a smaller lambda_0 in proportion.

    Differs from the released code: its stopping test leaves the divergence of cluster sizes out of the objective.

    Args:
        data: see P2OT.
        student: see P2OT.
        fit: see P2OT.
        pretraining: see P2OT.
        clusters: see P2OT.
        epsilon: see P2OT.
        gamma: see P2OT.
        rho_0: see P2OT.
        bank: see P2OT.
        heads: see P2OT.
        scale: see P2OT.
        trainable: see P2OT.
        view: see P2OT.
        select: see P2OT.
        lambda_0: weight of the regulariser at rho = 0; 0 is P2OT.
        schedule: lambda falls with 1 - rho, or stays.
        neighbours: entries of S in each row.
        width: of the kernel.
        steps: linearisations at most in each transport (they need not converge).
        tolerance: of the objective, below whose change they stop.
        momentum: share of the new plan in the next one, in (0, 1].
        shift: make S positive semi-definite, so that no step can raise the objective (ours).
    """

    def __init__(
        self,
        data: ImageData,
        student: Classifier,
        fit: FitSettings,
        pretraining: FitSettings | None = None,
        clusters: int | None = None,
        epsilon: float = 0.1,
        gamma: float = 1.0,
        rho_0: float = 0.1,
        bank: int = 10,
        heads: int = 1,
        scale: float = 10.0,
        trainable: list[str] | None = None,
        view: str = "crop",
        select: Literal["loss", "last"] = "loss",
        lambda_0: float = 1000.0,
        schedule: Literal["decay", "constant"] = "decay",
        neighbours: int = 20,
        width: float = 2.0,
        steps: int = 100,
        tolerance: float = 1e-6,
        momentum: float = 1.0,
        shift: bool = False,
    ) -> None:
        options: dict[str, Any] = {"clusters": clusters, "epsilon": epsilon, "gamma": gamma, "rho_0": rho_0}
        options |= {"bank": bank, "heads": heads, "scale": scale, "trainable": trainable, "view": view}
        super().__init__(data, student, fit, pretraining, select=select, **options)
        if lambda_0 < 0 or neighbours < 1 or not width > 0:
            raise LimbeckError(
                f"lambda_0 is {lambda_0}, neighbours {neighbours} and width {width}; expected lambda_0 >= 0, "
                "neighbours >= 1 and width > 0"
            )
        if steps < 1 or not tolerance > 0 or not 0 < momentum <= 1:
            raise LimbeckError(
                f"steps is {steps}, tolerance {tolerance} and momentum {momentum}; expected steps >= 1, tolerance > 0 "
                "and momentum in (0, 1]"
            )
        self.semantic: dict[str, Any] = {"lambda_0": lambda_0, "schedule": schedule, "neighbours": neighbours}
        self.semantic |= {"width": width, "steps": steps, "tolerance": tolerance, "momentum": momentum, "shift": shift}

    def objective(self, student: Clusterer) -> SelfLabelling:
        """What the fit optimises."""
        return SemanticSelfLabelling(student, self.data, **self.semantic, **self.options)
