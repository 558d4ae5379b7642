import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from limbeck.data.random import derive
from limbeck.data.samples import ImageData, Samples
from limbeck.data.views import apply
from limbeck.errors import LimbeckError
from limbeck.methods.dataset.sre2l import PostEvaluation
from limbeck.models.classifier import ClassifierOutput
from limbeck.stages.digest import module_hash
from limbeck.stages.label import Label
from limbeck.stages.progress import Reporter
from limbeck.stages.stage import Context, Program, drive
from limbeck.teachers import BatchStatistics, Ensemble
from tests.methods.tables import student, total


class Recording(nn.Module):
    """Remembers every image that it is shown; its logits are sums of their halves."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, batch: dict[str, Tensor]) -> ClassifierOutput:
        self.seen.append(batch["image"].clone())
        return ClassifierOutput(batch["image"].flatten(1)[:, :10] * 3 - 1, None)


class FirstPixels(nn.Module):
    def forward(self, batch: dict[str, Tensor]) -> ClassifierOutput:
        return ClassifierOutput(batch["image"].flatten(1)[:, :10] * 3 - 1, None)


class KilledError(Exception):
    pass


class KillAt(Reporter):
    def __init__(self, batch: int) -> None:
        super().__init__(quiet=True)
        self.batch = batch

    def advance(self, done: int, loss: float | None) -> None:
        if done == self.batch:
            raise KilledError


def samples_of(data: ImageData, count: int = 23) -> Samples:
    return data.train.subset(range(40, 40 + count))


def stage(teacher: nn.Module, samples: Samples, **changes: object) -> Label:
    options = {"view": "crop", "flip": True, "batches": 9, "batch_size": 8, "mixing": "cutmix", "storage": "float32"}
    return Label("relabel", teacher, samples, **{**options, "every": 2, **changes})  # type: ignore[arg-type]


def run(made: Label, folder: Path, reporter: Reporter | None = None) -> object:
    def program() -> Program:
        return (yield made)

    return drive(program(), Context(folder, "test", seed=5, reporter=reporter or Reporter(quiet=True)))


@pytest.mark.parametrize("mixing", ["none", "cutmix", "mixup"])
@pytest.mark.parametrize("view", ["crop", "weak"])
def test_replayed_images_are_the_labelled_ones_bit_for_bit(
    digits: ImageData, tmp_path: Path, mixing: str, view: str
) -> None:
    """9 batches of 8 from 23 samples: batches hold the ends and beginnings of epochs, partners cross them."""
    teacher = Recording()
    labelled = run(stage(teacher, samples_of(digits), mixing=mixing, view=view), tmp_path)
    stream = labelled.stream(8)  # type: ignore[attr-defined]
    for number, seen in enumerate(teacher.seen):
        batch = stream.batch(number)
        assert torch.equal(batch["image"], seen)
        assert torch.equal(batch["logits"], seen.flatten(1)[:, :10] * 3 - 1)
    if mixing != "none":
        plain = run(stage(Recording(), samples_of(digits), mixing="none", view=view), tmp_path / "plain")
        assert not torch.equal(plain.stream(8).batch(0)["image"], teacher.seen[0])  # type: ignore[attr-defined]


def test_replay_does_not_depend_on_the_batch(digits: ImageData, tmp_path: Path) -> None:
    """Views are stored by sample: other batch sizes give the same images and labels."""
    labelled = run(stage(Recording(), samples_of(digits)), tmp_path)
    eights, threes = labelled.stream(8), labelled.stream(3)  # type: ignore[attr-defined]
    large = [eights.batch(number) for number in range(9)]
    small = [threes.batch(number) for number in range(24)]
    for key in ("image", "logits", "index", "epoch"):
        assert torch.equal(torch.cat([b[key] for b in large]), torch.cat([b[key] for b in small]))


@pytest.mark.parametrize("mixing", ["cutmix", "mixup"])
def test_every_batch_is_mixed_in_its_own_way(digits: ImageData, tmp_path: Path, mixing: str) -> None:
    labelled = run(stage(Recording(), samples_of(digits), mixing=mixing, view="none", flip=False), tmp_path)
    there = torch.arange(23 * 4)
    rows = labelled.store.read(there[labelled.store.has(there)])  # type: ignore[attr-defined]
    assert len(rows.share) == 72
    ways = {(float(s), *b) for s, b in zip(rows.share, rows.box.tolist(), strict=True)}
    assert len(ways) == 9


@pytest.mark.parametrize("batch", [None, 1, 4, 7])
def test_views_of_every_sample_in_order(digits: ImageData, tmp_path: Path, batch: int | None) -> None:
    """3 views of 23 samples in batches of 8: the last has 5, and some hold the end of a view."""
    teacher, samples = FirstPixels(), samples_of(digits)
    changes = {"batches": 0, "views": 3, "mixing": "none"}
    if batch is not None:
        with pytest.raises(KilledError):
            run(stage(teacher, samples, **changes), tmp_path, KillAt(batch))
    labelled = run(stage(teacher, samples, **changes), tmp_path)
    store = labelled.store  # type: ignore[attr-defined]
    assert store.schema.ordered
    assert store.has(torch.arange(70)).tolist() == [True] * 69 + [False]
    for view in range(3):
        epochs = torch.full((23,), view)
        images = apply(
            "crop",
            samples.fetch(torch.arange(23))["image"],
            seed=derive(5, "relabel"),
            epochs=epochs,
            indices=samples.indices,
            flip=True,
        )
        found = store.read(store.rows(samples.indices, epochs)).logits
        assert torch.equal(found, images.flatten(1)[:, :10] * 3 - 1)


def test_training_longer_than_the_labels_is_refused(digits: ImageData, tmp_path: Path) -> None:
    labelled = run(stage(Recording(), samples_of(digits)), tmp_path)
    with pytest.raises(LimbeckError, match="has no stored label in epoch 3"):
        labelled.stream(8).batch(9)  # type: ignore[attr-defined]


@pytest.mark.parametrize("batch", [1, 2, 5, 9])
def test_killed_labelling_ends_with_the_same_bytes(digits: ImageData, tmp_path: Path, batch: int) -> None:
    network = student(digits).eval()
    run(stage(network, samples_of(digits)), tmp_path / "whole")
    with pytest.raises(KilledError):
        run(stage(network, samples_of(digits)), tmp_path / "killed", KillAt(batch))
    assert not (tmp_path / "killed/relabel/result.json").exists()
    run(stage(network, samples_of(digits)), tmp_path / "killed")
    whole = sorted((tmp_path / "whole/relabel").glob("*.arrow"))
    assert len(whole) == 1 + 5
    for file in whole:
        assert (tmp_path / "killed/relabel" / file.name).read_bytes() == file.read_bytes()


def test_student_that_is_the_teacher_has_no_loss(digits: ImageData, tmp_path: Path) -> None:
    network = student(digits).eval()
    labelled = run(stage(network, samples_of(digits)), tmp_path)
    objective = PostEvaluation(copy.deepcopy(network), temperature=20.0).eval()
    losses = [total(objective.terms(labelled.stream(8).batch(n))).item() for n in range(9)]  # type: ignore[attr-defined]
    # Equal logits from equal images in batches of equal size; KL of equal float32 numbers.
    assert max(abs(loss) for loss in losses) < 1e-9
    other = PostEvaluation(student(digits, seed=1), temperature=20.0).eval()
    assert total(other.terms(labelled.stream(8).batch(0))).item() > 1e-7  # type: ignore[attr-defined]


def test_batch_specific_labels_are_those_of_the_halves(digits: ImageData, tmp_path: Path) -> None:
    networks = [student(digits, seed=seed).eval() for seed in range(2)]
    teacher = Ensemble([BatchStatistics(n, parts=2) for n in networks], [0.7, 0.3], average="logits")
    labelled = run(stage(teacher, samples_of(digits)), tmp_path)
    batch = labelled.stream(8).batch(3)  # type: ignore[attr-defined]
    with torch.no_grad():
        expected = [
            sum(w * copy.deepcopy(n).train()(half).logits for w, n in zip((0.7, 0.3), networks, strict=True))
            for half in batch["image"].chunk(2)
        ]
    torch.testing.assert_close(batch["logits"], torch.cat(expected))  # type: ignore[arg-type]


def test_hash_of_a_teacher_knows_weights_settings_and_parts(digits: ImageData) -> None:
    a, b = student(digits), student(digits, seed=1)
    teachers = [
        a,
        b,
        BatchStatistics(a),
        BatchStatistics(a, parts=2),
        Ensemble([a, b]),
        Ensemble([a, b], [0.3, 0.7]),
        Ensemble([a, b], average="logits"),
    ]
    assert len({module_hash(teacher) for teacher in teachers}) == len(teachers)
    assert module_hash(Ensemble([a, b])) == module_hash(Ensemble([copy.deepcopy(a), copy.deepcopy(b)]))


def test_agreement_and_dry_run(digits: ImageData, tmp_path: Path, nearest_mean: nn.Module) -> None:
    import json

    made = stage(nearest_mean, samples_of(digits, 80), mixing="none", view="none", flip=False, batches=10)
    run(made, tmp_path)
    metrics = json.loads((tmp_path / "relabel/result.json").read_text())["metrics"]
    logits = nearest_mean(made.samples.fetch(torch.arange(80))["image"]).logits
    assert metrics["agreement"] == pytest.approx(float((logits.argmax(1) == made.samples.labels).float().mean()))
    context = Context(tmp_path / "dry", "test", 0, dry_run=True)

    def program() -> Program:
        labelled = yield made
        assert labelled.stream(8).batch(0)["logits"].shape == (8, 10)

    drive(program(), context)
    assert context.estimates[0]["bytes"] == 80 * (10 * 4 + 8)
    assert not (tmp_path / "dry").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batches": 0}, "views is 0 and batches is 0; one of them must be"),
        ({"views": 2}, "views is 2 and batches is 9; one of them must be"),
        ({"batches": 0, "views": 2}, "cutmix mixes the batches of a stream"),
        ({"every": 0}, "every is 0"),
        ({"kept": "top_k"}, "top_k is 0; it must lie between 1 and the 10 classes"),
        ({"alpha": 0.0}, "alpha of cutmix is 0.0"),
        ({"view": "crops"}, "Did you mean 'crop'"),
    ],
)
def test_wrong_settings(digits: ImageData, change: dict[str, object], message: str) -> None:
    with pytest.raises(LimbeckError, match=message):
        stage(Recording(), samples_of(digits), **change)
