import dataclasses
from pathlib import Path

import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch import nn

from limbeck.data.load import load
from limbeck.data.samples import ImageData, concat
from limbeck.errors import LimbeckError
from limbeck.models import Classifier, build
from limbeck.models.projector import project
from limbeck.stages.evaluation import evaluation
from limbeck.stages.evaluation.representation import embed, nearest_neighbours
from limbeck.teachers import Frozen

CPU = torch.device("cpu")


def model(digits: ImageData) -> nn.Module:
    torch.manual_seed(0)
    return project(build("vgg", digits.task, blocks=[[8], [16]]), digits.task, hidden=8, bottleneck=4, outputs=16)


def test_report_is_that_of_scikit_learn(digits: ImageData, tmp_path: Path) -> None:
    student, other = model(digits).train(), Frozen(model(digits))
    metrics = evaluation("representation").report(student, {"teacher": other}, digits, tmp_path, CPU)
    train, test = (embed(student, samples).numpy() for samples in (digits.train, digits.test))
    scaler = StandardScaler().fit(train)
    peer = KNeighborsClassifier(20).fit(scaler.transform(train), digits.train.labels.numpy())
    expected = (peer.predict(scaler.transform(test)) == digits.test.labels.numpy()).mean()
    # float32 distances: one of 449 images may have another 20th neighbour.
    assert metrics["knn_accuracy"] == pytest.approx(expected, abs=1.5 / 449)
    assert metrics["teacher/knn_accuracy"] == metrics["knn_accuracy"]
    validation = evaluation("representation").validate(student, digits, CPU)
    assert metrics["validation/knn_accuracy"] == validation["knn_accuracy"] > 0.5
    assert student.training


def test_embeddings_are_in_order_and_without_batch_effects(digits: ImageData) -> None:
    student = model(digits)
    images = digits.test.fetch(torch.arange(len(digits.test)))["image"]
    with torch.no_grad():
        expected = student.eval()(images).features
    # Sums of another order in batches of another size.
    torch.testing.assert_close(embed(student.train(), digits.test, batch_size=100), expected, rtol=0, atol=1e-5)


def test_only_labelled_samples_are_neighbours() -> None:
    data = load("digits", seed=0, labels_per_class=20, view="none")
    assert isinstance(data, ImageData)
    assert data.unlabeled is not None
    student = model(data)
    mixed = dataclasses.replace(data, train=concat([data.unlabeled, data.train]))
    assert nearest_neighbours(student, mixed, data.test) == nearest_neighbours(student, data, data.test) > 0.3
    with pytest.raises(LimbeckError, match="the data have none"):
        nearest_neighbours(student, dataclasses.replace(data, train=data.unlabeled), data.test)


def test_a_model_without_features_is_refused(digits: ImageData) -> None:
    plain = Classifier(nn.Flatten(), [str(number) for number in range(64)], channels=1)
    with pytest.raises(LimbeckError, match="gives no features"):
        embed(plain, digits.test)
