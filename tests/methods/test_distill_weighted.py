import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.data.load import load
from limbeck.data.samples import ImageData
from limbeck.data.stream import Stream
from limbeck.errors import LimbeckError
from limbeck.methods.classification.distill_weighted import DistillWeighted, WeightedDistillation
from limbeck.methods.sources import comparable, num_layers, open_sources, task_similarity
from limbeck.metrics import transferability
from limbeck.models import Classifier, save
from limbeck.models.heads import num_features
from limbeck.stages.evaluation import predict_logits
from limbeck.stages.evaluation.representation import embed
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Context, drive
from limbeck.teachers.ensemble import Ensemble, power_weights
from tests.methods.tables import Floats, log_softmax, onehot, softmax, student, total, value

FIT = FitSettings(updates=6, batch_size=20, accelerator="cpu", evaluations=1)
TRAINED = FitSettings(updates=60, batch_size=50, accelerator="cpu", evaluations=1)
TURNED = {"name": "variant", "turns": 2, "view": "none"}
FEW = {"name": "variant", "classes": ["0", "1", "8"], "view": "none"}
SOURCES: dict[str, dict[str, Any]] = {
    "turned": {"name": "cnn", "width": 4, "data": TURNED},
    "few": {"name": "cnn", "width": 5, "data": FEW},
}


@pytest.fixture(scope="module")
def few() -> ImageData:
    """Four labels a class, everything else without."""
    data = load("digits", seed=0, labels_per_class=4, view="none")
    assert isinstance(data, ImageData)
    return data


def source(data: ImageData, seed: int, classes: int) -> Classifier:
    """For classes of its own."""
    other = dataclasses.replace(data, classes=tuple(f"class {n}" for n in range(classes)))
    return student(other, seed, width=seed + 2).eval()


def sources(data: ImageData, count: int = 3) -> list[Classifier]:
    return [source(data, seed + 1, classes=3 + seed) for seed in range(count)]


def batches(data: ImageData, objective: WeightedDistillation, size: int = 8) -> Any:
    streams = objective.streams(data, size, seed=0)
    return {name: stream.batch(0) for name, stream in streams.items()}


def made(
    data: ImageData, weights: list[float], models: list[Any] | None = None, **options: Any
) -> WeightedDistillation:
    """Without batch statistics, so that the two streams can be computed one by one."""
    torch.manual_seed(0)
    pupil = student(data, norm="group")
    return WeightedDistillation(pupil, models or sources(data, len(weights)), weights, **options)


def logits(model: Any, images: torch.Tensor) -> Floats:
    with torch.no_grad():
        found: Floats = model(images).logits.double().numpy()
    return found


# The loss


@pytest.mark.parametrize("lambda_", [0.0, 0.8, 1.0])
def test_equation(few: ImageData, lambda_: float) -> None:
    weights = [0.5, 0.2, 0.3]
    objective = made(few, weights, lambda_=lambda_, mu=3)
    batch = batches(few, objective)
    assert len(batch["labeled"]["image"]) == 8
    assert len(batch["unlabeled"]["image"]) == 24
    terms = {name: value(term).item() for name, term in objective.terms(batch).items()}

    pupil, u = objective.student, batch["unlabeled"]["image"]
    labels = batch["labeled"]["label"].tolist()
    ce = -(onehot(labels, 10) * log_softmax(logits(pupil, batch["labeled"]["image"]))).sum(-1).mean()
    features = pupil(u).features.detach()
    assert objective.heads is not None
    soft = 0.0
    for weight, teacher, head in zip(weights, sources(few), objective.heads, strict=True):
        said = softmax(logits(teacher, u))
        soft -= weight * (said * log_softmax(head(features).detach().numpy())).sum(-1).mean()
    # float32 networks.
    assert terms == pytest.approx({"ce": lambda_ * ce, "distillation": (1 - lambda_) * soft}, rel=1e-5)


