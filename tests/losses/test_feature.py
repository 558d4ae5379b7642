from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from torch.nn import functional as F

from limbeck import losses
from limbeck.errors import LimbeckError

VECTORS = [losses.mse, losses.cosine, losses.normalized_mse]
RELATIONS = [
    losses.similarity_preserving,
    losses.probabilistic_knowledge_transfer,
    losses.rkd_distance,
    losses.rkd_angle,
]


def name(loss):
    return loss.__name__


def features(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def smooth_l1(a, b):
    d = abs(a - b)
    return np.where(d < 1, d**2 / 2, d - 0.5).mean()


@settings(max_examples=15, deadline=None)
@given(shape=st.sampled_from([(3,), (1, 1), (4, 7), (2, 3, 5)]), seed=st.integers(0, 99))
def test_vectors_against_numpy(shape, seed):
    s, t = features(2, *shape, seed=seed)
    a, b = s.numpy(), t.numpy()
    cosine = 1 - (unit(a) * unit(b)).sum(-1)
    for loss, expected in [
        (losses.mse, ((a - b) ** 2).mean(-1)),
        (losses.cosine, cosine),
        (losses.normalized_mse, 2 * cosine / shape[-1]),
    ]:
        # One minus a cosine: absolute rounding of float64.
        np.testing.assert_allclose(loss(s, t, reduction="none").numpy(), expected, atol=1e-14, rtol=1e-13)


def test_attention_transfer_against_numpy_and_pooling():
    s, t = features(3, 4, 6, 6), features(3, 2, 3, 3, seed=1)
    pooled = s.numpy().reshape(3, 4, 3, 2, 3, 2).mean((3, 5))
    expected = ((unit((pooled**2).mean(1).reshape(3, -1)) - unit((t.numpy() ** 2).mean(1).reshape(3, -1))) ** 2).mean()
    assert losses.attention_transfer(s, t).item() == pytest.approx(expected, rel=1e-13)
    assert losses.attention_transfer(t, s).item() == pytest.approx(expected, rel=1e-13)
    assert losses.attention_transfer(s, -2 * s).item() == pytest.approx(0, abs=1e-30)
    with pytest.raises(LimbeckError, match=r"\[2, 6\] and \[4, 3\]"):
        losses.attention_transfer(features(1, 1, 2, 6), features(1, 1, 4, 3))


def test_relations_against_brute_force():
    s, t = features(5, 3), features(5, 4, seed=1)
    a, b = s.numpy(), t.numpy()

    gram = [unit(x @ x.T) for x in (a, b)]
    assert losses.similarity_preserving(s, t).item() == pytest.approx(((gram[0] - gram[1]) ** 2).sum() / 25, rel=1e-13)

    similar = [(unit(x) @ unit(x).T + 1) / 2 for x in (a, b)]
    p_s, p_t = (x / x.sum(-1, keepdims=True) for x in similar)
    pkt = (p_t * np.log((p_t + 1e-7) / (p_s + 1e-7))).mean()
    assert losses.probabilistic_knowledge_transfer(s, t).item() == pytest.approx(pkt, rel=1e-12)

    distances = [cdist(x, x) for x in (a, b)]
    relative = [d / d[d > 0].mean() for d in distances]
    assert losses.rkd_distance(s, t).item() == pytest.approx(smooth_l1(*relative), rel=1e-13)

    angles = [np.zeros((5, 5, 5)), np.zeros((5, 5, 5))]
    for angle, x in zip(angles, (a, b), strict=True):
        for i in range(5):
            for j in range(5):
                for k in range(5):
                    if i not in (j, k):
                        angle[i, j, k] = unit(x[j] - x[i]) @ unit(x[k] - x[i])
    assert losses.rkd_angle(s, t).item() == pytest.approx(smooth_l1(*angles), rel=1e-13)


def test_similarity_preserving_flattens_maps():
    s, t = features(4, 3, 2, 2), features(4, 5, seed=1)
    assert losses.similarity_preserving(s, t) == losses.similarity_preserving(s.flatten(1), t)


@pytest.mark.parametrize("loss", RELATIONS, ids=name)
def test_relations_do_not_change_under_rotation_and_scale(loss):
    x = features(6, 4)
    rotation = torch.linalg.qr(features(4, 4, seed=1))[0]
    # Squares of float64 rounding; PKT is a sum of signed terms.
    assert abs(loss(3 * x @ rotation, x).item()) < 1e-14
    assert loss(features(6, 4, seed=2), x).item() > 1e-4


@pytest.mark.parametrize("loss", RELATIONS + VECTORS, ids=name)
def test_gradients(loss):
    student, teacher = features(4, 3).requires_grad_(), features(4, 3, seed=1)
    assert torch.autograd.gradcheck(partial(loss, teacher=teacher), (student,))


def test_attention_gradient():
    student, teacher = features(2, 2, 4, 4).requires_grad_(), features(2, 3, 2, 2, seed=1)
    assert torch.autograd.gradcheck(partial(losses.attention_transfer, teacher=teacher), (student,))


@pytest.mark.parametrize("loss", RELATIONS + VECTORS, ids=name)
@pytest.mark.parametrize("batch", [1, 3])
def test_equal_and_zero_vectors_have_finite_small_gradients(loss, batch):
    student = torch.zeros(batch, 3, requires_grad=True)
    value = loss(student, features(batch, 3, dtype=torch.float32))
    value.backward()
    assert value.isfinite()
    assert student.grad.abs().max() < 10


@pytest.mark.parametrize("loss", RELATIONS + VECTORS, ids=name)
def test_half_precision_is_computed_in_float32(loss):
    student, teacher = features(6, 8).bfloat16(), features(6, 8, seed=1).bfloat16()
    value = loss(student, teacher)
    assert value.dtype == torch.float32
    assert value == loss(student.float(), teacher.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(student.float(), teacher.float()) == value


def test_weights_select():
    s, t = features(2, 3, 4)
    weight = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)
    for loss in VECTORS:
        torch.testing.assert_close(loss(s, t, weight=weight), loss(s[1:], t[1:]))
        assert loss(s, t, weight=torch.zeros(3, dtype=torch.float64)).item() == 0.0


def test_distances_of_near_duplicates_keep_their_digits():
    x = 100 + 1e-3 * features(40, 3, dtype=torch.float32)
    exact = cdist(x.double(), x.double())
    expected = smooth_l1(exact / exact[exact > 0].mean(), np.zeros((40, 40)))
    # A teacher of equal vectors has relative distances 0; float32 rounding of distances 1e-3 at 100: 1e-2.
    assert losses.rkd_distance(x, torch.ones(40, 2)).item() == pytest.approx(expected, rel=1e-5)


def test_peers_normalise_and_smooth_as_torch_does():
    s, t = features(2, 5, 3)
    torch.testing.assert_close(losses.normalized_mse(s, t), F.mse_loss(F.normalize(s), F.normalize(t)))


def test_batches_that_differ_are_refused():
    for loss in (losses.similarity_preserving, losses.rkd_angle):
        with pytest.raises((LimbeckError, TypeError), match=r"batch|samples"):
            loss(features(3, 2), features(4, 2))
