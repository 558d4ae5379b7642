"""Belief propagation: what neighbours and counts together say about binary labels.

One model, ``log P(y) = sum_i theta_i y_i + sum_(i,j) theta_ij y_i y_j - sum_B strength (sum_(i in B) y_i - count_B)^2
+ const`` for y in {0, 1}^N, and one solver for it, damped sum-product with a parallel schedule. Everything is kept as
log-odds (state 1 against state 0), in float64.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.labels.cardinality import cardinality_messages


class Field(NamedTuple):
    """A pairwise model of binary variables.

    Attributes:
        unary: theta_i, float64 [N].
        edges: positions (i, j) with i < j, each pair once, int64 [E, 2].
        coupling: theta_ij, which counts where both are 1, float64 [E].
    """

    unary: Tensor
    edges: Tensor
    coupling: Tensor


class Counts(NamedTuple):
    """How many of each bag are positive: exact cardinality factors of a model.

    Attributes:
        members: positions of the variables of each bag, int64 [B, n]; -1 for a place that is empty.
        counts: int64 [B].
        strength: of ``exp(-strength (sum - count)^2)``, >= 0.
    """

    members: Tensor
    counts: Tensor
    strength: float


class Beliefs(NamedTuple):
    """What sum-product found.

    Attributes:
        log_odds: of y_i = 1, float64 [N].
        iterations: how many were made.
        change: the largest change of a message in the last of them, before damping, in log-odds.
        converged: whether that is at most the tolerance.
    """

    log_odds: Tensor
    iterations: int
    change: float
    converged: bool

    @property
    def probabilities(self) -> Tensor:
        """``P(y_i = 1)``, float64 [N]."""
        return self.log_odds.sigmoid()


def smoothness(
    nodes: int, edges: Int[Tensor, "edges 2"], weights: Float[Tensor, " edges"], strength: float | int
) -> Field:
    """``-strength sum_(i,j) w_ij (y_i - y_j)^2`` as unary and pairwise terms.

    Args:
        nodes: N.
        edges: [E, 2], each pair once.
        weights: w >= 0, [E].
        strength: lambda_s >= 0.

    Raises:
        LimbeckError: as of :func:`join`.
    """
    scaled = strength * weights.double()
    unary = scaled.new_zeros(nodes).index_add_(0, edges[:, 0], -scaled).index_add_(0, edges[:, 1], -scaled)
    return join(Field(unary, edges, 2 * scaled))


def count_pairs(
    nodes: int, members: Int[Tensor, "bags size"], counts: Int[Tensor, " bags"], strength: float | int
) -> Field:
    """``-strength sum_B (sum_(i in B) y_i - count_B)^2`` as unary terms and an edge for every pair within a bag.

    Equal to the cardinality factor up to a constant; sum-product on it, whose graph is full of short cycles, is not.

    Args:
        nodes: N.
        members: as of :class:`Counts`; no variable twice in a bag.
        counts: [B].
        strength: lambda_b >= 0.

    Raises:
        LimbeckError: as of :func:`join`.
    """
    there = members >= 0
    values = (-strength * (1.0 - 2.0 * counts.double()))[:, None].expand(members.shape)
    unary = torch.zeros(nodes, dtype=torch.float64, device=members.device).index_add_(0, members[there], values[there])
    first, second = torch.triu_indices(members.shape[1], members.shape[1], 1, device=members.device)
    pairs = torch.stack([members[:, first], members[:, second]], dim=-1).flatten(0, 1)
    pairs = pairs[(pairs >= 0).all(-1)]
    return join(Field(unary, pairs, unary.new_full((len(pairs),), -2.0 * strength)))


def join(*fields: Field) -> Field:
    """The sum of models of the same variables; couplings of a pair that occurs more than once are added up.

    Raises:
        LimbeckError: none is given, their numbers of variables differ, an edge from a variable to itself, or positions
            that are none.
    """
    if not fields or len({len(field.unary) for field in fields}) != 1:
        raise LimbeckError("a model is the sum of models of the same variables, at least one")
    nodes = len(fields[0].unary)
    edges = torch.cat([field.edges for field in fields]).sort(dim=-1).values
    if len(edges) and (int(edges.min()) < 0 or int(edges.max()) >= nodes):
        raise LimbeckError(f"edges join positions from {int(edges.min())} to {int(edges.max())} of {nodes} variables")
    if (edges[:, 0] == edges[:, 1]).any():
        raise LimbeckError("an edge joins a variable with itself")
    keys, place = (edges[:, 0] * nodes + edges[:, 1]).unique(return_inverse=True)
    coupling = torch.cat([field.coupling.double() for field in fields])
    merged = coupling.new_zeros(len(keys)).index_add_(0, place, coupling)
    pairs = torch.stack([keys // max(nodes, 1), keys % max(nodes, 1)], dim=-1)
    return Field(torch.stack([field.unary.double() for field in fields]).sum(0), pairs, merged)


def propagate(
    field: Field,
    counts: Counts | None = None,
    *,
    iterations: int = 100,
    damping: float | int = 0.5,
    tolerance: float | int = 1e-6,
) -> Beliefs:
    """Damped sum-product (loopy belief propagation): marginals, exact where the graph of the factors is a tree.

    All messages of an iteration are made from those of the one before: from i to j along an edge
    ``log(1 + e^(a + theta_ij)) - log(1 + e^a)``, with a the log-odds of i without what j said; those of counts by
    :func:`limbeck.labels.cardinality.cardinality_messages`. Each is moved to ``damping m_old + (1 - damping) m_new``;
    first messages are 0. Strong couplings on a graph with cycles make messages swing for ever: then ``converged`` is
    False, and the beliefs depend on the number of iterations. Memory is linear in edges and members.

    Args:
        field: unary and pairwise terms.
        counts: cardinality factors, where there are any; a variable may be in several bags.
        iterations: at most, >= 1.
        damping: in [0, 1).
        tolerance: stop when no message changes by more, >= 0; 0 makes all the iterations (or comes to a fixed point).

    Raises:
        LimbeckError: numbers out of range, positions that are none, or a count that no bag can have.
    """
    if iterations < 1 or not 0 <= damping < 1 or not tolerance >= 0:
        raise LimbeckError(
            f"iterations is {iterations}, damping {damping} and tolerance {tolerance}; they must be at least 1, in "
            "[0, 1) and at least 0"
        )
    solver = _SumProduct(field, counts, 1.0 - damping)
    change = 0.0
    for number in range(iterations):
        change = float(solver.iterate())
        if change <= tolerance:
            return Beliefs(solver.beliefs(), number + 1, change, True)
    return Beliefs(solver.beliefs(), iterations, change, False)


class _SumProduct:
    """The messages, and one iteration of them."""

    def __init__(self, field: Field, counts: Counts | None, step: float) -> None:
        self.field, self.counts, self.step = field, counts, step
        self.unary, self.coupling = field.unary.double(), field.coupling.double()
        self.first, self.second = field.edges[:, 0].contiguous(), field.edges[:, 1].contiguous()
        self.to_second, self.to_first = torch.zeros_like(self.coupling), torch.zeros_like(self.coupling)
        if counts is not None:
            members = counts.members
            if members.numel() and not -1 <= int(members.min()) <= int(members.max()) < len(self.unary):
                raise LimbeckError(f"bags hold positions up to {int(members.max())} of {len(self.unary)} variables")
            self.there: Bool[Tensor, "bags size"] = members >= 0
            self.of_counts = self.unary.new_zeros(members.shape)

    def beliefs(self) -> Float[Tensor, " nodes"]:
        """Log-odds of all variables under the messages as they are."""
        found = self.unary.clone()
        found.index_add_(0, self.second, self.to_second).index_add_(0, self.first, self.to_first)
        if self.counts is not None:
            found.index_add_(0, self.counts.members[self.there], self.of_counts[self.there])
        return found

    def iterate(self) -> Float[Tensor, ""]:
        """Every message once; returns the largest change before damping."""
        beliefs = self.beliefs()
        # Both are made before either is moved.
        to_second = _message(beliefs[self.first] - self.to_first, self.coupling)
        to_first = _message(beliefs[self.second] - self.to_second, self.coupling)
        changes = [self._move(self.to_second, to_second), self._move(self.to_first, to_first)]
        if self.counts is not None:
            cavity = beliefs[self.counts.members.clamp(min=0)] - self.of_counts
            cavity = cavity.masked_fill(~self.there, -torch.inf)
            found = cardinality_messages(cavity, self.counts.counts, self.counts.strength)
            changes.append(self._move(self.of_counts, found.masked_fill(~self.there, 0.0)))
        return torch.stack(changes).amax()

    def _move(self, old: Tensor, new: Tensor) -> Float[Tensor, ""]:
        difference = new.sub_(old)
        old.add_(difference, alpha=self.step)
        return difference.abs().amax() if difference.numel() else difference.new_zeros(())


def _message(log_odds: Float[Tensor, " edges"], coupling: Float[Tensor, " edges"]) -> Float[Tensor, " edges"]:
    # log(1 + e^x), in one vectorised kernel (softplus is five times as slow, and linear from its threshold on).
    zero = log_odds.new_zeros(())
    return torch.logaddexp(log_odds + coupling, zero) - torch.logaddexp(log_odds, zero)
