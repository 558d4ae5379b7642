"""FKD and FerKD: training from stored labels of regions."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.data.load import load
from limbeck.data.samples import ImageData
from limbeck.data.store import LabelStore, Rows
from limbeck.errors import LimbeckError
from limbeck.methods.classification.ferkd import CalibratedRegions, FerKD
from limbeck.methods.classification.fkd import FKD, StoredRegions
from limbeck.methods.method import Ready
from limbeck.models.classifier import Classifier
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Context, drive
from limbeck.stages.store_writer import StoreWriter
from limbeck.teachers.stored import Stored
from limbeck.verbs.label import label
from tests.data.test_store import schema
from tests.methods.tables import student, value

COUNT, REGIONS = 12, 5


@pytest.fixture(scope="module")
def data() -> ImageData:
    found = load("digits", 0, labels_per_class=4, view="crop@0.3-1")
    assert isinstance(found, ImageData)
    return found


def stored_labels(data: ImageData, folder: Path, logits: Tensor) -> Stored:
    """The same logits [N, views, C] as a store of the training samples."""
    import dataclasses

    count, views, _ = logits.shape
    made = dataclasses.replace(
        schema(data), samples=count, views=views, view=data.view, flip=data.flip, storage="float32"
    )
    writer = StoreWriter(folder, made, data.train, count * views)
    rows = torch.arange(count * views)
    blank = torch.zeros(len(rows))
    labels = Rows(logits.transpose(0, 1).reshape(len(rows), -1), rows, blank, torch.zeros(len(rows), 4))
    writer.add(made.encode(rows, labels))
    writer.flush()
    return Stored(LabelStore.open(folder))


def random_store(data: ImageData, folder: Path) -> tuple[Stored, Tensor]:
    logits = 2 * torch.randn(len(data.train), REGIONS, 10, generator=torch.Generator().manual_seed(1))
    return stored_labels(data, folder, logits), logits


def regions(data: ImageData, stored: Stored, **changes: Any) -> StoredRegions:
    options = {"crops": 2, "temperature": 1.0, "mixing": "none", "mixup_alpha": 0.8, "cutmix_alpha": 1.0, **changes}
    return StoredRegions(student(data), stored, **options).eval()


def calibrated(data: ImageData, stored: Stored, **changes: Any) -> CalibratedRegions:
    options = {
        "crops": 2,
        "temperature": 1.0,
        "mixing": "none",
        "mixup_alpha": 0.8,
        "cutmix_alpha": 1.0,
        "low": 0.05,
        "middle": 0.3,
        "top": 0.98,
        "quantiles": False,
        "score": "confidence",
        "epsilon": 0.1,
        **changes,
    }
    return CalibratedRegions(student(data), stored, **options).eval()


def positions(data: ImageData, batch: dict[str, Tensor]) -> list[int]:
    where = {int(index): at for at, index in enumerate(data.train.indices)}
    return [where[int(index)] for index in batch["index"]]


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_loss_is_the_cross_entropy_with_the_stored_labels(data: ImageData, tmp_path: Path, temperature: float) -> None:
    stored, logits = random_store(data, tmp_path)
    objective = regions(data, stored, temperature=temperature)
    batch = objective.streams(data, COUNT, 0).batch(3)
    q = logits[positions(data, batch), batch["epoch"]].double().softmax(1)
    with torch.no_grad():
        z = objective.student(batch).logits.double() / temperature
    expected = -(q * z.log_softmax(1)).sum(1).mean()
    found = objective.terms(batch)
    assert list(found) == ["soft"]
    assert float(value(found["soft"]).detach()) == pytest.approx(float(expected), rel=1e-5)


def test_hard_labels_give_the_cross_entropy_with_the_first_class(data: ImageData, tmp_path: Path) -> None:
    network = student(data, seed=3).eval()
    from limbeck import models

    models.save(network, tmp_path / "teacher")
    label(tmp_path / "teacher", data, out=tmp_path / "store", views=3, hard=True, quiet=True, samples="labeled")
    objective = regions(data, Stored(LabelStore.open(tmp_path / "store")))
    batch = objective.streams(data, COUNT, 0).batch(0)
    with torch.no_grad():
        first = network(batch).logits.argmax(1)
        expected = torch.nn.functional.cross_entropy(objective.student(batch).logits, first)
    assert float(value(objective.terms(batch)["soft"]).detach()) == pytest.approx(float(expected), rel=1e-5)


def test_mixing_with_oneself_changes_nothing_and_stays_within_an_image(data: ImageData, tmp_path: Path) -> None:
    stored, _ = random_store(data, tmp_path)
    alone = regions(data, stored, crops=1, mixing="self")
    batch = alone.streams(data, COUNT, 0).batch(0)
    images, labels = alone.mix(batch["image"], alone.labels(batch))
    torch.testing.assert_close(images, batch["image"])
    torch.testing.assert_close(labels.target, alone.labels(batch).target)

    # Labels and images that say which image they come from: mixed ones must still say it.
    marks = torch.arange(6).repeat_interleave(2)
    pictures = marks[:, None, None, None].float().expand(-1, 1, 8, 8) / 10
    which = torch.eye(10)[marks]
    own, all_ = regions(data, stored, mixing="self"), regions(data, stored, mixing="batch")
    changed = 0
    for seed in range(20):
        torch.manual_seed(seed)
        mixed, labels = own.mix(pictures, own.labels(batch).__class__(which))
        torch.testing.assert_close(mixed, pictures)
        torch.testing.assert_close(labels.probabilities(10), which)
        torch.manual_seed(seed)
        mixed, labels = all_.mix(pictures, own.labels(batch).__class__(which))
        changed += int(not torch.allclose(mixed, pictures))
    assert changed > 10


def test_micro_batches_that_tear_images_apart_are_refused(data: ImageData, tmp_path: Path) -> None:
    objective = regions(data, random_store(data, tmp_path)[0], mixing="self")
    batch = objective.streams(data, COUNT, 0).batch(0)
    with pytest.raises(LimbeckError, match="a batch of 3 is not made of groups of 2"):
        objective.mix(batch["image"][:3], objective.labels({k: v[:3] for k, v in batch.items()}))


def test_regions_are_sorted_by_certainty(data: ImageData, tmp_path: Path) -> None:
    """Region 0 is hopeless, 1 is background, 2 and 3 are kept, 4 is trivial; image 1 has trivial ones only."""
    confidences = torch.tensor([0.11, 0.2, 0.6, 0.5, 0.995])
    truth = data.train.labels
    probabilities = ((1 - confidences) / 9)[None, :, None].expand(len(truth), -1, 10).clone()
    probabilities.scatter_(
        2, truth[:, None, None].expand(-1, REGIONS, 1), confidences[None, :, None].expand(len(truth), -1, 1)
    )
    trivial = torch.tensor([0.985, 0.986, 0.987, 0.988, 0.995])[:, None]
    sure = torch.eye(10)[truth[1]].bool()
    probabilities[1] = torch.where(sure, trivial, (1 - trivial) / 9)
    stored = stored_labels(data, tmp_path, probabilities.log())
    objective = calibrated(data, stored, low=0.15, middle=0.3, top=0.98)
    made = objective.streams(data, 2 * len(truth), 0)
    assert made.chosen is not None
    expected = torch.tensor([False, True, True, True, False]).repeat(len(truth), 1)
    expected[1] = torch.tensor([False, False, False, False, True])
    assert torch.equal(made.chosen, expected)
    share = (len(truth) - 1) / len(truth) / REGIONS
    assert objective.shares["softened"] == pytest.approx(share, abs=1e-6)
    assert objective.shares["kept"] == pytest.approx(2 * share, abs=1e-6)
    assert sum(objective.shares.values()) == pytest.approx(1)

    batch = made.batch(0)
    labels = objective.labels(batch)
    assert labels.weights.all(), "a region that is all an image has still counts"
    at = positions(data, batch)
    for row, (position, view) in enumerate(zip(at, batch["epoch"].tolist(), strict=True)):
        wanted = probabilities[position, view] / probabilities[position, view].sum()
        if view == 1:
            wanted = torch.full((10,), 0.01)
            wanted[truth[position]] = 0.91
        torch.testing.assert_close(labels.probabilities(10)[row], wanted, rtol=1e-4, atol=1e-6)


def test_thresholds_as_quantiles(data: ImageData, tmp_path: Path) -> None:
    stored, logits = random_store(data, tmp_path)
    objective = calibrated(data, stored, low=0.1, middle=0.4, top=0.9, quantiles=True)
    objective.streams(data, COUNT, 0)
    scores = logits.softmax(2).max(2).values.flatten()
    expected = [float(torch.quantile(scores, q, interpolation="nearest")) for q in (0.1, 0.4, 0.9)]
    assert objective.limits == pytest.approx(expected, abs=1e-6)
    # 200 regions: shares are exact but for the ends.
    assert objective.summary()["discarded"] == pytest.approx(0.2, abs=0.011)
    assert objective.summary()["softened"] == pytest.approx(0.3, abs=0.011)


def test_score_of_the_true_class(data: ImageData, tmp_path: Path) -> None:
    stored, logits = random_store(data, tmp_path)
    objective = calibrated(data, stored, score="truth", low=0.2, middle=0.2, top=1.0)
    chosen = objective.chosen(data)
    truth = logits.softmax(2).gather(2, data.train.labels[:, None, None].expand(-1, REGIONS, 1))[..., 0]
    expected = truth >= 0.2
    lonely = ~expected.any(1)
    assert lonely.any()
    assert torch.equal(chosen[~lonely], expected[~lonely])
    assert torch.equal(chosen[lonely].float().argmax(1), truth[lonely].argmax(1))
    assert (chosen[lonely].sum(1) == 1).all()


def test_without_bands_it_is_fkd(data: ImageData, tmp_path: Path) -> None:
    stored, _ = random_store(data, tmp_path)
    plain = regions(data, stored)
    same = calibrated(data, stored, low=0.0, middle=0.0, top=1.0)
    same.student = copy.deepcopy(plain.student)
    a, b = plain.streams(data, COUNT, 4).batch(1), same.streams(data, COUNT, 4).batch(1)
    assert torch.equal(a["image"], b["image"])
    assert torch.equal(value(plain.terms(a)["soft"]), value(same.terms(b)["soft"]))


def finished(method: FKD | FerKD, folder: Path) -> Classifier:
    model = drive(method.program(), Context(folder, "fkd", 0))
    assert isinstance(model, Classifier)
    return model


@pytest.mark.parametrize("cls", [FKD, FerKD])
def test_program_labels_once_and_reads_a_store(data: ImageData, tmp_path: Path, cls: type[FKD | FerKD]) -> None:
    network = student(data, seed=2).eval()
    fit = FitSettings(updates=4, batch_size=8, evaluations=1)
    made = cls(student(data), Ready(copy.deepcopy(network)), data, fit, regions=3, crops=2, top_k=3)
    first = finished(made, tmp_path / "own").state_dict()
    assert (tmp_path / "own/label/store.json").is_file()
    store = LabelStore.open(tmp_path / "own/label")
    assert (store.schema.kept, store.schema.k, store.schema.views) == ("top_k", 3, 3)
    again = cls(student(data), Ready(Stored(store)), data, fit, regions=3, crops=2)
    second = finished(again, tmp_path / "stored").state_dict()
    assert not (tmp_path / "stored/label").exists()
    for name, weights in first.items():
        assert torch.equal(weights, second[name])


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (FKD, {"regions": 2, "crops": 3}, "regions is 2 and crops 3"),
        (FerKD, {"low": 0.4}, r"low is 0\.4, middle 0\.3 and top 0\.98; they must rise"),
        (FerKD, {"top": 1.2, "quantiles": True}, "quantiles lie between 0 and 1"),
        (FerKD, {"epsilon": 1.5}, r"epsilon is 1\.5"),
    ],
)
def test_refusals(data: ImageData, cls: type[Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(LimbeckError, match=message):
        cls(student(data), Ready(student(data)), data, FitSettings(updates=1), **options)


def test_wrong_numbers_of_the_fit(data: ImageData, tmp_path: Path) -> None:
    with pytest.raises(LimbeckError, match=r"temperature is 0\.0"):
        regions(data, random_store(data, tmp_path)[0], temperature=0.0)
