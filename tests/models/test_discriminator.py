import pytest
import torch
from torch import nn

from limbeck.errors import LimbeckError
from limbeck.models.discriminator import logits_discriminator


def test_of_a_thousand_classes() -> None:
    """The released network: 1000*125+125 + 125*15+15 + 15*2+2 parameters."""
    made = logits_discriminator(1000)
    assert sum(p.numel() for p in made.parameters()) == 127_047
    assert [type(part) for part in made] == 3 * [nn.Linear, nn.ReLU]
    assert made(torch.randn(4, 1000)).shape == (4, 2)
    assert (made(torch.randn(64, 1000)) >= 0).all()


def test_without_the_last_relu() -> None:
    torch.manual_seed(0)
    made = logits_discriminator(1000, final_relu=False)
    assert isinstance(made[-1], nn.Linear)
    assert (made(torch.randn(64, 1000)) < 0).any()


@pytest.mark.parametrize(
    ("classes", "reduction", "widths"), [(10, 8, (1, 1)), (10, 2, (5, 2)), (63, 8, (7, 1)), (64, 8, (8, 1))]
)
def test_no_layer_is_empty(classes: int, reduction: int, widths: tuple[int, int]) -> None:
    linear = [part for part in logits_discriminator(classes, reduction) if isinstance(part, nn.Linear)]
    assert tuple(part.out_features for part in linear) == (*widths, 2)


@pytest.mark.parametrize(("classes", "reduction"), [(0, 8), (10, 0)])
def test_impossible_sizes(classes: int, reduction: int) -> None:
    with pytest.raises(LimbeckError, match=f"a discriminator of {classes} classes with K = {reduction}"):
        logits_discriminator(classes, reduction)
