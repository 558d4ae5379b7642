"""Stores of labels as teachers: their mean, their views, and the methods that take them beside kd and FKD."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from limbeck.data.load import load
from limbeck.data.samples import ImageData
from limbeck.errors import LimbeckError
from limbeck.methods.classification.fkd import FKD
from limbeck.methods.classification.meal_v2 import MEALV2, EnsembleDistillation
from limbeck.methods.classification.ssld import SSLD
from limbeck.methods.method import Ready
from limbeck.models.classifier import Classifier
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Context, drive
from limbeck.teachers.frozen import Frozen
from limbeck.teachers.stored import Stored, store
from limbeck.verbs.label import label
from tests.methods.tables import log_softmax, softmax, student, value
from tests.methods.test_fkd import stored_labels

VIEWS = 3
SETTINGS = FitSettings(updates=6, batch_size=16, accelerator="cpu", evaluations=1)


@pytest.fixture(scope="module")
def data() -> ImageData:
    found = load("digits", 0, labels_per_class=4)
    assert isinstance(found, ImageData)
    return found


@pytest.fixture(scope="module")
def folders(data: ImageData, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Dense float32 stores of two networks, of the labelled and unlabelled images."""
    made = [tmp_path_factory.mktemp(f"store-{number}") for number in range(2)]
    for number, folder in enumerate(made):
        options: dict[str, Any] = {"views": VIEWS, "storage": "float32", "quiet": True}
        label(student(data, seed=number + 1), data, out=folder, **options)
    return [str(folder) for folder in made]


def logits(data: ImageData, seed: int) -> Tensor:
    return 3 * torch.randn(len(data.train), VIEWS, 10, generator=torch.Generator().manual_seed(seed))


def ask(data: ImageData) -> dict[str, Tensor]:
    count = len(data.train)
    return {"image": data.train.fetch(torch.arange(count))["image"], "index": data.train.indices.clone(),
            "label": data.train.labels, "epoch": torch.arange(count) % 7}  # fmt: skip


def test_several_stores_answer_with_the_mean_of_their_probabilities(data: ImageData, tmp_path: Path) -> None:
    given = [logits(data, seed) for seed in range(3)]
    stores = [stored_labels(data, tmp_path / str(number), z).store for number, z in enumerate(given)]
    said = Stored(*stores)(ask(data)).logits
    view = torch.arange(len(said)) % 7 % VIEWS
    expected = np.mean([softmax(z[torch.arange(len(z)), view]) for z in given], axis=0)
    np.testing.assert_allclose(said.exp(), expected, atol=1e-6)
    alone = Stored(stores[1])(ask(data)).logits
    torch.testing.assert_close(alone, given[1][torch.arange(len(said)), view])


def test_stores_of_other_views_or_samples_do_not_teach_together(data: ImageData, tmp_path: Path) -> None:
    first = stored_labels(data, tmp_path / "a", logits(data, 0)).store
    fewer = stored_labels(data, tmp_path / "b", logits(data, 1)[:, :2]).store
    with pytest.raises(LimbeckError, match=r"b and .*a differ in views; .* label with the same data, views and seed"):
        Stored(first, fewer)
    turned = dataclasses.replace(data, train=data.train.subset(torch.arange(len(data.train)).flip(0)))
    with pytest.raises(LimbeckError, match="differ in images"):
        Stored(first, stored_labels(turned, tmp_path / "c", logits(data, 1)).store)
    with pytest.raises(LimbeckError, match="folder names no store"):
        store(data.task, folder=[])


def test_a_run_from_two_stores_is_a_run_from_the_mean(data: ImageData, folders: list[str], tmp_path: Path) -> None:
    """Weights of FKD after a few updates: two stores in one teacher, beside a store that holds their mean."""
    both = store(data.task, folder=folders)
    rows = torch.stack([both.store.rows(data.train.indices, torch.full((len(data.train),), v)) for v in range(VIEWS)])
    mean = both.read(rows.flatten()).view(VIEWS, len(data.train), -1).transpose(0, 1)
    one = stored_labels(data, tmp_path / "mean", mean).store
    # The same views: those of the seed of the folders.
    one.schema = dataclasses.replace(one.schema, seed=both.store.schema.seed)
    weights = []
    for number, teacher in enumerate((both, Stored(one))):
        made = FKD(student(data), Ready(teacher), data, SETTINGS, regions=VIEWS, crops=2)
        model = drive(made.program(), Context(tmp_path / str(number), "fkd", 0))
        weights.append(model.state_dict())
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], atol=1e-6, rtol=1e-5)  # float32 read back from logs


# MEAL V2


def distillation(data: ImageData, *teachers: Stored, **options: Any) -> EnsembleDistillation:
    torch.manual_seed(0)
    members = [Frozen(teacher, classes=data.classes) for teacher in teachers]
    return EnsembleDistillation(student(data), members, **{"K": 2, "final_relu": False, **options})