def test_target_label_space_teaches_the_students_own_head(few: ImageData) -> None:
    weights = [0.3, 0.7]
    models = [student(few, seed=seed).eval() for seed in (1, 2)]
    objective = made(few, [1.0], [Ensemble(models, weights)], label_space="target")
    batch = batches(few, objective)
    u = batch["unlabeled"]["image"]
    mixture = sum(w * softmax(logits(m, u)) for w, m in zip(weights, models, strict=True))
    soft = -(mixture * log_softmax(logits(objective.student, u))).sum(-1).mean()
    assert value(objective.terms(batch)["distillation"]).item() == pytest.approx(0.2 * soft, rel=1e-5)
    assert objective.heads is None


def test_without_the_labels_or_without_the_sources(few: ImageData) -> None:
    """lambda = 1: no gradient from the sources; lambda = 0: none from the labels."""
    for lambda_, kept in ((1.0, "ce"), (0.0, "distillation")):
        objective = made(few, [0.4, 0.6], lambda_=lambda_)
        batch = batches(few, objective)
        terms = objective.terms(batch)
        total(terms).backward()
        found = {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}
        heads = [gradient for name, gradient in found.items() if name.startswith("heads")]
        assert all(bool((gradient == 0).all()) == (lambda_ == 1) for gradient in heads)
        objective.zero_grad()
        value(objective.terms(batch)[kept]).backward()
        for name, parameter in objective.named_parameters():
            if parameter.grad is not None:
                assert torch.equal(parameter.grad, found[name])


def test_source_of_weight_0_changes_nothing(few: ImageData) -> None:
    models = sources(few)
    with_it, without = made(few, [0.4, 0.0, 0.6], models), made(few, [0.4, 0.6], [models[0], models[2]])
    batch = batches(few, with_it)
    assert len(with_it.sources) == 2
    assert with_it.state_dict().keys() == without.state_dict().keys()
    for one, other in zip(with_it.terms(batch).values(), without.terms(batch).values(), strict=True):
        assert torch.equal(value(one), value(other))
    # And one that is taken out is its share less.
    w = power_weights([2.0, 1.0, 3.0], 2)
    rest = power_weights([2.0, 3.0], 2)
    assert [w[0] / (w[0] + w[2]), w[2] / (w[0] + w[2])] == pytest.approx(rest, rel=1e-14)


def test_sources_stay_as_they_are_and_outside_the_state(few: ImageData) -> None:
    objective = made(few, [0.4, 0.6]).train()
    before = [{name: tensor.clone() for name, tensor in teacher.named_buffers()} for teacher in objective.sources]
    total(objective.terms(batches(few, objective))).backward()
    for teacher, buffers in zip(objective.sources, before, strict=True):
        assert not any(module.training for module in teacher.modules())
        assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
        assert all(torch.equal(tensor, buffers[name]) for name, tensor in teacher.named_buffers())
    assert not [name for name in objective.state_dict() if name.startswith("sources")]
    trained = {id(p) for p in objective.parameter_groups()["main"]}
    assert trained == {id(p) for p in [*objective.student.parameters(), *objective.heads.parameters()]}  # type: ignore[union-attr]


def test_streams(few: ImageData) -> None:
    assert few.unlabeled is not None
    streams = made(few, [1.0], mu=2).streams(few, 10, seed=0)
    assert isinstance(streams["unlabeled"], Stream)
    assert len(streams["unlabeled"].samples) == len(few.train) + len(few.unlabeled)
    assert (streams["unlabeled"].batch(0)["label"] == -1).all()
    assert (streams["labeled"].batch(0)["label"] >= 0).all()


# Similarity


@pytest.mark.parametrize("dims", [None, 3])
def test_measures_are_given_what_they_ask_for(few: ImageData, dims: int | None) -> None:
    model = source(few, 1, 4)
    features, labels = embed(model, few.train), few.train.labels
    said = {"features": features, "probabilities": predict_logits(model, few.train).logits.softmax(-1)}
    reference = embed(student(few), few.train)
    taken = (
        [features, reference]
        if dims is None
        else [transferability.principal_components(f, dims) for f in (features, reference)]
    )
    t = transferability
    wanted = {
        "parc": t.parc(taken[0], labels),
        "h_score": t.h_score(taken[0], labels),
        "knn": t.leave_one_out_knn(taken[0], labels),
        "logme": t.logme(taken[0], labels),
        "rsa": t.rsa(*taken),
        "cka": t.cka(*taken),
        "dds": t.dds(*taken),
        "leep": t.leep(said["probabilities"], labels),
        "nce": t.nce(said["probabilities"].argmax(-1), labels),
    }
    assert {name: task_similarity(name, said, labels, reference, dims) for name in wanted} == wanted
    assert len(set(wanted.values())) == len(wanted)


