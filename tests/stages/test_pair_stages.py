import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import spearmanr

from limbeck.data.load import load
from limbeck.data.pairs import PairData
from limbeck.errors import LimbeckError
from limbeck.models import build
from limbeck.models.folder import load as load_model
from limbeck.models.text_encoder import TextEncoder
from limbeck.stages.evaluation.similarity import SCORES, predict_scores, report, validate
from limbeck.stages.pair_stages import CHOICE, LABELS, ChooseEncoder, LabelPairs
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Context
from limbeck.teachers import Frozen

pytest.importorskip("transformers")
CPU = FitSettings(accelerator="cpu")


@pytest.fixture(scope="module")
def data() -> PairData:
    found = load("description_pairs", seed=0, pairs=120)
    assert isinstance(found, PairData)
    return found


def model(data: PairData, seed: int = 0, name: str = "bi_encoder", **arguments: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = build(name, data.task, **{"width": 16, "heads": 2, "feedforward": 32, "layers": 1, **arguments})
    assert isinstance(built, TextEncoder)
    return built


def run(stage: Any, folder: Path) -> tuple[Any, dict[str, float]]:
    context = Context(folder, "test", seed=0)
    stage.run(folder / stage.name, context)
    return stage.load(folder / stage.name), json.loads((folder / stage.name / "result.json").read_text())["metrics"]


def test_scores_are_in_the_order_of_the_pairs_and_in_eval_mode(data: PairData) -> None:
    one = model(data).train()
    found = predict_scores(one, data.test, batch_size=7)
    assert one.training
    one.eval()
    for position in (0, 5, len(data.test) - 1):
        alone = one(data.test.fetch(torch.tensor([position]))).score
        # One row alone, and padded in a batch: float32.
        torch.testing.assert_close(found[position : position + 1], alone.detach(), atol=1e-6, rtol=0)


def test_report_measures_the_test_and_keeps_the_scores(data: PairData, tmp_path: Path) -> None:
    one, teacher = model(data), Frozen(model(data, seed=1))
    metrics = report(one, {"teacher": teacher}, data, tmp_path, torch.device("cpu"))
    kept = load_file(tmp_path / SCORES)
    assert data.test.scores is not None
    assert torch.equal(kept["gold"], data.test.scores)
    assert torch.equal(kept["score"], predict_scores(one, data.test))
    assert metrics["spearman"] == pytest.approx(spearmanr(kept["score"], data.test.scores).statistic, abs=1e-12)
    assert metrics["teacher/spearman"] == pytest.approx(
        spearmanr(kept["teacher_score"], data.test.scores).statistic, abs=1e-12
    )
    assert metrics["validation/spearman"] == validate(one, data, torch.device("cpu"))["spearman"]
    assert metrics["parameters"] == sum(p.numel() for p in one.parameters())


def test_what_cannot_be_measured_is_refused(data: PairData) -> None:
    from limbeck.stages.evaluation.similarity import quality

    with pytest.raises(LimbeckError, match="a Linear does not score pairs"):
        predict_scores(torch.nn.Linear(2, 2), data.test)
    broken = model(data)
    with torch.no_grad():
        broken.backbone.embeddings.LayerNorm.weight.fill_(float("nan"))
    with pytest.raises(LimbeckError, match=f"scores for {len(data.test)} of {len(data.test)} pairs, first for index 0"):
        predict_scores(broken, data.test)
    with pytest.raises(LimbeckError, match="no gold scores"):
        quality(torch.zeros(len(data.train)), data.train)


def test_labels_are_the_mean_of_the_scores(data: PairData, tmp_path: Path) -> None:
    models = [model(data, seed, initializer_range=0.2) for seed in range(3)]
    labels, metrics = run(LabelPairs("labels", models, data.train, CPU), tmp_path)
    each = torch.stack([predict_scores(one, data.train) for one in models])
    torch.testing.assert_close(labels, each.mean(0), atol=1e-6, rtol=0)  # float32 against float64 sums
    assert float((labels - each[0]).abs().max()) > 0.01
    assert data.train.hidden_scores is not None
    assert metrics["spearman"] == pytest.approx(spearmanr(labels, data.train.hidden_scores).statistic, abs=1e-12)
    kept = load_file(tmp_path / "labels" / LABELS)
    assert torch.equal(kept["index"], data.train.indices)
    assert torch.equal(kept["gold"], data.train.hidden_scores)


@pytest.mark.parametrize("copies", [2, 3, 7])
def test_copies_of_one_model_label_as_it_does_alone(data: PairData, tmp_path: Path, copies: int) -> None:
    one = model(data)
    alone, _ = run(LabelPairs("alone", [one], data.train, CPU), tmp_path)
    several, _ = run(LabelPairs("several", [copy.deepcopy(one) for _ in range(copies)], data.train, CPU), tmp_path)
    assert torch.equal(alone, several)


def test_labels_neither_see_nor_need_the_truth(data: PairData, tmp_path: Path) -> None:
    one = model(data)
    assert data.train.hidden_scores is not None
    other = data.train.relabel(data.train.hidden_scores.flip(0))
    context = Context(tmp_path, "test", seed=0)
    stages = [LabelPairs(name, [one], pairs, CPU) for name, pairs in (("a", data.train), ("b", other))]
    assert stages[0].identity(context) == stages[1].identity(context)
    unknown = data.train.relabel(data.train.hidden_scores)
    unknown.hidden_scores = None
    labels, metrics = run(LabelPairs("c", [one], unknown.unlabel(), CPU), tmp_path)
    assert metrics == {"spearman": pytest.approx(metrics["spearman"]), "pearson": pytest.approx(metrics["pearson"])}
    assert torch.equal(labels, run(stages[0], tmp_path)[0])


def test_the_identity_sees_models_and_pairs(data: PairData, tmp_path: Path) -> None:
    context = Context(tmp_path, "test", seed=0)
    one = LabelPairs("a", [model(data)], data.train, CPU).identity(context)
    others = [
        LabelPairs("a", [model(data, seed=1)], data.train, CPU).identity(context),
        LabelPairs("a", [model(data)], data.test, CPU).identity(context),
        LabelPairs("a", [model(data), model(data)], data.train, CPU).identity(context),
    ]
    assert one not in others


def test_the_best_of_each_kind_and_of_all_by_the_validation_pairs(data: PairData, tmp_path: Path) -> None:
    bis = [model(data, seed) for seed in range(3)]
    crosses = [model(data, seed, name="cross_encoder", initializer_range=0.3) for seed in range(2)]
    groups = {"bi": bis, "cross": crosses}
    stage = ChooseEncoder("best", groups, {"both": ["bi", "cross"]}, data, CPU)
    kept, metrics = run(stage, tmp_path)
    choice = json.loads((tmp_path / "best" / CHOICE).read_text())
    device = torch.device("cpu")
    valid = {kind: [validate(one, data, device)["spearman"] for one in models] for kind, models in groups.items()}
    assert choice["number"] == {kind: values.index(max(values)) for kind, values in valid.items()}
    assert choice["kept"] == max(valid, key=lambda kind: max(valid[kind]))
    assert kept is groups[choice["kept"]][choice["number"][choice["kept"]]]
    assert not kept.training
    assert metrics["validation/spearman"] == max(max(values) for values in valid.values())

    best = {kind: models[choice["number"][kind]] for kind, models in groups.items()}
    scores = {kind: predict_scores(one, data.test) for kind, one in best.items()}
    assert data.test.scores is not None
    scores["both"] = (scores["bi"] + scores["cross"]) / 2
    for kind, values in scores.items():
        assert metrics[f"{kind}/spearman"] == pytest.approx(spearmanr(values, data.test.scores).statistic, abs=1e-6)
    assert metrics["spearman"] == metrics[f"{choice['kept']}/spearman"]
    saved = load_model(tmp_path / "best" / "model")
    assert torch.equal(predict_scores(saved, data.test), scores[choice["kept"]])


def test_of_equal_models_the_first_is_kept_and_none_is_an_error(data: PairData, tmp_path: Path) -> None:
    one = model(data)
    twins = [copy.deepcopy(one), copy.deepcopy(one)]
    kept, _ = run(ChooseEncoder("best", {"bi": twins}, {}, data, CPU), tmp_path)
    assert kept is twins[0]
    with pytest.raises(LimbeckError, match="nothing to choose from"):
        ChooseEncoder("best", {"bi": []}, {}, data, CPU)


def test_a_dry_run_describes_and_has_stand_ins(data: PairData) -> None:
    one = model(data)
    label, choose = LabelPairs("a", [one], data.train, CPU), ChooseEncoder("b", {"bi": [one]}, {}, data, CPU)
    assert label.describe()["pairs"] == len(data.train)
    assert label.describe()["seconds"] > 0
    assert choose.describe()["models"] == 1
    assert torch.equal(label.untrained(), torch.zeros(len(data.train)))
    assert choose.untrained() is one
