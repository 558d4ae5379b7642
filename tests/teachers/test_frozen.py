import copy

import pytest
import torch
from torch import nn

from limbeck.errors import LimbeckError
from limbeck.models import Classifier, ImageTask, build
from limbeck.teachers import Frozen

TASK = ImageTask(("ant", "bee", "cat"), channels=1, size=(8, 8), mean=(0.3,), std=(0.2,))
IMAGES = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Owner(nn.Module):
    """What holds student and teachers while a student is trained."""

    def __init__(self, model: Classifier, classes: tuple[str, ...] | None = None) -> None:
        super().__init__()
        self.student = nn.Linear(2, 2)
        self.teachers = nn.ModuleList([Frozen(model, classes)])


@pytest.fixture
def model() -> Classifier:
    torch.manual_seed(0)
    model = build("cnn", TASK, width=2, dropout=0.5)
    model(torch.rand(16, 1, 8, 8))
    return model


def test_same_output_without_gradient(model: Classifier) -> None:
    expected = copy.deepcopy(model).eval()(IMAGES)
    teacher = Frozen(model)
    images = IMAGES.clone().requires_grad_()
    output = teacher({"image": images})
    assert torch.equal(output.logits, expected.logits)
    assert torch.equal(output.features, expected.features)
    assert not output.logits.requires_grad
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_stays_in_eval_mode(model: Classifier) -> None:
    owner = Owner(model).train()
    assert owner.student.training
    assert not any(module.training for module in owner.teachers[0].modules())
    statistics = model.body.get_buffer("0.1.running_mean").clone()
    first, second = owner.teachers[0](IMAGES), owner.teachers[0](IMAGES)
    assert torch.equal(first.logits, second.logits)
    assert torch.equal(model.body.get_buffer("0.1.running_mean"), statistics)


@pytest.mark.parametrize("copied", [False, True])
def test_absent_from_the_state_and_strict_loading_passes(model: Classifier, copied: bool) -> None:
    owner = Owner(model, ("cat", "ant"))
    if copied:
        owner = copy.deepcopy(owner)
    state = owner.state_dict()
    assert set(state) == {"student.weight", "student.bias"}
    state = {key: value + 1 for key, value in state.items()}
    before = owner.teachers[0](IMAGES).logits
    owner.load_state_dict(state, strict=True)
    assert torch.equal(owner.student.bias, state["student.bias"])
    assert torch.equal(owner.teachers[0](IMAGES).logits, before)
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "student.bias"'):
        owner.load_state_dict({"student.weight": state["student.weight"]}, strict=True)


def test_alone_its_state_is_empty(model: Classifier) -> None:
    teacher = Frozen(model)
    assert teacher.state_dict() == {}
    teacher.load_state_dict({}, strict=True)


def test_a_state_cannot_overwrite_it(model: Classifier) -> None:
    owner = Owner(model)
    before = owner.teachers[0](IMAGES).logits
    state = owner.state_dict() | {
        "teachers.0.model." + key: torch.zeros_like(value) for key, value in model.state_dict().items()
    }
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "teachers.0.model.body'):
        owner.load_state_dict(state, strict=True)
    owner.load_state_dict(state, strict=False)
    assert torch.equal(owner.teachers[0](IMAGES).logits, before)


def test_a_copy_is_independent(model: Classifier) -> None:
    teacher = Frozen(model, ("cat", "ant"))
    other = copy.deepcopy(teacher)
    before = teacher(IMAGES).logits
    assert torch.equal(other(IMAGES).logits, before)
    for parameter in other.parameters():
        parameter.add_(1)
    assert torch.equal(teacher(IMAGES).logits, before)
    assert not torch.equal(other(IMAGES).logits, before)
    assert not other.train().training


def test_half_precision(model: Classifier) -> None:
    exact = Frozen(copy.deepcopy(model), ("cat", "ant"))(IMAGES).logits
    owner = Owner(model, ("cat", "ant")).to(torch.bfloat16)
    logits = owner.teachers[0](IMAGES.bfloat16()).logits
    assert logits.dtype == torch.bfloat16
    # 8 bits of mantissa, errors of a few roundings over four layers.
    assert torch.allclose(logits.float(), exact, atol=0.05)
    with torch.autocast("cpu", torch.bfloat16):
        assert Owner(model, ("cat", "ant")).teachers[0](IMAGES).logits.isfinite().all()


@pytest.mark.parametrize("classes", [("cat", "ant"), ("bee", "cat", "ant"), ("ant", "bee", "cat"), ("bee",)])
def test_classes_are_matched_by_name(model: Classifier, classes: tuple[str, ...]) -> None:
    plain, matched = Frozen(model)(IMAGES), Frozen(model, classes)
    assert matched.classes == classes
    output = matched(IMAGES)
    for column, name in enumerate(classes):
        assert torch.equal(output.logits[:, column], plain.logits[:, TASK.classes.index(name)])
    assert output.logits.shape == (6, len(classes))
    assert torch.equal(output.features, plain.features)


def test_missing_classes_are_refused_with_both_lists(model: Classifier) -> None:
    message = r"know the classes \['dog'\]: student \['ant', 'dog'\], teacher \['ant', 'bee', 'cat'\]"
    with pytest.raises(LimbeckError, match=message):
        Frozen(model, ("ant", "dog"))
    with pytest.raises(LimbeckError, match="does not name its classes"):
        Frozen(nn.Linear(2, 2), ("ant", "dog"))


def test_gives_its_classes_to_the_next(model: Classifier) -> None:
    again = Frozen(Frozen(model, ("cat", "ant")), ("ant", "cat"))
    plain = Frozen(model)(IMAGES).logits
    assert torch.equal(again(IMAGES).logits, plain[:, [0, 2]])
    assert again.state_dict() == {}
