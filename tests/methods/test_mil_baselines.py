"""What INS is compared with: labels of bags for every instance, max pooling, attention."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from limbeck.data.instance_bags import InstanceBagData, instance_bags
from limbeck.methods.weak.abmil import ABMIL
from limbeck.methods.weak.max_mil import MaxMIL
from limbeck.methods.weak.sil import SIL
from limbeck.models import Classifier
from limbeck.models.pooling import AttentionPooling
from limbeck.stages.evaluation.instance_bags import predict_bags, quality
from limbeck.stages.fit import Fit
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Context
from tests.methods.tables import log_softmax, softmax, value


@pytest.fixture(scope="module")
def data() -> InstanceBagData:
    return instance_bags(0, {"name": "digits", "validation": 0.2}, positive="0", size=6, min_size=4, ratio=0.4)


def encoder(seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 2))
    return Classifier(body, ("negative", "positive"), channels=1, size=8)


def test_sil_is_cross_entropy_with_the_labels_of_the_bags(data: InstanceBagData) -> None:
    made = SIL(encoder())
    batch = made.streams(data, 12, seed=0).batch(0)
    logits = made.student.encoder(batch).logits.detach().numpy()
    wanted = -log_softmax(logits)[np.arange(12), batch["label"].numpy()].mean()
    assert value(made.terms(batch)["ce"]).item() == pytest.approx(wanted, rel=1e-6)
    assert bool((batch["label"] != batch["hidden_label"]).any())


def test_max_mil_teaches_the_most_positive_instance_only(data: InstanceBagData) -> None:
    made = MaxMIL(encoder())
    batch = made.streams(data, 4, seed=0).batch(0)
    term = value(made.terms(batch)["ce"])
    wanted = 0.0
    images = batch["image"].requires_grad_()
    for images_of, mask, label in zip(images, batch["mask"], batch["label"].tolist(), strict=True):
        p = softmax(made.student.encoder(images_of[mask]).logits.detach().numpy())[:, 1].max()
        wanted -= np.log(p if label else 1 - p) / 4
    assert term.item() == pytest.approx(wanted, rel=1e-5)
    value(made.terms({**batch, "image": images})["ce"]).backward()
    touched = images.grad.flatten(2).abs().sum(2) > 0
    assert touched.sum(1).tolist() == [1, 1, 1, 1]
    scores = made.student(batch).scores
    assert torch.equal(touched.long().argmax(1), scores.argmax(1))


def test_abmil_judges_the_weighted_mean(data: InstanceBagData) -> None:
    made = ABMIL(encoder(), hidden=4, gated=False)
    batch = made.streams(data, 4, seed=0).batch(0)
    pooling = made.student.pooling
    assert isinstance(pooling, AttentionPooling)
    assert pooling.gate is None
    assert pooling.content.out_features == 4
    wanted = 0.0
    for images, mask, label in zip(batch["image"], batch["mask"], batch["label"].tolist(), strict=True):
        h = made.student.encoder(images[mask]).features
        a = pooling.weight(pooling.content(h).tanh()).softmax(0)
        wanted -= log_softmax(pooling.classifier((a * h).sum(0)).detach().numpy())[label] / 4
    assert value(made.terms(batch)["ce"]).item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("method", [SIL, MaxMIL, ABMIL])
def test_zeros_are_found(data: InstanceBagData, tmp_path: Path, method: type[SIL] | type[MaxMIL] | type[ABMIL]) -> None:
    made = method(encoder())
    how = FitSettings(
        updates=150,
        batch_size=64 if method is SIL else 10,
        accelerator="cpu",
        evaluations=1,
        optimizer={"name": "adam", "lr": 5e-3},
    )
    stage = Fit("fit", made, data, how)
    stage.run(tmp_path / "fit", Context(tmp_path, "test", seed=0))
    kept = stage.load(tmp_path / "fit")
    found = quality(predict_bags(kept, data.test), data.test)
    # Zeros are told apart easily; chance is 0.5.
    assert found["instance_auc"] > 0.9
    assert found["bag_auc"] > 0.85
