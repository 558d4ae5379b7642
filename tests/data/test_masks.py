"""Images with one label a pixel: views that move both together, splits, and files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from limbeck.data import mask_views
from limbeck.data.fingerprint import fingerprint
from limbeck.data.mask_files import read_pairs
from limbeck.data.mask_samples import LazyMasks, MaskSamples, MemoryMasks
from limbeck.data.mask_views import COLOUR_DRAWS, Window, recolour
from limbeck.data.masks import CAMVID_CLASSES, camvid, digit_masks, mask_folder
from limbeck.data.pixels import Lazy, Memory
from limbeck.data.statistics import channel_statistics
from limbeck.data.stream import Stream
from limbeck.errors import LimbeckError
from tests.data.shared_data import needs_shared


def blocks(n: int = 6, side: int = 8) -> MaskSamples:
    """Images of 3 x 4 blocks whose grey value is a tenth of their class."""
    classes = torch.randint(8, (n, 3, 4), generator=torch.Generator().manual_seed(0))
    masks = classes.repeat_interleave(side, 1).repeat_interleave(side, 2)
    return MaskSamples(Memory((masks / 10).unsqueeze(1)), MemoryMasks(masks, 8), tuple("abcdefgh"))


def shown(samples: MaskSamples, views: dict[str, str], *, epoch: int = 0, seed: int = 0, flip: bool = True) -> Any:
    batch = samples.fetch(torch.arange(len(samples)))
    epochs = torch.full((len(samples),), epoch)
    return samples.augment(batch, views, seed=seed, epochs=epochs, flip=flip)


@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.5, 0.5), (2.0, 2.0), (0.5, 2.0)])
@pytest.mark.parametrize("size", [(24, 32), (16, 16), (40, 20)])
def test_masks_move_with_their_pixels(scale: tuple[float, float], size: tuple[int, int]) -> None:
    samples = blocks(side=16)
    samples.window = Window(size, scale)
    for epoch in range(3):
        batch = shown(samples, {"image": "weak"}, epoch=epoch)
        assert batch["image"].shape == (6, 1, *size)
        assert batch["mask"].shape == (6, *size)
        # Bilinear pixels mix at the edges of blocks, up to two pixels of the view; inside they are their class.
        mask = batch["mask"].float().unsqueeze(1)
        inside = F.max_pool2d(mask, 5, stride=1) == -F.max_pool2d(-mask, 5, stride=1)
        assert inside.float().mean() > 0.1
        image, mask = (pixels[..., 2:-2, 2:-2] for pixels in (batch["image"], mask))
        torch.testing.assert_close(image[inside], mask[inside] / 10, atol=1e-5, rtol=0)
        assert int(batch["mask"].min()) >= 0, "what is beyond the edge is reflected, so that it has a class"


def test_without_zoom_or_move_it_is_the_image() -> None:
    samples = blocks()
    batch = shown(samples, {"image": "weak"}, flip=False)
    assert torch.equal(batch["mask"], samples.fetch(torch.arange(6))["mask"])
    torch.testing.assert_close(batch["image"], samples.fetch(torch.arange(6))["image"], atol=1e-5, rtol=0)
    plain = shown(samples, {"image": "none"})
    assert torch.equal(plain["image"], samples.fetch(torch.arange(6))["image"])


def test_a_crop_is_a_part_of_the_image() -> None:
    samples = blocks(n=40)
    samples.window = Window((10, 12), (1.0, 1.0))
    whole, batch = samples.fetch(torch.arange(40))["mask"], shown(samples, {"image": "weak"}, flip=False)
    places = set()
    for mask, crop in zip(whole, batch["mask"], strict=True):
        windows = mask.unfold(0, 10, 1).unfold(1, 12, 1)
        found = torch.nonzero((windows == crop).flatten(2).all(2))
        assert len(found) >= 1
        places.add(tuple(found[0].tolist()))
    assert len(places) > 10


def test_mirrored_one_time_in_two_and_only_where_allowed() -> None:
    samples = blocks(n=200)
    still, moved = (shown(samples, {"image": "weak"}, flip=flip)["mask"] for flip in (False, True))
    same, mirrored = (still == moved).flatten(1).all(1), (still.flip(-1) == moved).flatten(1).all(1)
    assert (same | mirrored).all()
    # A standard deviation of 0.035.
    assert abs(float(mirrored.float().mean()) - 0.5) < 0.15


def test_weak_and_strong_show_the_same_part() -> None:
    samples = blocks()
    samples.window = Window((16, 16), (0.5, 2.0))
    both = shown(samples, {"weak": "weak", "strong": "strong"})
    assert torch.equal(both["weak"], shown(samples, {"image": "weak"})["image"])
    assert torch.equal(both["mask"], shown(samples, {"image": "strong"})["mask"])
    assert not torch.equal(both["weak"], both["strong"])
    with pytest.raises(LimbeckError, match="show different parts of an image"):
        shown(samples, {"weak": "weak", "strong": "strong:2"})
    other = shown(samples, {"image": "weak:2"})
    assert not torch.equal(other["mask"], both["mask"])


def test_views_depend_on_seed_epoch_and_index_only() -> None:
    samples = blocks()
    samples.window = Window((16, 16), (0.5, 2.0))
    views = {"weak": "weak", "strong": "strong"}
    whole = shown(samples, views)
    some = samples.fetch(torch.tensor([4, 1]))
    torch.manual_seed(1)
    part = samples.augment(some, views, seed=0, epochs=torch.zeros(2, dtype=torch.int64), flip=True)
    for name in ("weak", "strong", "mask"):
        assert torch.equal(part[name], whole[name][[4, 1]]), name
    for change in ({"epoch": 1}, {"seed": 1}):
        assert not torch.equal(shown(samples, views, **change)["mask"], whole["mask"])


def test_recolour() -> None:
    generator = torch.Generator().manual_seed(0)
    images, draws = torch.rand(40, 3, 9, 12, generator=generator), torch.rand(40, COLOUR_DRAWS, generator=generator)
    changed = recolour(images, draws)
    assert changed.shape == images.shape
    assert 0 <= float(changed.min()) <= float(changed.max()) <= 1
    assert ((changed != images).flatten(1).any(1) == ((draws[:, 0] < 0.8) | (draws[:, 5] < 0.5))).all()
    # Image by image it is the same.
    torch.testing.assert_close(
        torch.cat([recolour(i[None], d[None]) for i, d in zip(images, draws, strict=True)]), changed
    )
    # Grey stays grey under hue and saturation, an even image stays even under a blur.
    grey = torch.full((40, 3, 9, 12), 0.5)
    jittered = recolour(grey, draws)
    torch.testing.assert_close(jittered, jittered[:, :1, :1, :1].expand_as(jittered), atol=1e-5, rtol=0)
    neutral = torch.full((40, COLOUR_DRAWS), 0.5)
    torch.testing.assert_close(recolour(images, neutral), images, atol=1e-4, rtol=0)  # YIQ and back in float32
    assert recolour(images[:, :1], draws).shape == (40, 1, 9, 12)


def test_blur_against_scipy() -> None:
    from scipy.ndimage import gaussian_filter

    image = torch.rand(1, 1, 20, 20, generator=torch.Generator().manual_seed(0))
    draws = torch.tensor([[0.9, 0, 0, 0, 0, 0.0, 0.85]])  # no jitter; sigma = 0.15 + 0.85 = 1
    expected = gaussian_filter(image[0, 0].double().numpy(), sigma=1.0, truncate=4.0, mode="mirror")
    np.testing.assert_allclose(recolour(image, draws)[0, 0].numpy(), expected, atol=1e-6)


def test_hidden_masks() -> None:
    data = digit_masks(3, train=16, validation=2, test=2, labeled=0.25)
    assert data.unlabeled is not None
    assert (len(data.train), len(data.unlabeled)) == (4, 12)
    assert not set(data.train.indices.tolist()) & set(data.unlabeled.indices.tolist())
    batch = Stream(data.unlabeled, 3, 0, views=data.training_views).batch(0)
    assert (batch["mask"] == -1).all()
    assert (batch["hidden_mask"] >= 0).all()
    assert "hidden_mask" not in Stream(data.train, 3, 0, views=data.training_views).batch(0)
    other = digit_masks(4, train=16, validation=2, test=2, labeled=0.25)
    assert not torch.equal(other.train.indices, data.train.indices)
    assert digit_masks(3, train=16, validation=2, test=2, labeled=1.0).unlabeled is None


def test_fingerprint() -> None:
    options: dict[str, Any] = {"train": 12, "validation": 2, "test": 2}
    prints = [
        fingerprint(digit_masks(**how, **options))
        for how in (
            {"seed": 0},
            {"seed": 0},
            {"seed": 1},
            {"seed": 0, "labeled": 0.5},
            {"seed": 0, "max_scale": 2.0},
        )
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 4


def test_digit_masks_are_what_they_say() -> None:
    data = digit_masks(0, train=8, validation=2, test=2, labeled=1.0)
    batch = data.train.fetch(torch.arange(8))
    ink = batch["mask"] > 0
    assert ink.flatten(1).any(1).all()
    assert float(batch["image"][:, 0][ink].mean()) > float(batch["image"][:, 0][~ink].mean()) + 0.2
    assert data.task.classes[0] == "ground"
    assert data.task.size == (32, 48)


def save(folder: Path, name: str, array: np.ndarray[Any, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(folder / name)


def test_mask_folder(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    masks = rng.integers(3, size=(4, 6, 8)).astype(np.uint8)
    masks[:, 0] = 255
    for part in ("train", "validation", "test"):
        for number, mask in enumerate(masks):
            save(tmp_path / part / "images", f"{number}.jpg", np.stack([40 * mask] * 3, -1))
            save(tmp_path / part / "masks", f"{number}.png", mask)
    data = mask_folder(0, str(tmp_path), ["a", "b", "c"], labeled=0.5)
    assert data.unlabeled is not None
    got = data.test.fetch(torch.arange(4))
    assert torch.equal(
        got["mask"], torch.from_numpy(masks.astype(np.int64)).masked_fill(torch.from_numpy(masks) == 255, -1)
    )
    assert data.task.channels == 3
    small = mask_folder(0, str(tmp_path), ["a", "b", "c"], size=[3, 4])
    assert small.test.fetch(torch.arange(1))["mask"].shape == (1, 3, 4)
    with pytest.raises(LimbeckError, match=r"0\.png: class 2 is out of range, expected 0 to 1"):
        mask_folder(0, str(tmp_path), ["a", "b"])
    (tmp_path / "test" / "masks" / "2.png").unlink()
    with pytest.raises(LimbeckError, match=r"2\.jpg has no mask"):
        mask_folder(0, str(tmp_path), ["a", "b", "c"])
    save(tmp_path / "test" / "masks", "2.png", np.zeros((6, 8, 3), dtype=np.uint8))
    with pytest.raises(LimbeckError, match=r"mode RGB, expected one class number a pixel"):
        mask_folder(0, str(tmp_path), ["a", "b", "c"])
    with pytest.raises(LimbeckError, match="there is no folder"):
        read_pairs(tmp_path / "nothing", tmp_path, 2, [], None)


def test_errors_name_what_is_wrong() -> None:
    samples = blocks()
    with pytest.raises(LimbeckError, match=r"there is no view 'stong' of masks.*Did you mean 'strong'"):
        samples.check_view("stong")
    with pytest.raises(LimbeckError, match=r"6 images of \[24, 32\] but 5 masks"):
        MaskSamples(samples.images, MemoryMasks(torch.zeros(5, 24, 32, dtype=torch.int64), 8), samples.classes)
    with pytest.raises(LimbeckError, match="row 1: class 9 is out of range, expected 0 to 7"):
        MemoryMasks(torch.tensor([[[0]], [[9]]]), 8)
    with pytest.raises(LimbeckError, match="without masks cannot be labelled"):
        MaskSamples(samples.images, None, samples.classes)
    with pytest.raises(LimbeckError, match="there are no images with masks"):
        MaskSamples(samples.images, samples.masks, samples.classes, rows=torch.arange(0))
    with pytest.raises(LimbeckError, match="labeled is 0"):
        digit_masks(0, train=4, validation=1, test=1, labeled=0)
    with pytest.raises(LimbeckError, match=r"the zoom goes from 2\.0 to 1\.0"):
        digit_masks(0, train=4, validation=1, test=1, min_scale=2.0, max_scale=1.0)
    with pytest.raises(LimbeckError, match="8 x 48 must be at least 16 x 16"):
        digit_masks(0, height=8)
    with pytest.raises(LimbeckError, match=r"crop is \[8\]; it must be a height and a width"):
        digit_masks(0, train=4, validation=1, test=1, crop=[8])
    lazy = LazyMasks(lambda row: torch.zeros(2 + row, 3), 2, (2, 3), str)
    with pytest.raises(LimbeckError, match=r"1 is \[3, 3\], 0 is \[2, 3\]"):
        lazy.take(torch.arange(2))
    assert mask_views.check("weak:2") == ("weak", "2")


def test_images_without_any_masks_can_be_taught_on() -> None:
    samples = MaskSamples(blocks().images, None, ("a", "b"), labeled=False)
    batch = samples.fetch(torch.arange(2))
    assert set(batch) == {"image", "mask", "index"}
    assert (batch["mask"] == -1).all()


def test_statistics() -> None:
    pixels = torch.rand(50, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    pixels[:, 2] = 0.25
    rows = torch.arange(0, 50, 2)
    mean, std = channel_statistics([(Memory(pixels), rows[:10]), (Memory(pixels), rows[10:])])
    np.testing.assert_allclose(mean, pixels[rows].double().mean((0, 2, 3)), atol=1e-6)  # rounded to six digits
    np.testing.assert_allclose(std[:2], pixels[rows].double().std((0, 2, 3), correction=0)[:2], atol=1e-6)
    assert std[2] == 1
    lazy = Lazy(lambda row: pixels[row % 50], 20_000, (3, 4, 5), str)
    np.testing.assert_allclose(
        channel_statistics([(lazy, torch.arange(20_000))])[0][0], pixels[::2, 0].mean(), atol=1e-3
    )


@needs_shared
def test_camvid() -> None:
    data = camvid(0, size=[45, 60])
    assert data.unlabeled is not None
    assert (len(data.train), len(data.unlabeled), len(data.validation), len(data.test)) == (46, 321, 101, 233)
    assert data.classes == CAMVID_CLASSES
    batch = data.test.fetch(torch.arange(20))
    present = set(torch.unique(batch["mask"]).tolist())
    assert {-1, 0, 1, 3} <= present <= set(range(-1, 11))
    road = batch["mask"] == CAMVID_CLASSES.index("Road")
    sky = batch["mask"] == CAMVID_CLASSES.index("Sky")
    # Sky is above and bright, the road below.
    assert float(torch.nonzero(sky)[:, 1].float().mean()) < 15
    assert float(torch.nonzero(road)[:, 1].float().mean()) > 25
    assert float(batch["image"].mean(1)[sky].mean()) > float(batch["image"].mean(1)[road].mean())


def test_camvid_says_where_it_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIMBECK_DATA", raising=False)
    with pytest.raises(LimbeckError, match="set LIMBECK_DATA to a folder with camvid/train"):
        camvid(0)
