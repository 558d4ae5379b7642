import copy
from pathlib import Path

import pytest
import torch

from limbeck.data.load import load
from limbeck.data.samples import ImageData
from limbeck.errors import LimbeckError
from limbeck.methods.classification.prototypes import ClassPrototypes, Prototypes
from limbeck.methods.method import Ready
from limbeck.models.model import Model
from limbeck.stages.evaluation import predict_logits
from limbeck.stages.evaluation.representation import embed
from limbeck.stages.fit import Fit
from limbeck.stages.settings import FitSettings
from tests.methods.programs import run_stages
from tests.methods.tables import fit, student


def settings(**given: object) -> FitSettings:
    return FitSettings(**{"epochs": 1, "batch_size": 50, "accelerator": "cpu", **given})  # type: ignore[arg-type]


def expected(network: torch.nn.Module, data: ImageData) -> torch.Tensor:
    """One class after the other."""
    features = embed(network, data.train).double()
    features = features / features.norm(dim=-1, keepdim=True)
    means = torch.stack([features[data.train.labels == number].mean(0) for number in range(len(data.classes))])
    return means / means.norm(dim=-1, keepdim=True)


def test_prototypes_are_mean_directions(tmp_path: Path) -> None:
    data = load("digits", seed=0, view="none", labels_per_class=10)
    assert isinstance(data, ImageData)
    network = student(data)
    method = Prototypes(data, Ready(copy.deepcopy(network)), settings(), scale=7.0)
    stages = run_stages(method, tmp_path)
    assert list(stages) == ["prototypes"]
    stage = stages["prototypes"]
    assert isinstance(stage, Fit)
    model = stage.load(tmp_path / "prototypes")
    weight = expected(network, data)
    found = dict(model.named_parameters())["body.6.linear.weight"]
    torch.testing.assert_close(found.double(), weight, rtol=1e-5, atol=1e-6)  # float32 sums of ten
    features = embed(network, data.test)
    logits = 7 * torch.nn.functional.normalize(features, dim=-1) @ weight.float().T
    torch.testing.assert_close(predict_logits(model, data.test).logits, logits, rtol=1e-4, atol=1e-4)


def test_network_is_left_as_it_is(digits: ImageData, tmp_path: Path) -> None:
    """Its statistics too: it is in eval mode."""
    network = student(digits)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    objective = ClassPrototypes(network, digits, 20.0)
    weights = fit(objective, digits, tmp_path, updates=3)
    same = [name for name in before if name in weights and torch.equal(before[name], weights[name])]
    assert same == [name for name in before if not name.startswith("body.6.")]


def test_of_part_of_an_epoch(digits: ImageData, tmp_path: Path) -> None:
    """The samples seen so far, whatever the optimiser does."""
    found = [
        fit(ClassPrototypes(student(digits), digits, 20.0), digits, tmp_path / str(lr), updates=2, optimizer=optimizer)
        for lr, optimizer in ((1, {"name": "sgd", "lr": 1.0}), (2, {"name": "adam", "lr": 1e-3}))
    ]
    assert torch.equal(found[0]["body.6.linear.weight"], found[1]["body.6.linear.weight"])


def test_refuses(digits: ImageData, tmp_path: Path) -> None:
    with pytest.raises(LimbeckError, match="scale is 0"):
        Prototypes(digits, Ready(student(digits)), settings(), scale=0.0)
    with pytest.raises(LimbeckError, match="need a classifier of images"):
        run_stages(Prototypes(digits, Ready(Model(None)), settings()), tmp_path)
