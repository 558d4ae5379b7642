"""Entropic optimal transport from samples to clusters: balanced, unbalanced, partial, in one solver."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.labels.assign.scaling import SWEEP, Columns, absorb, first_point, log_step, sweep, to_plan

SHARP, SOFTER = 500, 4
"""Where costs differ by more than SHARP epsilon, a problem with SOFTER times the epsilon is solved first."""


class Transport(NamedTuple):
    """What :func:`transport` found.

    Attributes:
        plan: Q [*batch, N, K] >= 0, without the virtual column. Its rows, with what went to the virtual column, sum to
            their weights exactly.
        potential: g [*batch, K], or K + 1 with the virtual column's last, in units of the cost: log Q is
            (f_i + g_k - C_ik) / epsilon. What the next call can start from.
        gap: [*batch], objective of the plan less that of the dual problem, which no plan undercuts: >= 0 but for
            columns whose sums are prescribed; the product of their error and potential counts by its absolute value.
        violation: [*batch], sum over those columns of | column sum - target |.
        iterations: passes over the cost matrix.
    """

    plan: Tensor
    potential: Tensor
    gap: Tensor
    violation: Tensor
    iterations: int


@torch.no_grad()
def transport(
    cost: Float[Tensor, "*batch rows columns"],
    epsilon: float | int,
    *,
    gamma: float | int | Float[Tensor, " columns"] = math.inf,
    mass: float | int = 1.0,
    rows: Float[Tensor, "*batch rows"] | None = None,
    columns: Float[Tensor, "*batch columns"] | None = None,
    start: Float[Tensor, "*batch potentials"] | None = None,
    tolerance: float = 1e-6,
    max_iterations: int = 1000,
) -> Transport:
    """The plan of least cost with entropy, exact row sums, and column sums that are more or less prescribed.

        min_Q  <Q, C> + epsilon sum Q (log Q - 1) + sum_k gamma_k KL(q_k || b_k),   q_k = sum_i Q_ik,
        s.t.   sum_k Q_ik <= a_i,   sum_ik Q_ik = mass sum_i a_i,   Q >= 0,   KL(q || b) = q log(q / b) - q + b.

    ``gamma_k`` infinite prescribes the column sum, 0 leaves it free. Below ``mass`` 1 the rows are inequalities: a
    virtual column of cost 0 whose sum is (1 - mass) sum a takes the rest of every row, and its entropy counts (P2OT,
    arXiv 2401.09266). Balanced Sinkhorn is ``gamma`` infinite at ``mass`` 1, unbalanced transport a finite gamma,
    partial transport a mass below 1, P2OT both.

    Row potentials have a closed form, so the unknowns are the K column potentials, and an iteration is one pass over a
    kernel exp((f + g - C) / epsilon) that is kept in memory, for blocks of rows that stay in the cache. Every iteration
    has the fixed point of the generalised Sinkhorn scaling (arXiv 1607.05816); Anderson acceleration (the last few
    iterates) replaces its step where that raises the dual objective at least to where it was, so the dual never falls.
    Potentials are absorbed into the kernel where they grow (the same paper, section 4.3), a first step is taken in the
    log domain where the kernel has lost a column, and problems with costs far above epsilon are solved for larger
    epsilons first: cost / epsilon up to 1e4 and beyond neither overflows nor takes forever.

    Args:
        cost: C [*batch, N, K], finite; float64, float32, or half precision (computed in float32).
        epsilon: weight of the entropy, > 0, in units of the cost.
        gamma: weight of the column sums' divergence, >= 0; one number or one a column.
        mass: share of the rows' total that is transported, in (0, 1].
        rows: a [*batch, N] >= 0; 1 / N where not given.
        columns: b [*batch, K] > 0; equal parts of the transported mass where not given.
        start: the ``potential`` of a similar problem.
        tolerance: stop when gap and violation are both below it, in every problem of the batch.
        max_iterations: or after this many.

    Raises:
        LimbeckError: an argument out of range, prescribed columns that do not sum to the mass of the rows, or a cost
            that is not finite.
    """
    *batch, count, real = cost.shape
    if not epsilon > 0 or not 0 < mass <= 1:
        raise LimbeckError(f"epsilon is {epsilon} and mass {mass}; expected epsilon > 0 and mass in (0, 1]")
    if min(count, real) < 1:
        raise LimbeckError(f"the cost is {list(cost.shape)}; expected at least one row and one column")
    cost = cost.float() if cost.dtype in (torch.float16, torch.bfloat16) else cost
    a = cost.new_full((*batch, count), 1 / count) if rows is None else rows.to(cost)
    target = _columns(cost, a, epsilon, gamma, mass, columns)
    width = target.b.shape[-1]
    if start is not None and start.shape[-1] != width:
        raise LimbeckError(f"start has {start.shape[-1]} potentials, expected {width}, those of all columns")

    iterations = 0
    spread = float(cost.amax() - cost.amin()) / epsilon
    if not math.isfinite(spread):
        raise LimbeckError("the cost holds NaN or infinite entries, or numbers too large for epsilon")
    if start is None and spread > SHARP:
        softer = transport(
            cost,
            SOFTER * epsilon,
            gamma=gamma,
            mass=mass,
            rows=rows,
            columns=columns,
            tolerance=SOFTER * tolerance,
            max_iterations=max_iterations // 4,
        )
        start, iterations = softer.potential, softer.iterations
        del softer  # its plan is as large as the kernel that comes
    # Autocast would turn products of float32 into half precision.
    with torch.autocast(cost.device.type, enabled=False):
        at = cost.new_zeros(*batch, width) if start is None else start.to(cost).expand(*batch, width) / epsilon
        kernel = cost.new_empty(*batch, count, width)
        absorb(cost, epsilon, at, out=kernel)
        point = first_point(kernel, a, target, at)
        iterations += 1
        if bool(point.lost):
            at = log_step(cost, epsilon, a, target, at)
            absorb(cost, epsilon, at, out=kernel)
            point = first_point(kernel, a, target, at)
            iterations += 2
        while True:
            gap, violation = target.gap(at, point)
            reached = (gap * epsilon <= tolerance) & (violation <= tolerance)
            if iterations >= max_iterations or bool(reached.all()):
                break
            point = sweep(kernel, a, target, at, point)
            iterations += SWEEP
            if bool(point.far):
                at = at + point.x
                absorb(cost, epsilon, at, out=kernel)
                point = first_point(kernel, a, target, at, point)
                iterations += 1
        plan = to_plan(kernel, a, point.x)
        return Transport(plan[..., :real], (at + point.x) * epsilon, gap * epsilon, violation, iterations)


def _columns(
    cost: Tensor,
    a: Tensor,
    epsilon: float,
    gamma: float | Tensor,
    mass: float,
    columns: Tensor | None,
) -> Columns:
    """Targets and exponents of all columns, the virtual one last."""
    real = cost.shape[-1]
    weights = torch.as_tensor(gamma, dtype=cost.dtype, device=cost.device).expand(real)
    total = a.sum(-1, keepdim=True)
    b = (mass / real * total).expand(*cost.shape[:-2], real) if columns is None else columns.to(cost)
    if bool((a < 0).any()) or not bool((b > 0).all()) or not bool((weights >= 0).all()):
        raise LimbeckError("rows and gamma must be >= 0 and columns > 0")
    if columns is not None and bool(weights.isinf().all()):
        wrong = (b.sum(-1, keepdim=True) - mass * total).abs() > 1e-4 * total
        if bool(wrong.any()):
            raise LimbeckError(
                f"the column sums are prescribed (gamma is infinite) and total {b.sum(-1).flatten()[0]:.6g}, but the "
                f"mass of the rows is {(mass * total).flatten()[0]:.6g}: scale columns to it, or take a finite gamma"
            )
    if mass < 1:
        b = torch.cat([b, (1 - mass) * total], dim=-1)
        weights = torch.cat([weights, weights.new_full((1,), math.inf)])
    # f = gamma / (gamma + epsilon), without inf / inf.
    return Columns(b, 1 / (1 + epsilon / weights))
