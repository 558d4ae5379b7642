"""One update: exact means over micro-batches, clipping, several optimisers."""

import pytest
import torch
from lightning_fabric import Fabric
from torch.nn import functional as F

from limbeck.data.samples import ImageData
from limbeck.losses.reduction import Mean
from limbeck.stages.engine import Engine
from limbeck.stages.objective import Batch, Objective, Plan, Terms

from .toys import MeanTeacher, Toy, TwoOptimizers, TwoStreams, small

CASES = [("all",), ("few",), ("all", "few", "bounded"), ("scalar",), ("all", "few", "scalar"), ("all", "none")]


def engine_of(objective: Objective, *, lr: float = 1.0, precision: str = "32-true", **options: object) -> Engine:
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    fabric.launch()
    groups = {name: list(parameters) for name, parameters in objective.parameter_groups().items()}
    optimizers = [torch.optim.SGD(parameters, lr=lr) for parameters in groups.values()]
    module, *wrapped = fabric.setup(objective, *optimizers)
    return Engine(fabric, module, dict(zip(groups, wrapped, strict=True)), **options)


def batch_of(data: ImageData, size: int = 32) -> dict[str, torch.Tensor]:
    return data.train.fetch(torch.arange(size))


def gradients(objective: Objective) -> list[torch.Tensor]:
    return [p.grad.clone() for p in objective.parameters() if p.grad is not None]


def by_hand(data: ImageData, use: tuple[str, ...], batch: Batch) -> tuple[list[torch.Tensor], float]:
    """Gradients in float64 from the definition of each term."""
    student = small(data).double()
    logits = student({"image": batch["image"].double()}).logits
    losses = -F.log_softmax(logits, 1).gather(1, batch["label"][:, None])[:, 0]
    few = (batch["label"] < 3).nonzero()[:, 0]
    made = {
        "all": losses.mean(),
        "few": losses[few].mean(),
        "bounded": logits[few].square().mean(),
        "scalar": 0.1 * logits.square().mean(),
        "none": 0 * losses.sum(),
    }
    loss = torch.stack([made[name] for name in use]).sum()
    return list(torch.autograd.grad(loss, list(student.parameters()))), float(loss.detach())


@pytest.mark.parametrize("use", CASES, ids="-".join)
@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_gradient_and_loss_are_those_of_the_whole_batch(
    digits: ImageData, use: tuple[str, ...], accumulate: int
) -> None:
    batch = batch_of(digits)
    counts = [int((part < 3).sum()) for part in batch["label"].chunk(4)]
    assert len(set(counts)) > 1, "the micro-batches must differ for this test to mean anything"
    objective = Toy(small(digits), use)
    engine = engine_of(objective, accumulate=accumulate)
    engine.update(batch)
    expected, loss = by_hand(digits, use, batch)
    for ours, reference in zip(gradients(objective), expected, strict=True):
        # float32 sums of some hundred products of size 1: a few times 1e-7, cancellation included.
        torch.testing.assert_close(ours.double(), reference, rtol=1e-4, atol=2e-6)
    # torch's summation order differs; the loss is about 2.
    assert float(engine.values["loss"]) == pytest.approx(loss, rel=1e-5)
    assert set(engine.values) == ({"loss"} if len(use) == 1 else {"loss", *(f"loss/{name}" for name in use)})


def test_the_mean_of_means_would_fail_here(digits: ImageData) -> None:
    batch = batch_of(digits)
    expected, _ = by_hand(digits, ("few",), batch)
    naive = [torch.zeros_like(g) for g in expected]
    for number in range(4):
        part = {name: value.chunk(4)[number] for name, value in batch.items()}
        naive = [n + g.nan_to_num() / 4 for n, g in zip(naive, by_hand(digits, ("few",), part)[0], strict=True)]
    assert max(float((n - e).abs().max()) for n, e in zip(naive, expected, strict=True)) > 1e-3


def test_two_streams_are_split_too(digits: ImageData) -> None:
    batch = {"many": batch_of(digits, 32), "few": batch_of(digits, 16)}
    found = []
    for accumulate in (1, 4):
        objective = TwoStreams(small(digits))
        engine_of(objective, accumulate=accumulate).update(batch)
        found.append(gradients(objective))
    for one, four in zip(*found, strict=True):
        torch.testing.assert_close(one, four, rtol=1e-4, atol=2e-6)  # float32, another order of summation


@pytest.mark.parametrize("accumulate", [1, 4])
def test_gradients_are_clipped_to_the_norm(digits: ImageData, accumulate: int) -> None:
    free, clipped = Toy(small(digits), ("all", "few")), Toy(small(digits), ("all", "few"))
    engine_of(free, accumulate=accumulate).update(batch_of(digits))
    engine = engine_of(clipped, accumulate=accumulate, clip_grad_norm=0.01)
    engine.update(batch_of(digits))
    norm = torch.cat([g.flatten() for g in gradients(free)]).norm()
    assert norm > 0.1
    assert float(engine.values["gradient_norm"]) == pytest.approx(float(norm), rel=1e-5)
    for ours, whole in zip(gradients(clipped), gradients(free), strict=True):
        # torch divides by norm + 1e-6, which is 1e-5 of the smallest norm that occurs here.
        torch.testing.assert_close(ours, whole * 0.01 / norm, rtol=2e-5, atol=1e-9)


