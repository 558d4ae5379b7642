"""Tables of numbers a sample: what is in them, and that a killed scoring ends with the same bytes."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from limbeck.data.samples import ImageData, Samples
from limbeck.errors import LimbeckError
from limbeck.models.classifier import Classifier
from limbeck.stages.progress import Reporter
from limbeck.stages.score import GradientNorms, Outputs, Score, given_scores, score
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Context, Program, drive
from tests.methods.tables import student
from tests.stages.test_label import KillAt, KilledError

SETTINGS = FitSettings(accelerator="cpu")


class Recording(nn.Module):
    """Remembers whom it was asked about; its columns are the mean and the corners of the image."""

    def __init__(self) -> None:
        super().__init__()
        self._asked: list[int] = []

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        assert not self.training
        self._asked += batch["index"].tolist()
        return {"mean": batch["image"].mean((1, 2, 3)), "rows": batch["image"][:, 0, 0]}


def samples_of(data: ImageData, count: int = 50) -> Samples:
    return data.train.subset(range(30, 30 + count))


def stage(scorer: nn.Module, samples: Samples, **changes: Any) -> Score:
    return Score("scores", scorer, samples, SETTINGS, **{"batch_size": 8, "every": 20, **changes})


def run(made: Score, folder: Path, reporter: Reporter | None = None, dry_run: bool = False) -> Any:
    def program() -> Program:
        return (yield made)

    context = Context(folder, "test", seed=5, reporter=reporter or Reporter(quiet=True), dry_run=dry_run)
    return drive(program(), context), context


def test_table_holds_every_sample_in_order(digits: ImageData, tmp_path: Path) -> None:
    scorer, samples = Recording().train(), samples_of(digits)
    table, _ = run(stage(scorer, samples), tmp_path)
    images = samples.fetch(torch.arange(50))["image"]
    assert set(table) == {"mean", "rows"}
    torch.testing.assert_close(table["mean"], images.mean((1, 2, 3)))
    assert torch.equal(table["rows"], images[:, 0, 0])
    assert scorer._asked == samples.indices.tolist()
    assert scorer.training
    stored = safetensors.torch.load_file(tmp_path / "scores/table.safetensors")
    assert torch.equal(stored["index"], samples.indices)
    result = json.loads((tmp_path / "scores/result.json").read_text())
    assert result["samples_seen"] == 50
    assert result["metrics"] == {"mean": pytest.approx(float(table["mean"].mean()))}
    # Finished: nobody is asked again, and the parts are gone.
    again, _ = run(stage(scorer, samples), tmp_path)
    assert torch.equal(again["rows"], table["rows"])
    assert len(scorer._asked) == 50
    assert {file.name for file in (tmp_path / "scores").iterdir()} == {
        "table.safetensors",
        "result.json",
        "settings.json",
    }


@pytest.mark.parametrize("at", [20, 40, 50])
def test_killed_scoring_ends_with_the_same_bytes_and_asks_nobody_twice(
    digits: ImageData, tmp_path: Path, at: int
) -> None:
    samples, scorer = samples_of(digits), Recording()
    run(stage(Recording(), samples), tmp_path / "whole")
    with pytest.raises(KilledError):
        run(stage(scorer, samples), tmp_path / "killed", KillAt(at))
    assert not (tmp_path / "killed/scores/result.json").exists()
    assert len(scorer._asked) == at
    run(stage(scorer, samples), tmp_path / "killed")
    assert sorted(scorer._asked) == sorted(samples.indices.tolist())
    name = "scores/table.safetensors"
    assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_other_inputs_are_another_stage(digits: ImageData, tmp_path: Path) -> None:
    network, samples = student(digits), samples_of(digits)
    scorers = [Outputs(network), Outputs(student(digits, seed=1)), Outputs(network, temperature=2.0)]
    scorers += [Outputs(network, ["features"]), GradientNorms(network)]  # type: ignore[list-item]
    context = Context(tmp_path, "test", seed=0)
    known = {json.dumps(stage(scorer, samples).identity(context)) for scorer in scorers}
    known.add(json.dumps(stage(scorers[0], samples_of(digits, 49)).identity(context)))
    assert len(known) == len(scorers) + 1
    twin = stage(Outputs(copy.deepcopy(network)), samples)
    assert json.dumps(twin.identity(context)) in known


def test_outputs_of_a_classifier(digits: ImageData, nearest_mean: Classifier) -> None:
    samples = samples_of(digits)
    found = score(Outputs(nearest_mean, ["probabilities", "features"], temperature=3.0), samples, batch_size=7)
    with torch.no_grad():
        said = nearest_mean(samples.fetch(torch.arange(50)))
    torch.testing.assert_close(found["probabilities"], (said.logits / 3).softmax(-1))
    torch.testing.assert_close(found["features"], said.features)
    some = score(Outputs(nearest_mean), samples, torch.tensor([9, 4]))
    torch.testing.assert_close(some["probabilities"], said.logits[[9, 4]].softmax(-1))


def test_gradient_norms_against_one_backward_pass_a_sample(digits: ImageData) -> None:
    """A network with batch normalisation, in eval mode; and nothing is left behind in it."""
    network, samples = student(digits), samples_of(digits, 11)
    for _ in range(3):
        network.train()(digits.train.fetch(torch.arange(64)))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = score(GradientNorms(network, chunk=4), samples, batch_size=8)["gradient"]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
    assert network.training
    network.eval()
    expected = []
    for position in range(11):
        network.zero_grad()
        batch = samples.fetch(torch.tensor([position]))
        torch.nn.functional.cross_entropy(network(batch).logits, batch["label"]).backward()
        grads = [p.grad.numpy().ravel() for p in network.parameters() if p.grad is not None]
        expected.append(np.linalg.norm(np.concatenate(grads).astype(np.float64)))
    # float32 sums in another order.
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4)


def test_dry_run_knows_columns_and_sizes(digits: ImageData, tmp_path: Path) -> None:
    table, context = run(
        stage(Outputs(student(digits), ["features"]), samples_of(digits)), tmp_path / "x", dry_run=True
    )
    assert table["features"].shape == (50, 64)
    assert context.estimates[0]["samples"] == 50
    assert not (tmp_path / "x").exists()


def test_numbers_that_are_not_finite_are_refused(digits: ImageData) -> None:
    network = student(digits)
    with torch.no_grad():
        next(network.parameters()).fill_(torch.nan)
    samples = samples_of(digits)
    with pytest.raises(LimbeckError, match=f"probabilities of index {int(samples.indices[0])} is not finite"):
        score(Outputs(network), samples)


def test_wrong_settings(digits: ImageData) -> None:
    with pytest.raises(LimbeckError, match="temperature is 0"):
        Outputs(student(digits), temperature=0)
    with pytest.raises(LimbeckError, match="every 0"):
        stage(Recording(), samples_of(digits), every=0)
    headless = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Flatten()), digits.classes, channels=1)
    headless.head = None
    headless.body[1]._forward_pre_hooks.clear()  # type: ignore[index,union-attr]
    with pytest.raises(LimbeckError, match="no head"):
        score(Outputs(headless, ["features"]), samples_of(digits))


def test_given_scores_are_read_by_index(digits: ImageData, tmp_path: Path) -> None:
    samples = samples_of(digits)
    values = np.arange(samples.num_samples, dtype=np.float64)
    np.save(tmp_path / "s.npy", values)
    assert given_scores(tmp_path / "s.npy", samples).tolist() == samples.indices.tolist()
    np.save(tmp_path / "short.npy", values[:-1])
    with pytest.raises(LimbeckError, match="expected one number for each of"):
        given_scores(tmp_path / "short.npy", samples)
    (tmp_path / "text.npy").write_text("no")
    for name in ("text.npy", "none.npy"):
        with pytest.raises(LimbeckError, match=r"cannot be read as a \.npy file"):
            given_scores(tmp_path / name, samples)
