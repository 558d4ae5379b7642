"""A smaller class space for each label: competitors of the top class are left out until it is certain."""

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.labels.select import class_probabilities
from limbeck.labels.types import Labels


def shrink_classes(labels: Labels, threshold: float | int | Float[Tensor, ""] | Float[Tensor, "*batch"]) -> Labels:
    """Leave out the classes that compete with the most probable one until that is certain among the rest.

    ShrinkMatch (arXiv 2308.06777, section 3.2, read off the released code). With the probabilities of a label
    sorted, ``s_0 >= s_1 >= ... >= s_{C-1}``, without the ranks 1 to c - 1 the confidence is

        conf(c) = s_0 / (s_0 + sum_{j >= c} s_j),

    which grows with c. The label keeps rank 0 and the ranks from the first c in 2 .. C - 1 on at which
    conf(c) >= threshold, so at least the runner-up goes. Where even rank 0 against the last class alone is not
    certain, and always with two classes, there is no such c: the label gets weight 0.

    Args:
        labels: probabilities [*batch, C]; half precision is computed in float32.
        threshold: one number, or one a label [*batch].

    Returns:
        The most probable classes, int64 [*batch], with ``classes`` bool [*batch, C] (all of them where the
        weight became 0) and the weights of ``labels`` or 0.

    Raises:
        LimbeckError: a target of another kind.
    """
    probabilities = class_probabilities(labels, "shrinking the classes")
    if probabilities.dtype in (torch.float16, torch.bfloat16):
        probabilities = probabilities.float()
    # Stable, so that of equal probabilities the first class is on top, as it is for argmax.
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    top = ordered.narrow(-1, 0, 1)
    below = ordered.flip(-1).cumsum(-1).flip(-1)  # sum over the ranks from c on
    limit = threshold.unsqueeze(-1) if isinstance(threshold, Tensor) and threshold.ndim else threshold
    kept = top / (top + below) >= limit
    # The confidence grows with c: everything from the first certain c on is certain too.
    kept[..., :2] = False
    found = kept.any(-1)
    kept[..., 0] = True
    classes = torch.empty_like(kept).scatter_(-1, order, kept | ~found.unsqueeze(-1))
    return Labels(order.select(-1, 0), labels.weighted(found).weight, classes)
