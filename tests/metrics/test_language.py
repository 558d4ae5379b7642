import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from limbeck.errors import LimbeckError
from limbeck.losses.fused_linear import Projection
from limbeck.metrics.language import distinct_n, perplexity, token_nll


def test_token_nll_is_over_the_tokens_that_count_and_adds_up():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 6, 5, generator=generator)
    labels = torch.randint(5, (4, 6), generator=generator)
    labels[0, 2:] = labels[3] = -100
    values = [
        -log_softmax(logits[row, at].double().numpy())[labels[row, at + 1]]
        for row in range(4)
        for at in range(5)
        if labels[row, at + 1] >= 0
    ]
    whole = token_nll(Projection(logits), labels)
    assert int(whole.count) == len(values) == 11
    assert float(whole.value) == pytest.approx(np.mean(values), rel=1e-6)  # float32 logits
    parts = [token_nll(Projection(logits[rows]), labels[rows]) for rows in ([0, 3], [1, 2])]
    assert float(sum(p.total for p in parts) / sum(p.count for p in parts)) == pytest.approx(np.mean(values), rel=1e-6)


def test_perplexity_of_a_uniform_model_is_the_size_of_its_vocabulary():
    nll = float(token_nll(Projection(torch.zeros(2, 9, 50)), torch.ones(2, 9, dtype=torch.int64)).value)
    assert perplexity(nll) == pytest.approx(50, rel=1e-6)
    assert perplexity(1e4) == math.inf


def test_distinct_n():
    rows = [[1, 2, 1, 2], [1, 2]]
    assert distinct_n(rows, 1) == 2 / 6
    assert distinct_n(rows, 2) == 2 / 4  # 12, 21, 12 and 12
    assert distinct_n(rows, 4) == 1
    with pytest.raises(LimbeckError, match="no 5-grams"):
        distinct_n(rows, 5)
