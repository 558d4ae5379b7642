"""A teacher that knows nothing: random weights, never trained."""

import copy

from torch import nn

from limbeck.models.initialise import initialise
from limbeck.teachers.frozen import Frozen


class RandomTeacher(Frozen):
    """A frozen network with weights drawn from a seed (arXiv 2302.12091), always in eval mode.

    Its batch normalisation has seen nothing: with mean 0 and variance 1 it does not normalise at all.

    Args:
        model: the architecture; copied, and its weights are not used.
        seed: equal seeds, equal teachers.

    Raises:
        LimbeckError: as of :func:`limbeck.models.initialise.initialise`.
    """

    def __init__(self, model: nn.Module, seed: int) -> None:
        drawn = copy.deepcopy(model)
        initialise(drawn, seed)
        super().__init__(drawn)
