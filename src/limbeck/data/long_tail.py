"""Class sizes with a long tail."""

import math
from collections.abc import Sequence
from typing import Literal

from limbeck.errors import LimbeckError

Tail = Literal["exponential", "pareto"]


def tail_sizes(available: Sequence[int], ratio: float, tail: Tail, classes: Sequence[str]) -> list[int]:
    """How many samples of each class make a long tail, classes in order of falling size; class 0 is the largest.

    Of C classes, class c has n_0 f(c) samples, rounded down, where f(0) = 1 and f(C - 1) = 1 / ratio:

    - exponential, f(c) = ratio^(-c / (C - 1)): CIFAR-LT (arXiv 1901.05555, section 5.1);
    - Pareto, f(c) = (c + 1)^(-1 / alpha) with alpha = ln C / ln ratio: the sizes by rank of a Pareto distribution with
      shape alpha, from which ImageNet-LT is drawn (arXiv 1904.05160, section 5.1). A draw would not keep the ratio.
      It falls faster at first and has a longer, flatter tail.

    n_0 is as large as every class can follow, so that the ratio is kept where the source itself is not balanced.

    Args:
        available: how many samples each class has.
        ratio: size of the largest class over that of the smallest, at least 1.
        tail: how the sizes fall in between.
        classes: the names of the classes, for messages.

    Raises:
        LimbeckError: a class would be left without a sample, with the sizes.
    """
    count = len(available)
    if tail == "exponential":
        falls = [ratio ** (-number / max(1, count - 1)) for number in range(count)]
    else:
        power = math.log(ratio) / math.log(max(2, count))
        falls = [(number + 1) ** -power for number in range(count)]
    largest = min(size / fall for size, fall in zip(available, falls, strict=True))
    # Without the rounding, a size such as 9.999999999999998 would lose a sample.
    sizes = [int(round(largest * fall, 9)) for fall in falls]
    for name, size in zip(classes, sizes, strict=True):
        if size == 0:
            raise LimbeckError(
                f"imbalance {ratio:g} leaves no sample of class {name!r} (class sizes {sizes}); use a smaller one"
            )
    return sizes
