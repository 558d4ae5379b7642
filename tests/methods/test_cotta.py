"""Every analytic check: CoTTA against its equations, its limits, and a reference written from them."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.data.corrupted import CorruptedData
from limbeck.errors import LimbeckError
from limbeck.methods.adaptation import cotta
from limbeck.methods.adaptation.bn_adapt import BNAdapter
from limbeck.methods.adaptation.cotta import CoTTA, CoTTAAdapter
from limbeck.methods.method import Ready
from limbeck.models import Classifier, build
from limbeck.models.batch_norm import use_batch_statistics
from limbeck.stages.objective import Batch
from tests.methods.streams import context, source, step, stream, unlabelled


@pytest.fixture(scope="module")
def data() -> CorruptedData:
    return stream()


@pytest.fixture(scope="module")
def model(data: CorruptedData) -> Classifier:
    return source(data)


def _adapter(model: Classifier, **options: Any) -> CoTTAAdapter:
    given = {
        "alpha": 0.9,
        "p": 0.0,
        "p_th": 2.0,
        "N": 2,
        "loss": "one-sided",
        "augmentation": "strong",
        "flip": False,
        **options,
    }
    return CoTTAAdapter(model, **given).eval()


def _run(
    model: Classifier, data: CorruptedData, batches: int = 3, lr: float = 1e-2, **options: Any
) -> tuple[CoTTAAdapter, list[Tensor]]:
    adapter = _adapter(model, **options)
    optimizer = torch.optim.Adam(adapter.student.parameters(), lr=lr)
    torch.manual_seed(0)
    return adapter, [step(adapter, unlabelled(data, number), optimizer) for number in range(batches)]


def _equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_against_the_algorithm_written_out(data: CorruptedData, model: Classifier) -> None:
    """Steps 1 to 8 on plain tensors, with the same draws; SGD with momentum."""
    alpha, p, N, rate = 0.8, 0.1, 3, 0.05
    adapter = _adapter(model, alpha=alpha, p=p, N=N)
    optimizer = torch.optim.SGD(adapter.student.parameters(), lr=rate, momentum=0.9)
    body = use_batch_statistics(copy.deepcopy(model))
    names = [name for name, _ in body.named_parameters()]
    start = {name: value.detach().clone() for name, value in body.named_parameters()}
    theta, average = dict(start), dict(start)
    velocity = {name: torch.zeros_like(value) for name, value in start.items()}

    def logits(weights: dict[str, Tensor], images: Tensor) -> Tensor:
        return torch.func.functional_call(body, weights, ({"image": images},)).logits  # type: ignore[no-any-return]

    for number in range(4):
        batch = unlabelled(data, number)
        torch.manual_seed(number)
        answer = step(adapter, batch, optimizer)

        torch.manual_seed(number)
        leaves = {name: theta[name].clone().requires_grad_(True) for name in names}
        views = [cotta.katana(batch["image"], flip=False) for _ in range(N)]
        target = torch.stack([logits(average, view) for view in views]).mean(0).detach()
        loss = -(target.softmax(1) * logits(leaves, batch["image"]).log_softmax(1)).sum(1).mean()
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        for name, gradient in zip(names, gradients, strict=True):
            velocity[name] = 0.9 * velocity[name] + gradient
            theta[name] = theta[name] - rate * velocity[name]
            average[name] = alpha * average[name] + (1 - alpha) * theta[name]
        for name in names:
            mask = (torch.rand(theta[name].shape) < p).float()
            theta[name] = mask * start[name] + (1 - mask) * theta[name]
        # float32 over at most four updates; logits of up to 20.
        torch.testing.assert_close(answer, target, atol=2e-4, rtol=1e-4)
    for name, weight in adapter.student.named_parameters():
        torch.testing.assert_close(weight.detach(), theta[name], atol=2e-5, rtol=1e-4)
    for name, weight in adapter.teacher.model.named_parameters():
        torch.testing.assert_close(weight, average[name], atol=2e-5, rtol=1e-4)


def test_p_1_restores_the_source_exactly(data: CorruptedData, model: Classifier) -> None:
    adapter, _ = _run(model, data, p=1.0)
    assert _equal(adapter.student, model)
    assert not _equal(adapter.teacher.model, model)  # it follows the student as it was before


def test_p_0_restores_nothing(data: CorruptedData, model: Classifier) -> None:
    adapter, _ = _run(model, data, batches=1, p=0.0)
    moved = torch.cat(
        [(a != b).flatten() for a, b in zip(adapter.student.parameters(), model.parameters(), strict=True)]
    )
    restored, _ = _run(model, data, batches=1, p=0.5)
    left = torch.cat(
        [(a != b).flatten() for a, b in zip(restored.student.parameters(), model.parameters(), strict=True)]
    )
    assert left.double().mean() == pytest.approx(moved.double().mean().item() / 2, abs=0.1)


def test_alpha_1_keeps_the_teacher(data: CorruptedData, model: Classifier) -> None:
    adapter, _ = _run(model, data, alpha=1.0)
    assert _equal(adapter.teacher.model, model)
    assert not _equal(adapter.student, model)


def test_alpha_0_copies_the_student_before_its_restoration(data: CorruptedData, model: Classifier) -> None:
    adapter, _ = _run(model, data, alpha=0.0, p=0.0)
    assert _equal(adapter.teacher.model, adapter.student)
    restored, _ = _run(model, data, batches=1, alpha=0.0, p=1.0)
    unrestored, _ = _run(model, data, batches=1, alpha=0.0, p=0.0)
    assert _equal(restored.teacher.model, unrestored.student)


def test_lr_0_moves_nothing(data: CorruptedData, model: Classifier) -> None:
    adapter, answers = _run(model, data, lr=0.0, p=0.3)
    for network in (adapter.student, adapter.teacher.model, adapter.anchor.model):
        assert _equal(network, model)
    torch.manual_seed(0)
    # The answers are the teacher's mean logits over the augmented readings.
    again = adapter.augmented(unlabelled(data, 0)["image"])
    assert torch.equal(answers[0], again)


def test_p_th_0_is_batch_statistics_adaptation_bit_for_bit(data: CorruptedData, model: Classifier) -> None:
    """Teacher and student are equal, so the gradient is exactly 0: under Adam even a rounding error would move them."""
    adapter, answers = _run(model, data, batches=6, lr=0.1, p_th=0.0, p=0.3)
    assert all(
        float(weight.grad.abs().max()) == 0 for weight in adapter.student.parameters() if weight.grad is not None
    )
    assert _equal(adapter.student, model)
    reference = BNAdapter(model, prior=0).eval()
    for number, answer in enumerate(answers):
        assert torch.equal(answer, reference.student(unlabelled(data, number)).logits)


def _count(adapter: CoTTAAdapter, batch: Batch) -> list[int]:
    """How often each of student, teacher and anchor is called."""
    counts = {"student": 0, "teacher": 0, "anchor": 0}
    images = []

    def hook(name: str) -> Any:
        def count(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
            counts[name] += 1
            if name == "teacher":
                images.append(inputs[0]["image"])

        return count

    for name in counts:
        getattr(adapter, name).register_forward_pre_hook(hook(name))
    adapter.terms(batch)
    counts["on the batch itself"] = sum(image is batch["image"] for image in images)
    return list(counts.values())


def test_number_of_passes(data: CorruptedData, model: Classifier) -> None:
    batch = unlabelled(data, 0)
    assert _count(_adapter(model, p_th=1.5, N=5), batch) == [1, 5, 1, 0]
    assert _count(_adapter(model, p_th=0.0, N=5), batch) == [1, 1, 1, 1]


def test_the_switch_compares_the_mean_confidence_of_the_anchor(data: CorruptedData, model: Classifier) -> None:
    batch = unlabelled(data, 0)
    anchor = use_batch_statistics(copy.deepcopy(model))
    with torch.no_grad():
        confidence = anchor(batch).logits.softmax(1).max(1).values.mean().item()
    for p_th, augmented in ((confidence + 1e-4, 1.0), (confidence - 1e-4, 0.0)):
        adapter = _adapter(model, p_th=p_th)
        with torch.no_grad():  # a student that moved changes nothing
            for weight in adapter.student.parameters():
                weight.mul_(1.3)
        adapter.terms(batch)
        assert adapter.observed["augmented"] == [torch.tensor(augmented)]
        assert float(adapter.observed["confidence"][0]) == pytest.approx(confidence, abs=1e-6)  # type: ignore[arg-type]


def test_soft_augmentation_stays_closer(data: CorruptedData, model: Classifier) -> None:
    images = unlabelled(data, 0)["image"]
    plain = use_batch_statistics(copy.deepcopy(model))({"image": images}).logits
    distances = []
    for augmentation in ("soft", "strong"):
        torch.manual_seed(0)
        found = _adapter(model, N=20, augmentation=augmentation).augmented(images)
        distances.append((found - plain).square().mean().item())
    assert 0 < distances[0] < distances[1]


def test_symmetric_loss(data: CorruptedData, model: Classifier) -> None:
    values = []
    for loss in ("one-sided", "symmetric"):
        adapter = _adapter(model, loss=loss)
        torch.manual_seed(0)
        terms = adapter.terms(unlabelled(data, 0))
        values.append(terms["consistency"])
        z, t = adapter.student(unlabelled(data, 0)).logits, adapter.kept["logits"][0]
    forward = -(t.softmax(1) * z.log_softmax(1)).sum(1).mean()
    backward = -(z.softmax(1) * t.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(values[0], forward)
    torch.testing.assert_close(values[1], (forward + backward) / 2)


def test_gradients_reach_the_student_only(data: CorruptedData, model: Classifier) -> None:
    adapter = _adapter(model, loss="symmetric")
    term = adapter.terms(unlabelled(data, 0))["consistency"]
    assert isinstance(term, Tensor)
    term.backward()
    assert all(weight.grad is not None for weight in adapter.student.parameters())
    for network in (adapter.teacher, adapter.anchor):
        assert all(weight.grad is None for weight in network.parameters())
    assert not [key for key in adapter.state_dict() if key.startswith("anchor")]


def test_networks_without_batch_normalisation(data: CorruptedData) -> None:
    """Nothing is switched; all weights are trained and restored."""
    torch.manual_seed(0)
    plain = build("cnn", data.task, width=4, norm="group").eval()
    assert isinstance(plain, Classifier)
    adapter, _ = _run(plain, data, p=0.0)
    assert not any(torch.equal(a, b) for a, b in zip(adapter.student.parameters(), plain.parameters(), strict=True))
    assert _equal(_run(plain, data, p=1.0)[0].student, plain)


def test_bf16(data: CorruptedData, model: Classifier) -> None:
    adapter = _adapter(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        term = adapter.terms(unlabelled(data, 0))["consistency"]
    assert isinstance(term, Tensor)
    assert term.isfinite()
    assert adapter.kept["logits"][0].dtype == torch.float32


# The method


def _method(model: Classifier, data: CorruptedData, **options: Any) -> CoTTA:
    return CoTTA(Ready(model), data, **options)  # type: ignore[arg-type]


def test_program_adapts_and_keeps_the_teacher(data: CorruptedData, model: Classifier, tmp_path: Path) -> None:
    stage = next(_method(model, data, N=2, alpha=0.9, p_th=2.0).program())
    stage.run(tmp_path, context(tmp_path))
    kept = stage.load(tmp_path)
    assert not _equal(kept, model)
    assert (stage.objective.teacher.decay, stage.objective.p, stage.objective.flip) == (0.9, 0.01, False)  # type: ignore[attr-defined]


def test_flips_follow_the_data(data: CorruptedData, model: Classifier) -> None:
    import dataclasses

    stage = next(_method(model, dataclasses.replace(data, flip=True)).program())
    assert stage.objective.flip  # type: ignore[attr-defined]


def test_threshold_by_the_authors_rule(data: CorruptedData, model: Classifier) -> None:
    """The 5% quantile of mean confidences of clean batches, less 0.05."""
    torch.manual_seed(0)
    found = _method(model, data, p_th="auto").threshold(model)
    with torch.no_grad():
        batch = data.validation.fetch(torch.arange(len(data.validation)))
        confidences = model(batch).logits.softmax(1).max(1).values
    # Batches of 40 with replacement: a normal quantile; the error of 1,000 draws is below a third of their spread.
    spread = confidences.std().item() / 40**0.5
    assert found == pytest.approx(confidences.mean().item() - 1.645 * spread - 0.05, abs=spread / 3)
    assert _method(model, data).threshold(model) == 0.92


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.1}, "alpha is 1.1"),
        ({"p": -0.1}, "p is -0.1"),
        ({"p_th": -1.0}, "p_th is -1.0"),
        ({"N": 0}, "N is 0"),
        ({"lr": -1.0}, "learning rate"),
    ],
)
def test_wrong_options(data: CorruptedData, model: Classifier, options: dict[str, Any], message: str) -> None:
    with pytest.raises(LimbeckError, match=message):
        _method(model, data, **options)
