from pathlib import Path

import pytest
import torch
from torch import Tensor

from limbeck.data.samples import ImageData, Samples
from limbeck.data.synthetic import read_synthetic, synthetic
from limbeck.errors import LimbeckError
from limbeck.stages.objective import Terms
from limbeck.stages.pixels import PixelSettings, PixelSynthesiser, clamp_pixels, seen
from limbeck.stages.progress import Reporter
from limbeck.stages.stage import Context, Program, drive
from limbeck.stages.synthesise import Synthesise
from tests.stages.test_label import KillAt, KilledError

CHUNKS = [torch.tensor([0, 1, 2]), torch.tensor([3, 4]), torch.tensor([0, 5, 9])]


class Brightness(PixelSynthesiser):
    """Drives the mean of each image towards a tenth of its label; weights far outside at first."""

    def terms(self, number: int, images: Tensor, labels: Tensor) -> Terms:
        return {"mean": (images.mean((1, 2, 3)) - labels / 10).square().sum(), "size": 0.01 * images.square().mean()}


def maker(data: ImageData, **changes: object) -> Brightness:
    options = {"iterations": 30, "lr": 0.3, "crop": True, "flip": True, "jitter": 2}
    return Brightness(data.task, CHUNKS, PixelSettings(**{**options, **changes}))  # type: ignore[arg-type]


def run(made: Synthesise, folder: Path, reporter: Reporter | None = None, seed: int = 0) -> Samples:
    def program() -> Program:
        return (yield made)

    found = drive(program(), Context(folder, "test", seed=seed, reporter=reporter or Reporter(quiet=True)))
    assert isinstance(found, Samples)
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in sorted(folder.iterdir()) if f.suffix in (".safetensors", ".csv")}


def test_images_are_made_and_lie_in_range(digits: ImageData, tmp_path: Path) -> None:
    samples = run(Synthesise("make", maker(digits), log_every=10), tmp_path)
    images = samples.fetch(torch.arange(len(samples)))["image"]
    assert samples.labels.tolist() == torch.cat(CHUNKS).tolist()
    assert images.shape == (8, 1, 8, 8)
    assert images.min() >= 0
    assert images.max() <= 1
    assert samples.classes == digits.classes
    # Thirty steps of 0.3 standard deviations reach any brightness.
    assert (images.mean((1, 2, 3)) - samples.labels / 10).abs().max() < 0.1
    rows = (tmp_path / "make/metrics.csv").read_text().splitlines()
    assert rows[0] == "update,epoch,split,name,value"
    assert [row.split(",")[0] for row in rows[1::3]] == ["1", "11", "21", "30"]
    names = [row.split(",")[3] for row in rows[1:4]]
    assert names == ["loss", "loss/mean", "loss/size"]


@pytest.mark.parametrize("step", [1, 30, 31, 75, 90])
def test_killed_making_ends_with_the_same_files(digits: ImageData, tmp_path: Path, step: int) -> None:
    run(Synthesise("make", maker(digits)), tmp_path / "whole")
    with pytest.raises(KilledError):
        run(Synthesise("make", maker(digits)), tmp_path / "killed", KillAt(step))
    with pytest.raises(LimbeckError, match="its making was interrupted"):
        read_synthetic(tmp_path / "killed/make")
    first = tmp_path / "killed/make/chunk-00000.safetensors"
    assert first.exists() == (step > 30)
    made = first.stat().st_mtime_ns if step > 30 else None
    run(Synthesise("make", maker(digits)), tmp_path / "killed")
    assert made is None or first.stat().st_mtime_ns == made  # not made again
    whole = files(tmp_path / "whole/make")
    assert len(whole) == 4
    assert files(tmp_path / "killed/make") == whole


def test_seed_decides(digits: ImageData, tmp_path: Path) -> None:
    run(Synthesise("make", maker(digits)), tmp_path / "a")
    run(Synthesise("make", maker(digits)), tmp_path / "b")
    run(Synthesise("make", maker(digits)), tmp_path / "c", seed=1)
    assert files(tmp_path / "a/make") == files(tmp_path / "b/make")
    assert files(tmp_path / "a/make") != files(tmp_path / "c/make")


def test_a_folder_belongs_to_its_settings(digits: ImageData, tmp_path: Path) -> None:
    run(Synthesise("make", maker(digits)), tmp_path)
    with pytest.raises(LimbeckError, match="was made from other inputs"):
        run(Synthesise("make", maker(digits, lr=0.2)), tmp_path)


def test_divergence_is_named(digits: ImageData, tmp_path: Path) -> None:
    class Broken(Brightness):
        def terms(self, number: int, images: Tensor, labels: Tensor) -> Terms:
            return {"mean": images.mean() * float("inf")}

    with pytest.raises(LimbeckError, match="loss/mean became NaN or infinite at step 1"):
        run(Synthesise("make", Broken(digits.task, CHUNKS, PixelSettings(iterations=3))), tmp_path)


