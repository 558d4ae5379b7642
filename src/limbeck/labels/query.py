"""Which samples a teacher is asked about: a game against whoever makes it err, and the rules it is compared with.

Draws come from ``generator``, torch's global one where it is None.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from limbeck.errors import LimbeckError

Gains = Float[Tensor, " points"]


class Game(NamedTuple):
    """The solution of a max-min game.

    Attributes:
        probabilities: with which each point is asked about, float64 [N], sum 1.
        value: the gain that is expected at least, whichever points are answered wrongly.
    """

    probabilities: Tensor
    value: float


def maxmin_game(gains: Gains, m: float | int, losses: Gains | None = None) -> Game:
    """``max_p min_{|S| = m} sum_{i not in S} p_i g_i - sum_{i in S} p_i l_i`` over distributions p on the points.

    Robust active distillation (arXiv 2210.01213): an adversary chooses which m points are answered wrongly. Points in
    falling order of gain, w = g + l, ``v_t = (sum_{i<=t} g_i / w_i - m) / sum_{i<=t} 1 / w_i``: p is proportional to
    1 / w on the first points up to the best t (the smallest where several are best), 0 elsewhere, and v_t its value.
    The form without losses is from memory of the paper; that it is the optimum is derived, with losses where the value
    is not negative. For an m that is no whole number one point is answered wrongly in part. O(N log N).

    Args:
        gains: g > 0, what a right answer is worth, [N].
        m: how many answers are wrong, in [0, N).
        losses: l >= 0, what a wrong answer costs, [N]; 0 where not given.

    Raises:
        LimbeckError: m out of range (with N wrong answers no question is worth anything), gains that are not positive
            numbers, or losses that are negative.
    """
    count = len(gains)
    if not 0 <= m < count:
        raise LimbeckError(f"m is {m}; of {count} points at least 0 and less than all can be wrong")
    if not (gains.isfinite() & (gains > 0)).all():
        raise LimbeckError("gains must be positive and finite: give what is less a small floor")
    if losses is not None and not (losses.isfinite() & (losses >= 0)).all():
        raise LimbeckError("losses must be finite and at least 0")
    g, order = gains.double().sort(descending=True, stable=True)
    w = g if losses is None else g + losses.double()[order]
    values = ((g / w).cumsum(0) - m) / (1 / w).cumsum(0)
    # Equal gains tie for m = 0, but for rounding.
    best = values.max()
    last = int((values >= best - 1e-12 * best.abs()).nonzero()[0])
    weights = 1 / w[: last + 1]
    probabilities = torch.zeros_like(g)
    probabilities[order[: last + 1]] = weights / weights.sum()
    return Game(probabilities, float(values[last]))


def game_queries(
    gains: Gains,
    m: float | int,
    count: int,
    losses: Gains | None = None,
    sampling: Literal["multinomial", "rounding"] = "multinomial",
    generator: Generator | None = None,
) -> Int[Tensor, " queries"]:
    """``count`` different points drawn from the solution of :func:`maxmin_game`.

    Where it asks about fewer points than that, all of these are taken and the game is solved again on what is left,
    with m in proportion (a choice). m = 0 then takes the largest gains. Where no question is worth anything (the value
    of the game is not positive) they are taken too.

    Args:
        gains: g > 0, [N].
        m: how many of the N answers would be wrong.
        count: at most N.
        losses: see :func:`maxmin_game`.
        sampling: without replacement, one after the other (a choice), or by :func:`dependent_rounding` with
            ``min(1, count * p_i)`` as the probability that a point is among them.
        generator: see the module.

    Returns:
        Positions, int64 [count].

    Raises:
        LimbeckError: more points than there are, and what :func:`maxmin_game` refuses.
    """
    _check_count(count, len(gains))
    share = m / max(1, len(gains))
    left, chosen = torch.arange(len(gains), device=gains.device), gains.new_zeros(0, dtype=torch.int64)
    while len(chosen) < count:
        missing, wrong = count - len(chosen), share * len(left)
        game = maxmin_game(gains[left], wrong, None if losses is None else losses[left]) if share < 1 else None
        if game is None or game.value <= 0:
            taken = largest(gains[left], missing)
        elif int((game.probabilities > 0).sum()) <= missing:
            taken = (game.probabilities > 0).nonzero()[:, 0]
        elif sampling == "multinomial":
            taken = torch.multinomial(game.probabilities, missing, generator=generator)
        else:
            # Never more than asked for: the probabilities add up to no more, but for rounding.
            taken = dependent_rounding((missing * game.probabilities).clamp(max=1), generator).nonzero()[:missing, 0]
        chosen = torch.cat([chosen, left[taken]])
        rest = torch.ones(len(left), dtype=torch.bool, device=left.device)
        rest[taken] = False
        left = left[rest]
    return chosen


def dependent_rounding(
    inclusion: Float[Tensor, " points"], generator: Generator | None = None
) -> Bool[Tensor, " points"]:
    """A random set that holds point i with probability ``inclusion[i]``, its size the sum of these but for rounding.

    The pivotal method (Deville and Tillé 1998, doi 10.1093/biomet/85.1.89): two points at a time share what they have
    until one of them is in or out.

    Args:
        inclusion: in [0, 1], [N].
        generator: see the module.

    Raises:
        LimbeckError: a number outside [0, 1].
    """
    if not ((inclusion >= 0) & (inclusion <= 1)).all():
        raise LimbeckError("probabilities of inclusion must lie between 0 and 1")
    shares = inclusion.double().tolist()
    draws = torch.rand(len(shares), dtype=torch.float64, generator=generator).tolist()
    open_point = 0
    for point in range(1, len(shares)):
        a, b = shares[open_point], shares[point]
        total = a + b
        # Who is settled: each with the probability that keeps both expectations.
        if total < 1:  # one of them goes out, the other gets what it had
            first, settled, left = draws[point] * total < b, 0.0, total
        else:  # one of them comes in
            first, settled, left = draws[point] * (2 - total) < 1 - b, 1.0, total - 1
        keeper, other = (open_point, point) if first else (point, open_point)
        shares[keeper], shares[other] = settled, left
        open_point = other
    if shares:
        shares[open_point] = float(draws[0] < shares[open_point])
    return torch.tensor([share > 0.5 for share in shares], dtype=torch.bool, device=inclusion.device)


def largest(gains: Gains, count: int) -> Int[Tensor, " queries"]:
    """Positions of the ``count`` largest gains, the largest first; of equal ones the first.

    Raises:
        LimbeckError: more than there are.
    """
    _check_count(count, len(gains))
    return gains.sort(descending=True, stable=True).indices[:count]


def half_random(gains: Gains, count: int, generator: Generator | None = None) -> Int[Tensor, " queries"]:
    """Half of the positions (rounded down) of the largest gains, the others at random among the rest.

    Raises:
        LimbeckError: more than there are.
    """
    _check_count(count, len(gains))
    order = largest(gains, len(gains))
    first, rest = order[: count // 2], order[count // 2 :]
    return torch.cat([first, rest[torch.randperm(len(rest), generator=generator)[: count - len(first)]]])


def k_center(
    points: Float[Tensor, "points features"], centers: Float[Tensor, "centers features"], count: int
) -> Int[Tensor, " queries"]:
    """Greedy k-centre (core-set, arXiv 1708.00489, algorithm 1): again and again the point farthest from all centres.

    Args:
        points: [N, D], what may become a centre.
        centers: [M, D], what is one already; may be empty, the first point is the first centre then.
        count: how many become centres, at most N.

    Returns:
        Positions in ``points``, in the order in which they became centres.

    Raises:
        LimbeckError: more than there are.
    """
    _check_count(count, len(points))
    distances = points.new_full((len(points),), torch.inf)
    for start in range(0, len(centers), 1024):
        distances = torch.minimum(distances, torch.cdist(points, centers[start : start + 1024]).amin(-1))
    chosen = points.new_zeros(count, dtype=torch.int64)
    for number in range(count):
        chosen[number] = distances.argmax()
        distances = torch.minimum(distances, (points - points[chosen[number]]).norm(dim=-1))
        distances[chosen[: number + 1]] = -torch.inf  # each once, wherever points coincide
    return chosen


def _check_count(count: int, points: int) -> None:
    if not 0 <= count <= points:
        raise LimbeckError(f"{count} points were asked for; there are {points}")
