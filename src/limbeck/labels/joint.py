"""Joint labels of class and transformation, and the class logits that are read off joint ones.

SLA, arXiv 1910.05872, section 2.2, with the numbering of its released code: of N classes and M transformations the
joint label of class y in view j is ``y M + j``, so columns j, j + M, j + 2 M, ... belong to view j.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from limbeck.errors import LimbeckError


def joint_labels(labels: Int[Tensor, "*batch"], num_views: int) -> Int[Tensor, "*batch views"]:
    """The joint labels ``y M + j`` of every view of a sample, [*batch, M].

    Args:
        labels: class indices >= 0, [*batch].
        num_views: M.
    """
    return labels.unsqueeze(-1) * num_views + torch.arange(num_views, device=labels.device)


def per_view(logits: Float[Tensor, "*batch views joint"]) -> Float[Tensor, "*batch views classes"]:
    """From every view the logits of its own joint labels: ``s_(i, j)(t_j(x))``, [*batch, M, N].

    Args:
        logits: joint logits of all M views of a sample, in their order, [*batch, M, N M].

    Raises:
        LimbeckError: the number of joint logits is no multiple of the number of views.
    """
    views, joint = logits.shape[-2:]
    if joint % views:
        raise LimbeckError(f"{joint} joint logits cannot be those of {views} views: give one a class and view")
    by_class = logits.unflatten(-1, (-1, views))  # [*batch, seen view, class, view of the label]
    return by_class.diagonal(dim1=-3, dim2=-1).transpose(-2, -1)


def aggregate(logits: Float[Tensor, "*batch views joint"]) -> Float[Tensor, "*batch classes"]:
    """Class logits from all views: ``a_i = 1/M sum_j s_(i, j)(t_j(x))`` (arXiv 1910.05872, section 2.2).

    They are averaged before the softmax. What a view says about the labels of other views has no influence.

    Args:
        logits: joint logits [*batch, M, N M]; half precision is averaged in float32.

    Raises:
        LimbeckError: as of :func:`per_view`.
    """
    own = per_view(logits)
    return (own.float() if own.dtype in (torch.float16, torch.bfloat16) else own).mean(-2)
