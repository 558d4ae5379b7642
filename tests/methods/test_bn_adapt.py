from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from limbeck.data.corrupted import CorruptedData
from limbeck.errors import LimbeckError
from limbeck.methods.adaptation.bn_adapt import BNAdapt, BNAdapter
from limbeck.methods.adaptation.source import Source, SourceAdapter
from limbeck.methods.method import Ready
from limbeck.models import Classifier
from tests.methods.streams import adapted, context, source, stream


@pytest.fixture(scope="module")
def data() -> CorruptedData:
    return stream()


@pytest.fixture(scope="module")
def model(data: CorruptedData) -> Classifier:
    return source(data)


def _answers(folder: Path) -> torch.Tensor:
    return load_file(folder / "stream.safetensors")["logits"]


def test_source_and_batch_statistics_are_the_ends_of_the_prior(
    data: CorruptedData, model: Classifier, tmp_path: Path
) -> None:
    """Without end the prior is the source model; 0 is the model in training mode."""
    adapted(SourceAdapter(model), model, data, tmp_path / "source")
    for prior in (0, 40, 10**9):
        adapted(BNAdapter(model, prior), model, data, tmp_path / str(prior))
    torch.testing.assert_close(_answers(tmp_path / str(10**9)), _answers(tmp_path / "source"), atol=1e-4, rtol=1e-4)
    import copy

    training = copy.deepcopy(model).train()
    with torch.no_grad():
        expected = torch.cat([training(data.stream.batch(number)).logits for number in range(12)])
    torch.testing.assert_close(_answers(tmp_path / "0"), expected, atol=1e-5, rtol=1e-5)
    between = _answers(tmp_path / "40")
    assert not torch.allclose(between, expected, atol=0.1)
    assert not torch.allclose(between, _answers(tmp_path / "source"), atol=0.1)


def test_batch_statistics_help_under_corruption(data: CorruptedData, model: Classifier, tmp_path: Path) -> None:
    """The finding of the paper, where contrast shifts every statistic."""
    errors = {}
    for method in (Source(Ready(model), data), BNAdapt(Ready(model), data)):  # type: ignore[arg-type]
        name = type(method).__name__
        stage = next(method.program())
        stage.run(tmp_path / name, context(tmp_path))
        found = load_file(tmp_path / name / "stream.safetensors")
        errors[name] = (found["logits"].argmax(1) != found["label"])[found["domain"] == 1].double().mean().item()
    assert errors["BNAdapt"] < errors["Source"] - 0.2


def test_wrong_prior(data: CorruptedData, model: Classifier) -> None:
    with pytest.raises(LimbeckError, match="prior is -1"):
        BNAdapt(Ready(model), data, prior=-1)  # type: ignore[arg-type]
