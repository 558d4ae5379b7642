"""Classifiers that are the mean of several heads, each of which can be asked on its own."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError
from limbeck.models.classifier import Classifier, ClassifierOutput, images_of


class ExpertOutput(NamedTuple):
    """What E experts say of a batch.

    Attributes:
        logits: ``[B, E, C]``.
        features: ``[B, E, D]``, what each expert's classification head is given.
    """

    logits: Tensor
    features: Tensor


class ExpertClassifier(Classifier):
    """A network of several experts that answers with the mean of their logits.

    Its features are those of all experts side by side, of which the mean logits are a function. It has no one head
    that could be replaced.

    Args:
        body: maps images ``[B, channels, H, W]`` to an :class:`ExpertOutput`.
        classes: names of the classes.
        experts: names of the experts, in the order of the body's output; the evaluation reports each by its name.
        preprocessing: channels, size, mean and std of :class:`Classifier`.

    Attributes:
        experts: their names.

    Raises:
        LimbeckError: no experts, or two of one name.
    """

    def __init__(self, body: nn.Module, classes: Sequence[str], experts: Sequence[str], **preprocessing: Any) -> None:
        if not experts or len(set(experts)) < len(experts):
            raise LimbeckError(f"experts must have a name each, all different, got {list(experts)}")
        super().__init__(body, classes, **preprocessing)
        self.experts = tuple(experts)
        self.head = None

    def each(self, batch: Mapping[str, Tensor] | Tensor) -> ExpertOutput:
        """What every expert says of a batch; arguments and errors as of ``forward``."""
        output: ExpertOutput = self.body(self._preprocess(images_of(batch)))
        self._tap.value = None  # a linear layer that looks like the head is the head of one of them
        wanted = (len(self.experts), len(self.classes))
        if output.logits.shape[1:] != wanted:
            raise LimbeckError(
                f"{type(self.body).__name__} returned logits of shape {list(output.logits.shape)}, expected "
                f"[B, {wanted[0]}, {wanted[1]}]: one row for each of the experts {', '.join(self.experts)}"
            )
        return output

    def forward(self, batch: Mapping[str, Tensor] | Tensor) -> ClassifierOutput:
        """Mean logits [B, C] and all features [B, E D]; arguments and errors as of the base class."""
        output = self.each(batch)
        return ClassifierOutput(output.logits.mean(1), output.features.flatten(1))


class Branches(nn.Module):
    """A body of experts: early layers that they share, then layers and a head of their own.

    Args:
        trunk: images [B, channels, H, W] to shared features.
        branches: shared features to the features [B, D] of each expert.
        heads: those to its logits [B, C].
    """

    def __init__(self, trunk: nn.Module, branches: Iterable[nn.Module], heads: Iterable[nn.Module]) -> None:
        super().__init__()
        self.trunk = trunk
        self.branches, self.heads = nn.ModuleList(branches), nn.ModuleList(heads)

    def forward(self, images: Tensor) -> ExpertOutput:
        """Logits and features of every expert."""
        shared = self.trunk(images)
        features = [branch(shared) for branch in self.branches]
        logits = [head(own) for head, own in zip(self.heads, features, strict=True)]
        return ExpertOutput(torch.stack(logits, 1), torch.stack(features, 1))


def expert_names(count: int, builder: str) -> list[str]:
    """``expert-1``, ``expert-2`` ...

    Raises:
        LimbeckError: none are asked for, by which builder.
    """
    if count < 1:
        raise LimbeckError(f"{builder}: experts must be 1 or more, got {count}")
    return [f"expert-{number}" for number in range(1, count + 1)]


def check_experts(model: Classifier, counts: Sequence[int], method: str, hint: str) -> None:
    """Refuse a student that does not have the right number of experts.

    Args:
        model: the student.
        counts: how many there may be.
        method: what needs them, for the message.
        hint: a model block that has them, for the message.

    Raises:
        LimbeckError: it has another number, or is no :class:`ExpertClassifier`.
    """
    has = len(model.experts) if isinstance(model, ExpertClassifier) else 0
    if has not in counts:
        wanted = " or ".join(str(count) for count in counts)
        raise LimbeckError(f"{method} trains {wanted} experts, and its student has {has or 'none'}; take {hint}")
