import csv
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from limbeck.data.corrupted import CorruptedData
from limbeck.errors import LimbeckError
from limbeck.methods.adaptation.cotta import CoTTAAdapter
from limbeck.methods.adaptation.source import SourceAdapter
from limbeck.methods.adaptation.tent import TentAdapter
from limbeck.models import Classifier, build, load
from limbeck.stages.evaluation import predict_logits
from limbeck.stages.objective import Batch, Terms
from limbeck.stages.stream import Adapt, online
from tests.contract.training import KillAt, Killed
from tests.methods.streams import ORDER, adapted, context, source, stream


@pytest.fixture(scope="module")
def data() -> CorruptedData:
    return stream()


@pytest.fixture(scope="module")
def model(data: CorruptedData) -> Classifier:
    return source(data)


def _cotta(model: Classifier) -> CoTTAAdapter:
    return CoTTAAdapter(model, alpha=0.9, p=0.05, p_th=2.0, N=2, loss="one-sided", augmentation="strong", flip=False)


def test_answers_of_a_model_that_does_not_adapt(data: CorruptedData, model: Classifier, tmp_path: Path) -> None:
    """Against the model's own logits, batch by batch; every metric against counts of its own."""
    adapted(SourceAdapter(model), model, data, tmp_path)
    found = load_file(tmp_path / "stream.safetensors")
    with torch.no_grad():
        batches = [data.stream.batch(number) for number in range(12)]
        logits = torch.cat([model(batch).logits for batch in batches])
    assert torch.equal(found["logits"], logits)
    wrong = logits.argmax(1) != torch.cat([batch["label"] for batch in batches])
    result = json.loads((tmp_path / "result.json").read_text())
    metrics = result["metrics"]
    assert metrics["error"] == pytest.approx(wrong.double().mean().item(), abs=1e-12)
    assert metrics["accuracy"] == pytest.approx(1 - metrics["error"], abs=1e-12)
    by_batch = wrong.view(2, 3, 80).double().mean(2)  # rounds, domains
    for number, name in enumerate(ORDER):
        assert metrics[f"error/{name}"] == pytest.approx(by_batch[:, number].mean().item(), abs=1e-12)
    for number in range(2):
        assert metrics[f"error/round-{number + 1}"] == pytest.approx(by_batch[number].mean().item(), abs=1e-12)
    clean = predict_logits(model, data.stream.samples)
    expected = (clean.logits.argmax(1) != clean.labels).double().mean().item()
    assert metrics["clean/error"] == pytest.approx(expected, abs=1e-12)
    assert metrics["validation/error"] != metrics["error"]
    assert (result["updates"], result["samples_seen"]) == (12, 480)
    assert found["round"].tolist() == [b // 6 for b in range(12) for _ in range(40)]
    assert found["domain"].tolist() == [b // 2 % 3 for b in range(12) for _ in range(40)]
    assert found["update"].tolist() == [b for b in range(12) for _ in range(40)]
    with (tmp_path / "metrics.csv").open() as file:
        logged = [float(row["value"]) for row in csv.DictReader(file) if row["name"] == "error"]
    assert logged == pytest.approx(by_batch.flatten().tolist(), abs=1e-6)


def test_an_adapter_sees_neither_labels_nor_domains(data: CorruptedData, model: Classifier, tmp_path: Path) -> None:
    seen: set[str] = set()

    class Curious(SourceAdapter):
        def terms(self, batch: Batch) -> Terms:
            seen.update(batch)
            return super().terms(batch)

    adapted(Curious(model), model, data, tmp_path)
    assert seen == {"image", "index"}


def test_the_answer_is_given_before_the_batch_is_learned(
    data: CorruptedData, model: Classifier, tmp_path: Path
) -> None:
    """The first answer is that of the source model with batch statistics, whatever the learning rate."""
    answers = []
    for rate in (0.0, 0.1):
        adapted(TentAdapter(model), model, data, tmp_path / str(rate), online(40, "sgd", rate))
        answers.append(load_file(tmp_path / str(rate) / "stream.safetensors")["logits"])
    assert torch.equal(answers[0][:40], answers[1][:40])
    assert not torch.equal(answers[0][40:80], answers[1][40:80])


def _outcome(stage: Adapt, folder: Path) -> dict[str, Tensor]:
    weights = {f"model/{name}": value for name, value in stage.load(folder).state_dict().items()}
    return {**weights, **load_file(folder / "stream.safetensors")}


@pytest.mark.parametrize(("update", "passes"), [(1, 1), (4, 2), (11, 2)])
def test_killed_and_resumed_bit_for_bit(
    data: CorruptedData, model: Classifier, tmp_path: Path, update: int, passes: int
) -> None:
    """In the first pass (validation) or in the second (test), with a checkpoint after every batch or none at all."""
    settings = online(40, "adam", 1e-2, 0.9)
    whole = _outcome(adapted(_cotta(model), model, data, tmp_path / "whole", settings), tmp_path / "whole")
    for name, seconds in (("every", 0.0), ("none", 1e9)):
        folder = tmp_path / name
        stage = Adapt("adapt", _cotta(model), model, data, settings)
        object.__setattr__(stage.settings, "checkpoint_seconds", seconds)
        with pytest.raises(Killed):
            stage.run(folder, context(folder, KillAt(update, passes)))
        assert not (folder / "result.json").exists()
        torch.manual_seed(update)  # what global state there is does not matter
        again = adapted(_cotta(model), model, data, folder, settings)
        found = _outcome(again, folder)
        assert found.keys() == whole.keys()
        assert [key for key in whole if not torch.equal(found[key], whole[key])] == []
        rows = [(folder / "metrics.csv").read_text(), (tmp_path / "whole" / "metrics.csv").read_text()]
        assert rows[0] == rows[1]


def test_the_artefact_is_saved_as_any_model(data: CorruptedData, model: Classifier, tmp_path: Path) -> None:
    """Weights after the stream, running statistics of the source; the source itself is left alone."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    stage = adapted(TentAdapter(model), model, data, tmp_path)
    kept, loaded = stage.load(tmp_path), load(tmp_path / "model")
    batch = data.test.fetch(torch.arange(30))
    assert torch.equal(kept(batch).logits, loaded(batch).logits)
    after = kept.state_dict()
    moved = {name for name in before if not torch.equal(after[name], before[name])}
    assert moved == {"body.0.1.weight", "body.0.1.bias", "body.1.1.weight", "body.1.1.bias"}
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_identity_knows_adapter_model_stream_and_settings(
    data: CorruptedData, model: Classifier, tmp_path: Path
) -> None:
    settings = online(40, "adam", 1e-2, 0.9)

    def identity(stage: Adapt) -> str:
        return json.dumps(dict(stage.identity(context(tmp_path))), default=str)

    other = source(data, updates=5)
    stages = [
        Adapt("adapt", _cotta(model), model, data, settings),
        Adapt("adapt", CoTTAAdapter(model, 0.8, 0.05, 2.0, 2, "one-sided", "strong", False), model, data, settings),
        Adapt("adapt", CoTTAAdapter(model, 0.9, 0.05, 2.0, 2, "symmetric", "strong", False), model, data, settings),
        Adapt("adapt", SourceAdapter(model), model, data, settings),
        Adapt("adapt", _cotta(other), other, data, settings),
        Adapt("adapt", _cotta(model), model, stream(rounds=3), settings),
        Adapt("adapt", _cotta(model), model, data, online(40, "adam", 1e-3, 0.9)),
    ]
    assert len({identity(stage) for stage in stages}) == len(stages)
    assert identity(stages[0]) == identity(Adapt("adapt", _cotta(model), model, stream(), settings))


def test_description_leaves_the_adapter_as_it_is(data: CorruptedData, model: Classifier) -> None:
    stage = Adapt("adapt", _cotta(model), model, data, online(40, "adam", 1e-2, 0.9))
    said = stage.describe()
    assert said["updates"] == 12
    assert said["seconds"] > 0
    same = zip(stage.untrained().parameters(), model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)


def test_other_classes_are_refused(data: CorruptedData) -> None:
    other = build("cnn", data.task.__class__(("a", "b"), 1, (8, 8), (0.5,), (0.5,)), width=4)
    assert isinstance(other, Classifier)
    with pytest.raises(LimbeckError, match=r"answers with the classes \['a', 'b'\]"):
        Adapt("adapt", SourceAdapter(other), other, data, online(40))


@pytest.mark.parametrize(("optimizer", "message"), [("lion", "must be adam or sgd"), ("adam", "Invalid learning rate")])
def test_wrong_settings(optimizer: str, message: str) -> None:
    with pytest.raises(LimbeckError, match=message):
        online(40, optimizer, -1.0, 0.9)
