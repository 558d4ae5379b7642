from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.data.load import load
from limbeck.data.samples import ImageData
from limbeck.errors import LimbeckError
from limbeck.labels.mix import mixup_or_cutmix
from limbeck.labels.types import Labels
from limbeck.methods.classification.metaformer import MetaFormer
from limbeck.methods.classification.supervised import Supervised
from limbeck.models import Classifier, build
from limbeck.stages.evaluation import predict_logits, quality
from tests.methods.tables import Table, assert_equal, batch, fit, log_softmax, onehot, plan, value

LOGITS = np.array([[2.0, -1.0, 0.5], [0.1, 0.2, -3.0], [0.0, 1.0, 4.0], [-2.0, 0.5, 0.3]])
PLAIN: dict[str, Any] = {"mixup": 0.0, "cutmix": 0.0, "mask_prob": 0.0, "mask_type": "constant"}
NETWORK: dict[str, Any] = {"widths": [4, 4, 8, 8, 8], "depths": [1, 1, 1, 1], "heads": 2, "stem_stride": 1}


@pytest.fixture(scope="module")
def data() -> ImageData:
    found = load("meta_images", seed=0, dataset="digits", view="none", train_size=300)
    assert isinstance(found, ImageData)
    return found


def network(data: ImageData, **options: Any) -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = build("metaformer", data.task, **{**NETWORK, "drop_path": 0.0, **options})
    assert isinstance(made, Classifier)
    return made


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_label_smoothing_without_mixing(epsilon: float) -> None:
    """Target: 1 - eps + eps / C on the truth; with eps = 0 cross-entropy."""
    objective = MetaFormer(Table(LOGITS), **PLAIN, label_smoothing=epsilon)
    labels = [2, 0, 1, 1]
    found = value(objective.terms(batch(labels))["ce"]).item()
    targets = (1 - epsilon) * onehot(labels, 3) + epsilon / 3
    # Targets are float32.
    assert found == pytest.approx(-(targets * log_softmax(LOGITS)).sum(-1).mean(), rel=1e-6)


def test_labels_that_are_missing_count_for_nothing() -> None:
    objective = MetaFormer(Table(LOGITS), **PLAIN)
    found = value(objective.terms(batch([2, -1, 1, -1]))["ce"]).item()
    few = value(objective.terms(batch([2, 1], [0, 2], of=4))["ce"]).item()
    assert found == pytest.approx(few, rel=1e-6)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0)])
def test_labels_are_mixed_as_images_are(mixup: float, cutmix: float) -> None:
    """Images are one-hot at their own pixel, so that a mixed image shows the shares of the mixed label."""
    objective = MetaFormer(Table(LOGITS), **{**PLAIN, "mixup": mixup, "cutmix": cutmix}, label_smoothing=0.0)
    labels = [2, 0, 1, 1]
    torch.manual_seed(3)
    plain = Labels(torch.tensor(labels), weight=torch.ones(4))
    mixed, targets = mixup_or_cutmix(batch(labels)["image"], plain, 3, mixup, cutmix, torch.default_generator)
    torch.manual_seed(3)
    found = value(objective.terms(batch(labels))["ce"]).item()
    z = mixed.flatten(1).double().numpy() @ LOGITS
    expected = -(targets.probabilities(3).double().numpy() * log_softmax(z)).sum(-1).mean()
    assert found == pytest.approx(expected, rel=1e-6)
    if mixup:
        shares = mixed.flatten(1).numpy() @ onehot(labels, 3)
        np.testing.assert_allclose(targets.probabilities(3), shares, rtol=1e-6)


def test_schedule_of_the_mask() -> None:
    linear, constant = MetaFormer(Table(LOGITS)), MetaFormer(Table(LOGITS), mask_prob=0.3, mask_type="constant")
    late = MetaFormer(Table(LOGITS), mask_prob=0.4)
    for objective in (linear, constant, late):
        objective.begin(plan(4, 3, epochs=10))
    assert [linear.masked_share(epoch) for epoch in (0, 5, 10)] == [1.0, 0.5, 0.0]
    assert [constant.masked_share(epoch) for epoch in (0, 9)] == [0.3, 0.3]
    assert late.masked_share(8) == 0.0