def test_meal_v2_learns_the_mean_of_its_stores_and_judges_probabilities(data: ImageData, tmp_path: Path) -> None:
    given = [logits(data, seed) for seed in range(2)]
    teachers = [stored_labels(data, tmp_path / str(number), z) for number, z in enumerate(given)]
    objective, batch = distillation(data, *teachers), ask(data)
    assert objective.teachers() == {}, "stored labels cannot be measured on other images"
    terms = objective.eval().terms(batch)
    own = objective.student(batch["image"]).logits.detach().numpy()
    view = torch.arange(len(own)) % 7 % VIEWS
    at = [z[torch.arange(len(z)), view] for z in given]
    p = np.mean([softmax(z) for z in at], axis=0)
    assert value(terms["similarity"]).item() == pytest.approx(-(p * log_softmax(own)).sum(-1).mean(), rel=1e-5)
    judge = objective.discriminator
    assert judge is not None
    rows = np.concatenate([softmax(own), p])
    seen = judge(torch.tensor(rows, dtype=torch.float32)).detach().numpy()
    target = np.repeat([[1.0, 0.0], [0.0, 1.0]], len(own), axis=0)
    expected = (np.logaddexp(0, seen) - target * seen).mean()
    assert value(terms["discriminator"]).item() == pytest.approx(expected, rel=1e-5)


def test_meal_v2_mixes_stored_labels_with_their_images(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Black images of class 0 and white ones of class 1: how white an image became is its share of class 1."""
    kind = torch.arange(len(data.train)) % 2
    sure = torch.full((len(kind), VIEWS, 10), -40.0)
    sure[torch.arange(len(kind)), :, kind] = 40.0
    objective = distillation(data, stored_labels(data, tmp_path, sure), mode="off", cutmix_prob=1.0)
    images, targets = [], []

    def record(z: Tensor, probabilities: Tensor) -> Tensor:
        targets.append(probabilities)
        return z.sum()

    objective.student.register_forward_pre_hook(lambda module, arguments: images.append(arguments[0]))
    monkeypatch.setattr("limbeck.methods.classification.meal_v2.soft_cross_entropy", record)
    torch.manual_seed(3)
    objective.terms({**ask(data), "image": kind.float()[:, None, None, None].expand(-1, 1, 8, 8)})
    white = images[0].mean(dim=(1, 2, 3))
    assert ((white > 0.02) & (white < 0.98)).any(), "something was mixed"
    torch.testing.assert_close(targets[0][:, 1], white)
    torch.testing.assert_close(targets[0][:, 0], 1 - white)


def test_meal_v2_from_stores(data: ImageData, folders: list[str], tmp_path: Path) -> None:
    committee = [{"name": "store", "folder": folder} for folder in folders]
    made = MEALV2(data, Ready(student(data)), committee, SETTINGS, SETTINGS, K=2)
    context = Context(tmp_path, "meal-v2", 0)
    assert isinstance(drive(made.program(), context), Classifier)
    assert context.stages == ["fit"]


def test_stores_of_a_committee_hold_the_same_views(data: ImageData, folders: list[str], tmp_path: Path) -> None:
    label(student(data, seed=5), data, out=tmp_path / "other", views=VIEWS, seed=7, quiet=True)
    committee = [{"name": "store", "folder": folder} for folder in (folders[0], str(tmp_path / "other"))]
    made = MEALV2(data, Ready(student(data)), committee, SETTINGS, SETTINGS)
    with pytest.raises(LimbeckError, match="stores of labels that teach together hold the same views"):
        drive(made.program(), Context(tmp_path / "run", "meal-v2", 0))
    assert not (tmp_path / "run/fit").exists()


# SSLD


def ssld(data: ImageData, folder: str, **options: Any) -> SSLD:
    return SSLD(data, student(data), Ready(store(data.task, folder=folder)), SETTINGS, SETTINGS, k=30, **options)


def test_ssld_from_a_store_is_ssld_with_the_live_teacher(data: ImageData, folders: list[str], tmp_path: Path) -> None:
    """Both see the stored views, again and again."""
    stored = store(data.task, folder=folders[0])
    weights = []
    for name, teacher, seen in (("live", student(data, seed=1), stored.replay(data)), ("stored", stored, data)):
        reference = Ready(student(data, seed=2))
        made = SSLD(seen, student(data), Ready(teacher), SETTINGS, SETTINGS, reference=reference, k=30)
        weights.append(drive(made.program(), Context(tmp_path / name, "ssld", 0)).state_dict())
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [({}, "give a reference that can be run"), ({"teacher_mode": "batch_stats"}, "batch_stats runs the teacher")],
)
def test_what_stored_labels_cannot_do_for_ssld(
    data: ImageData, folders: list[str], tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(LimbeckError, match=message):
        drive(ssld(data, folders[0], **options).program(), Context(tmp_path, "ssld", 0))
    assert not any(tmp_path.iterdir())
