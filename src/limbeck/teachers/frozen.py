"""A teacher that never changes."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError


class Frozen(nn.Module):
    """A model as teacher: no gradient, always in eval mode, absent from every ``state_dict``.

    A registered module, so that it follows its owner to a device, to half precision and into copies; strict
    loading of the owner's state passes without the teacher's keys, and refuses a state that holds them.

    Args:
        model: Any model. It is not copied: hand a copy of one that is still trained, because its parameters stop
            requiring gradients.
        classes: The student's classes. Columns of the logits are selected and ordered to be these, by name; a
            softmax over them is then the teacher's prediction given that the class is one of them. Default (and
            where a task has no classes): the output as it is.

    Raises:
        LimbeckError: the teacher lacks a class of the student, or does not name its classes.
    """

    synchronised: ClassVar[bool] = False
    """Nothing in here changes: processes need not exchange its buffers."""

    order: Tensor | None

    def __init__(self, model: nn.Module, classes: Sequence[str] | None = None) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        own = getattr(model, "classes", None)
        self.classes: tuple[str, ...] | None = tuple(classes) if classes else own
        order = None
        if classes and own != self.classes:
            order = torch.tensor(_order(own, tuple(classes)))
        self.register_buffer("order", order, persistent=False)
        self._prefix = ""
        self.register_state_dict_post_hook(_leave_out)
        self.register_load_state_dict_pre_hook(_refuse)
        self.register_load_state_dict_post_hook(_not_missed)
        self.eval()

    @torch.no_grad()
    def forward(self, batch: Mapping[str, Tensor] | Tensor) -> Any:
        """The model's output; logits ``[B, C, ...]`` in the order of ``classes``."""
        output = self.model(batch)
        if self.order is None:
            return output
        return output._replace(logits=output.logits.index_select(1, self.order))

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode, whatever the mode of the owner."""
        return super().train(False)


def _order(own: Sequence[str] | None, classes: tuple[str, ...]) -> list[int]:
    if own is None:
        raise LimbeckError(
            f"the teacher does not name its classes, so that they cannot be matched to the student's "
            f"{list(classes)}: wrap it in limbeck.models.Classifier(model, classes)"
        )
    missing = [name for name in classes if name not in own]
    if missing:
        raise LimbeckError(
            f"the teacher does not know the classes {missing}: student {list(classes)}, teacher {list(own)}"
        )
    return [own.index(name) for name in classes]


def _leave_out(module: nn.Module, state: dict[str, Any], prefix: str, metadata: object) -> None:
    for key in [key for key in state if key.startswith(prefix)]:
        del state[key]


def _refuse(
    module: nn.Module,
    state: dict[str, Any],
    prefix: str,
    metadata: object,
    strict: bool,
    missing: list[str],
    unexpected: list[str],
    errors: list[str],
) -> None:
    """Take keys of the teacher out of what is loaded: nothing overwrites it."""
    surplus = [key for key in state if key.startswith(prefix)]
    unexpected.extend(surplus)
    for key in surplus:
        del state[key]
    module._prefix = prefix  # type: ignore[assignment]  # the hook after loading is not told


def _not_missed(module: nn.Module, incompatible: Any) -> None:
    kept = [key for key in incompatible.missing_keys if not key.startswith(str(module._prefix))]
    incompatible.missing_keys[:] = kept