def test_masked_meta_is_not_read(data: ImageData) -> None:
    """With q = 1 the loss does not depend on meta-information, with q = 0 it does; mixed labels are the same."""
    objective = MetaFormer(network(data), mask_prob=1.0).eval()
    objective.begin(plan(len(data.train), 10, epochs=4))
    some = data.train.fetch(torch.arange(20)) | {"epoch": torch.zeros(20, dtype=torch.int64)}
    other = {**some, "meta": some["meta"].flip(0) + 1}

    def loss(seen: dict[str, torch.Tensor], epoch: int) -> float:
        torch.manual_seed(0)
        return value(objective.terms({**seen, "epoch": seen["epoch"] + epoch})["ce"]).item()

    assert loss(some, 0) == loss(other, 0)
    assert loss(some, 4) != loss(other, 4)
    assert loss(some, 2) != loss(other, 2)
    shares = [float(value(share)) for share in objective.observed["masked"]]
    assert shares == [1.0, 1.0, 0.0, 0.0, 0.5, 0.5]


def test_no_masking_where_it_is_measured(data: ImageData, tmp_path: Path) -> None:
    objective = MetaFormer(network(data), mask_prob=1.0, mask_type="constant")
    fit(objective, data, tmp_path, updates=2)
    found = objective.summary()
    assert found.keys() == {"without_meta/accuracy", "validation/without_meta/accuracy"}
    images_only = data.test.fetch(torch.arange(len(data.test)))
    objective.eval()
    with torch.no_grad():
        said = objective.student({"image": images_only["image"]}).logits
        told = objective.student({"image": images_only["image"], "meta": images_only["meta"]}).logits
    right = float((said.argmax(-1) == data.test.labels).float().mean())
    assert found["without_meta/accuracy"] == pytest.approx(right)
    held = data.validation.fetch(torch.arange(len(data.validation)))
    with torch.no_grad():
        blind = objective.student({"image": held["image"]}).logits.argmax(-1)
    assert found["validation/without_meta/accuracy"] == pytest.approx(float((blind == held["label"]).float().mean()))
    assert found["validation/without_meta/accuracy"] != found["without_meta/accuracy"]
    assert torch.equal(predict_logits(objective.student, data.test).logits.argmax(-1), told.argmax(-1))
    assert not torch.equal(said, told)
    assert quality(predict_logits(objective.student, data.test))["accuracy"] == pytest.approx(
        float((told.argmax(-1) == data.test.labels).float().mean())
    )


def test_is_supervised_training_where_all_is_off(digits: ImageData, tmp_path: Path) -> None:
    """Bit for bit but for the sum over classes, in which a target of one-hot has zeros."""
    few = load("digits", seed=0, train_size=100)
    assert isinstance(few, ImageData)
    one = fit(MetaFormer(network(few, meta_dims=[]), **PLAIN, label_smoothing=0.0), few, tmp_path / "1", updates=3)
    two = fit(Supervised(network(few, meta_dims=[])), few, tmp_path / "2", updates=3)
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=1e-4, atol=1e-6)
    again = fit(MetaFormer(network(few, meta_dims=[]), **PLAIN, label_smoothing=0.0), few, tmp_path / "3", updates=3)
    assert_equal(one, again)


def test_refuses(digits: ImageData) -> None:
    with pytest.raises(LimbeckError, match="the student reads meta-information, and the data have none"):
        MetaFormer(network(digits)).streams(digits, 10, seed=0)
    MetaFormer(network(digits, meta_dims=[])).streams(digits, 10, seed=0)
    for arguments in ({"mask_prob": 1.5}, {"label_smoothing": 2.0}, {"mixup": -1.0}):
        with pytest.raises(LimbeckError, match=next(iter(arguments))):
            MetaFormer(Table(LOGITS), **arguments)  # type: ignore[arg-type]
