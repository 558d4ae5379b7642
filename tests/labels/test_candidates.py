import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.labels.candidates import best_candidate, uniform_over


def test_uniform():
    found = uniform_over(torch.tensor([[True, False, False], [True, True, False], [True, True, True]]))
    torch.testing.assert_close(found, torch.tensor([[1, 0, 0], [0.5, 0.5, 0], [1 / 3, 1 / 3, 1 / 3]]))


@given(st.integers(0, 999))
def test_best_is_the_arg_max_of_the_masked_probabilities(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(6, 4, generator=generator)
    candidates = torch.rand(6, 4, generator=generator) < 0.5
    candidates[:, 2] = True
    wanted = (logits.double().softmax(-1) * candidates).argmax(-1)
    assert best_candidate(logits, candidates).tolist() == wanted.tolist()


def test_extremes_and_ties():
    # softmax(-1e4 relative to 1e4) is 0, and so is a masked one: only the mask keeps them apart.
    scores = torch.tensor([[1e4, -1e4], [-1e4, 1e4], [0.5, 0.5]])
    assert best_candidate(scores, torch.tensor([[False, True], [True, False], [True, True]])).tolist() == [1, 0, 0]
