import subprocess
import sys
from typing import get_type_hints

import pytest
import torch
from docstring_parser import parse
from torch import nn

from limbeck.errors import LimbeckError
from limbeck.models import Classifier, ImageTask, build
from limbeck.models.build import find
from limbeck.models.index import BUILDERS
from limbeck.models.model import Model

TASK = ImageTask(("ant", "bee", "cat"), channels=1, size=(8, 8), mean=(0.3,), std=(0.2,))


class Own(nn.Module):
    """A network as a user writes it."""

    def __init__(self, num_classes: int, hidden: int = 4, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        layers = (nn.Conv2d(3, hidden, 3), activation(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.layers = nn.Sequential(*layers, nn.Linear(hidden, num_classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


def three_classes() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))


def own_classifier(names: tuple[str, ...] = TASK.classes) -> Classifier:
    return Classifier(three_classes(), names, channels=1)


def nothing() -> int:
    return 3


def test_importing_needs_no_torch() -> None:
    code = "import limbeck.models.index, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_exports_exist() -> None:
    import limbeck.models

    assert all(callable(getattr(limbeck.models, name)) for name in limbeck.models.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = limbeck.models.nonsense


@pytest.mark.parametrize("name", BUILDERS)
def test_every_option_is_typed_and_described(name: str) -> None:
    builder = find(name)
    described = {entry.arg_name: entry.description for entry in parse(builder.__doc__ or "").params}
    hints = get_type_hints(builder)
    assert issubclass(hints.pop("return"), Model)
    assert next(iter(hints)) == "task"
    assert set(hints) == set(described)
    assert all(described.values())


def test_unknown_name_gives_the_nearest() -> None:
    with pytest.raises(LimbeckError, match=r"unknown model 'resnt'. Did you mean 'resnet'\?"):
        build("resnt", TASK)


def test_unknown_argument_gives_the_nearest() -> None:
    with pytest.raises(LimbeckError, match=r"'cnn' has no argument 'widht'. Did you mean 'width'\?"):
        build("cnn", TASK, widht=3)
    with pytest.raises(LimbeckError, match=r"no argument 'hiden'. Did you mean 'hidden'\?"):
        build(f"{__name__}.Own", TASK, hiden=3)


def test_missing_argument() -> None:
    with pytest.raises(LimbeckError, match="'timm' needs the argument model"):
        build("timm", TASK)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_package.Net", "no module named 'no_such_package'"),
        ("torch.nn.Sequentail", r"torch.nn has no class or function 'Sequentail'. Did you mean 'Sequential'\?"),
        ("limbeck.nothing.Net", "no module named 'limbeck.nothing'"),
    ],
)
def test_wrong_path(name: str, message: str) -> None:
    with pytest.raises(LimbeckError, match=message):
        build(name, TASK)


def test_own_class_is_wrapped() -> None:
    model = build(f"{__name__}.Own", TASK, hidden=6)
    assert isinstance(model.body, Own)
    assert model.classes == TASK.classes
    assert (model.channels, model.size, model.mean) == (3, (8, 8), (0.3, 0.3, 0.3))
    output = model({"image": torch.rand(2, 1, 8, 8)})
    assert output.logits.shape == (2, 3)
    assert output.features is not None
    assert output.features.shape == (2, 6)
    assert (model.factory, model.arguments) == (f"{__name__}.Own", {"hidden": 6})


def test_own_function_without_num_classes() -> None:
    assert build(f"{__name__}.three_classes", TASK)(torch.rand(2, 1, 8, 8)).logits.shape == (2, 3)


def test_own_classifier_is_left_as_it_is() -> None:
    model = build(f"{__name__}.own_classifier", TASK)
    assert (model.size, model.mean) == (None, (0.0,))
    with pytest.raises(LimbeckError, match=r"has the classes \['x', 'y', 'z'\], the task has \['ant'"):
        build(f"{__name__}.own_classifier", TASK, names=("x", "y", "z"))


def test_own_function_must_return_a_module() -> None:
    with pytest.raises(LimbeckError, match=r"returned int, not a torch\.nn\.Module"):
        build(f"{__name__}.nothing", TASK)


def test_remembers_name_and_arguments() -> None:
    model = build("cnn", TASK, width=4)
    assert model.factory == "cnn"
    assert model.arguments == {"width": 4, "norm": "batch", "dropout": 0.0}
    assert (model.channels, model.size, model.mean, model.std) == (1, (8, 8), (0.3,), (0.2,))
    assert model.training


def test_seed_decides_the_weights() -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(build("cnn", TASK).state_dict()["body.0.0.weight"])
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])
