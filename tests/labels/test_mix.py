import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from limbeck.errors import LimbeckError
from limbeck.labels import Labels, cutmix, mixup, mixup_or_cutmix, top_k

both = pytest.mark.parametrize("mix", [mixup, cutmix])


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def numbered(n, size=8):
    """Image i holds the number i everywhere: a mixed pixel tells what it is made of."""
    return torch.arange(n, dtype=torch.float64).reshape(n, 1, 1, 1).expand(n, 1, size, size).clone()


@both
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), alpha=st.sampled_from([0.2, 1, 8.0]))
def test_label_shares_are_pixel_shares(mix, seed, alpha):
    n = 5
    images, labels = mix(numbered(n), Labels(torch.arange(n)), n, alpha, seeded(seed))
    # The mean pixel is the label's mean number.
    expected = (labels.target.double() * torch.arange(n)).sum(-1)
    # Targets are float32.
    torch.testing.assert_close(images.mean((1, 2, 3)), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(labels.target.sum(-1), torch.ones(n))
    assert labels.weight is None
    if mix is cutmix:
        assert set(images.flatten().tolist()) <= set(range(n))


@both
def test_weighted_loss_is_the_mixture_of_the_losses(mix):
    n, generator = 6, seeded(0)
    weight = torch.tensor([1.0, 0.0, 0.5, 2.0, 0.0, 0.0], dtype=torch.float64)
    index = torch.arange(n)
    log_q = torch.randn(n, n, generator=generator, dtype=torch.float64).log_softmax(-1)
    plain = mix(numbered(n), Labels(F.one_hot(index).double()), n, 1.0, seeded(3))[1].target
    labels = mix(numbered(n), Labels(F.one_hot(index).double(), weight), n, 1.0, seeded(3))[1]
    # plain[i, j] is the share of label j in the mixed image i.
    expected = -(plain * weight * log_q).sum(-1)
    torch.testing.assert_close(labels.weight * -(labels.target * log_q).sum(-1), expected)
    torch.testing.assert_close(labels.weight, (plain * weight).sum(-1))
    assert labels.target.isfinite().all()


@both
def test_only_the_generator_decides(mix):
    images, labels = torch.rand(4, 3, 8, 8, generator=seeded(1)), Labels(torch.tensor([0, 1, 2, 1]))
    before, original = torch.get_rng_state(), images.clone()
    first, second = (mix(images, labels, 3, 1.0, seeded(7)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1].target, second[1].target)
    assert not torch.equal(first[0], mix(images, labels, 3, 1.0, seeded(8))[0])
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(images, original)


@both
def test_kinds_of_labels(mix):
    images = numbered(4)
    p = torch.randn(4, 3, generator=seeded(2), dtype=torch.float64).softmax(-1)
    dense = mix(images, Labels(p), 3, 1.0, seeded(5))[1].target
    torch.testing.assert_close(mix(images, Labels(top_k(p, 3)), 3, 1.0, seeded(5))[1].target, dense)
    mixed, values = mix(images, Labels(torch.arange(4.0)), 3, 1.0, seeded(5))
    torch.testing.assert_close(values.target.double(), mixed.mean((1, 2, 3)), atol=1e-6, rtol=0)
    classes = torch.eye(4, dtype=torch.bool)
    allowed = mix(images, Labels(torch.arange(4), None, classes), 4, 1.0, seeded(5))[1]
    assert torch.equal(allowed.classes, (allowed.target > 0) | classes)


def test_alpha_shapes_the_share():
    def share(alpha, seed):
        return mixup(numbered(2), Labels(torch.arange(2)), 2, alpha, seeded(seed))[1].target[0, 0].item()

    # Beta(0.05, 0.05) lies at the ends, Beta(500, 500) in the middle (standard deviation 0.016).
    assert sum(0.01 < share(0.05, seed) < 0.99 for seed in range(40)) < 20
    middle = [share(500, seed) for seed in range(40)]
    assert all(abs(value - 0.5) < 0.1 for value in middle if value != 1.0)
    assert any(value != 1.0 for value in middle)


@both
def test_errors_name_what_is_wrong(mix):
    with pytest.raises(LimbeckError, match="alpha is 0"):
        mix(numbered(2), Labels(torch.arange(2)), 2, 0, seeded(0))
    with pytest.raises(LimbeckError, match=r"2 images have labels of shape \[3\]"):
        mix(numbered(2), Labels(torch.arange(3)), 3, 1.0, seeded(0))


def test_mixup_or_cutmix():
    n = 6
    images, labels = numbered(n), Labels(torch.arange(n))
    assert mixup_or_cutmix(images, labels, n, 0, 0, seeded(0)) == (images, labels)

    def kind(seed, *alphas):
        generator = seeded(seed)
        mixed, _ = mixup_or_cutmix(images, labels, n, *alphas, generator)
        after = seeded(seed)
        torch.rand((), generator=after)
        found = [mix for mix in (mixup, cutmix) if torch.equal(mix(images, labels, n, 0.8, clone(after))[0], mixed)]
        return found[0] if len(found) == 1 else None

    assert {kind(seed, 0.8, 0) for seed in range(20)} - {None} == {mixup}
    assert {kind(seed, 0, 0.8) for seed in range(20)} - {None} == {cutmix}
    kinds = [kind(seed, 0.8, 0.8) for seed in range(100)]
    # A fair coin: 100 throws, 4 sigma.
    assert 30 < kinds.count(mixup) < 70
    assert 30 < kinds.count(cutmix) < 70


def clone(generator):
    return torch.Generator().set_state(generator.get_state())
