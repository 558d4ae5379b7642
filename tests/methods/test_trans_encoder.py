import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.special import expit, log_expit
from torch import Tensor

from limbeck.data.load import load
from limbeck.data.pairs import PairData
from limbeck.errors import LimbeckError
from limbeck.methods.language.trans_encoder import BiToCross, CrossToBi, TransEncoder
from limbeck.methods.method import Ready
from limbeck.models import build
from limbeck.stages.evaluation.similarity import predict_scores
from limbeck.stages.fit import Fit
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Context, drive

from .tables import assert_equal, total

pytest.importorskip("transformers")
SHORT = FitSettings(updates=4, batch_size=16, evaluations=1, accelerator="cpu", optimizer={"name": "adamw", "lr": 1e-3})


@pytest.fixture(scope="module")
def data() -> PairData:
    found = load("description_pairs", seed=0, pairs=100)
    assert isinstance(found, PairData)
    return found


def model(data: PairData, name: str, seed: int = 0, **arguments: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        small = {"width": 16, "heads": 2, "feedforward": 32, "layers": 1}
        return build(name, data.task, **{**small, **arguments})


def method(data: PairData, **arguments: Any) -> TransEncoder:
    models = {"start": Ready(model(data, "bi_encoder", 1)), "cross": model(data, "cross_encoder", 2)}
    return TransEncoder(**{**models, "data": data, "fit_cross": SHORT, "fit_bi": SHORT, "cycles": 1, **arguments})


def run(program: TransEncoder, folder: Path) -> Any:
    return drive(program.program(), Context(folder, "trans-encoder", seed=0))


def labels(folder: Path) -> Tensor:
    return load_file(folder / "labels.safetensors")["score"]


def stages(program: TransEncoder) -> list[Any]:
    """The stages of a program, none of which is run."""
    found, generator, artefact = [], program.program(), None
    while True:
        try:
            found.append(generator.send(artefact))
        except StopIteration:
            return found
        artefact = found[-1].untrained()


def test_the_losses_are_the_equations(data: PairData) -> None:
    y = torch.linspace(-0.3, 1.2, len(data.train))
    batch = data.train.relabel(y).fetch(torch.arange(20))
    target = y[:20].double().numpy()
    cross = BiToCross(model(data, "cross_encoder", initializer_range=0.3).eval())
    z = cross.student(batch).logits.detach().double().numpy()
    expected = -(target * log_expit(z) + (1 - target) * log_expit(-z)).mean()
    # float32 against float64, on values about 1.
    assert total(cross.terms(batch)).item() == pytest.approx(expected, abs=1e-6)
    assert np.abs(expit(z) - 0.5).max() > 0.05
    bi = CrossToBi(model(data, "bi_encoder").eval())
    cosine = bi.student(batch).score.detach().double().numpy()
    assert total(bi.terms(batch)).item() == pytest.approx(((cosine - target) ** 2).mean(), abs=1e-6)


def test_who_labels_what_for_whom(data: PairData) -> None:
    found = stages(method(data, cycles=2))
    assert [stage.name for stage in found] == [
        *(f"cycle-{t}-{part}" for t in (1, 2) for part in ("bi-labels", "cross", "cross-labels", "bi")),
        "best",
    ]
    cross, bi = found[1], found[3]
    assert isinstance(cross.objective, BiToCross)
    assert isinstance(bi.objective, CrossToBi)
    assert len(cross.data.train) == 2 * len(data.train)
    assert len(bi.data.train) == len(data.train)
    assert not set(cross.data.train.first[: len(data.train)]) - set(data.train.first)
    assert cross.data.train.first[len(data.train) :] == data.train.second
    assert found[4].models == (bi.objective.student,)  # cycle 2 is labelled by the bi-encoder of cycle 1
    assert found[2].models == (cross.objective.student,)
    assert found[-1].candidates == {
        "bi": (found[3].objective.student, found[7].objective.student),
        "cross": (found[1].objective.student, found[5].objective.student),
    }


def test_the_labels_of_a_fit_are_its_teachers_scores_and_negative_ones_stay(data: PairData, tmp_path: Path) -> None:
    start = model(data, "bi_encoder", 1)
    with torch.no_grad():  # embeddings around zero: cosines of both signs
        start.backbone.encoder.layer[-1].output.LayerNorm.weight.fill_(1.0)
        start.backbone.embeddings.word_embeddings.weight.normal_(0, 1)
    for clip in (False, True):
        seen = {}
        program = method(data, start=Ready(start), clip=clip).program()
        first = next(program)
        first.run(tmp_path / f"{clip}", Context(tmp_path, "test", seed=0))
        y = first.load(tmp_path / f"{clip}")
        fit = program.send(y)
        seen = fit.data.train.scores
        expected = predict_scores(start, data.train)
        torch.testing.assert_close(y, expected, atol=1e-6, rtol=0)
        assert torch.equal(seen[: len(y)], y.clamp(0, 1) if clip else y)
        assert torch.equal(seen[: len(y)], seen[len(y) :])


def test_a_fresh_student_is_the_stored_model_whatever_was_trained_before(data: PairData, tmp_path: Path) -> None:
    program = method(data, cycles=2)
    plain = {name: value.clone() for name, value in program.crosses[0].state_dict().items()}
    start = {name: value.clone() for name, value in program.starts[0].model.state_dict().items()}  # type: ignore[attr-defined]
    generator, artefact = program.program(), None
    context = Context(tmp_path, "trans-encoder", seed=0)
    begun: dict[str, dict[str, Tensor]] = {}
    ended: dict[str, dict[str, Tensor]] = {}
    while True:
        try:
            stage = generator.send(artefact)
        except StopIteration:
            break
        if isinstance(stage, Fit):
            begun[stage.name] = {k: v.clone() for k, v in stage.objective.student.state_dict().items()}
        stage.run(tmp_path / stage.name, context)
        artefact = stage.load(tmp_path / stage.name)
        if isinstance(stage, Fit):
            ended[stage.name] = {k: v.clone() for k, v in stage.objective.student.state_dict().items()}
    for cycle in (1, 2):
        assert_equal(begun[f"cycle-{cycle}-cross"], plain)
        assert_equal(begun[f"cycle-{cycle}-bi"], start)
        for kind in ("cross", "bi"):
            with pytest.raises(AssertionError):
                assert_equal(begun[f"cycle-{cycle}-{kind}"], ended[f"cycle-{cycle}-{kind}"])


def test_carried_students_begin_at_their_teachers_transformer(data: PairData, tmp_path: Path) -> None:
    program = method(data, initialization="carried", cycles=1)
    generator, artefact = program.program(), None
    context = Context(tmp_path, "trans-encoder", seed=0)
    teacher = program.starts[0].model  # type: ignore[attr-defined]
    for _ in range(4):
        stage = generator.send(artefact)
        if isinstance(stage, Fit):
            student = stage.objective.student
            assert_equal(
                {k: v.clone() for k, v in student.backbone.state_dict().items()},  # type: ignore[union-attr, operator]
                {k: v.clone() for k, v in teacher.backbone.state_dict().items()},
            )
            teacher = student
        stage.run(tmp_path / stage.name, context)
        artefact = stage.load(tmp_path / stage.name)


def test_no_cycle_returns_the_start_unchanged(data: PairData, tmp_path: Path) -> None:
    program = method(data, cycles=0)
    start = program.starts[0].model  # type: ignore[attr-defined]
    before = {name: value.clone() for name, value in start.state_dict().items()}
    found = run(program, tmp_path)
    assert found is start
    assert_equal(found.state_dict(), before)


def test_a_run_goes_on_where_it_was_and_keeps_the_best(data: PairData, tmp_path: Path) -> None:
    kept = run(method(data), tmp_path)
    metrics = json.loads((tmp_path / "best" / "result.json").read_text())["metrics"]
    assert metrics["validation/spearman"] == max(
        json.loads((tmp_path / f"cycle-1-{kind}" / "result.json").read_text())["metrics"]["validation/spearman"]
        for kind in ("bi", "cross")
    )
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/result.json")}
    again = run(method(data), tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/result.json")} == times
    assert_equal(again.state_dict(), kept.state_dict())


def test_hidden_scores_change_nothing_but_what_is_said_about_the_labels(data: PairData, tmp_path: Path) -> None:
    assert data.train.hidden_scores is not None
    shuffled = data.train.relabel(data.train.hidden_scores.flip(0)).unlabel()
    shuffled.hidden_scores = data.train.hidden_scores.flip(0)
    other = PairData(shuffled, data.validation, data.test)
    one, two = run(method(data), tmp_path / "a"), run(method(other), tmp_path / "b")
    assert_equal(one.state_dict(), two.state_dict())
    said = [
        json.loads((tmp_path / run_ / "cycle-1-bi-labels" / "result.json").read_text())["metrics"]["spearman"]
        for run_ in ("a", "b")
    ]
    assert said[0] != said[1]


def test_a_peer_that_is_a_copy_labels_as_self_distillation_does(data: PairData, tmp_path: Path) -> None:
    twins = {"peer_start": Ready(model(data, "bi_encoder", 1)), "peer_cross": model(data, "cross_encoder", 2)}
    run(method(data), tmp_path / "alone")
    run(method(data, **twins), tmp_path / "both")
    one, both = (labels(tmp_path / name / "cycle-1-bi-labels") for name in ("alone", "both"))
    assert torch.equal(one, both)


def test_with_a_peer_all_learn_the_mean_and_the_mean_is_measured(data: PairData, tmp_path: Path) -> None:
    peers = {"peer_start": Ready(model(data, "bi_encoder", 3)), "peer_cross": model(data, "cross_encoder", 4, width=32)}
    program = method(data, **peers)
    run(program, tmp_path)
    each = [predict_scores(_at(tmp_path / f"cycle-1-cross{suffix}" / "model"), data.train) for suffix in ("", "-peer")]
    # float32 against float64 sums.
    torch.testing.assert_close(labels(tmp_path / "cycle-1-cross-labels"), torch.stack(each).mean(0), atol=1e-6, rtol=0)
    metrics = json.loads((tmp_path / "best" / "result.json").read_text())["metrics"]
    kinds = ("bi", "bi-peer", "cross", "cross-peer", "bi-mean", "cross-mean")
    assert {name.split("/")[0] for name in metrics if name.endswith("/spearman")} == {*kinds, "validation"}


def _at(folder: Path) -> Any:
    from limbeck.models.folder import load as load_model

    return load_model(folder)


def test_wrong_input(data: PairData, tmp_path: Path) -> None:
    with pytest.raises(LimbeckError, match="cycles is -1"):
        method(data, cycles=-1)
    with pytest.raises(LimbeckError, match="a peer has two models"):
        method(data, peer_cross=model(data, "cross_encoder"))
    with pytest.raises(LimbeckError, match="start is a CrossEncoder"):
        run(method(data, start=Ready(model(data, "cross_encoder"))), tmp_path)
