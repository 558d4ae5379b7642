from pathlib import Path

import pytest
import torch
from torch import nn

from limbeck import models
from limbeck.errors import LimbeckError
from limbeck.models.classifier import ImageTask
from limbeck.models.segmenter import Segmenter

TASK = ImageTask(("sky", "road", "car"), channels=3, size=(20, 28), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
GREY = ImageTask(("ground", "ink"), channels=1, size=(16, 16), mean=(0.3,), std=(0.2,))


def built(task: ImageTask = TASK, name: str = "unet_segmenter", **options: object) -> Segmenter:
    torch.manual_seed(0)
    model = models.build(name, task, **options)
    assert isinstance(model, Segmenter)
    return model.eval()


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize(("depth", "stride"), [(1, 1), (3, 1), (2, 2), (1, 4)])
@pytest.mark.parametrize("size", [(16, 16), (20, 28), (17, 9)])
def test_a_map_a_class_as_large_as_the_image(norm: str, depth: int, stride: int, size: tuple[int, int]) -> None:
    model = built(width=4, depth=depth, stride=stride, norm=norm)
    output = model({"image": torch.rand(2, 3, *size)})
    assert output.logits.shape == (2, 3, *size)
    output.logits.square().mean().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())


def test_normalises() -> None:
    class Same(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images

    images = torch.rand(2, 3, 4, 5)
    model = Segmenter(Same(), TASK)
    expected = (images - torch.tensor(TASK.mean)[:, None, None]) / torch.tensor(TASK.std)[:, None, None]
    torch.testing.assert_close(model(images).logits, expected)
    # Grey images are repeated.
    torch.testing.assert_close(model(images[:, :1]).logits, model(images[:, :1].expand(-1, 3, -1, -1)).logits)


def test_a_pixel_moves_its_neighbourhood_only() -> None:
    model = built(width=4, depth=1, norm="none")
    images = torch.rand(1, 3, 32, 32)
    other = images.clone()
    other[..., 4, 4] = 0
    changed = (model(images).logits != model(other).logits).any(1)[0]
    assert changed[4, 4]
    assert not changed[20:, 20:].any()


@pytest.mark.parametrize("task", [TASK, GREY])
def test_saved_and_loaded(task: ImageTask, tmp_path: Path) -> None:
    model = built(task, width=4, depth=2, stride=2)
    images = torch.rand(2, task.channels, *task.size)
    models.save(model, tmp_path)
    loaded = models.load(tmp_path)
    assert isinstance(loaded, Segmenter)
    assert loaded.spec == task
    assert torch.equal(loaded(images).logits, model(images).logits)


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large"])
def test_torchvision(name: str, tmp_path: Path) -> None:
    model = built(GREY, "torchvision_segmenter", model=name, imagenet_statistics=True)
    images = torch.rand(2, 1, 64, 48)
    with torch.no_grad():
        logits = model(images).logits
        assert logits.shape == (2, 2, 64, 48)
        loaded = models.load(models.save(model, tmp_path))
        assert torch.equal(loaded(images).logits, logits)
    assert tuple(model.normalise.mean.flatten().tolist()) == pytest.approx((0.485, 0.456, 0.406))
    assert loaded.arguments["imagenet_statistics"] is True


def test_errors() -> None:
    with pytest.raises(LimbeckError, match="width must be at least 1, got 0"):
        built(width=0)
    with pytest.raises(LimbeckError, match="norm must be one of"):
        built(norm="layer")
    with pytest.raises(LimbeckError, match=r"torchvision has no segmentation model 'deeplab'"):
        built(name="torchvision_segmenter", model="deeplab")
    with pytest.raises(LimbeckError, match=r"images must be \[B, 3, H, W\], got shape \[2, 2, 8, 8\]"):
        built(width=2)(torch.rand(2, 2, 8, 8))
    with pytest.raises(LimbeckError, match="holds no 'image'"):
        built(width=2)({"label": torch.zeros(1)})
    with pytest.raises(LimbeckError, match=r"returned logits of shape \[1, 3, 4, 4\], expected \[1, 3, 8, 8\]"):
        Segmenter(nn.Conv2d(3, 3, 2, stride=2), TASK)(torch.rand(1, 3, 8, 8))
