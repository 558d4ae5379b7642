"""Two classification heads on one backbone, which answer together."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError
from limbeck.labels.interpolate import interpolate_probabilities
from limbeck.models.build import build_inner
from limbeck.models.classifier import Classifier, ImageTask
from limbeck.models.heads import exchange_head
from limbeck.models.zero_shot import ZeroShotHead


class DualHead(nn.Module):
    """``log(alpha softmax(h_ce(v)) + (1 - alpha) softmax(h_kd(v) / beta))`` (DHO, arXiv 2505.07675).

    alpha and beta are buffers: they are chosen, not learnt, and saved with the weights.

    Args:
        ce: h_ce, the head that learns the labels.
        kd: h_kd, the head that learns from the teacher.
    """

    alpha: Tensor
    beta: Tensor

    def __init__(self, ce: nn.Linear, kd: nn.Linear | ZeroShotHead) -> None:
        super().__init__()
        self.ce, self.kd = ce, kd
        self.register_buffer("alpha", torch.tensor(0.5))
        self.register_buffer("beta", torch.tensor(1.0))

    def heads(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of both heads, [B, C] each, of features [B, D]."""
        return self.ce(features), self.kd(features)

    def forward(self, features: Tensor) -> Tensor:
        """Log-probabilities [B, C]."""
        return interpolate_probabilities(*self.heads(features), self.alpha, self.beta)

    @torch.no_grad()
    def set_interpolation(self, alpha: float, beta: float) -> None:
        """Choose the weight of the first head and the temperature of the second."""
        self.alpha.fill_(alpha)
        self.beta.fill_(beta)


def with_dual_head(model: Classifier) -> Classifier:
    """A classifier with two heads in the place of its one; its body is not copied.

    A linear head stays what it is, and the second is drawn. Of a :class:`~limbeck.models.zero_shot.ZeroShotHead`
    (language-aware first weights, where these are text embeddings) the second is a copy, and the first is a linear
    layer with its weights, on the features as they are.

    Raises:
        LimbeckError: no head was found, or one of another kind.
    """
    old = None if model.head is None else model.body.get_submodule(model.head)
    kd: nn.Linear | ZeroShotHead
    if isinstance(old, ZeroShotHead):
        kd = ZeroShotHead(old.linear.weight, old.scale)
        ce = nn.Linear(old.linear.in_features, old.linear.out_features)
        ce.load_state_dict(old.linear.state_dict())
    elif isinstance(old, nn.Linear):
        kd, ce = (nn.Linear(old.in_features, old.out_features, bias=old.bias is not None) for _ in range(2))
        ce.load_state_dict(old.state_dict())
    else:
        raise LimbeckError(
            f"two heads need a linear classification head or a zero-shot one, and {type(model.body).__name__} has "
            f"{'none that is known' if old is None else old}; name it: Classifier(..., head=NAME)"
        )
    inner = None if model.factory is None else {"name": model.factory, **copy.deepcopy(model.arguments)}
    made = exchange_head(model, DualHead(ce, kd), model.classes)
    if inner is not None:
        made.factory, made.arguments = "dual_head", {"model": inner}
    return made


def dual_head(task: ImageTask, *, model: dict[str, Any]) -> Classifier:
    """A network with a head for labels and one for a teacher, which answers with both.

    Args:
        task: Classes and images.
        model: The network, a model block such as {name: cnn, width: 16}.

    Raises:
        LimbeckError: the model is not one of limbeck's builders, or has no linear classification head.
    """
    return with_dual_head(build_inner(model, task, "dual_head"))
