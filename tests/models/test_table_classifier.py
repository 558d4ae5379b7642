import json

import numpy as np
import pytest
import torch

from limbeck import models
from limbeck.errors import LimbeckError
from limbeck.models.table_classifier import TableClassifier
from limbeck.models.table_task import TableTask

TASK = TableTask(("no", "yes"), ("a", "b", "c"), (1.0, 0.0, -2.0), (2.0, 1.0, 0.1))


def mlp(**arguments):
    torch.manual_seed(0)
    model = models.build("table_mlp", TASK, **arguments)
    assert isinstance(model, TableClassifier)
    return model


def test_layers_by_hand():
    model = mlp(hidden=[5, 4, 3], embedding=2)
    row = torch.tensor([[1.5, 1.0, -2.3]])
    weights = [w.detach().double().numpy() for w in model.parameters()]
    x = (row.double().numpy() - np.array(TASK.mean)) / np.array(TASK.std)
    hidden = []
    for weight, bias in zip(weights[0:6:2], weights[1:6:2], strict=True):
        x = np.maximum(x @ weight.T + bias, 0)
        hidden.append(x)
    output = model({"row": row})
    assert model.num_features == 4
    np.testing.assert_allclose(output.features.detach(), hidden[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(output.logits.detach(), hidden[2] @ weights[6].T + weights[7], rtol=1e-5, atol=1e-6)


def test_bags_are_rows():
    model, bags = mlp(hidden=[6]), torch.randn(2, 5, 3)
    whole = model({"row": bags})
    assert (whole.logits.shape, whole.features.shape) == ((2, 5, 2), (2, 5, 6))
    torch.testing.assert_close(whole.logits[1], model({"row": bags[1]}).logits)


def test_saved_and_loaded(tmp_path):
    model = mlp(hidden=[6, 4], embedding=1).eval()
    models.save(model, tmp_path / "model")
    loaded = models.load(tmp_path / "model")
    assert loaded.spec == TASK
    assert loaded.classes == ("no", "yes")
    row = torch.randn(4, 3)
    assert torch.equal(loaded({"row": row}).logits, model({"row": row}).logits)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["spec"]["kind"] == "table"
    assert config["arguments"] == {"hidden": [6, 4], "embedding": 1}


def test_half_precision_keeps_the_statistics():
    model = mlp(hidden=[4]).to(torch.bfloat16)
    assert model.std.dtype == torch.float32
    assert model.std.tolist() == pytest.approx([2.0, 1.0, 0.1])
    assert model({"row": torch.randn(2, 3)}).logits.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden": []}, "hidden must be sizes"),
        ({"hidden": [4, 0]}, "hidden must be sizes"),
        ({"hidden": [4], "embedding": 2}, "hidden layers are 1 to 1"),
        ({"hidden": [4], "embedding": 0}, "embedding is 0"),
        ({"width": 4}, "no argument 'width'"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(LimbeckError, match=message):
        mlp(**arguments)


def test_batches_that_do_not_fit():
    model = mlp()
    with pytest.raises(LimbeckError, match="no 'row', only"):
        model({"image": torch.zeros(1, 1, 8, 8)})
    with pytest.raises(LimbeckError, match="takes 3 columns"):
        model({"row": torch.zeros(2, 4)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ("no", "no")}, "classes must be different names"),
        ({"columns": ()}, "columns must be different names"),
        ({"mean": (0.0, 0.0)}, "mean must be one finite number a column"),
        ({"mean": (0.0, float("nan"), 0.0)}, "mean must be one finite number a column"),
        ({"std": (1.0, 0.0, 1.0)}, "std must be positive"),
    ],
)
def test_tasks_that_are_none(changes, message):
    good = {"classes": TASK.classes, "columns": TASK.columns, "mean": TASK.mean, "std": TASK.std}
    with pytest.raises(LimbeckError, match=message):
        TableTask(**{**good, **changes})