def test_scores_below_zero_become_weights() -> None:
    scores = {"a": -3.0, "b": -1.0, "c": -2.0}
    assert comparable(scores, "logme") == [0, 1, 0.5]
    assert comparable(scores, "parc") == [-3, -1, -2]
    assert comparable({"a": -3.0}, "leep") == [0]
    assert power_weights(comparable({"a": -3.0}, "leep"), 12) == [1]
    # z-scores are -1 and 1; 150 layers more make it 0 and -1 + 3.
    assert comparable({"a": 1.0, "b": 2.0}, "parc", {"a": 150, "b": 0}) == [1, 0]


def test_layers_that_count(digits: ImageData) -> None:
    assert num_layers(student(digits)) == 4


# The program


def run(method: DistillWeighted, folder: Path) -> tuple[Classifier, dict[str, float], list[str]]:
    context = Context(folder, "test", seed=0)
    model = drive(method.program(), context)
    metrics = json.loads((folder / "fit" / "result.json").read_text())["metrics"]
    return model, metrics, context.stages


def test_whole_method(few: ImageData, tmp_path: Path) -> None:
    """A network that is trained first, one that knows three classes, and a saved one."""
    saved = source(few, 3, 6)
    save(saved, tmp_path / "saved")
    blocks = {**SOURCES, "saved": {"name": "folder", "path": str(tmp_path / "saved")}}
    method = DistillWeighted(few, student(few), blocks, FIT, TRAINED, dims=None, p=2)
    model, metrics, stages = run(method, tmp_path / "run")
    assert stages == ["source-turned", "source-few", *(f"features-{name}" for name in blocks), "fit"]
    assert model.classes == few.classes
    assert metrics["similarity/saved"] == pytest.approx(
        transferability.parc(embed(saved, method.probe), method.probe.labels), rel=1e-6
    )
    weights = [metrics[f"weight/{name}"] for name in blocks]
    assert weights == pytest.approx(power_weights([metrics[f"similarity/{name}"] for name in blocks], 2))
    # Sixty updates make both better than the first weights of the third.
    assert metrics["similarity/saved"] < min(metrics["similarity/turned"], metrics["similarity/few"])
    # What is kept is the student without further heads.
    assert set(model.state_dict()) == set(student(few).state_dict())
    # Another source leaves the first weights of the others alone: their stages are the same.
    alone = {"few": SOURCES["few"]}
    run(DistillWeighted(few, student(few), alone, FIT, TRAINED, dims=None), tmp_path / "alone")
    files = [tmp_path / name / "source-few" / "model" / "model.safetensors" for name in ("run", "alone")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_nearest_is_an_infinite_power_and_with_one_source_all_powers_are_one(few: ImageData, tmp_path: Path) -> None:
    for name, teacher in (("a", source(few, 1, 3)), ("b", source(few, 2, 4))):
        save(teacher, tmp_path / name)
    blocks = {name: {"name": "folder", "path": str(tmp_path / name)} for name in "ab"}
    _, metrics, _ = run(DistillWeighted(few, student(few), blocks, FIT, FIT, p=float("inf")), tmp_path / "nearest")
    nearest = max("ab", key=lambda name: metrics[f"similarity/{name}"])
    assert {name: metrics[f"weight/{name}"] for name in "ab"} == {name: float(name == nearest) for name in "ab"}
    models = [
        run(DistillWeighted(few, student(few), {"a": blocks["a"]}, FIT, FIT, p=p), tmp_path / str(p))[0]
        for p in (0.0, 12.0, float("inf"))
    ]
    for other in models[1:]:
        assert all(torch.equal(one, two) for one, two in zip(models[0].parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("measure", ["cka", "logme"])
def test_reference_and_target_label_space(few: ImageData, tmp_path: Path, measure: Any) -> None:
    save(source(few, 1, 3), tmp_path / "saved")
    blocks = {"few": SOURCES["few"], "saved": {"name": "folder", "path": str(tmp_path / "saved")}}
    method = DistillWeighted(
        few, student(few), blocks, FIT, TRAINED, measure=measure, label_space="target", p=0, capacity=measure == "logme"
    )
    _, metrics, stages = run(method, tmp_path / "run")
    wanted = ["source-few", *(["reference", "features-reference"] if measure == "cka" else []), "features-few"]
    assert stages == [*wanted, "features-saved", "probe-few", "probe-saved", "fit"]
    assert metrics["weight/few"] == 0.5
    if measure == "cka":
        assert 0 < metrics["similarity/few"] <= 100


def test_dry_run_trains_nothing(few: ImageData, tmp_path: Path) -> None:
    method = DistillWeighted(few, student(few), SOURCES, FIT, FIT, label_space="target")
    context = Context(tmp_path, "test", seed=0, dry_run=True)
    drive(method.program(), context)
    assert [entry["stage"] for entry in context.estimates] == context.stages
    assert not list(tmp_path.iterdir())


def test_pretrained_source_keeps_its_own_classes(few: ImageData, tmp_path: Path) -> None:
    """As for weights of a library; here the network is built without any."""
    blocks = {"library": {"name": "timm", "model": "mobilenetv3_small_050", "size": 32, "classes": 7}}
    method = DistillWeighted(few, student(few), blocks, dataclasses.replace(FIT, updates=1), FIT, dims=4)
    program = method.program()
    stage = next(program)
    assert stage.scorer.model.classes == tuple("0123456")  # type: ignore[attr-defined]
    assert num_features(stage.scorer.model, "this") == 1024  # type: ignore[attr-defined]


# Wrong input


def test_wrong_sources(few: ImageData) -> None:
    for blocks, message in (
        ({}, "sources names no model"),
        ({"a/b": SOURCES["few"]}, "sources: 'a/b' names a folder"),
        ({"a": {"width": 4}}, "sources.a is .*; it must be a model block with a name"),
        ({"a": {"name": "cnn"}}, "sources.a does not say what the model knows"),
        ({"a": {"name": "timm", "classes": 0}}, "sources.a does not say what the model knows"),
        ({"a": {"name": "cnn", "data": "digit"}}, "no data source 'digit'"),
        ({"a": {"name": "cnn", "data": {"name": "points"}}}, "sources.a: 'points' holds no images"),
    ):
        with pytest.raises(LimbeckError, match=message):
            open_sources(blocks)  # type: ignore[arg-type]
    with pytest.raises(LimbeckError, match="a is a model for detection; it must be a classifier"):
        next(DistillWeighted(few, student(few), {"a": {"name": "faster_rcnn", "classes": 2}}, FIT, FIT).program())


def test_wrong_arguments(few: ImageData, digits: ImageData) -> None:
    def made(data: ImageData = few, **options: Any) -> None:
        DistillWeighted(data, student(few), SOURCES, FIT, FIT, **options)

    for options, message in (
        ({"lambda_": 1.2}, r"lambda_ is 1\.2"),
        ({"p": -1.0}, r"p is -1\.0"),
        ({"measure": "park"}, r"no measure 'park'\. Did you mean 'parc'\?"),
        ({"mu": 0}, "batch_size 0"),
        ({"probe": 15}, "two labelled images of every class, and of 15"),
    ):
        with pytest.raises(LimbeckError, match=message):
            made(**options)
    with pytest.raises(LimbeckError, match="the data have none"):
        made(digits)
    few_labels = load("digits", seed=0, labels_per_class=1)
    assert isinstance(few_labels, ImageData)
    with pytest.raises(LimbeckError, match="two labelled images of every class"):
        made(few_labels)
