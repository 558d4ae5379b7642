import numpy as np
import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.labels import Labels, duplicates, near_duplicates


def test_against_all_pairs(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    samples, held_out = torch.randn(50, 3, generator=generator), torch.randn(20, 3, generator=generator)
    a, b = samples.double().numpy(), held_out.double().numpy()
    cosine = (a @ b.T) / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)
    for similarity in (0.5, 0.9, 0.99):
        expected = (cosine >= similarity).any(1).tolist()
        assert near_duplicates(samples, held_out, similarity).tolist() == expected
        monkeypatch.setattr(duplicates, "PAIRS", 60)  # three samples at a time
        assert near_duplicates(samples, held_out, similarity).tolist() == expected


def test_copies_are_found_whatever_their_scale():
    samples = torch.randn(30, 7, generator=torch.Generator().manual_seed(1))
    copies = samples[[3, 11]] * torch.tensor([[0.01], [100.0]])
    marks = near_duplicates(samples, copies, 1)
    assert marks.nonzero()[:, 0].tolist() == [3, 11]
    assert Labels(torch.zeros(30, dtype=torch.int64)).weighted(~marks).weights.sum() == 28


def test_nothing_to_compare_with():
    samples = torch.ones(3, 2)
    assert not near_duplicates(samples, torch.zeros(0, 2), 0.5).any()
    assert not near_duplicates(samples, torch.zeros(4, 2), 0.5).any()
    assert near_duplicates(torch.zeros(0, 2), samples, 0.5).shape == (0,)
    with pytest.raises(LimbeckError, match="similarity is 2, must be a cosine"):
        near_duplicates(samples, samples, 2)
