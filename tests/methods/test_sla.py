from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from limbeck.data.samples import ImageData
from limbeck.errors import LimbeckError
from limbeck.losses.reduction import Mean
from limbeck.methods.classification.sla import SLA
from limbeck.methods.classification.supervised import Supervised
from limbeck.models import Classifier, load, save
from limbeck.models.joint_classifier import JointClassifier
from limbeck.stages.evaluation import predict_logits
from limbeck.stages.fit import Fit
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Context
from tests.methods.tables import Floats, assert_equal, fit, log_softmax, onehot, small, softmax, student, total, value

N, D, B = 3, 6, 5
IMAGES = torch.rand(B, 3, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = [0, 2, 1, 1, 2]
VIEWS = {"none": 1, "rotation": 4, "rotation2": 2, "color_perm3": 3}


def linear(seed: int = 0) -> Classifier:
    """Two linear layers in float64: an image's features and logits are known in closed form."""
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Flatten(), nn.Linear(48, D), nn.Linear(D, N)).double()
    return Classifier(body, [*"abc"], size=4)


def objective(mode: str, transformation: str = "rotation", **options: Any) -> SLA:
    made = SLA(linear(), mode=mode, transformation=transformation, **options)  # type: ignore[arg-type]
    return made.double()


def batch(labels: list[int] | None = None) -> Any:
    return {"image": IMAGES, "label": torch.tensor(LABELS if labels is None else labels)}


def turned(transformation: str, j: int) -> Floats:
    """View j of all images, [B, 48]."""
    x = IMAGES.double().numpy()
    if transformation == "color_perm3":
        x = x[:, [[0, 1, 2], [1, 2, 0], [2, 0, 1]][j]]
    elif transformation != "none":
        x = np.rot90(x, {"rotation": j, "rotation2": 2 * j}[transformation], axes=(2, 3))
    return x.reshape(B, -1)


def layer(module: nn.Module, inputs: Floats) -> Floats:
    assert isinstance(module, nn.Linear)
    found: Floats = inputs @ module.weight.detach().numpy().T + module.bias.detach().numpy()
    return found


def ce(logits: Floats, labels: Any) -> Floats:
    found: Floats = -log_softmax(logits)[np.arange(B), np.asarray(labels)]
    return found


def joint_logits(made: SLA, transformation: str) -> tuple[list[Floats], Floats]:
    """The joint logits of each view and the features of the identity, by NumPy."""
    network = made.student.joint if isinstance(made.student, JointClassifier) else made.student
    body = network.body
    assert isinstance(body, nn.Sequential)
    head = body[2] if isinstance(made.student, JointClassifier) else made.head
    features = [layer(body[1], turned(transformation, j)) for j in range(VIEWS[transformation])]
    return [layer(head, f) for f in features], features[0]


@pytest.mark.parametrize("transformation", VIEWS)
@pytest.mark.parametrize("mode", ["sla+si", "sla+ag"])
def test_joint_loss(mode: str, transformation: str) -> None:
    made, count = objective(mode, transformation), VIEWS[transformation]
    joint, _ = joint_logits(made, transformation)
    wanted = np.mean([ce(s, np.array(LABELS) * count + j) for j, s in enumerate(joint)])
    terms = made.terms(batch())
    assert list(terms) == ["sla"]
    # float64 on both sides; the images are float32 in both.
    assert value(terms["sla"]).item() == pytest.approx(wanted, rel=1e-12)
    large = objective(mode, transformation, with_large_loss=True).terms(batch())
    assert value(large["sla"]).item() == pytest.approx(count * wanted, rel=1e-12)


@pytest.mark.parametrize("T", [1.0, 3.0])
@pytest.mark.parametrize("transformation", VIEWS)
def test_self_distillation(transformation: str, T: float) -> None:
    made, count = objective("sla+sd", transformation, T=T), VIEWS[transformation]
    joint, features = joint_logits(made, transformation)
    single = layer(made.student.body[2], features)
    a = np.zeros((B, N))
    for j, s in enumerate(joint):
        a += s[:, j::count] / count
    kl = (softmax(a / T) * (log_softmax(a / T) - log_softmax(single / T))).sum(-1).mean()
    terms = {name: value(term).item() for name, term in made.terms(batch()).items()}
    assert terms == pytest.approx(
        {
            "sla": np.mean([ce(s, np.array(LABELS) * count + j) for j, s in enumerate(joint)]),
            "ce": ce(single, LABELS).mean(),
            "kd": T**2 * kl,
        },
        rel=1e-11,
    )
    large = objective("sla+sd", transformation, T=T, with_large_loss=True).terms(batch())
    found = {name: value(term).item() for name, term in large.items()}
    assert found == pytest.approx({**terms, "sla": count * terms["sla"]}, rel=1e-12)


