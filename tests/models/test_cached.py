"""The cache's answer against NumPy, its limits, and saving it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from limbeck.errors import LimbeckError
from limbeck.models import Classifier, ImageTask, build, load, save
from limbeck.models.cached import CacheHead, cache_of, with_cache
from limbeck.models.zero_shot import with_zero_shot_head

TASK = ImageTask(("ant", "bee", "cat"), channels=1, size=(8, 8), mean=(0.3,), std=(0.4,))
IMAGES = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([2, 0, 1, 2])


def network() -> Classifier:
    torch.manual_seed(0)
    made = build("cnn", TASK, width=2).eval()
    assert isinstance(made, Classifier)
    return made


def features(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 64, generator=torch.Generator().manual_seed(1))


def test_against_numpy() -> None:
    """CLIP's logits and, sample by sample, those of the cache."""
    draws = np.random.default_rng(0)
    weight, keys, images = (draws.normal(size=(n, 6)) for n in (3, 4, 5))
    directions = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    head = CacheHead(nn.Linear(6, 3, bias=False).double(), torch.tensor(directions), LABELS, 3, 1.3, 2.7)
    head.double()
    with torch.no_grad():
        head.head.weight.copy_(torch.tensor(weight))
    expected = images @ weight.T
    for row, image in enumerate(images):
        for key, label in zip(directions, LABELS.tolist(), strict=True):
            cosine = image @ key / np.linalg.norm(image)
            expected[row, label] += 1.3 * np.exp(-2.7 * (1 - cosine))
    found = head(torch.tensor(images)).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)  # affinities are float32


def test_limits() -> None:
    plain = network()
    before = plain(IMAGES)
    made = with_cache(plain, features(), LABELS, alpha=0.0, beta=5.0).eval()
    assert torch.equal(made(IMAGES).features, before.features)
    assert torch.equal(made(IMAGES).logits, before.logits)
    cache = cache_of(made)
    # beta 0: every sample counts alike, whatever the image.
    counts = torch.tensor([1.0, 1.0, 2.0])
    torch.testing.assert_close(cache.answer(before.features, 1.0, 0.0), before.logits + counts)
    # A large beta: only what is the same counts, and then it counts 1.
    same = cache.answer(features(), 1.0, 1e4) - cache.answer(features(), 0.0, 1.0)
    torch.testing.assert_close(same, torch.eye(3)[LABELS], rtol=0, atol=1e-2)  # float32: 1e4 times a rounding
    cache.set_answer(2.0, 0.5)
    torch.testing.assert_close(made(IMAGES).logits, cache.answer(before.features, 2.0, 0.5))


def test_half_precision_keeps_the_affinity() -> None:
    made = with_cache(network(), features(), LABELS)
    with torch.autocast("cpu", torch.bfloat16):
        assert made(IMAGES).logits.isfinite().all()
    cache = cache_of(made)
    assert cache.affinity(features().bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("zero_shot", [False, True])
def test_saved_and_loaded(zero_shot: bool, tmp_path: Path) -> None:
    plain = with_zero_shot_head(network(), features(3), TASK.classes, 20.0) if zero_shot else network()
    made = with_cache(plain, features(), LABELS, alpha=1.25, beta=3.0).eval()
    loaded = load(save(made, tmp_path / "model"))
    assert isinstance(loaded, Classifier)
    assert torch.equal(loaded(IMAGES).logits, made(IMAGES).logits)
    assert torch.equal(cache_of(loaded).labels, LABELS)


def test_the_old_classifier_holds_nothing_of_a_batch() -> None:
    """Its head lives on within the new one."""
    plain = network()
    made = with_cache(plain, features(), LABELS)
    made(IMAGES)
    assert plain._tap.value is None


def test_refuses() -> None:
    body = nn.Sequential(nn.Conv2d(1, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(LimbeckError, match=r"needs a classification head on features \[B, D\]"):
        with_cache(Classifier(body, TASK.classes, channels=1), features(), LABELS)
    with pytest.raises(LimbeckError, match="none that is known"):
        with_cache(Classifier(nn.Sequential(nn.Flatten()), TASK.classes, channels=1), features(), LABELS)
    with pytest.raises(LimbeckError, match="no samples"):
        with_cache(network(), torch.zeros(0, 64), LABELS[:0])
