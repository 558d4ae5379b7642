"""Weak and strong views of images: whole batches at once, against torchvision's transforms, an image at a time.

Ours are pairs from a stream; the peer's come from torch's DataLoader over torchvision's transforms v2 with the same
parts: mirrored, shifted by up to an eighth with a reflected border, and for strong RandAugment of two operations and a
grey square of half the size; once from tensors of bytes and once from Pillow's images. Each side has the number of
workers that is best for it. What is random differs; that the operations do the same to the same images, and that weak
views of both are the same set, is asserted first. Rounds are interleaved; starting workers is not timed.

    python benchmarks/views.py [--rounds 5] [--threads N] [--sizes 1x28x28 3x32x32 ...]
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from common import options, quotient, save, show
from limbeck.data import views
from limbeck.data.rand_augment import OPERATIONS
from limbeck.data.samples import Samples
from limbeck.data.stream import Stream

CASES = (("1x28x28", 448), ("3x32x32", 64), ("3x32x32", 448), ("3x96x96", 448), ("3x224x224", 64))
"""Channels, height and width; images a batch. FixMatch has 448 without labels beside 64 with."""

WORKERS = (0, 1, 2)
SECONDS = 0.4
"""About how long each side is timed in a round."""

SOURCES = {"tensors": "uint8 tensors", "pil": "Pillow's images"}
Batches = Callable[[int, int], Iterator[object]]
"""(how many, workers) -> batches."""


class Pairs(Dataset[tuple[Tensor, Tensor, int, int]]):
    """One weak and one strong view of an image, its label and its index."""

    def __init__(self, pixels: Tensor, source: str) -> None:
        size = pixels.shape[-1]
        self.images: list[Tensor] | list[Image] = (
            list(pixels) if source == "tensors" else [functional.to_pil_image(image) for image in pixels]
        )
        basic = [
            v2.RandomHorizontalFlip(),
            v2.RandomCrop(size, padding=size // 8, padding_mode="reflect"),
        ]
        last = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
        cutout = v2.RandomErasing(p=1.0, scale=(0.25, 0.25), ratio=(1.0, 1.0), value=0.5)
        self.weak = v2.Compose([*basic, *last])
        self.strong = v2.Compose([*basic, v2.RandAugment(2, 10, fill=128), *last, cutout])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int, int]:
        image = self.images[index]
        return self.weak(image), self.strong(image), 0, index


def noise(size: str) -> Tensor:
    """Smooth noise, uint8: more bytes than would be kept as float32, as of any data set that is not tiny."""
    channels, height, width = map(int, size.split("x"))
    count = 20_000_000 // (channels * height * width)
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, channels, height // 4, width // 4, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear").mul_(255).to(torch.uint8)


def assert_equal(pixels: Tensor) -> None:
    """Both do the same to an image, except that torchvision, as Pillow, equalises in whole steps, and coarsely."""
    images = pixels[:24].float() / 255
    strength = torch.linspace(0.03, 0.97, len(images))
    factor, amount = (0.05 + 0.9 * strength).tolist(), (0.6 * strength - 0.3).tolist()

    def warp(image: Tensor, angle: float = 0.0, x: float = 0.0, y: float = 0.0) -> Tensor:
        shear = [math.degrees(math.atan(side)) for side in (x, y)]
        return functional.affine(
            image, angle, [0, 0], 1.0, shear, InterpolationMode.NEAREST, [0.5] * len(image), None if angle else [0, 0]
        )

    bits = [8 - int(4 - math.floor(5 * s)) for s in strength.tolist()]
    peers: dict[str, tuple[Callable[[Tensor, int], Tensor], float]] = {  # how it is done, and how close it is
        "autocontrast": (lambda x, at: functional.autocontrast(x), 1e-5),
        "brightness": (lambda x, at: functional.adjust_brightness(x, factor[at]), 1e-6),
        "color": (lambda x, at: functional.adjust_saturation(x, factor[at]), 2e-4),  # weights of three digits
        "contrast": (lambda x, at: functional.adjust_contrast(x, factor[at]), 1 / 255),  # the mean, rounded or not
        "posterize": (lambda x, at: _floats(functional.posterize(_bytes(x), bits[at])), 1e-6),
        "sharpness": (lambda x, at: functional.adjust_sharpness(x, factor[at]), 1e-5),
        "solarize": (lambda x, at: functional.solarize(x, float(strength[at])), 1e-6),
        "rotate": (lambda x, at: warp(x, angle=-math.degrees(math.pi / 1.8 * amount[at])), 1e-6),
        "shear_x": (lambda x, at: warp(x, x=amount[at]), 1e-6),
        "shear_y": (lambda x, at: warp(x, y=amount[at]), 1e-6),
    }
    for name, (peer, tolerance) in peers.items():
        expected = torch.stack([peer(image, at) for at, image in enumerate(images)])
        close = (OPERATIONS[name](images, strength) - expected).abs() <= tolerance
        # Of a warp, pixels that fall between two others may be rounded either way.
        share = float(close.float().mean())
        assert share >= (0.97 if name in ("rotate", "shear_x", "shear_y") else 1.0), (name, share)
    corner = pixels[:1, :, :32, :32]
    margin, at = corner.shape[-1] // 8, torch.arange(4000)
    windows = torch.nn.functional.pad(_floats(corner), [margin] * 4, mode="reflect")[0]
    for axis in (1, 2):
        windows = windows.unfold(axis, corner.shape[axis + 1], 1)
    windows = windows.movedim(0, 2).flatten(0, 1)
    known = _different(torch.cat([windows, windows.flip(-1)]))
    seen = views.apply("weak", _floats(corner).expand(4000, -1, -1, -1), seed=0, epochs=at, indices=at, flip=True)
    transform = Pairs(corner, "tensors").weak
    assert known == _different(seen) == _different(torch.stack([transform(corner[0]) for _ in at]))


def _different(images: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in _bytes(images)}


def _bytes(images: Tensor) -> Tensor:
    return (images * 255).round().to(torch.uint8)


def _floats(images: Tensor) -> Tensor:
    return images.float() / 255


def ours(pixels: Tensor, size: int) -> Batches:
    """Pairs from a stream."""
    samples = Samples(pixels, torch.zeros(len(pixels), dtype=torch.int64), ["all"])
    stream = Stream(samples, size, 0, views={"weak": "weak", "strong": "strong"}, flip=True)
    return lambda count, workers: stream.batches(0, count, workers=workers)


def theirs(pixels: Tensor, size: int, source: str) -> Batches:
    """Pairs from a DataLoader."""
    pairs = Pairs(pixels, source)

    def batches(count: int, workers: int) -> Iterator[object]:
        sampler = RandomSampler(pairs, replacement=True, num_samples=count * size)
        return iter(DataLoader(pairs, size, sampler=sampler, num_workers=workers))

    return batches


def seconds(batches: Batches, workers: int, count: int) -> float:
    """Of a batch, after the first of every worker."""
    skip = max(1, workers)
    drawn = batches(skip + count, workers)
    for _ in range(skip):
        next(drawn)
    begin = time.perf_counter()
    made = sum(1 for _ in drawn)
    assert made == count
    return (time.perf_counter() - begin) / count


def compare(case: str, size: int, rounds: int) -> list[dict[str, object]]:
    """The rows of a case."""
    pixels = noise(case)
    assert_equal(pixels)
    sides = {"ours": ours(pixels, size), **{name: theirs(pixels, size, name) for name in SOURCES}}
    # An even number of batches: two workers deliver theirs together.
    counts = {name: 2 * max(1, round(SECONDS / 2 / seconds(side, 0, 1))) for name, side in sides.items()}
    found: dict[tuple[str, int], list[float]] = {(name, workers): [] for name in sides for workers in WORKERS}
    for number in range(rounds):
        for name, workers in list(found)[:: 1 if number % 2 == 0 else -1]:
            found[name, workers].append(seconds(sides[name], workers, counts[name]))
    best = {name: min(WORKERS, key=lambda w, n=name: statistics.median(found[n, w])) for name in sides}
    rates = {
        name: {workers: round(size / statistics.median(found[name, workers])) for workers in WORKERS} for name in sides
    }
    rows = []
    for name, words in SOURCES.items():
        mine, other = found["ours", best["ours"]], found[name, best[name]]
        ratio = quotient(mine, other)
        rows.append(
            {
                "case": f"{case}, {size} pairs a batch, {best['ours']} workers against {best[name]}",
                "peer_name": f"torchvision v2 on {words}",
                "ours": [size / value for value in mine],
                "peer": [size / value for value in other],
                "unit": "pairs a second",
                "pairs_a_second_by_workers": {"ours": rates["ours"], "peer": rates[name]},
                "ratio": ratio,
                "goal": "at most the time",
                "holds": ratio["median"] <= 1.0,
            }
        )
        show(rows[-1], f"; pairs a second by workers: {rates['ours']} against {rates[name]}")
    return rows


def main() -> None:
    parser = options(__doc__, rounds=5)
    parser.add_argument("--sizes", nargs="+", default=[case for case, _ in CASES])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = [row for case, size in CASES if case in arguments.sizes for row in compare(case, size, arguments.rounds)]
    if {case for case, _ in CASES} <= set(arguments.sizes):
        save("views", rows, arguments.threads)


if __name__ == "__main__":
    main()
