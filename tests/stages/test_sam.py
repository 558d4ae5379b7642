"""Sharpness-aware minimisation: the gradient where the loss is worst nearby."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from limbeck.data.samples import ImageData
from limbeck.errors import LimbeckError
from limbeck.losses.divergence import cross_entropy
from limbeck.methods.classification.supervised import Supervised
from limbeck.stages.engine import Engine
from limbeck.stages.objective import Batch, Objective, Terms
from limbeck.stages.sam import SAM, unremembered
from limbeck.stages.settings import FitSettings
from tests.methods.tables import assert_equal, fit, student

from .toys import Toy, small


def engine_of(objective: Objective, *, accumulate: int = 1, **options: float) -> Engine:
    fabric = Fabric(accelerator="cpu", devices=1)
    fabric.launch()
    optimizer = SAM([p for p in objective.parameters() if p.requires_grad], **{"lr": 1.0, **options})
    module, stepper = fabric.setup(objective, optimizer)
    return Engine(fabric, module, {"main": stepper}, accumulate=accumulate)


def batch_of(data: ImageData, size: int = 32) -> dict[str, Tensor]:
    return data.train.fetch(torch.arange(size))


def loss_at(data: ImageData, weights: Sequence[Tensor], batch: Batch) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients of the network at these weights, in float64."""
    network = small(data).double()
    with torch.no_grad():
        for own, given in zip(network.parameters(), weights, strict=True):
            own.copy_(given)
    loss = cross_entropy(network({"image": batch["image"].double()}).logits, batch["label"])
    return loss, list(torch.autograd.grad(loss, list(network.parameters())))


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("rho", [0.05, 0.5])
def test_update_by_hand(digits: ImageData, rho: float, accumulate: int) -> None:
    batch = batch_of(digits)
    objective = Toy(small(digits))
    start = [p.detach().double() for p in objective.student.parameters()]
    first, g = loss_at(digits, start, batch)
    norm = torch.cat([part.flatten() for part in g]).norm()
    _, worst = loss_at(digits, [w + rho * part / norm for w, part in zip(start, g, strict=True)], batch)
    engine = engine_of(objective, rho=rho, accumulate=accumulate)
    engine.update(batch)
    for weight, w, part in zip(objective.student.parameters(), start, worst, strict=True):
        # float32 sums over the batch at weights that are themselves rounded.
        torch.testing.assert_close(weight.detach().double(), w - part, rtol=1e-4, atol=1e-5)
    assert max(float((a - b).abs().max()) for a, b in zip(worst, g, strict=True)) > 1e-3
    # The loss that is logged is that at w, and what is kept is kept once.
    assert float(engine.values["loss"]) == pytest.approx(float(first.detach()), rel=1e-5)
    assert set(engine.values) == {"loss"}
    assert torch.equal(objective.last_kept["index_seen"], batch["index"])


def test_momentum_and_decay_are_those_of_sgd_at_the_weights() -> None:
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    ours = SAM([weight], lr=0.1, rho=0.5, momentum=0.9, weight_decay=0.1, nesterov=True)
    other = nn.Parameter(weight.detach().clone())
    sgd = torch.optim.SGD([other], lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True)
    for _ in range(3):
        weight.grad = torch.tensor([3.0, 4.0])
        before = weight.detach().clone()
        with ours.at_worst():
            # rho g / |g| with |g| = 5.
            torch.testing.assert_close(weight.detach() - before, torch.tensor([0.3, 0.4]))
            weight.grad = weight.detach().clone()
            there = weight.grad.clone()
        assert torch.equal(weight.detach(), before)
        other.grad = there
        ours.step()
        sgd.step()
        torch.testing.assert_close(weight, other)


class Watched(Objective):
    """Batch normalisation and draws in every pass."""

    def __init__(self, data: ImageData) -> None:
        super().__init__()
        self.student = small(data, norm="batch", dropout=0.5)
        self.draws: list[Tensor] = []

    def terms(self, batch: Batch) -> Terms:
        self.draws.append(torch.rand(3))
        self.observe(seen=batch["image"].mean())
        return {"ce": cross_entropy(self.student(batch).logits, batch["label"])}


def test_both_passes_draw_the_same_and_statistics_are_those_of_the_first(digits: ImageData) -> None:
    batch = batch_of(digits)
    sharp, plain = Watched(digits), Watched(digits)
    torch.manual_seed(3)
    engine = engine_of(sharp, rho=0.5)
    engine.update(batch)
    torch.manual_seed(3)
    plain.terms(batch)
    assert len(sharp.draws) == 2
    assert torch.equal(sharp.draws[0], sharp.draws[1])
    assert not torch.equal(sharp.draws[0], torch.zeros(3))
    ours, once = dict(sharp.student.named_buffers()), dict(plain.student.named_buffers())
    assert any("num_batches" in name for name in ours)
    assert_equal(ours, once)
    assert float(engine.values["seen"]) == pytest.approx(float(batch["image"].mean()))


def test_unremembered(digits: ImageData) -> None:
    network = small(digits, norm="batch")
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    with unremembered(network):
        network(batch_of(digits))
        assert any(not torch.equal(buffer, before[name]) for name, buffer in network.named_buffers())
    assert_equal(dict(network.named_buffers()), before)


def test_radius_0_is_sgd(digits: ImageData, tmp_path: Path) -> None:
    common = {"lr": 0.05, "momentum": 0.9, "nesterov": True}
    one = fit(Supervised(student(digits)), digits, tmp_path / "sam", optimizer={"name": "sam", "rho": 0.0, **common})
    # Fused and single steps of SGD round differently: sums of 24 updates.
    sgd = {"name": "sgd", "foreach": False, **common}
    other = fit(Supervised(student(digits)), digits, tmp_path / "sgd", optimizer=sgd)
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-4, atol=1e-5)


def test_finds_a_flatter_minimum(digits: ImageData, tmp_path: Path) -> None:
    """Along the worst direction the loss grows less than after SGD (arXiv 2010.01412, figure 1)."""
    batch = batch_of(digits, 400)
    rises = {}
    for name, optimizer in (("sgd", {"name": "sgd"}), ("sam", {"name": "sam", "rho": 0.3})):
        objective = Supervised(small(digits, width=8))
        fit(objective, digits, tmp_path / name, updates=150, optimizer={**optimizer, "lr": 0.05, "momentum": 0.9})
        loss = cross_entropy(objective.student(batch).logits, batch["label"])
        loss.backward()
        worst = SAM(objective.student.parameters(), rho=0.3)
        with worst.at_worst(), torch.no_grad():
            rises[name] = float(cross_entropy(objective.student(batch).logits, batch["label"]) - loss)
    assert 0 < rises["sam"] < 0.7 * rises["sgd"]


def test_wrong_input() -> None:
    with pytest.raises(LimbeckError, match="rho is -1"):
        FitSettings(optimizer={"name": "sam", "rho": -1.0})
    with pytest.raises(LimbeckError, match=r"fit\.optimizer"):
        FitSettings(optimizer={"name": "sam", "radius": 1.0})
