import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from scipy.special import softmax
from scipy.stats import entropy

from limbeck.data.corrupted import CorruptedData
from limbeck.errors import LimbeckError
from limbeck.methods.adaptation.bn_adapt import BNAdapter
from limbeck.methods.adaptation.tent import Tent, TentAdapter
from limbeck.methods.method import Ready
from limbeck.models import Classifier, build
from limbeck.stages.stream import online
from tests.methods.streams import adapted, source, step, stream, unlabelled


@pytest.fixture(scope="module")
def data() -> CorruptedData:
    return stream()


@pytest.fixture(scope="module")
def model(data: CorruptedData) -> Classifier:
    return source(data)


def test_loss_is_the_mean_entropy_of_the_answer(data: CorruptedData, model: Classifier) -> None:
    adapter = TentAdapter(model).eval()
    term = adapter.terms(unlabelled(data, 0))["entropy"]
    assert isinstance(term, torch.Tensor)
    answer = adapter.kept["logits"][0].double().numpy()
    assert term.item() == pytest.approx(entropy(softmax(answer, axis=1), axis=1).mean(), abs=1e-5)  # float32


def test_only_scale_and_shift_of_batch_normalisation_move(data: CorruptedData, model: Classifier) -> None:
    adapter = TentAdapter(model).eval()
    before = copy.deepcopy(adapter.student)
    optimizer = torch.optim.Adam([w for w in adapter.parameters() if w.requires_grad], lr=1e-2)
    for number in range(3):
        step(adapter, unlabelled(data, number), optimizer)
    pairs = zip(adapter.student.named_parameters(), before.parameters(), strict=True)
    moved = {name for (name, new), old in pairs if not torch.equal(new, old)}
    assert moved == {"body.0.1.weight", "body.0.1.bias", "body.1.1.weight", "body.1.1.bias"}


def test_entropy_falls_on_a_batch_that_is_seen_again(data: CorruptedData, model: Classifier) -> None:
    adapter = TentAdapter(model).eval()
    optimizer = torch.optim.Adam([w for w in adapter.parameters() if w.requires_grad], lr=1e-2)
    batch = unlabelled(data, 0)
    values = []
    for _ in range(10):
        answer = step(adapter, batch, optimizer)
        values.append(torch.special.entr(answer.softmax(1)).sum(1).mean().item())
    assert values[-1] < 0.9 * values[0]


def test_lr_0_is_batch_statistics_adaptation(data: CorruptedData, model: Classifier, tmp_path: Path) -> None:
    adapted(TentAdapter(model), model, data, tmp_path / "tent", online(40, "adam", 0.0, 0.9))
    adapted(BNAdapter(model, 0), model, data, tmp_path / "bn")
    answers = [load_file(tmp_path / name / "stream.safetensors")["logits"] for name in ("tent", "bn")]
    assert torch.equal(answers[0], answers[1])


def test_models_without_batch_normalisation_are_refused(data: CorruptedData) -> None:
    plain = build("cnn", data.task, width=4, norm="group")
    with pytest.raises(LimbeckError, match="no batch normalisation"):
        next(Tent(Ready(plain), data).program())  # type: ignore[arg-type]
