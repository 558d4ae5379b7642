from pathlib import Path

import pytest
import safetensors.torch
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from limbeck.data.instance_bags import InstanceBagData, instance_bags
from limbeck.errors import LimbeckError
from limbeck.models import Classifier
from limbeck.models.bag_classifier import BagClassifier, classify_bags
from limbeck.stages.evaluation.instance_bags import predict_bags, report, validate
from limbeck.teachers import Frozen

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data() -> InstanceBagData:
    return instance_bags(0, {"name": "digits", "validation": 0.2}, size=6, min_size=4, ratio=0.4)


def model(seed: int = 0) -> BagClassifier:
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    return classify_bags(Classifier(body, ("negative", "positive"), channels=1, size=8), "mean")


def test_numbers(data: InstanceBagData, tmp_path: Path) -> None:
    made = model()
    metrics = report(made, {"teacher": Frozen(model(1))}, data, tmp_path, CPU)
    images = data.test.instances.fetch(torch.arange(len(data.test.instances)))["image"]
    p = made.encoder(images).logits.double().softmax(-1)[:, 1].detach()
    bags = torch.stack([part.mean() for part in p.split(data.test.sizes.tolist())])
    labels = data.test.labels
    # Probabilities of the model are float32.
    assert metrics["instance_auc"] == pytest.approx(roc_auc_score(data.test.hidden_labels, p), abs=1e-6)
    assert metrics["bag_auc"] == pytest.approx(roc_auc_score(labels, bags), abs=1e-6)
    assert metrics["bag_accuracy"] == pytest.approx(float(((bags > 0.5).long() == labels).double().mean()))
    assert metrics["bag_nll"] == pytest.approx(float(-torch.where(labels == 1, bags, 1 - bags).log().mean()), rel=1e-5)
    assert metrics["parameters"] == 130
    assert 0.5 <= metrics["tuned/bag_accuracy"] <= 1
    found = validate(made, data, CPU)
    assert {f"validation/{name}": value for name, value in found.items()}.items() <= metrics.items()
    assert metrics["teacher/instance_auc"] != metrics["instance_auc"]


def test_file_for_the_report(data: InstanceBagData, tmp_path: Path) -> None:
    made = model()
    report(made, {}, data, tmp_path, CPU)
    held = safetensors.torch.load_file(tmp_path / "instance_bags.safetensors")
    said = predict_bags(made, data.test)
    assert torch.equal(held["score"], said.scores)
    assert torch.equal(held["logits"], said.logits)
    assert torch.equal(held["truth"], data.test.hidden_labels)
    assert held["label"][held["shown"]].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert len(held["image"]) == int(held["size"][held["shown"]].sum())
    first = data.test.fetch(held["shown"][:1])
    count = int(first["mask"].sum())
    assert torch.equal(held["image"][:count], (255 * first["image"][first["mask"]]).round().to(torch.uint8))


def test_broken_weights(data: InstanceBagData) -> None:
    made = model()
    with torch.no_grad():
        made.encoder.body[1].weight[0, 20] = torch.nan
    with pytest.raises(LimbeckError, match="NaN or infinite values for the bag of index 0"):
        predict_bags(made, data.test)
