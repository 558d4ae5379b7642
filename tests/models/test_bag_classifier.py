from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from limbeck.errors import LimbeckError
from limbeck.models import Classifier, build, load, save
from limbeck.models.bag_classifier import BagClassifier, classify_bags
from limbeck.models.classifier import ImageTask
from limbeck.models.pooling import AttentionPooling, InstancePooling
from tests.methods.tables import log_softmax, softmax

TASK = ImageTask(("negative", "positive"), 1, (8, 8), (0.2,), (0.5,))
MASK = torch.tensor([[True, True, False, False], [True] * 4, [True, False, False, False]])
SIZES = [2, 4, 1]


def drawn(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(3, 4, 2, generator=generator, dtype=torch.float64)
    return logits, torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)


def bags(seed: int = 0) -> dict[str, torch.Tensor]:
    images = torch.rand(3, 4, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return {"image": images, "mask": MASK}


def model(pooling: str, **options: object) -> BagClassifier:
    torch.manual_seed(0)
    made = build("bag_classifier", TASK, model={"name": "cnn", "width": 4}, pooling=pooling, **options)
    assert isinstance(made, BagClassifier)
    return made


@pytest.mark.parametrize("how", ["mean", "max"])
def test_pooling_of_probabilities(how: str) -> None:
    logits, features = drawn()
    found = InstancePooling(how)(logits, features, MASK)  # type: ignore[arg-type]
    p = softmax(logits.numpy())[..., 1]
    for b, size in enumerate(SIZES):
        own = p[b, :size]
        wanted = own.mean() if how == "mean" else own.max()
        np.testing.assert_allclose(found.logits[b].numpy(), np.log([1 - wanted, wanted]), rtol=1e-12)
        np.testing.assert_allclose(found.scores[b].numpy(), np.append(own, np.zeros(4 - size)), rtol=1e-12)
    bag = found.logits.exp()[:, 1:]
    least = found.scores.masked_fill(~MASK, 2.0).amin(1, keepdim=True)
    assert bool(((bag <= found.scores.amax(1, keepdim=True) + 1e-12) & (bag >= least - 1e-12)).all())


@pytest.mark.parametrize("how", ["mean", "max"])
def test_extreme_logits_stay_finite(how: str) -> None:
    logits = torch.tensor([[[0.0, 1e4], [0.0, 2e4], [5e4, 0.0]], [[1e4, 0.0], [2e4, 0.0], [0.0, 1e5]]])
    logits.requires_grad_()
    mask = torch.tensor([[True, True, True], [True, True, False]])
    found = InstancePooling(how)(logits, None, mask)  # type: ignore[arg-type]
    found.logits.sum().backward()
    assert bool(found.logits.isfinite().all())
    assert bool(logits.grad.isfinite().all())
    assert logits.grad[1, 2].abs().max() == 0
    if how == "max":
        # Of two probabilities that both round to 1 the larger log-odds count.
        assert found.logits.tolist() == [[-2e4, 0.0], [0.0, -1e4]]


@pytest.mark.parametrize("gated", [True, False])
def test_attention(gated: bool) -> None:
    torch.manual_seed(0)
    pooling = AttentionPooling(5, hidden=3, gated=gated).double()
    logits, h = drawn()
    found = pooling(logits, h, MASK)
    weights = {name: value.detach().numpy() for name, value in pooling.named_parameters()}
    for b, size in enumerate(SIZES):
        own = h[b, :size].numpy()
        hidden = np.tanh(own @ weights["content.weight"].T + weights["content.bias"])
        if gated:
            hidden = hidden / (1 + np.exp(-(own @ weights["gate.weight"].T + weights["gate.bias"])))
        a = softmax((hidden @ weights["weight.weight"].T)[:, 0])
        said = (a @ own) @ weights["classifier.weight"].T + weights["classifier.bias"]
        np.testing.assert_allclose(found.logits[b].detach().numpy(), said, rtol=1e-11)
        scores = a / a.max() * np.exp(log_softmax(said))[1]
        np.testing.assert_allclose(found.scores[b, :size].detach().numpy(), scores, rtol=1e-11)
        assert not found.scores[b, size:].any()


@pytest.mark.parametrize("pooling", ["mean", "max", "attention"])
def test_what_fills_bags_up_and_the_order_change_nothing(pooling: str) -> None:
    made, batch = model(pooling), bags()
    other = {"image": torch.where(MASK[:, :, None, None, None], batch["image"], 7.0), "mask": MASK}
    # Training mode: nothing of it reaches the statistics of batch normalisation either.
    twin = model(pooling)
    one, two = made(batch), twin(other)
    assert torch.equal(one.logits, two.logits)
    assert torch.equal(one.scores, two.scores)
    assert all(torch.equal(a, b) for a, b in zip(made.buffers(), twin.buffers(), strict=True))

    made.eval()
    order = torch.tensor([3, 1, 0, 2])
    turned = made({"image": batch["image"][:, order], "mask": MASK[:, order]})
    said = made(batch)
    # Sums in another order, in float32.
    torch.testing.assert_close(turned.logits, said.logits, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(turned.scores, said.scores[:, order], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_saved_and_loaded(tmp_path: Path, pooling: str) -> None:
    made = model(pooling, hidden=7).eval()
    save(made, tmp_path)
    again = load(tmp_path)
    assert isinstance(again, BagClassifier)
    assert torch.equal(again(bags()).scores, made(bags()).scores)
    assert torch.equal(again(bags()).logits, made(bags()).logits)


def test_unused_head_does_not_train() -> None:
    frozen = {name for name, p in model("attention").named_parameters() if not p.requires_grad}
    assert frozen == {"encoder.body.6.weight", "encoder.body.6.bias"}
    assert all(p.requires_grad for p in model("max").parameters())


def test_wrong_input() -> None:
    encoder = build("cnn", TASK, width=4)
    assert isinstance(encoder, Classifier)
    with pytest.raises(LimbeckError, match=r"the batch holds no bags .*, only \['image'\]"):
        model("max")({"image": torch.rand(2, 1, 8, 8)})
    with pytest.raises(LimbeckError, match="pooling of instances is 'sum'; it must be mean or max"):
        classify_bags(encoder, "sum")  # type: ignore[arg-type]
    with pytest.raises(LimbeckError, match="hidden is 0"):
        classify_bags(encoder, "attention", hidden=0)
    three = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), [*"abc"], channels=1, size=8)
    with pytest.raises(LimbeckError, match="2 classes, not the 3"):
        classify_bags(three, "max")
    sizeless = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), [*"ab"], channels=1)
    with pytest.raises(LimbeckError, match="needs an encoder of a fixed size"):
        classify_bags(sizeless, "max")
