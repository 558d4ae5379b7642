"""The iteration of :mod:`limbeck.labels.assign.transport`: scaling by columns, accelerated, on an absorbed kernel.

All numbers are in units of epsilon. The column potentials are ``x0 + x``: ``x0`` is in the kernel,
``M_ik = exp(x0_k - C_ik / epsilon - m_i)`` with m_i the largest exponent of row i, and with ``v = exp(x)``

    t = M v,   c = v (M^T (a / t)),   D(x) = -sum a log t + phi(x)

are the rows' normalisers, the column sums of the plan ``a_i M_ik v_k / t_i``, and the dual objective less a constant,
the row potentials maximised out. As x is counted from x0, float32 keeps its digits where potentials are large. Nothing
in :func:`sweep` depends on values: it runs under ``torch.compile``.
"""

import math
from collections.abc import Callable
from functools import reduce
from operator import add
from typing import NamedTuple

import torch
from torch import Tensor

MEMORY = 6
"""Past iterates that the acceleration combines."""

SWEEP = 4
"""Iterations between two stopping tests."""

CACHED = 1 << 21
"""Bytes of kernel that are worked on at once on a CPU: what its cache holds, and enough for what a block costs."""


def depth(dtype: torch.dtype) -> float:
    """The most negative exponent in a kernel, negated: what is less would be denormal, and slow."""
    return -math.log(torch.finfo(dtype).tiny) - 7


def reach(dtype: torch.dtype) -> float:
    """How far potentials may move from those in the kernel: entries that were cut there stay negligible."""
    return depth(dtype) / 4


