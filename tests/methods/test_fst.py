"""FST through the engine: the scalar worked examples, its limits, and a small set of pictures."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from limbeck.data.masks import MaskData, digit_masks
from limbeck.errors import LimbeckError
from limbeck.losses.reduction import Mean
from limbeck.methods.segmentation.fst import FST
from limbeck.methods.segmentation.mean_teacher import MeanTeacher
from limbeck.models import build
from limbeck.models.segmenter import Segmenter
from limbeck.stages.engine import Engine
from limbeck.stages.objective import Objective, Plan, Terms
from limbeck.teachers.ema import EMA

PLAN = Plan(num_samples=320, num_classes=11, updates=10, epochs=1.0)


class Scalar(Segmenter):
    """One weight."""

    def __init__(self, theta: float) -> None:
        nn.Module.__init__(self)
        self.classes = ("a", "b")
        self.theta = nn.Parameter(torch.tensor(theta, dtype=torch.float64))


class Constant(FST):
    """The gradient is the number that the batch holds."""

    def terms(self, batch: Any) -> Terms:
        return {"loss": self.student.theta * batch["labeled"]["gradient"].mean()}

    virtual = terms


def engine_of(objective: Objective, **sgd: Any) -> Engine:
    fabric = Fabric(accelerator="cpu", devices=1)
    fabric.launch()
    module, optimizer = fabric.setup(objective, torch.optim.SGD(list(objective.student.parameters()), **sgd))
    return Engine(fabric, module, {"main": optimizer})


def scalar(m: float = 0.9, lr: float = 0.1, **options: Any) -> tuple[Constant, Engine]:
    """theta = 1, phi = 0, plain SGD, m fixed."""
    objective = Constant(Scalar(1.0), **options)
    objective.begin(PLAN)
    objective.teacher = EMA(Scalar(0.0), m, warmup=False)
    return objective, engine_of(objective, lr=lr)


def gradients(main: float = 1.0, extra: Sequence[float] = ()) -> dict[str, dict[str, Tensor]]:
    values = {"": main} | {f":{k}": value for k, value in enumerate(extra, 1)}
    return {
        f"{name}{suffix}": {"gradient": torch.tensor([value], dtype=torch.float64)}
        for suffix, value in values.items()
        for name in ("labeled", "unlabeled")
    }


def state(objective: FST) -> tuple[float, float]:
    return float(objective.student.theta.detach()), float(objective.teacher.model.theta)


@pytest.mark.parametrize(("K", "phi"), [(0, 0.1), (1, 0.18), (2, 0.242), (3, 0.2878)])
@pytest.mark.parametrize("look", ["deep"])
def test_card_deep(K: int, phi: float, look: Any) -> None:
    objective, engine = scalar(K=K, look=look)
    objective.teacher.update(objective.student)  # what the update before did
    objective.step(gradients(), engine)
    # Two dozen roundings in float64.
    assert state(objective) == pytest.approx((0.9, phi), abs=1e-12)
    assert engine.objective is objective
    objective.finish(gradients())
    assert state(objective) == pytest.approx((0.9, 0.9 * phi + 0.09), abs=1e-12)


def test_card_wide() -> None:
    objective, engine = scalar(K=3, look="wide")
    batch = gradients(1.0, (1.0, 2.0, 3.0))
    objective.step(batch, engine)
    assert state(objective) == pytest.approx((0.9, 0.08), abs=1e-12)
    objective.finish(batch)
    assert state(objective) == pytest.approx((0.9, 0.162), abs=1e-12)


def test_card_on_the_way() -> None:
    """phi passes through .1, .18, .242, .2878."""
    objective, engine = scalar(K=3)
    seen: list[float] = []
    update = objective.teacher.update
    objective.teacher.update = lambda model: (update(model), seen.append(float(objective.teacher.model.theta)))[0]
    objective.teacher.update(objective.student)
    objective.step(gradients(), engine)
    assert seen == pytest.approx([0.1, 0.18, 0.242, 0.2878], abs=1e-12)


@pytest.mark.parametrize("look", ["deep", "wide"])
def test_a_frozen_teacher_changes_nothing(look: Any) -> None:
    objective, engine = scalar(m=1.0, K=3, look=look)
    objective.step(gradients(1.0, (5.0, 6.0, 7.0)), engine)
    assert state(objective) == (0.9, 0.0)


def test_without_learning_the_teacher_comes_nearer() -> None:
    objective, engine = scalar(lr=0.0, K=3)
    objective.teacher.update(objective.student)
    objective.step(gradients(), engine)
    assert state(objective) == pytest.approx((1.0, 1.0 + 0.9**4 * (0.0 - 1.0)), abs=1e-12)


@pytest.mark.parametrize(("restore", "theta"), [(False, 1 - 0.1 * (1 + 0.5 * (1 + 0.5 * 1))), (True, 0.9)])
def test_momentum_of_virtual_steps(restore: bool, theta: float) -> None:
    """Momentum .5 after two virtual steps is 1 + .5: the real step adds to it unless it is put back."""
    objective = Constant(Scalar(1.0), K=2, restore_optimizer=restore)
    objective.begin(PLAN)
    engine = engine_of(objective, lr=0.1, momentum=0.5)
    objective.step(gradients(), engine)
    assert float(objective.student.theta.detach()) == pytest.approx(theta, abs=1e-12)
    momentum = engine.optimizers["main"].optimizer.state[objective.student.theta]["momentum_buffer"]
    assert float(momentum) == pytest.approx((1.0 - theta) / 0.1, abs=1e-12)


@pytest.fixture(scope="module")
def pictures() -> MaskData:
    return digit_masks(0, train=24, validation=4, test=4, labeled=0.25)


def student(data: MaskData, norm: str = "batch") -> Segmenter:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build("unet_segmenter", data.task, width=4, depth=2, norm=norm)
    assert isinstance(model, Segmenter)
    return model


def begun(objective: MeanTeacher, data: MaskData, **sgd: Any) -> tuple[Engine, Mapping[str, Any]]:
    objective.begin(PLAN)
    objective.train()
    streams = objective.streams(data, 4, 0)
    return engine_of(objective, **{"lr": 0.05, **sgd}), {name: stream.batch(0) for name, stream in streams.items()}


def run(objective: MeanTeacher, data: MaskData, updates: int = 2, **sgd: Any) -> dict[str, Tensor]:
    engine, batch = begun(objective, data, **sgd)
    for number in range(updates):
        torch.manual_seed(number)
        engine.update(batch)
    return {name: value.clone() for name, value in objective.state_dict().items()}


@pytest.mark.parametrize("look", ["deep", "wide"])
def test_without_virtual_steps_it_is_the_mean_teacher(pictures: MaskData, look: Any) -> None:
    ours = run(FST(student(pictures), K=0, look=look), pictures)
    theirs = run(MeanTeacher(student(pictures)), pictures)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize("look", ["deep", "wide"])
@pytest.mark.parametrize("clean", [False, True])
def test_the_student_is_put_back_before_the_real_step(pictures: MaskData, look: Any, clean: bool) -> None:
    objective = FST(student(pictures), K=2, look=look, restore_optimizer=clean, restore_buffers=clean, mu=0.9)
    engine, batch = begun(objective, pictures, momentum=0.9)
    before = {name: value.clone() for name, value in objective.student.state_dict().items()}
    parameters = {name for name, _ in objective.student.named_parameters()}
    seen: list[str] = []
    minimise = engine.minimise

    def watched(batch: Any, *, terms: str = "terms", optimizer: str = "main") -> None:
        same = {name for name, value in objective.student.state_dict().items() if torch.equal(value, before[name])}
        state = engine.optimizers["main"].optimizer.state
        if terms == "terms":
            assert parameters <= same
            assert (same == set(before)) is clean
            assert (not state) is clean
        seen.append(terms)
        minimise(batch, terms=terms, optimizer=optimizer)

    engine.minimise = watched  # type: ignore[method-assign]
    objective.step(batch, engine)
    assert seen == ["virtual", "virtual", "terms"]
    assert any(not torch.equal(objective.student.state_dict()[name], before[name]) for name in parameters)
    assert {name for name in engine.values if name.startswith("loss")} == {"loss", "loss/ce", "loss/self_training"}


def test_the_real_step_knows_the_virtual_ones_by_the_teacher_only(pictures: MaskData) -> None:
    """Plain SGD, no batch statistics: with the teacher that FST ends at, one ordinary step gives the same student."""
    options: dict[str, Any] = {"mu": 0.5, "mix": "none", "colours": False, "threshold": 0.1}
    ahead = FST(student(pictures, "group"), K=3, **options)
    engine, batch = begun(ahead, pictures)
    ahead.step(batch, engine)
    plain = MeanTeacher(student(pictures, "group"), **options)
    other, _ = begun(plain, pictures)
    behind = {name: value.clone() for name, value in plain.teacher.model.state_dict().items()}
    plain.teacher.model.load_state_dict(ahead.teacher.model.state_dict())
    other.minimise(batch)
    for ours, theirs in zip(ahead.student.parameters(), plain.student.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert any(not torch.equal(v, ahead.teacher.model.state_dict()[n]) for n, v in behind.items())


def test_wide_steps_start_at_the_same_place_on_batches_of_their_own(pictures: MaskData) -> None:
    objective = FST(student(pictures, "group"), K=2, look="wide", mu=0.9)
    streams = objective.streams(pictures, 4, 0)
    assert set(streams) == {"labeled", "unlabeled", "labeled:1", "labeled:2", "unlabeled:1", "unlabeled:2"}
    engine, batch = begun(objective, pictures)
    indices = {name: tuple(batch[name]["index"].tolist()) for name in streams}
    assert len(set(indices.values())) == len(indices)
    start = objective.student.head if hasattr(objective.student, "head") else objective.student.body.head.bias
    seen: list[Tensor] = []
    minimise = engine.minimise

    def watched(batch: Any, *, terms: str = "terms", optimizer: str = "main") -> None:
        seen.append(start.detach().clone())
        minimise(batch, terms=terms, optimizer=optimizer)

    engine.minimise = watched  # type: ignore[method-assign]
    objective.step(batch, engine)
    assert len(seen) == 3
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])


def test_refuses_what_cannot_be(pictures: MaskData) -> None:
    with pytest.raises(LimbeckError, match="K is -1"):
        FST(student(pictures), K=-1)
    with pytest.raises(LimbeckError, match=r"set data\.labeled below 1"):
        FST(student(pictures)).streams(digit_masks(0, train=8, validation=2, test=2, labeled=1.0), 2, 0)


def test_bf16_and_micro_batches(pictures: MaskData) -> None:
    objective = FST(student(pictures), K=1, selection="entropy", mix="cutmix")
    objective.begin(PLAN)
    objective.train()
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    fabric.launch()
    module, optimizer = fabric.setup(objective, torch.optim.SGD(list(objective.student.parameters()), lr=0.05))
    engine = Engine(fabric, module, {"main": optimizer}, accumulate=2)
    batch = {name: stream.batch(0) for name, stream in objective.streams(pictures, 4, 0).items()}
    engine.update(batch)
    assert all(torch.isfinite(value).all() for value in objective.state_dict().values())
    assert all(torch.isfinite(value) for value in engine.values.values())
    assert {"coverage", "precision", "pseudo_accuracy"} <= set(engine.values)


def test_terms_are_means(pictures: MaskData) -> None:
    objective = FST(student(pictures))
    _, batch = begun(objective, pictures)
    assert all(isinstance(term, Mean) for term in objective.terms(batch).values())