def test_a_gradient_that_is_not_finite_is_no_crash_of_the_clipping(digits: ImageData) -> None:
    batch = batch_of(digits)
    batch["image"] = torch.full_like(batch["image"], torch.nan)
    engine = engine_of(Toy(small(digits)), clip_grad_norm=1.0)
    engine.update(batch)
    assert engine.values["gradient_norm"].isnan()


def test_two_optimizers_on_two_time_scales(digits: ImageData) -> None:
    objective = TwoOptimizers(small(digits))
    engine = engine_of(objective, lr=0.1)
    groups = {name: list(p) for name, p in objective.parameter_groups().items()}

    def moved(before: dict[str, list[torch.Tensor]]) -> dict[str, bool]:
        return {n: any(not torch.equal(a, b) for a, b in zip(before[n], groups[n], strict=True)) for n in groups}

    for expected in ({"body": True, "head": False}, {"body": True, "head": True}, {"body": True, "head": False}):
        before = {name: [p.detach().clone() for p in parameters] for name, parameters in groups.items()}
        engine.update(batch_of(digits))
        assert moved(before) == expected
        assert set(engine.values) == ({"loss", "loss/slow"} if expected["head"] else {"loss"})


def test_an_optimizer_steps_by_its_own_gradient(digits: ImageData) -> None:
    objective, batch = TwoOptimizers(small(digits)), batch_of(digits)
    objective.updates += 1
    engine = engine_of(objective, lr=0.1)
    twin = small(digits)
    body, head = list(twin.parameters())[:-2], list(twin.parameters())[-2:]
    for part, loss in ((body, lambda z: F.cross_entropy(z, batch["label"])), (head, lambda z: z.square().mean())):
        for parameter, gradient in zip(part, torch.autograd.grad(loss(twin(batch).logits), part), strict=True):
            parameter.data -= 0.1 * gradient
    engine.update(batch)
    for ours, reference in zip(objective.student.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-7)  # float32, another order of summation


@pytest.mark.parametrize("accumulate", [1, 4])
def test_what_terms_keep_arrives_whole_and_in_order(digits: ImageData, accumulate: int) -> None:
    objective = Toy(small(digits))
    engine = engine_of(objective, accumulate=accumulate, lr=0.0)
    for _ in range(2):
        engine.update(batch_of(digits))
        kept = objective.last_kept
        assert torch.equal(kept["index_seen"], kept["index"])
        assert kept["probabilities"].shape == (32, 10)
        assert not kept["probabilities"].requires_grad
        assert objective.kept == {}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_bfloat16_is_finite_and_near(digits: ImageData, accumulate: int, precision: str) -> None:
    batch = {name: v.bfloat16() if v.is_floating_point() else v for name, v in batch_of(digits).items()}
    objective = Toy(small(digits), ("all", "few", "scalar"))
    engine = engine_of(objective, accumulate=accumulate, precision=precision)
    engine.update(batch)
    expected, loss = by_hand(digits, ("all", "few", "scalar"), batch_of(digits))
    assert float(engine.values["loss"]) == pytest.approx(loss, rel=0.02)  # 8 bits of mantissa
    ours = torch.cat([g.double().flatten() for g in gradients(objective)])
    whole = torch.cat([g.flatten() for g in expected])
    assert torch.cosine_similarity(ours, whole, dim=0) > 0.99


def test_an_average_of_weights_gets_no_gradient(digits: ImageData) -> None:
    objective = MeanTeacher(small(digits))
    objective.begin(Plan(num_samples=10, num_classes=10, updates=1, epochs=1.0))
    engine = engine_of(objective)
    engine.update(batch_of(digits))
    assert all(p.grad is None for p in objective.ema.parameters())
    assert int(objective.count) == 1
    assert all(p.grad is not None for p in objective.student.parameters())


def test_an_objective_without_terms_says_so(digits: ImageData) -> None:
    class Forgotten(Objective):
        def __init__(self) -> None:
            super().__init__()
            self.student = small(digits)

    with pytest.raises(NotImplementedError, match="Forgotten has no terms"):
        engine_of(Forgotten()).update(batch_of(digits))


def test_terms_are_a_mean_or_a_scalar_in_anybodys_own_loop(digits: ImageData) -> None:
    objective, batch = Toy(small(digits), ("all", "scalar")), batch_of(digits)
    terms: Terms = objective.terms(batch)
    loss = sum(term.value if isinstance(term, Mean) else term for term in terms.values())
    assert isinstance(loss, torch.Tensor)
    assert float(loss.detach()) == pytest.approx(by_hand(digits, ("all", "scalar"), batch)[1], rel=1e-5)
