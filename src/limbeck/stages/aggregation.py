"""What clients send to a server, and how it is brought together."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor

from limbeck.models.model import Model

Weights = dict[str, Tensor]
Observed = Mapping[str, tuple[float, float]]
"""What is logged: name -> (total, count)."""


class Update(NamedTuple):
    """What a client sends back.

    Attributes:
        delta: the change of every floating tensor of the model's ``state_dict``.
        weight: how much it counts, >= 0: the number of samples it was made with.
        observed: what is logged, as name -> (total, count).
    """

    delta: Weights
    weight: float
    observed: Observed = MappingProxyType({})


def average(weights: Weights, updates: Sequence[Update]) -> Weights:
    """The weights plus the mean change, each update weighted by its share (arXiv 1602.05629, algorithm 1).

    Integer buffers, such as the counts of batch normalisation, and weights that no update changes stay; so does
    everything where all updates have weight 0.

    Args:
        weights: the server's.
        updates: of the clients, in the order in which they are added up.
    """
    total = sum(update.weight for update in updates)
    changed = {name: value.clone() for name, value in weights.items()}
    for update in updates:
        for name, change in update.delta.items():
            if total > 0:
                changed[name] += (update.weight / total) * change.to(changed[name])
    return changed


def difference(model: Model, start: Weights) -> Weights:
    """The change of every floating tensor of a model since ``start``."""
    return {
        name: (value - start[name]).detach() for name, value in model.state_dict().items() if value.is_floating_point()
    }


def pooled(parts: Sequence[Observed]) -> dict[str, tuple[float, float]]:
    """Totals and counts added up."""
    sums: dict[str, tuple[float, float]] = {}
    for part in parts:
        for name, (total, count) in part.items():
            before = sums.get(name, (0.0, 0.0))
            sums[name] = (before[0] + total, before[1] + count)
    return sums


def means(observed: Observed) -> dict[str, float]:
    """Totals over counts; a mean over nothing is left out."""
    return {name: total / count for name, (total, count) in observed.items() if count}
