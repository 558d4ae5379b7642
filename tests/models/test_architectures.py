import pytest
import torch
from torch import nn

from limbeck.errors import LimbeckError
from limbeck.models import ImageTask, build

RGB10 = ImageTask(tuple("abcdefghij"), channels=3, size=(32, 32), mean=(0.5,) * 3, std=(0.25,) * 3)
GREY10 = ImageTask(tuple("abcdefghij"), channels=1, size=(8, 8), mean=(0.3,), std=(0.4,))


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "arguments", "parameters"),
    [
        # Counted by hand: weights 3x3 without bias, two numbers a channel for each normalisation, the head.
        ("cnn", {}, 432 + 32 + 4608 + 64 + (32 * 8 * 8 * 64 + 64) + (64 * 10 + 10)),
        ("cnn", {"norm": "none"}, 448 + 4640 + (32 * 8 * 8 * 64 + 64) + (64 * 10 + 10)),
        ("mlp", {}, (3072 * 128 + 128) + (128 * 128 + 128) + (128 * 10 + 10)),
        ("mlp", {"layers": 0}, 3072 * 10 + 10),
        # The sizes that the papers' tables round: 0.27 M, 0.85 M, 0.7 M, 2.2 M, 11.2 M.
        ("resnet", {}, 269_722),
        ("resnet", {"depth": 56}, 853_018),
        ("wide_resnet", {}, 691_674),
        ("wide_resnet", {"depth": 40}, 2_243_546),
        ("preact_resnet18", {}, 11_172_170),
    ],
)
def test_number_of_parameters(name: str, arguments: dict[str, object], parameters: int) -> None:
    assert count(build(name, RGB10, **arguments)) == parameters


@pytest.mark.parametrize("task", [RGB10, GREY10], ids=["32x32", "8x8"])
@pytest.mark.parametrize(
    ("name", "arguments", "features"),
    [
        ("cnn", {"width": 4}, 64),
        ("cnn", {"width": 4, "norm": "group"}, 64),
        ("cnn", {"width": 4, "norm": "none", "dropout": 0.5}, 64),
        ("mlp", {"hidden": 16}, 16),
        ("mlp", {"hidden": 16, "center": True}, 16),
        ("resnet", {"depth": 8, "width": 4}, 16),
        ("wide_resnet", {"depth": 10, "widen": 1}, 64),
        ("preact_resnet18", {"width": 4}, 32),
    ],
)
def test_learns_a_batch(name: str, arguments: dict[str, object], features: int, task: ImageTask) -> None:
    torch.manual_seed(0)
    model = build(name, task, **arguments)
    images = torch.rand(10, task.channels, *task.size)
    labels = torch.arange(10)
    output = model(images)
    assert output.features is not None
    assert output.features.shape == (10, features)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(8):
        loss = nn.functional.cross_entropy(model(images).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert losses[-1] < losses[0]


def test_stages_of_the_residual_networks_halve_the_image() -> None:
    body = build("resnet", RGB10, depth=20, width=4).body
    shapes = []
    images = torch.rand(1, 3, 32, 32)
    for module in body.children():
        images = module(images)
        shapes.append(tuple(images.shape[1:]))
    assert shapes[3:12] == [(4, 32, 32)] * 3 + [(8, 16, 16)] * 3 + [(16, 8, 8)] * 3


def test_shortcut_without_parameters_keeps_every_second_pixel() -> None:
    from limbeck.models.resnet import BasicBlock

    block = BasicBlock(2, 5, stride=2).eval()
    nn.init.zeros_(block.norm2.weight)
    images = torch.rand(3, 2, 6, 6)
    output = block(images)
    assert torch.equal(output[:, :2], images[:, :, ::2, ::2])
    assert not output[:, 2:].any()


def test_group_norm_sees_no_other_sample() -> None:
    model = build("cnn", GREY10, norm="group")
    images = torch.rand(4, 1, 8, 8)
    # Batched and single convolutions add up in another order.
    assert torch.allclose(model(images).logits[:1], model(images[:1]).logits, atol=1e-6)
    model = build("cnn", GREY10, norm="batch")
    assert not torch.allclose(model(images).logits[:1], model(images[:1]).logits, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("cnn", {"width": 0}, "width must be 1 or more, got 0"),
        ("cnn", {"norm": "layer"}, r"norm must be one of \['batch', 'group', 'none'\], got 'layer'"),
        ("cnn", {"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ("mlp", {"hidden": 0}, "hidden must be 1 or more"),
        ("mlp", {"layers": -1}, "layers must be 0 or more"),
        ("resnet", {"depth": 18}, r"6 n \+ 2, got 18; the nearest is 20"),
        ("resnet", {"depth": 2}, r"6 n \+ 2, got 2; the nearest is 8"),
        ("resnet", {"width": 0}, "width must be 1 or more"),
        ("wide_resnet", {"depth": 20}, r"6 n \+ 4, got 20"),
        ("wide_resnet", {"widen": 0}, "widen must be 1 or more"),
        ("preact_resnet18", {"width": 0}, "width must be 1 or more"),
    ],
)
def test_refuses_impossible_options(name: str, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(LimbeckError, match=message):
        build(name, RGB10, **arguments)


def test_cnn_refuses_tiny_images() -> None:
    with pytest.raises(LimbeckError, match="at least 4x4 pixels, got 3x8"):
        build("cnn", ImageTask(("a", "b"), 1, (3, 8), (0.0,), (1.0,)))


def test_centered_features() -> None:
    torch.manual_seed(0)
    features = build("mlp", RGB10, hidden=16, center=True)(torch.rand(64, 3, 32, 32)).features
    assert features is not None
    assert torch.allclose(features.mean(0), torch.zeros(16), atol=1e-5)
    assert features.std(0, unbiased=False).median().item() == pytest.approx(1, abs=1e-2)  # some units may be dead
