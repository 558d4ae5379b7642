import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from limbeck.data.samples import ImageData
from limbeck.errors import LimbeckError
from limbeck.models import Classifier, build, load, save
from limbeck.models.batch_norm import (
    affine_parameters,
    batch_norms,
    running_statistics_of,
    use_batch_statistics,
)


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU())
    with torch.no_grad():
        network[1].running_mean.copy_(torch.tensor([1.0, -1.0, 0.5]))  # type: ignore[union-attr]
        network[1].running_var.copy_(torch.tensor([2.0, 0.5, 1.5]))  # type: ignore[union-attr]
        network[1].weight.copy_(torch.tensor([1.0, 2.0, 3.0]))  # type: ignore[union-attr]
    return network.eval()


def _normalised(values: Tensor, mean: np.ndarray, variance: np.ndarray, scale: Tensor, eps: float) -> np.ndarray:
    x = values.double().numpy()
    return np.asarray((x - mean[:, None, None]) / np.sqrt(variance + eps)[:, None, None] * scale.numpy()[:, None, None])


@pytest.mark.parametrize("prior", [0, 1, 16, 10**9])
def test_statistics_of_source_and_batch(prior: int) -> None:
    """N / (N + n) of the source's mean and variance, n / (N + n) of the batch's; N without end is the source."""
    network, images = _network(), torch.rand(8, 1, 6, 6)
    with torch.no_grad():
        before = network[0](images)
        plain = network(images)
        adapted = use_batch_statistics(copy.deepcopy(network), prior)
        found = adapted(images)
    share = prior / (prior + 8)
    x = before.double().numpy()
    mean = share * network[1].running_mean.numpy() + (1 - share) * x.mean((0, 2, 3))  # type: ignore[union-attr,operator]
    variance = share * network[1].running_var.numpy() + (1 - share) * x.var((0, 2, 3))  # type: ignore[union-attr,operator]
    expected = _normalised(before, mean, variance, network[1].weight.detach(), 1e-5).clip(0)  # type: ignore[arg-type]
    # float32 against float64, values of up to 10.
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-5)
    if prior == 10**9:
        torch.testing.assert_close(found, plain)
    assert not torch.allclose(found, plain, atol=1e-2) or prior == 10**9


def test_modes_agree_and_nothing_is_remembered() -> None:
    adapted = use_batch_statistics(_network())
    images = torch.rand(8, 1, 6, 6)
    first = adapted.eval()(images)
    adapted(torch.rand(8, 1, 6, 6) * 5)
    assert torch.equal(adapted.train()(images), first)
    assert not list(adapted.buffers())


def test_saved_and_loaded_with_the_running_statistics_of_the_source(digits: ImageData, tmp_path: object) -> None:
    source = build("cnn", digits.task, width=4).eval()
    adapted = use_batch_statistics(copy.deepcopy(source))
    with torch.no_grad():
        for weight in adapted.parameters():
            weight.mul_(1.5)
    kept = running_statistics_of(source, adapted)
    batch = digits.test.fetch(torch.arange(20))
    assert isinstance(kept, Classifier)
    expected = kept(batch).logits
    loaded = load(save(kept, f"{tmp_path}/model"))
    assert torch.equal(loaded(batch).logits, expected)
    assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), adapted.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(kept.buffers(), source.buffers(), strict=True))
    assert not torch.equal(expected, source(batch).logits)


def test_affine_parameters_are_scale_and_shift_only() -> None:
    network = _network()
    found = affine_parameters(use_batch_statistics(network))
    assert [id(p) for p in found] == [id(network[1].weight), id(network[1].bias)]
    with pytest.raises(LimbeckError, match="no batch normalisation with scale and shift"):
        affine_parameters(nn.Linear(2, 2))


def test_models_without_batch_normalisation_are_refused() -> None:
    with pytest.raises(LimbeckError, match="no batch normalisation"):
        use_batch_statistics(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))
    with pytest.raises(LimbeckError, match="prior is -1"):
        use_batch_statistics(_network(), prior=-1)
    assert not batch_norms(use_batch_statistics(_network()))
