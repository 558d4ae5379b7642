"""LLP-BP: belief propagation makes labels of proportions."""

import copy
import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from limbeck.data.bags import BagData
from limbeck.data.rows import TableData
from limbeck.data.stream import Stream
from limbeck.errors import LimbeckError
from limbeck.labels.neighbours import Kernel
from limbeck.labels.types import Labels
from limbeck.losses.divergence import cross_entropy, soft_cross_entropy
from limbeck.metrics.pseudo_labels import precision
from limbeck.models.table_classifier import TableClassifier
from limbeck.stages.fit import Fit
from limbeck.stages.objective import Batch, Objective, Terms
from limbeck.stages.propagate import Propagate, Propagated, Propagation
from limbeck.stages.score import Score, Table
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Program


class PseudoLabelled(Objective):
    """Cross-entropy with the hard pseudo labels of rows. ``facts`` go into the result."""

    progress: ClassVar[tuple[str, str]] = ("auc", "higher")

    def __init__(self, student: TableClassifier, facts: Mapping[str, float]) -> None:
        super().__init__()
        self.student = student
        self.facts = dict(facts)

    def terms(self, batch: Batch) -> Terms:
        """The mean over rows."""
        return {"ce": self.of_rows(self.student(batch).logits, batch)}

    def of_rows(self, logits: Tensor, batch: Batch) -> Tensor:
        """Mean cross-entropy of logits [*batch, 2] with the pseudo labels."""
        if "hidden_label" in batch:
            self.observe(precision=precision(Labels(batch["label"]), batch["hidden_label"]))
        return cross_entropy(logits, batch["label"])

    def summary(self) -> dict[str, float]:
        """What is known of the pseudo labels."""
        return self.facts


class EmbeddingRefinement(PseudoLabelled):
    """The same on whole bags, and the proportions of each bag from the mean embedding of its rows.

        mean_i CE(yhat_i, f(x_i)) + lambda_a mean_B CE(y_B / |B|, g(mean_{i in B} e(x_i))),

    g a hidden layer of 64 ReLUs; its gradient reaches the embedding.
    """

    def __init__(self, student: TableClassifier, facts: Mapping[str, float], lambda_a: float) -> None:
        super().__init__(student, facts)
        self.lambda_a = lambda_a
        self.aggregate = nn.Sequential(nn.Linear(student.num_features, 64), nn.ReLU(), nn.Linear(64, 2))

    def streams(self, data: BagData, batch_size: int, seed: int) -> Stream:
        """Whole bags; ``batch_size`` counts rows."""
        return data.train.stream(batch_size, seed)

    def terms(self, batch: Batch) -> Terms:
        """The term of the rows and that of the bags."""
        output = self.student(batch)
        proportions = self.aggregate(output.features.mean(dim=-2))
        return {
            "ce": self.of_rows(output.logits, batch),
            "aggregate": self.lambda_a * soft_cross_entropy(proportions, batch["proportion"]),
        }


class Embedding(nn.Module):
    """The embedding of rows, ``features`` [B, F]."""

    def __init__(self, model: TableClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Mapping[str, Tensor]) -> Table:
        """The column of a batch."""
        return {"features": self.model({"row": batch["row"]}).features}


