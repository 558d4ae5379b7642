import copy
import math
from collections import namedtuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from limbeck.errors import LimbeckError
from limbeck.models import Classifier, ImageTask, build

CLASSES = ("ant", "bee", "cat")
TASK = ImageTask(CLASSES, channels=3, size=(8, 8), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))


class Recorder(nn.Module):
    """A body without parameters that keeps the images it was given."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.images = images
        return images.new_zeros(len(images), 3)


def linear(channels: int = 3) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * 64, 5), nn.ReLU(), nn.Linear(5, 3))


def test_takes_a_batch_or_images() -> None:
    model = Classifier(linear(), CLASSES)
    images = torch.rand(4, 3, 8, 8)
    batch = {"image": images, "label": torch.zeros(4)}
    assert torch.equal(model(batch).logits, model(images).logits)
    assert model(images).logits.shape == (4, 3)


def test_default_hands_on_images_unchanged() -> None:
    body = Recorder()
    images = torch.rand(2, 3, 5, 7)
    Classifier(body, CLASSES)(images)
    assert torch.equal(body.images, images)


def test_normalises_after_resizing() -> None:
    body = Recorder()
    images = torch.rand(2, 3, 16, 12)
    Classifier(body, CLASSES, size=8, mean=TASK.mean, std=TASK.std)(images)
    mean, std = torch.tensor(TASK.mean).view(3, 1, 1), torch.tensor(TASK.std).view(3, 1, 1)
    small = F.interpolate(images, (8, 8), mode="bilinear", antialias=True)
    assert torch.equal(body.images, (small - mean) / std)


def test_resizing_by_two_keeps_the_mean_of_a_flat_image() -> None:
    body = Recorder()
    Classifier(body, CLASSES, size=(4, 6))(torch.full((1, 3, 8, 12), 0.25))
    assert body.images.shape == (1, 3, 4, 6)
    # The weights of the antialiasing filter sum to 1 up to rounding.
    assert torch.allclose(body.images, torch.tensor(0.25), atol=1e-6, rtol=0)


def test_grey_images_are_repeated_for_an_rgb_body() -> None:
    body = Recorder()
    images = torch.rand(2, 1, 4, 4)
    Classifier(body, CLASSES, channels=3)(images)
    assert torch.equal(body.images, torch.cat([images] * 3, dim=1))


def test_rgb_images_become_luma_for_a_grey_body() -> None:
    body = Recorder()
    model = Classifier(body, CLASSES, channels=1)
    model(torch.eye(3).view(3, 3, 1, 1))
    assert body.images.flatten().tolist() == pytest.approx([0.299, 0.587, 0.114], abs=1e-7)
    model(torch.ones(1, 3, 2, 2))
    assert body.images.shape == (1, 1, 2, 2)


def test_statistics_follow_the_channels() -> None:
    grey = ImageTask(CLASSES, 1, (8, 8), (0.4,), (0.2,))
    assert grey.normalisation(3) == ((0.4,) * 3, (0.2,) * 3)
    assert grey.normalisation(1) == ((0.4,), (0.2,))
    mean, std = TASK.normalisation(1)
    assert mean[0] == pytest.approx(0.299 * 0.1 + 0.587 * 0.2 + 0.114 * 0.3, rel=1e-12)
    assert std[0] == pytest.approx(0.6, rel=1e-12)


def test_features_are_the_input_of_the_head() -> None:
    body = linear()
    model = Classifier(body, CLASSES)
    images = torch.rand(4, 3, 8, 8)
    output = model(images)
    assert output.features is not None
    assert output.features.shape == (4, 5)
    assert torch.equal(body.get_submodule("3")(output.features), output.logits)


def test_features_of_a_pointwise_convolution_are_flattened() -> None:
    body = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 3, 1), nn.Flatten())
    images = torch.rand(4, 3, 8, 8)
    features = Classifier(body, CLASSES)(images).features
    assert torch.equal(features, images.mean((2, 3)))


def test_no_head_no_features() -> None:
    assert Classifier(Recorder(), CLASSES)(torch.rand(1, 3, 2, 2)).features is None


def test_head_by_name() -> None:
    body = nn.Sequential(nn.Flatten(), nn.Linear(192, 3), nn.Linear(3, 3))
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(Classifier(body, CLASSES, head="1")(images).features, images.flatten(1))
    with pytest.raises(LimbeckError, match=r"no module named '3'"):
        Classifier(body, CLASSES, head="3")


def test_features_carry_gradients() -> None:
    model = Classifier(linear(), CLASSES)
    features = model(torch.rand(4, 3, 8, 8)).features
    assert features is not None
    features.sum().backward()
    gradient = model.body.get_parameter("1.weight").grad
    assert gradient is not None
    assert gradient.any()


def test_body_may_return_an_object_with_logits() -> None:
    output = namedtuple("output", "logits other")

    class Body(nn.Module):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, int]:
            return output(images.flatten(1)[:, :3], 1)

    images = torch.rand(2, 3, 4, 4)
    assert torch.equal(Classifier(Body(), CLASSES)(images).logits, images[:, 0, 0, :3])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(2, 2, 8, 8), r"\[B, 3, H, W\], got shape \[2, 2, 8, 8\]"),
        (torch.rand(3, 8, 8), r"got shape \[3, 8, 8\]"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), r"float in \[0, 1\], got torch.uint8"),
        ({"img": torch.rand(2, 3, 8, 8)}, r"no 'image', only \['img'\]"),
    ],
)
def test_refuses_what_is_no_batch_of_images(images: torch.Tensor, message: str) -> None:
    with pytest.raises(LimbeckError, match=message):
        Classifier(linear(), CLASSES)(images)


def test_refuses_a_body_with_other_outputs() -> None:
    with pytest.raises(LimbeckError, match=r"logits of shape \[1, 4\], expected \[B, 3\]"):
        Classifier(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), CLASSES)(torch.rand(1, 3, 2, 2))
    with pytest.raises(LimbeckError, match="Sequential returned list"):
        Classifier(nn.Sequential(List()), CLASSES)(torch.rand(1, 3, 2, 2))


class List(nn.Module):
    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [images]


def test_refuses_a_body_of_other_channels() -> None:
    body = nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(LimbeckError, match="takes 1 channels, but the classifier was given channels=3"):
        Classifier(body, CLASSES)
    assert Classifier(body, CLASSES, channels=1)(torch.rand(2, 3, 8, 8)).logits.shape == (2, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ()}, "one name"),
        ({"classes": ("a", "b", "a")}, r"more than once: \['a'\]"),
        ({"classes": ("a", 1)}, "one name"),
        ({"channels": 2}, "got 2"),
        ({"size": (8,)}, "height and width"),
        ({"size": (0, 8)}, "height and width"),
        ({"mean": (0.1,)}, "mean must be 3 finite numbers"),
        ({"std": (0.1, math.nan, 0.1)}, "std must be 3 finite numbers"),
        ({"std": (0.1, 0.0, 0.1)}, "positive"),
    ],
)
def test_refuses_an_impossible_task(change: dict[str, object], message: str) -> None:
    options: dict[str, object] = {
        "classes": CLASSES,
        "channels": 3,
        "size": (8, 8),
        "mean": TASK.mean,
        "std": TASK.std,
    }
    with pytest.raises(LimbeckError, match=message):
        ImageTask(**options | change)  # type: ignore[arg-type]
    with pytest.raises(LimbeckError, match=message):
        Classifier(Recorder(), **options | change)  # type: ignore[arg-type]


def test_classes_are_not_one_string() -> None:
    with pytest.raises(LimbeckError, match="not the one string 'abc'"):
        Classifier(Recorder(), "abc")


def test_constants_are_not_rounded_by_half_precision() -> None:
    model = build("cnn", TASK, norm="group").bfloat16()
    assert model.normalise.mean.dtype == torch.float32
    assert model.normalise.mean.flatten().tolist() == torch.tensor(TASK.mean).tolist()
    output = model(torch.rand(2, 3, 8, 8))
    assert output.logits.dtype == torch.bfloat16
    assert output.logits.isfinite().all()
    assert output.features is not None
    assert output.features.dtype == torch.bfloat16


def test_preprocessing_is_not_in_the_state() -> None:
    model = Classifier(linear(), CLASSES, mean=TASK.mean, std=TASK.std)
    assert set(model.state_dict()) == {"body.1.weight", "body.1.bias", "body.3.weight", "body.3.bias"}


def test_a_copy_has_features_of_its_own() -> None:
    model = build("cnn", TASK)
    model(torch.rand(2, 3, 8, 8))
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    images = torch.rand(2, 3, 8, 8)
    first, second = model(images), other(images)
    assert first.features is not None
    assert second.features is not None
    assert not torch.equal(first.features, second.features)
    assert other.head is not None
    head = other.body.get_submodule(other.head)
    assert torch.equal(head(second.features), second.logits)


def test_compiles_without_graph_breaks() -> None:
    model = build("cnn", TASK).eval()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    images = torch.rand(2, 1, 12, 12)
    expected, output = model(images), compiled({"image": images})
    assert torch.equal(output.logits, expected.logits)
    assert torch.equal(output.features, expected.features)
    # And again, now from the compiled code.
    assert torch.equal(compiled({"image": images}).features, expected.features)
