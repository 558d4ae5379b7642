import torch

from limbeck.losses.fused_linear import Projection
from limbeck.losses.tokens import next_tokens


def test_every_position_predicts_the_next_label():
    logits = torch.arange(2 * 4 * 3.0).view(2, 4, 3)
    labels = torch.tensor([[5, 6, -100, 7], [-100, -100, 8, -100]])
    tokens = next_tokens(Projection(logits), labels)
    assert torch.equal(tokens.projection.logits, logits[:, :3])
    assert tokens.targets.tolist() == [[6, -100, 7], [-100, 8, -100]]
    assert tokens.valid.tolist() == [[True, False, True], [False, True, False]]


def test_a_row_of_one_token_predicts_nothing():
    tokens = next_tokens(Projection(torch.zeros(3, 1, 5)), torch.zeros(3, 1, dtype=torch.int64))
    assert tokens.projection.logits.shape == (3, 0, 5)
    assert tokens.valid.shape == (3, 0)