class LLPBP:
    """Counts of bags and likeness of rows become labels by belief propagation, from which a network learns, twice.

    Source: Havaldar, Sharma, Sareen, Shanmugam, Raghuveer, "Learning from Label Proportions: Bootstrapping Supervised
    Learners via Belief Propagation", arXiv 2310.08056 (ICLR 2024); equations read off the released code and from
    memory of the paper. Binary labels y of all rows have the distribution

        P(y) ~ exp(-lambda_b sum_B (sum_{i in B} y_i - y_B)^2 - lambda_s sum_{(i,j)} K(f_i, f_j) (y_i - y_j)^2)

    over the edges between k nearest neighbours. Sum-product gives p_i = P(y_i = 1) (stage ``propagate-1``), and with
    the labels 1[p_i >= tau] a network is trained on whole bags (``refine-1``), see :class:`EmbeddingRefinement`. Its
    embedding takes the place of the standardised features f in the second round (``embed-1``, ``propagate-2``). The
    labels of the last round train the student (``fit``).

    Differs from the released code, which does not run as it is: the aggregate term, left out there by a mistake of
    names; one architecture serves both networks (there the head of the first one lies a layer lower); two logits in the
    place of one. Its rule that only rows of bags with at most one positive have edges of their own is
    ``max_positives=1``. Strong couplings within bags make messages swing for ever: ``change`` and ``converged`` are in
    the result of each propagation. ``counts="cardinality"`` (not in the paper) joins each bag by one exact factor in
    the place of a dense graph: another approximation, which converges where that does not, and cheaper for large bags.

    Args:
        data: bags.
        student: the classifier; also the architecture of the network that is trained for its embedding.
        fit: of both trainings; ``batch_size`` counts rows (paper: Adam 1e-3, 1024 rows, best by validation AUC).
        rounds: how many times labels are propagated; with 1 there is no embedding.
        lambda_s: weight of the neighbours.
        lambda_b: weight of the counts.
        k: neighbours a row.
        tau: probability from which on a row is positive.
        delta: cosine distance from which on neighbours have no edge; 2 is no limit.
        lambda_a: weight of the aggregate term.
        kernel: matern, exp(-d), or rbf, exp(-d^2 / 2), of the Euclidean distance.
        counts: an edge for every pair within a bag, or one cardinality factor a bag.
        max_positives: rows of bags with more positives look for no neighbours; null: all do.
        iterations: of sum-product, at most.
        damping: share of the old message that is kept.
    """

    def __init__(
        self,
        data: BagData,
        student: TableClassifier,
        fit: FitSettings,
        rounds: int = 2,
        lambda_s: float = 10.0,
        lambda_b: float = 10.0,
        k: int = 5,
        tau: float = 0.5,
        delta: float = 2.0,
        lambda_a: float = 0.1,
        kernel: Kernel = "matern",
        counts: Literal["pairwise", "cardinality"] = "pairwise",
        max_positives: int | None = None,
        iterations: int = 100,
        damping: float = 0.5,
    ) -> None:
        if rounds < 1:
            raise LimbeckError(f"rounds is {rounds}; it must be at least 1")
        if not 0 < tau < 1:
            raise LimbeckError(f"tau is {tau}; it must lie between 0 and 1")
        if not lambda_a >= 0:
            raise LimbeckError(f"lambda_a is {lambda_a}; it must be at least 0")
        self.data, self.student, self.fit = data, student, fit
        self.rounds, self.tau, self.lambda_a = rounds, tau, lambda_a
        self.how = Propagation(lambda_s, lambda_b, k, delta, kernel, counts, max_positives, iterations, damping)

    def program(self) -> Program:
        """Propagate, refine the embedding, propagate again; then train the student."""
        data, rows = self.data, self.data.train.instances()
        features = (rows.rows - torch.tensor(data.task.mean)) / torch.tensor(data.task.std)
        facts: dict[str, float] = {}
        for number in range(1, self.rounds + 1):
            found: Propagated = yield Propagate(f"propagate-{number}", features, data.train, self.how)
            facts |= {f"propagation/{name}-{number}": value for name, value in found.metrics.items()}
            bags = data.train.relabel((found.probabilities >= self.tau).long())
            if number == self.rounds:
                break
            network = EmbeddingRefinement(copy.deepcopy(self.student), facts, self.lambda_a)
            model = yield Fit(f"refine-{number}", network, dataclasses.replace(data, train=bags), self.fit)
            table: Table = yield Score(f"embed-{number}", Embedding(model), rows, self.fit)
            features = table["features"]
        facts |= {f"propagation/{name}": value for name, value in found.metrics.items()}
        labelled = TableData(bags.instances(), data.validation, data.test, None, data.classes)
        return (yield Fit("fit", PseudoLabelled(self.student, facts), labelled, self.fit))
