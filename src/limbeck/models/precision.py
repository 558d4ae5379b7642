"""Tensors that must not be rounded when a module is cast to half precision."""

from collections.abc import Callable

from torch import Tensor


def keep_dtype(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Turn a function for ``nn.Module._apply`` into one that moves tensors between devices but casts none.

    ``module.to(torch.bfloat16)`` rounds every floating tensor below it to 8 bits of mantissa. Normalisation
    constants, running averages and tables of probabilities do not survive that; modules that hold them
    override ``_apply`` with ``super()._apply(keep_dtype(function))``.
    """

    def apply(tensor: Tensor) -> Tensor:
        moved = function(tensor)
        return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

    return apply