def test_baselines() -> None:
    for mode in ("da", "mt"):
        made = objective(mode)
        body = made.student.body
        features = [layer(body[1], turned("rotation", j)) for j in range(4)]
        terms = {name: value(term).item() for name, term in made.terms(batch()).items()}
        wanted = {"ce": np.mean([ce(layer(body[2], f), LABELS) for f in features])}
        if mode == "mt":
            wanted["transformation"] = np.mean([ce(layer(made.head, f), [j] * B) for j, f in enumerate(features)])
        assert terms == pytest.approx(wanted, rel=1e-12)


def test_teacher_gets_no_gradient_from_the_distillation() -> None:
    made = objective("sla+sd")
    head, sigma = made.head, made.student.body[2]
    with torch.no_grad():
        sigma.weight.zero_()
        sigma.bias.zero_()
    terms = made.terms(batch())
    (value(terms["ce"]) + value(terms["kd"])).backward()
    assert head.weight.grad is None
    # h = 0: softmax(h) is uniform, and d(CE + KL)/dh = 2/N - onehot(y) - P_AG, mean over the batch.
    joint, features = joint_logits(made, "rotation")
    p = softmax(sum(s[:, j::4] for j, s in enumerate(joint)) / 4)
    gradient = (2 / N - onehot(LABELS, N) - p).T @ features / B
    np.testing.assert_allclose(sigma.weight.grad.numpy(), gradient, atol=1e-13)
    # With sigma = 0 nothing of it reaches the body either.
    assert made.student.body[1].weight.grad.abs().max() == 0


def test_student_that_says_what_its_teacher_says_learns_nothing_from_it() -> None:
    made = objective("sla+sd", "none")
    sigma = made.student.body[2]
    with torch.no_grad():
        sigma.weight.copy_(made.head.weight)
        sigma.bias.copy_(made.head.bias)
    kd = value(made.terms(batch())["kd"])
    kd.backward()
    assert abs(kd.item()) < 1e-15
    assert sigma.weight.grad.abs().max() < 1e-15


def test_rows_are_interleaved_whatever_the_batch() -> None:
    """The mean over single images is the loss of the batch: no view is credited to another image."""
    for mode in ("sla+ag", "sla+sd", "da", "mt"):
        made = objective(mode)
        whole = total(made.terms(batch())).item()
        parts = [
            total(made.terms({"image": IMAGES[b : b + 1], "label": torch.tensor([LABELS[b]])})).item() for b in range(B)
        ]
        assert whole == pytest.approx(np.mean(parts), rel=1e-12)


def test_images_without_a_label_do_not_count() -> None:
    for mode in ("sla+ag", "sla+sd", "da", "mt"):
        made = objective(mode)
        found = made.terms(batch([0, -1, 1, -1, -1]))
        kept = {"image": IMAGES[[0, 2]], "label": torch.tensor([0, 1])}
        assert total(found).item() == pytest.approx(total(made.terms(kept)).item(), rel=1e-12)
        assert all(isinstance(term, Mean) and term.count == 2 for term in found.values())
        assert total(made.terms(batch([-1] * B))).item() == 0


