import pytest
import torch

from limbeck.data.samples import ImageData
from limbeck.data.views import apply
from limbeck.errors import LimbeckError
from limbeck.models import build
from limbeck.stages.score import score
from limbeck.stages.scorers import Embeddings, Losses


@pytest.fixture
def network(digits: ImageData) -> torch.nn.Module:
    torch.manual_seed(0)
    return build("cnn", digits.task, width=4).eval()


def test_embeddings_of_the_images_themselves(digits: ImageData, network: torch.nn.Module) -> None:
    samples = digits.train.subset(range(30))
    found = score(Embeddings(network), samples, batch_size=7)["embedding"]
    with torch.no_grad():
        logits = network(samples.fetch(torch.arange(30))).logits
    torch.testing.assert_close(found, logits / logits.norm(dim=1, keepdim=True), rtol=0, atol=1e-6)


def test_embeddings_of_random_views(digits: ImageData, network: torch.nn.Module) -> None:
    samples = digits.train.subset(range(30))
    embedder = Embeddings(network, 3, "simclr_cifar", seed=5)
    found = score(embedder, samples, batch_size=7)["embedding"]
    assert torch.equal(score(embedder, samples, batch_size=7)["embedding"], found)
    images, total = samples.fetch(torch.arange(30))["image"], torch.zeros(30, 10)
    for number in range(3):
        view = apply(
            "simclr_cifar",
            images,
            seed=5,
            epochs=torch.full((30,), number),
            indices=samples.indices,
            flip=False,
        )
        with torch.no_grad():
            logits = network(view).logits
        total += logits / logits.norm(dim=1, keepdim=True)
    torch.testing.assert_close(found, total / total.norm(dim=1, keepdim=True), rtol=0, atol=1e-5)
    other = score(Embeddings(network, 3, "simclr_cifar", seed=6), samples)["embedding"]
    assert not torch.allclose(other, found, atol=1e-3)


def test_losses_of_the_labels_they_have(digits: ImageData, network: torch.nn.Module) -> None:
    samples = digits.train.subset(range(30)).relabel(torch.arange(30) % 10)
    found = score(Losses(network), samples, batch_size=7)["loss"]
    with torch.no_grad():
        logits = network(samples.fetch(torch.arange(30))).logits
    expected = -logits.log_softmax(-1)[torch.arange(30), torch.arange(30) % 10]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_errors(network: torch.nn.Module) -> None:
    with pytest.raises(LimbeckError, match="views is -1"):
        Embeddings(network, -1)
    with pytest.raises(LimbeckError, match="no view 'simclrr'"):
        Embeddings(network, 1, "simclrr")