class Columns(NamedTuple):
    """What the column sums should be.

    Attributes:
        b: targets [*batch, K].
        power: f_k = gamma_k / (gamma_k + epsilon) [K], in [0, 1]: 1 prescribes the sum, 0 leaves it free.
    """

    b: Tensor
    power: Tensor

    @property
    def soft(self) -> Tensor:
        """Columns whose sum is neither prescribed nor free."""
        return (self.power > 0) & (self.power < 1)

    @property
    def rate(self) -> Tensor:
        """``epsilon / gamma``; 1 where it is 0 or infinite."""
        return torch.where(self.soft, (1 - self.power) / self.power, 1.0)

    def phi(self, at: Tensor) -> Callable[[Tensor], Tensor]:
        """The columns' part of the dual objective as a function of x, less its value at x = 0.

        With k = epsilon / gamma it is ``b x`` where prescribed, else ``b e^(-k x0) (1 - e^(-k x)) / k``. Where the sum
        is free the potential is and stays 0.
        """
        falling = -self.rate
        straight = torch.where(self.power < 1, 0.0, self.b)
        curved = torch.where(self.power < 1, self.b * torch.exp(falling * at) / falling, 0.0)
        return lambda x: (straight * x).addcmul_(curved, torch.expm1(falling * x)).sum(-1)

    def towards(self, at: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """The scaling iteration ``x0 + x <- f (x0 + x + log b / c)`` as a function of x and c: the step of x."""
        rest = self.power - 1
        still = self.power * self.b.log() + rest * at
        return lambda x, c: torch.addcmul(still, rest, x).addcmul_(self.power, c.log(), value=-1)

    def gap(self, at: Tensor, point: "Point") -> tuple[Tensor, Tensor]:
        """Primal less dual objective [*batch], and how far prescribed column sums are off [*batch].

        For a finite gamma, with ``u = log(c / b) + k (x0 + x)``, it is ``gamma c (u - 1 + e^-u)`` (Fenchel-Young):
        never negative, and exact however small.
        """
        potential, c, rate = at + point.x, point.c, self.rate
        u = -point.step * (1 + rate)
        near = u.clamp(-1, 1)
        # Far off, e^-u would overflow where c e^-u = b e^(-k x) does not.
        far = c * (u - 1) + self.b * torch.exp(-rate * potential)
        gaps = torch.where(self.soft, torch.where(u == near, c * (near + torch.expm1(-near)), far) / rate, 0.0)
        prescribed = self.power == 1
        off = torch.where(prescribed, c - self.b, 0.0)
        # All prescribed: only differences of potentials count.
        middle = torch.where(prescribed.all(), potential.mean(-1, keepdim=True), 0.0)
        return gaps.sum(-1) + ((potential - middle) * off).sum(-1).abs(), off.abs().sum(-1)


class Point(NamedTuple):
    """The best point so far, what is known there, and the iterates before it.

    Attributes:
        x: the potentials, less those in the kernel [*batch, K].
        c: the plan's column sums [*batch, K].
        step: the scaling iteration's next step from here [*batch, K].
        value: the dual objective [*batch].
        trial: where the next pass looks [*batch, K].
        points: past potentials, less those in the kernel [*batch, MEMORY, K].
        steps: their steps [*batch, MEMORY, K].
    """

    x: Tensor
    c: Tensor
    step: Tensor
    value: Tensor
    trial: Tensor
    points: Tensor
    steps: Tensor

    @property
    def far(self) -> Tensor:
        """Whether the potentials have moved so far from those in the kernel that it should be made anew."""
        return self.trial.abs().amax() > 0.5 * reach(self.c.dtype)

    @property
    def lost(self) -> Tensor:
        """Whether next to nothing of a column is left in the kernel."""
        return self.c.amin().log() < -0.5 * depth(self.c.dtype)


def absorb(cost: Tensor, epsilon: float, at: Tensor, *, out: Tensor) -> None:
    """Write the kernel for the potentials ``at`` [*batch, K] into ``out`` [*batch, N, K]."""
    real = cost.shape[-1]
    lowest = -depth(cost.dtype)
    for part, costs in _parts(out, cost):
        torch.mul(costs, -1 / epsilon, out=part[..., :real])
        part[..., real:] = 0
        part.add_(at.unsqueeze(-2))
        part.sub_(part.amax(-1, keepdim=True)).clamp_(min=lowest).exp_()


def first_point(kernel: Tensor, a: Tensor, target: Columns, at: Tensor, past: Point | None = None) -> Point:
    """The point ``at`` that the kernel was made for, with the memory and the trial of the one ``past``, if any."""
    x = torch.zeros_like(at)
    c, value = _pass(kernel, a, x)
    step = target.towards(at)(x, c)
    if past is not None:
        points = past.points - past.x.unsqueeze(-2)
        return Point(x, c, step, value, _within(past.trial - past.x), points, past.steps)
    memory = at.new_zeros(*at.shape[:-1], MEMORY, at.shape[-1])
    return Point(x, c, step, value, _within(step), memory, memory + step.unsqueeze(-2))


def sweep(kernel: Tensor, a: Tensor, target: Columns, at: Tensor, point: Point) -> Point:
    """SWEEP passes; ``at`` [*batch, K] are the potentials in the kernel."""
    phi, towards, eye = target.phi(at), target.towards(at), torch.eye(MEMORY, dtype=at.dtype, device=at.device)
    for _ in range(SWEEP):
        x = point.trial
        c, value = _pass(kernel, a, x)
        value = value + phi(x)
        step = towards(x, c)
        points = torch.cat([point.points[..., 1:, :], x.unsqueeze(-2)], dim=-2)
        steps = torch.cat([point.steps[..., 1:, :], step.unsqueeze(-2)], dim=-2)
        # A plain step, which maximises over the columns for given rows, passes, rounding aside.
        slack = 8 * torch.finfo(x.dtype).eps * (1 + value.abs())
        better = value >= point.value - slack
        good = better.unsqueeze(-1)
        x, c = torch.where(good, x, point.x), torch.where(good, c, point.c)
        step = torch.where(good, step, point.step)
        trial = _within(x + torch.where(good, _accelerated(x, step, points, steps, target.b, eye), step))
        point = Point(x, c, step, torch.where(better, value, point.value), trial, points, steps)
    return point


def log_step(cost: Tensor, epsilon: float, a: Tensor, target: Columns, at: Tensor) -> Tensor:
    """Potentials [*batch, K] after one scaling iteration in the log domain: no column is too small for it."""
    found: list[Tensor] = []
    for costs, weight in _parts(cost, a):
        virtual = costs.new_zeros(*costs.shape[:-1], at.shape[-1] - costs.shape[-1])
        exponents = at.unsqueeze(-2) - torch.cat([costs / epsilon, virtual], dim=-1)
        rows = weight.log() - exponents.logsumexp(-1)
        found.append((exponents + rows.unsqueeze(-1)).logsumexp(-2))
    return target.power * (at + target.b.log() - torch.stack(found).logsumexp(0))


def to_plan(kernel: Tensor, a: Tensor, x: Tensor) -> Tensor:
    """Turn the kernel into the plan at potentials ``x`` [*batch, K] away, in its own memory."""
    v = x.exp()
    for part, weight in _parts(kernel, a):
        part.mul_(v.unsqueeze(-2))
        part.mul_((weight / part.sum(-1)).unsqueeze(-1))
    return kernel


def _pass(kernel: Tensor, a: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Column sums [*batch, K] of the plan, and ``-sum a log t`` [*batch]."""
    v = x.exp()
    sums, values = [], []
    for part, weight in _parts(kernel, a):
        t = (part @ v.unsqueeze(-1)).squeeze(-1)
        sums.append((part.mT @ (weight / t).unsqueeze(-1)).squeeze(-1))
        values.append((t.log_() * weight).sum(-1))
    return v * reduce(add, sums), -reduce(add, values)


def _within(x: Tensor) -> Tensor:
    return x.clamp(-reach(x.dtype), reach(x.dtype))


def _accelerated(x: Tensor, step: Tensor, points: Tensor, steps: Tensor, weight: Tensor, eye: Tensor) -> Tensor:
    """Anderson's step: that of the affine combination of iterates whose combined step is the shortest.

    Lengths are weighted by the columns' targets, as the curvature of the dual objective is.
    """
    differences = steps - step.unsqueeze(-2)
    weighted = differences * weight.unsqueeze(-2)
    gram = weighted @ differences.mT
    right = (weighted @ step.unsqueeze(-1)).squeeze(-1)
    small = torch.finfo(x.dtype)
    ridge = 8 * small.eps * gram.diagonal(dim1=-2, dim2=-1).sum(-1) + small.tiny
    gram = torch.addcmul(gram, ridge[..., None, None], eye)
    # solve_ex does not look at the outcome, which would wait for the device; a bad step is refused by its value.
    shares = -torch.linalg.solve_ex(gram, right).result.unsqueeze(-2)
    moved = points - x.unsqueeze(-2) + differences
    return step + (shares @ moved).squeeze(-2)


def _parts(kernel: Tensor, other: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Blocks of rows of ``kernel`` and of another tensor [*batch, N] or [*batch, N, K] that stay in the cache."""
    rows = kernel.shape[-2]
    if kernel.device.type == "cpu":
        rows = max(1, CACHED * rows // max(1, kernel.numel() * kernel.element_size()))
    if rows >= kernel.shape[-2]:
        return [(kernel, other)]
    dim = -2 if other.ndim == kernel.ndim else -1
    return list(zip(kernel.split(rows, -2), other.split(rows, dim), strict=True))