def test_colours_of_grey_images_cannot_be_told_apart() -> None:
    """Six equal views: no joint logits give a mean cross-entropy below ln 6."""
    grey = {"image": IMAGES[:, :1].expand(-1, 3, -1, -1), "label": torch.tensor(LABELS)}
    made = objective("sla+ag", "color_perm")
    optimizer = torch.optim.LBFGS(made.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        loss = total(made.terms(grey))
        loss.backward()
        return loss.item()

    optimizer.step(closure)
    found = total(made.terms(grey)).item()
    # Five images, three classes and 48 pixels: the classes themselves are learnt by heart.
    assert np.log(6) - 1e-12 <= found < np.log(6) + 1e-2


# Training


def test_one_view_is_supervised_bit_for_bit(digits: ImageData, tmp_path: Path) -> None:
    """M = 1: joint labels are the classes, and a = s. The fresh head starts as the student's own."""
    data = small(digits)
    plain = student(data)
    for mode in ("sla+si", "sla+ag", "da"):
        made = SLA(student(data), mode=mode, transformation="none")  # type: ignore[arg-type]
        if isinstance(made.student, JointClassifier):
            made.student.joint.load_state_dict(plain.state_dict())
        found = fit(made, data, tmp_path / mode)
        wanted = fit(Supervised(student(data)), data, tmp_path / f"supervised-{mode}")
        if isinstance(made.student, JointClassifier):
            found = {name.removeprefix("body."): tensor for name, tensor in found.items()}
        assert_equal(found, wanted)


@pytest.mark.parametrize("mode", ["sla+si", "sla+ag", "sla+sd", "da", "mt"])
def test_what_is_kept_is_a_classifier_of_the_classes(digits: ImageData, tmp_path: Path, mode: str) -> None:
    data = small(digits, 100)
    made = SLA(student(data), mode=mode)  # type: ignore[arg-type]
    stage = Fit("fit", made, data, FitSettings(updates=4, batch_size=20, accelerator="cpu", evaluations=1))
    stage.run(tmp_path / "fit", Context(tmp_path, "test", seed=0))
    kept = stage.load(tmp_path / "fit")
    assert isinstance(kept, Classifier)
    assert isinstance(kept, JointClassifier) == (mode in ("sla+si", "sla+ag"))
    assert kept.classes == data.classes
    logits = predict_logits(kept, data.test).logits
    assert logits.shape == (len(data.test), 10)
    save(kept, tmp_path / "again")
    again = load(tmp_path / "again")
    assert isinstance(again, Classifier)
    assert torch.equal(predict_logits(again, data.test).logits, logits)
    if mode in ("sla+sd", "mt"):
        assert not [name for name in kept.state_dict() if "head" in name]
    accuracy = (logits.argmax(-1) == data.test.labels).double().mean().item()
    summary = made.summary()
    if mode == "sla+ag":
        assert isinstance(kept, JointClassifier)
        kept.aggregate = False
        single = predict_logits(kept, data.test).logits.argmax(-1)
        assert summary == {"single/accuracy": pytest.approx((single == data.test.labels).double().mean().item())}
        assert summary["single/accuracy"] != accuracy
    else:
        assert set(summary) == ({"aggregated/accuracy"} if mode == "sla+si" else set())


def test_batch_statistics_are_those_of_all_views(digits: ImageData) -> None:
    data = small(digits)
    made = SLA(student(data), mode="sla+sd").train()
    norm = made.student.body[0][1]
    seen: list[torch.Tensor] = []
    norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    some = made.streams(data, 20, seed=0).batch(0)
    made.terms(some)
    assert [len(inputs) for inputs in seen] == [80]
    torch.testing.assert_close(norm.running_mean, 0.1 * seen[0].mean((0, 2, 3)), rtol=1e-4, atol=1e-7)


# Arguments


def test_wrong_input(digits: ImageData) -> None:
    with pytest.raises(LimbeckError, match=r"mode is 'sla\+gg'"):
        objective("sla+gg")
    with pytest.raises(LimbeckError, match=r"T is 0\.0; it must be above 0"):
        objective("sla+sd", T=0.0)
    with pytest.raises(LimbeckError, match="no transformations 'turns'"):
        objective("sla+ag", "turns")
    with pytest.raises(LimbeckError, match=r"1 channel: take rotation"):
        SLA(student(digits), transformation="color_perm").streams(digits, 20, seed=0)
    headless = Classifier(nn.Flatten(), [str(n) for n in range(64)], channels=1)
    for mode in ("sla+ag", "sla+sd", "mt"):
        with pytest.raises(LimbeckError, match="no classification head was found"):
            SLA(headless, mode=mode)  # type: ignore[arg-type]
