"""What a count tells about those that are counted: exact messages of a cardinality factor.

A factor ``exp(-strength (sum_i y_i - count)^2)`` joins the n binary variables of a bag. Its message to one of them
needs the distribution of the sum of the others. All n messages come from one balanced tree (Tarlow et al., "Fast Exact
Inference for Recursive Cardinality Models", arXiv 1210.4899): upwards the distributions of the counts of ever larger
parts of the bag, by convolution; downwards what the rest of the bag says about each part's count, by correlation. That
is O(n^2) multiplications a bag, nearly all of them in the two largest parts, and O(n log n) memory, where the dense
pairwise model has n (n - 1) / 2 edges with two messages each.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from limbeck.errors import LimbeckError

BOUND = 700.0
"""Largest log-odds of a message, the shift aside: what is surer is certain (e^-709 is the smallest float64)."""

_HALVINGS = 16  # of the bracket of the tilt: it only centres the arithmetic, a tenth is near enough
_MARGIN = 60.0  # log-odds at which a sigmoid is 0 or 1 but for 1e-26


def cardinality_messages(
    log_odds: Float[Tensor, "bags size"], counts: Int[Tensor, " bags"], strength: float | int
) -> Float[Tensor, "bags size"]:
    """Log-odds that ``exp(-strength (sum of the bag - count)^2)`` sends to each variable, given those of the others.

    ``m_i = log sum_k P_i(k) psi(k + 1) - log sum_k P_i(k) psi(k)``, P_i the distribution of the sum of the others.
    To stay within float64 however sure the variables are, all log-odds are shifted by one number a bag that puts the
    mean of the sum where the factor and the variables agree; the shift cancels. All terms are positive, so no digits
    are lost in sums. A message more than 700 away from the shift is cut off there: it makes its variable certain.

    Args:
        log_odds: of each variable without this factor, [B, n], computed in float64; -inf for a place that is empty
            (a bag with fewer variables), whose own message means nothing.
        counts: [B], from 0 to the number of variables of the bag.
        strength: >= 0; infinite for a count that is exact.

    Returns:
        float64 [B, n].

    Raises:
        LimbeckError: a negative strength, or a count that no bag of this size can have.
    """
    if not strength >= 0:
        raise LimbeckError(f"strength is {strength}; it must be at least 0")
    sizes = log_odds.isneginf().logical_not().sum(-1)
    wrong = (counts < 0) | (counts > sizes)
    if wrong.any():
        first = int(wrong.nonzero()[0])
        raise LimbeckError(f"bag {first} has {int(sizes[first])} variables and a count of {int(counts[first])}")
    log_odds = log_odds.double()
    if strength == 0 or not log_odds.numel():
        return torch.zeros_like(log_odds)
    tilt = _tilt(log_odds, counts, strength)
    tilted = log_odds + tilt[:, None]

    # A power of two of places, the bags last: [2, n, B], probabilities of the counts 0 and 1 of parts of one variable.
    size = 1 << (log_odds.shape[1] - 1).bit_length()
    tilted = torch.nn.functional.pad(tilted, (0, size - tilted.shape[1]), value=-torch.inf).T
    parts = [torch.stack([(-tilted).sigmoid(), tilted.sigmoid()])]
    while parts[-1].shape[1] > 2:  # the count of the whole is not needed
        parts.append(_convolve(*parts[-1].chunk(2, dim=1)))

    below = _potential(size, counts, strength, tilt)
    for part in reversed(parts if size > 1 else []):
        left, right = part.chunk(2, dim=1)
        below = torch.cat([_correlate(below, right), _correlate(below, left)], dim=1)
        # Of each part's potential the ratios matter, not the size.
        below = below / below.amax(0)
    messages = (below[1].log() - below[0].log()).clamp(-BOUND, BOUND) + tilt
    return messages[: log_odds.shape[1]].T


def _tilt(
    log_odds: Float[Tensor, "bags size"], counts: Int[Tensor, " bags"], strength: float | int
) -> Float[Tensor, " bags"]:
    """The c with ``sum_i sigmoid(a_i + c) = count - c / (2 strength)``, the slope of the factor there; by bisection."""
    empty, positives = log_odds.isneginf(), counts.double()
    slope = 2 * min(float(strength), 1e300)  # not infinity, of which 0 times is no number
    lowest, highest = log_odds.masked_fill(empty, torch.inf).amin(-1), log_odds.amax(-1)
    # Where all variables are sure of the same it is the factor that decides. Messages of an empty bag mean nothing.
    low = torch.minimum(-highest.nan_to_num(neginf=0.0), slope * positives) - _MARGIN
    high = torch.maximum(-lowest.nan_to_num(posinf=0.0), -slope * ((~empty).sum(-1) - positives)) + _MARGIN
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        too_low = (log_odds + middle[:, None]).sigmoid().sum(-1) < positives - middle / slope
        low, high = torch.where(too_low, middle, low), torch.where(too_low, high, middle)
    return (low + high) / 2


def _potential(
    size: int, counts: Int[Tensor, " bags"], strength: float | int, tilt: Float[Tensor, " bags"]
) -> Float[Tensor, "sums one bags"]:
    """The factor of every sum from 0 to ``size``, tilted the other way, its largest value 1, [size + 1, 1, B]."""
    sums = torch.arange(size + 1, device=counts.device)[:, None]
    squares = (sums - counts).square().double()
    penalty = torch.where(squares == 0, 0.0, strength * squares)
    logs = -penalty - tilt * sums
    return (logs - logs.amax(0)).exp()[:, None]


def _convolve(left: Float[Tensor, "sums parts bags"], right: Float[Tensor, "sums parts bags"]) -> Tensor:
    """Distribution of the sum of two counts, [2 s + 1, m, B] of two times [s + 1, m, B]."""
    sums = len(left)
    found = left.new_zeros(2 * sums - 1, *left.shape[1:])
    for k in range(sums):
        found[k : k + sums].addcmul_(left, right[k])
    return found


def _correlate(below: Float[Tensor, "sums parts bags"], other: Float[Tensor, "half parts bags"]) -> Tensor:
    """What is said of a part's count, given that of its sibling: [s + 1, m, B] of [2 s + 1, m, B] and [s + 1, m, B]."""
    sums = len(other)
    found = torch.zeros_like(other, memory_format=torch.contiguous_format)
    for k in range(sums):
        found.addcmul_(below[k : k + sums], other[k])
    return found
