"""Transport with a reward for giving similar samples the same cluster (SP2OT)."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.labels.assign.transport import Transport, transport

PAIRS = 1 << 24
"""Distances in memory at a time."""


class Semantic(NamedTuple):
    """What :func:`semantic_transport` found.

    Attributes:
        transport: of the last step; its gap is that of the last linearised problem.
        objectives: float [steps + 1], the objective at the start and after each step.
    """

    transport: Transport
    objectives: Tensor


def similar_samples(
    features: Float[Tensor, "samples features"], neighbours: int = 20, width: float | int = 2.0
) -> tuple[Int[Tensor, "samples neighbours"], Float[Tensor, "samples neighbours"]]:
    """For each sample the most similar others: where they stand, and ``exp(-||f_i - f_j||^2 / (2 width^2 D))``.

    A Gaussian kernel with the ``neighbours`` largest entries of each row and a zero diagonal (SP2OT, arXiv 2404.03446,
    as in the released code: not symmetrised; whether the paper does is not known).

    Args:
        features: [N, D].
        neighbours: entries a row; N - 1 where there are fewer.
        width: of the kernel, > 0.

    Returns:
        Positions, int64 [N, k], and similarities [N, k].

    Raises:
        LimbeckError: fewer than two samples, or numbers that are not positive.
    """
    count, dimensions = features.shape
    if count < 2 or neighbours < 1 or not width > 0:
        raise LimbeckError(
            f"{count} samples, {neighbours} neighbours and width {width}: expected two samples or more, and numbers > 0"
        )
    own = torch.arange(count, device=features.device)
    found = []
    for rows in own.split(max(1, PAIRS // count)):
        distances = torch.cdist(features[rows], features)
        distances[torch.arange(len(rows), device=features.device), rows] = math.inf
        found.append(distances.topk(min(neighbours, count - 1), largest=False))
    squares = torch.cat([part.values for part in found]).square()
    return torch.cat([part.indices for part in found]), torch.exp(-squares / (2 * width**2 * dimensions))


def among(
    positions: Int[Tensor, "samples neighbours"],
    similarities: Float[Tensor, "samples neighbours"],
    rows: Int[Tensor, " rows"],
) -> tuple[Int[Tensor, "rows neighbours"], Float[Tensor, "rows neighbours"]]:
    """The part of a graph of neighbours that lies within some of its samples.

    Args:
        positions: [N, k], what :func:`similar_samples` gives.
        similarities: [N, k].
        rows: [M], which samples; of one that occurs twice the last counts as the others' neighbour.

    Returns:
        The same for these rows, positions counted among them; similarity 0 where a neighbour is not among them.
    """
    places = rows.new_full((len(positions),), -1)
    # One after the other: where indices repeat, a plain assignment does not say which wins.
    order = torch.arange(len(rows), device=rows.device)
    places.scatter_reduce_(0, rows, order, "amax")
    local = places[positions[rows]]
    return local.clamp(min=0), torch.where(local >= 0, similarities[rows], 0.0)


@torch.no_grad()
def semantic_transport(
    cost: Float[Tensor, "rows columns"],
    epsilon: float | int,
    positions: Int[Tensor, "rows neighbours"],
    similarities: Float[Tensor, "rows neighbours"],
    strength: float | int,
    *,
    gamma: float | int = math.inf,
    mass: float | int = 1.0,
    rows: Float[Tensor, " rows"] | None = None,
    start: Float[Tensor, " potentials"] | None = None,
    shift: bool = False,
    momentum: float = 1.0,
    max_steps: int = 100,
    tolerance: float = 1e-6,
    max_iterations: int = 1000,
) -> Semantic:
    """Minimise the objective of :func:`limbeck.labels.assign.transport.transport` less ``strength <S, Q Q^T>``.

    SP2OT (arXiv 2404.03446): starting from uniform Q, the term is linearised at the current Q, and Q becomes the plan
    for the cost ``C - strength (S + S^T) Q``, until the objective changes by less than ``tolerance``. S has a zero
    diagonal and is indefinite, so the linear term need not majorise, and the objective may rise or alternate. With
    ``shift`` the largest row sum of (S + S^T) / 2 stands on its diagonal: it is then positive semi-definite by
    Gershgorin's theorem, and the objective falls in every step. That is a safe variant of ours, of another problem.

    The objective is the whole one; the released code's stopping test leaves the divergence of the columns out.

    Args:
        cost: C [N, K], finite.
        epsilon: weight of the entropy.
        positions: S by rows: the columns of its entries, [N, k], see :func:`similar_samples`.
        similarities: the entries, [N, k].
        strength: lambda >= 0; at 0 it is plain transport.
        gamma: one number, see :func:`~limbeck.labels.assign.transport.transport`.
        mass: see there.
        rows: see there.
        start: the potentials of a similar problem.
        shift: see above.
        momentum: share of the new plan in the next Q, in (0, 1].
        max_steps: linearisations at most.
        tolerance: of the objective, in units of the cost; the inner problems are solved to a tenth of it.
        max_iterations: of each inner problem.

    Raises:
        LimbeckError: a strength below 0, a momentum out of range, or as of the transport.
    """
    if strength < 0 or not 0 < momentum <= 1:
        raise LimbeckError(f"strength is {strength} and momentum {momentum}; expected >= 0 and in (0, 1]")
    cost = cost.float() if cost.dtype in (torch.float16, torch.bfloat16) else cost
    count, columns = cost.shape
    a = cost.new_full((count,), 1 / count) if rows is None else rows.to(cost)
    both = _both_ways(positions, similarities.to(cost), shift)
    plan = (mass / columns * a).unsqueeze(-1).expand(count, columns)
    pull = both @ plan
    objectives = [_objective(plan, cost, pull, epsilon, strength, gamma, mass, a)]
    while True:
        found = transport(
            cost - strength * pull,
            epsilon,
            gamma=gamma,
            mass=mass,
            rows=a,
            start=start,
            tolerance=tolerance / 10,
            max_iterations=max_iterations,
        )
        start = found.potential
        plan = found.plan if momentum == 1 else (1 - momentum) * plan + momentum * found.plan
        pull = both @ plan
        objectives.append(_objective(plan, cost, pull, epsilon, strength, gamma, mass, a))
        small = bool((objectives[-1] - objectives[-2]).abs() < tolerance)
        if small or strength == 0 or len(objectives) > max_steps:
            return Semantic(found._replace(plan=plan), torch.stack(objectives))


def _both_ways(positions: Tensor, similarities: Tensor, shift: bool) -> Tensor:
    """S + S^T as a sparse matrix; with ``shift`` and twice the shift on its diagonal."""
    count = len(positions)
    own = torch.arange(count, device=positions.device)
    rows, columns, values = own.repeat_interleave(positions.shape[1]), positions.flatten(), similarities.flatten()
    indices = torch.stack([torch.cat([rows, columns]), torch.cat([columns, rows])])
    values = torch.cat([values, values])
    if shift:
        sums = values.new_zeros(count).index_add_(0, indices[0], values)
        indices = torch.cat([indices, torch.stack([own, own])], dim=1)
        values = torch.cat([values, sums.amax().expand(count)])
    return torch.sparse_coo_tensor(indices, values, (count, count), check_invariants=False).coalesce()


def _objective(
    plan: Tensor, cost: Tensor, pull: Tensor, epsilon: float, strength: float, gamma: float, mass: float, a: Tensor
) -> Tensor:
    # <S, Q Q^T> is half of <Q, (S + S^T) Q>.
    value = (plan * (cost - strength / 2 * pull)).sum() + epsilon * (torch.xlogy(plan, plan) - plan).sum()
    if mass < 1:
        rest = (a - plan.sum(-1)).clamp(min=0)
        value = value + epsilon * (torch.xlogy(rest, rest) - rest).sum()
    if 0 < gamma < math.inf:
        sums, target = plan.sum(0), mass * a.sum() / cost.shape[1]
        value = value + gamma * (torch.xlogy(sums, sums / target) - sums + target).sum()
    return value