def test_without_steps_the_start_is_kept(digits: ImageData, tmp_path: Path) -> None:
    class Given(Brightness):
        def start(self, number: int) -> Tensor:
            return torch.full((len(self.chunks[number]), 1, 8, 8), 0.25 * number)

    samples = run(Synthesise("make", Given(digits.task, CHUNKS, PixelSettings(iterations=0))), tmp_path)
    images = samples.fetch(torch.arange(8))["image"]
    # To normalised pixels and back in float32.
    torch.testing.assert_close(images[:, 0, 0, 0], torch.tensor([0.0] * 3 + [0.25] * 2 + [0.5] * 3), atol=1e-6, rtol=0)
    assert not (tmp_path / "make/metrics.csv").exists()


def test_every_iterate_is_a_real_image(digits: ImageData) -> None:
    ranges: list[tuple[float, float]] = []

    class Watched(Brightness):
        def terms(self, number: int, images: Tensor, labels: Tensor) -> Terms:
            ranges.append((images.min().item(), images.max().item()))
            return super().terms(number, images, labels)

    plain = PixelSettings(iterations=6, crop=False, flip=False, jitter=0)
    Watched(digits.task, CHUNKS, plain).make(0, torch.device("cpu"), lambda step, terms: None)
    assert ranges[0][0] < -0.1  # the noise that it starts from
    # Rounding of one product and one sum.
    assert all(low >= -1e-6 and high <= 1 + 1e-6 for low, high in ranges[1:])


def test_clamp_is_idempotent_and_exact_at_the_border() -> None:
    mean, std = torch.tensor([0.3, 0.9]).view(1, -1, 1, 1), torch.tensor([0.2, 0.5]).view(1, -1, 1, 1)
    pixels = 4 * torch.randn(3, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    clamp_pixels(pixels, mean, std)
    once = pixels.clone()
    clamp_pixels(pixels, mean, std)
    assert torch.equal(once, pixels)
    real = pixels * std + mean
    # Rounding of one product and one sum.
    assert real.min() >= -1e-7
    assert real.max() <= 1 + 1e-6
    assert (real.min() < 1e-6) & (real.max() > 1 - 1e-6)


def test_what_networks_see() -> None:
    pixels = torch.arange(32.0).reshape(2, 1, 4, 4)
    plain = PixelSettings(crop=False, flip=False, jitter=0)
    assert torch.equal(seen(pixels, plain), pixels)
    torch.manual_seed(0)
    shifts = {tuple(seen(pixels, PixelSettings(crop=False, flip=False, jitter=1))[0, 0, 0].tolist()) for _ in range(40)}
    expected = {tuple(pixels.roll(s, (2, 3))[0, 0, 0].tolist()) for s in ((0, 0), (0, 1), (1, 0), (1, 1))}
    assert shifts == expected
    mirrored = [torch.equal(seen(pixels, PixelSettings(crop=False, jitter=0)), pixels.flip(-1)) for _ in range(60)]
    assert 15 < sum(mirrored) < 45
    # One crop for all: equal images stay equal, and gradients arrive.
    same = torch.rand(1, 1, 8, 8).expand(3, -1, -1, -1).clone().requires_grad_(True)
    crop = seen(same, PixelSettings(flip=False, jitter=0))
    assert crop.shape == same.shape
    assert torch.equal(crop[0], crop[2])
    crop.sum().backward()
    assert same.grad is not None
    assert same.grad.abs().sum() > 0


def test_opened_as_the_training_data_of_another_run(digits: ImageData, tmp_path: Path) -> None:
    run(Synthesise("make", maker(digits)), tmp_path)
    data = synthetic(str(tmp_path / "make"), {"name": "digits", "view": "none"}, seed=0)
    assert len(data.train) == 8
    assert data.unlabeled is None
    assert torch.equal(data.test.labels, digits.test.labels)
    assert torch.equal(data.validation.indices, digits.validation.indices)
    with pytest.raises(LimbeckError, match=r"holds no data\.json"):
        synthetic(str(tmp_path), {"name": "digits"}, seed=0)
    with pytest.raises(LimbeckError, match="must be a data block with a name"):
        synthetic(str(tmp_path / "make"), {"dataset": "digits"}, seed=0)
    (tmp_path / "make/chunk-00001.safetensors").write_bytes(b"damaged")
    with pytest.raises(LimbeckError, match=r"chunk-00001\.safetensors cannot be read"):
        read_synthetic(tmp_path / "make")


def test_dry_run_makes_nothing(digits: ImageData, tmp_path: Path) -> None:
    context = Context(tmp_path / "dry", "test", 0, dry_run=True)

    def program() -> Program:
        samples = yield Synthesise("make", maker(digits))
        assert samples.fetch(torch.arange(8))["image"].shape == (8, 1, 8, 8)

    drive(program(), context)
    assert context.estimates[0]["images"] == 8
    assert context.estimates[0]["seconds"] > 0
    assert not (tmp_path / "dry").exists()


@pytest.mark.parametrize("change", [{"iterations": -1}, {"jitter": -1}, {"lr": 0.0}])
def test_settings_out_of_range(change: dict[str, float]) -> None:
    with pytest.raises(LimbeckError, match=f"{next(iter(change))}"):
        PixelSettings(**change)  # type: ignore[arg-type]
