import copy

import pytest
import torch
from torch import nn

from limbeck.errors import LimbeckError
from limbeck.models.restoration import restore_stochastically


def _pair(size: int = 100_000) -> tuple[nn.Module, nn.Module]:
    source = nn.Linear(size, 1)
    with torch.no_grad():
        source.weight.fill_(1.0)
    model = copy.deepcopy(source)
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(-5.0)
    return model, source


@pytest.mark.parametrize("p", [0.01, 0.3])
def test_share_that_is_restored(p: float) -> None:
    model, source = _pair()
    torch.manual_seed(0)
    restore_stochastically(model, source, p)
    restored = (model.weight == source.weight).double().mean().item()  # type: ignore[arg-type]
    # 10^5 elements: the card's bound for p = 0.01 is three standard deviations, as here.
    assert restored == pytest.approx(p, abs=3 * (p * (1 - p) / 1e5) ** 0.5)
    assert set(model.weight.unique().tolist()) == {-5.0, 1.0}  # type: ignore[operator]


def test_ends() -> None:
    model, source = _pair(1000)
    state = torch.random.get_rng_state()
    restore_stochastically(model, source, 0.0)
    assert all((weight == -5).all() for weight in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)
    restore_stochastically(model, source, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), source.parameters(), strict=True))


def test_only_what_is_trained_and_fresh_masks() -> None:
    model, source = _pair(1000)
    model.bias.requires_grad_(False)  # type: ignore[union-attr]
    restore_stochastically(model, source, 0.5)
    first = model.weight.clone()  # type: ignore[operator]
    assert (model.bias == -5).all()  # type: ignore[operator]
    restore_stochastically(model, source, 0.5)
    assert not torch.equal(model.weight, first)  # type: ignore[arg-type]


def test_another_architecture_is_refused() -> None:
    with pytest.raises(LimbeckError, match="no parameter weight of shape"):
        restore_stochastically(nn.Linear(3, 2), nn.Linear(2, 2), 0.5)
