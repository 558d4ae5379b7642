"""Recipes: reading, overlaying, resolving, and what a mistake in them says."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from limbeck.data.samples import ImageData
from limbeck.errors import LimbeckError
from limbeck.methods.index import METHODS
from limbeck.recipe import block_kinds, method_class, nest, overlay, read, resolve
from limbeck.yaml_text import parse_value, read_yaml

BASE: dict[str, Any] = {"method": "supervised", "student": "cnn"}
KD: dict[str, Any] = {"method": "kd", "student": "cnn", "teacher": {"method": "supervised", "student": "mlp"}}

keys = st.sampled_from(["student", "teacher", "fit", "alpha", "width", "optimizer"])
leaves = st.none() | st.integers() | st.sampled_from(["cnn", "mlp", "sgd", "kd"])
blocks = st.recursive(
    leaves,
    lambda inner: (
        st.dictionaries(keys, inner, max_size=3)
        | st.tuples(
            st.sampled_from(["name", "method"]), st.sampled_from("ab"), st.dictionaries(keys, inner, max_size=2)
        ).map(lambda parts: {parts[0]: parts[1], **parts[2]})
    ),
    max_leaves=8,
)
recipes = st.dictionaries(keys, blocks, max_size=4)


def resolved(**overrides: Any) -> dict[str, Any]:
    return resolve(overlay(BASE, nest(overrides)))


@given(recipes, recipes)
def test_overlay_is_idempotent(base: dict[str, Any], over: dict[str, Any]) -> None:
    once = overlay(base, over)
    assert overlay(once, over) == once


@given(recipes)
def test_overlay_of_nothing_changes_nothing(base: dict[str, Any]) -> None:
    assert overlay(base, {}) == base
    assert overlay({}, base) == base


def test_overlay_and_nest_leave_their_arguments_alone() -> None:
    base = {"fit": {"optimizer": {"name": "sgd", "lr": 0.1}}}
    given_keys = {"fit": {"optimizer": {"name": "sgd"}}, "fit.optimizer.lr": 0.3}
    overlay(base, nest(given_keys))["fit"]["optimizer"]["momentum"] = 0.5
    assert base == {"fit": {"optimizer": {"name": "sgd", "lr": 0.1}}}
    assert given_keys["fit"] == {"optimizer": {"name": "sgd"}}


def test_a_new_name_starts_a_block_anew() -> None:
    base = {"student": {"name": "cnn", "width": 8}, "teacher": {"method": "supervised", "student": "cnn"}}
    assert overlay(base, {"student": "mlp"})["student"] == {"name": "mlp"}
    assert overlay(base, {"student": {"width": 4}})["student"] == {"name": "cnn", "width": 4}
    assert overlay(base, {"student": "cnn"})["student"] == {"name": "cnn", "width": 8}
    # A model in place of a method, and the other way round.
    model = overlay(base, {"teacher": {"name": "mlp"}})
    assert model["teacher"] == {"name": "mlp"}
    assert overlay(model, {"teacher": "ps-kd"})["teacher"] == {"method": "ps-kd"}


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("whole", ["mlp", {"name": "mlp"}, {"name": "mlp", "layers": 3}])
def test_dotted_keys_and_the_block_they_belong_to_come_in_any_order(turned: bool, whole: Any) -> None:
    pairs = [("student", whole), ("student.hidden", 4)]
    block = nest(dict(pairs[::-1] if turned else pairs))["student"]
    assert block == {"name": "mlp", "hidden": 4} | (whole if isinstance(whole, dict) else {})


def test_dotted_keys_below_an_object_are_refused() -> None:
    module = nn.Linear(2, 2)
    for pairs in ({"student": module, "student.width": 3}, {"student.width": 3, "student": module}):
        with pytest.raises(LimbeckError, match=r"student\.width cannot be set: student is given as a Linear"):
            nest(pairs)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("5E4", 5e4),
        ("-1.5e+2", -150.0),
        (".5e1", 5.0),
        ("1e", "1e"),
        ("8", 8),
        ("null", None),
        ("[0.1, 1e-2]", [0.1, 0.01]),
        ("{low: 1e-4, high: 1}", {"low": 1e-4, "high": 1}),
        ("{broken", "{broken"),
        ("my.Class", "my.Class"),
    ],
)
def test_values(text: str, value: Any) -> None:
    found = parse_value(text)
    assert found == value
    assert type(found) is type(value)


def test_a_key_that_stands_twice_is_refused() -> None:
    with pytest.raises(LimbeckError, match=r"x\.yaml is not YAML: the key 'alpha' stands twice.*line 2"):
        read_yaml("alpha: 1\nalpha: 2\n", "x.yaml")


@pytest.mark.parametrize(("text", "said"), [("- 1", "it is list"), ("", "it is NoneType"), ("a: [", "is not YAML")])
def test_what_is_no_mapping_is_refused(text: str, said: str) -> None:
    with pytest.raises(LimbeckError, match=said):
        read_yaml(text, "x.yaml")


@pytest.mark.parametrize("slug", METHODS)
def test_every_shipped_recipe_resolves_to_itself(slug: str) -> None:
    once = resolve(read(slug))
    assert resolve(once) == once
    assert once["data"]["name"]
    fits = [block for name, kind in block_kinds(method_class(slug)).items() if kind == "fit" and (block := once[name])]
    assert all(fit["optimizer"]["lr"] > 0 for fit in fits)


@pytest.mark.parametrize(
    "overrides",
    [
        {"fit.optimizer": "adam"},
        {"fit.optimizer": "adamw", "fit.optimizer.betas": [0.8, 0.99]},
        {"fit.optimizer": "rmsprop", "fit.optimizer.foreach": True},
        {"fit.schedule": "multistep"},
        {"fit.schedule": "multistep", "fit.schedule.milestones": [0.1, 0.2]},
        {"student": "torch.nn.Linear", "student.in_features": 64, "student.out_features": 10},
    ],
)
def test_resolving_twice_changes_nothing(overrides: dict[str, Any]) -> None:
    once = resolved(**overrides)
    assert resolve(once) == once


def test_defaults_are_written_out() -> None:
    found = resolved()
    assert found["student"] == {"name": "cnn", "width": 16, "norm": "batch", "dropout": 0.0}
    assert found["label_smoothing"] == 0.0
    assert found["data"]["name"] == "digits"
    assert found["data"]["labels_per_class"] is None
    assert found["fit"]["schedule"] == {"name": "cosine", "warmup": 0.0, "final": 0.0, "eta": 1.0}
    adam = resolved(**{"fit.optimizer": "adam"})["fit"]["optimizer"]
    assert adam == {
        "name": "adam",
        "lr": 1e-3,
        "betas": [0.9, 0.999],
        "eps": 1e-8,
        "weight_decay": 0.0,
        "amsgrad": False,
    }


def test_live_objects_are_kept(digits: ImageData) -> None:
    student, teacher = nn.Linear(64, 10), nn.Linear(64, 10)
    found = resolve({"method": "kd", "student": student, "teacher": teacher, "data": digits})
    assert found["student"] is student
    assert found["teacher"] is teacher
    assert found["data"] is digits


def test_a_nested_teacher_inherits_data_and_fit_unless_it_sets_them(digits: ImageData) -> None:
    recipe = KD | {"data": {"name": "digits", "labels_per_class": 5}, "fit": {"epochs": 3, "batch_size": 8}}
    teacher = resolve(recipe)["teacher"]
    assert (teacher["data"]["labels_per_class"], teacher["fit"]["epochs"]) == (5, 3)
    own = resolve(overlay(recipe, nest({"teacher.data.labels_per_class": None, "teacher.fit.epochs": 7})))["teacher"]
    assert (own["data"]["labels_per_class"], own["data"]["name"]) == (None, "digits")
    assert (own["fit"]["epochs"], own["fit"]["batch_size"]) == (7, 8)
    assert resolve(KD | {"data": digits})["teacher"]["data"] is digits


def test_keys_of_a_teachers_data_need_data_that_have_keys(digits: ImageData) -> None:
    said = r"teacher\.data\.labels_per_class cannot be set: data is given as a ImageData .*'teacher\.data'"
    recipe = overlay(KD, nest({"teacher.data.labels_per_class": None, "data": digits}))
    with pytest.raises(LimbeckError, match=said):
        resolve(recipe)
    assert resolve(overlay(recipe, nest({"teacher.data": digits})))["teacher"]["data"] is digits


def test_data_made_in_python_are_for_the_teacher_of_a_shipped_recipe_too(digits: ImageData) -> None:
    assert "labels_per_class" in read("kd")["teacher"]["data"]
    found = resolve(overlay(read("kd"), {"data": digits}))
    assert found["teacher"]["data"] is digits
    assert found["teacher"]["student"]["width"] == 32


def test_every_form_of_a_teacher(tmp_path: Path, digits: ImageData) -> None:
    from limbeck import models

    torch.manual_seed(0)
    models.save(models.build("mlp", digits.task, hidden=4), tmp_path / "model")
    forms: list[tuple[Any, dict[str, Any]]] = [
        ({"method": "supervised", "student": "cnn"}, {"method": "supervised"}),
        (str(tmp_path / "model"), {"name": "folder", "path": str(tmp_path / "model")}),
        ({"name": "timm", "model": "resnet18"}, {"name": "timm", "model": "resnet18"}),
        ("mlp", {"name": "mlp", "hidden": 128}),
    ]
    for form, expected in forms:
        found = resolve({"method": "kd", "student": "cnn", "teacher": form})["teacher"]
        assert found.items() >= expected.items()
    # The bare slug of a method: what it needs besides comes from keys of its own.
    found = resolve(overlay(KD, nest({"teacher": "ps-kd", "teacher.student": "cnn"})))["teacher"]
    assert found["method"] == "ps-kd"
    assert found["alpha_T"] == 0.8


def test_a_short_name_means_the_model_even_beside_a_folder_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cnn").mkdir()
    (tmp_path / "cnn" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert resolved()["student"]["name"] == "cnn"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"labl_smoothing": 1}, r"unknown key 'labl_smoothing'\. Did you mean 'label_smoothing'\? Known here: method"),
        (
            {"student.widht": 8},
            r"unknown key 'student\.widht'\. Did you mean 'width'\? Known here: width, norm, dropout",
        ),
        ({"data.labels": 8}, r"unknown key 'data\.labels'\. Did you mean .* Known here: train_size"),
        ({"fit.epocs": 8}, r"unknown key 'fit\.epocs'\. Did you mean 'epochs'\?"),
        ({"fit.optimizer.lrr": 8}, r"unknown key 'fit\.optimizer\.lrr'\. Did you mean 'lr'\?"),
        ({"fit.schedule.warm": 8}, r"unknown key 'fit\.schedule\.warm'\. Did you mean 'warmup'\?"),
        ({"method": "kdd"}, r"unknown method 'kdd'\. Did you mean 'kd'\?"),
        ({"method": 3}, r"unknown method 3\."),
        ({"method": ["kd"]}, r"unknown method \['kd'\]"),
        ({"student": "cnnn"}, r"student: unknown model 'cnnn'\. Did you mean 'cnn'\?"),
        ({"student": "runs/none"}, r"student: the folder runs/none holds no saved model"),
        ({"student": "nope.Net"}, r"no module named 'nope'"),
        ({"student": 3}, r"student is 3; it must name a model"),
        ({"student": {"width": 3, "name": 4}}, r"student\.name is 4; it must name a model"),
        ({"data": "digitz"}, r"'digitz'.*Did you mean 'digits'\?"),
        ({"data": ["digits"]}, r"data is \['digits'\]; it must name a data source"),
        ({"fit": "adam"}, r"fit is 'adam'; it must be a mapping"),
        ({"fit.optimizer": "adm"}, r"unknown optimizer 'adm'\. Did you mean 'adam'\?"),
        ({"fit.optimizer": 3}, r"fit\.optimizer is 3; it must be a name"),
        ({"fit.schedule": "cosin"}, r"unknown schedule 'cosin'\. Did you mean 'cosine'\?"),
        ({"student": {"object": "my.Net", "fingerprint": "0"}}, r"student was a my\.Net made in Python; pass it again"),
        ({"data": "torchvision"}, r"data\.dataset is missing: it must be text"),
        ({"student": "timm"}, r"student\.model is missing: it must be text"),
        ({"student.width": "wide"}, r"student\.width is 'wide'; it must be int$"),
        ({"student.width": 8.5}, r"student\.width is 8\.5; it must be int$"),
        ({"student.width": True}, r"student\.width is True; it must be int$"),
        ({"student.width": None}, r"student\.width is null; it must be int$"),
        (
            {"student.norm": "btch"},
            r"student\.norm is 'btch'; it must be batch \| group \| none\. Did you mean 'batch'\?",
        ),
        ({"label_smoothing": None}, r"label_smoothing is null; it must be float$"),
        ({"data.labels_per_class": "few"}, r"data\.labels_per_class is 'few'; it must be int \| null$"),
        ({"fit.optimizer.lr": "high"}, r"fit\.optimizer\.lr is 'high'; it must be float$"),
        ({"fit.loggers": ["x"]}, r"fit\.loggers is \['x'\]; it must be list of tensorboard \| wandb$"),
        ({"fit.optimizer": "adam", "fit.optimizer.betas": [0.9]}, r"must be list of float, float$"),
        ({"fit.epochs": 0}, r"fit\.epochs .*must be positive"),
        ({"fit.batch_size": 0}, r"fit\.batch_size is 0; it must be at least 1"),
        ({"fit.optimizer.lr": -1}, r"fit\.optimizer: Invalid learning rate"),
        ({"fit.optimizer.momentum": 0}, r"fit\.optimizer: Nesterov"),
        ({"fit.optimizer.fused": True, "fit.optimizer.foreach": True}, r"fit\.optimizer: .fused. and .foreach. cannot"),
        ({"fit.optimizer": {"name": "sam", "rho": -1}}, r"fit\.optimizer: rho is -1.*; it must be at least 0"),
        ({"fit.optimizer": {"name": "lars", "lr": 1.0, "eta": -1}}, r"fit\.optimizer: Invalid eta: -1"),
        ({"fit.optimizer": "adam", "fit.optimizer.betas": [2, 0.9]}, r"fit\.optimizer: Invalid beta parameter"),
    ],
)
def test_a_mistake_is_named_with_its_place_and_what_would_be_right(overrides: dict[str, Any], said: str) -> None:
    with pytest.raises(LimbeckError, match=said):
        resolved(**overrides)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"teacher.alphaT": 1}, r"unknown key 'teacher\.alphaT'"),
        ({"teacher.student.hiden": 1}, r"unknown key 'teacher\.student\.hiden'\. Did you mean 'hidden'\?"),
        ({"teacher.fit.batch_size": 0}, r"teacher\.fit\.batch_size is 0"),
        ({"teacher": "supervised", "teacher.student": None}, r"teacher\.student is missing: supervised needs a model"),
        ({"teacher": None}, r"teacher is missing: kd needs a teacher there"),
        ({"teacher": "superwised"}, r"teacher: unknown teacher 'superwised'\. Did you mean 'supervised'\?"),
        ({"student": None}, r"student is missing: kd needs a model there"),
    ],
)
def test_mistakes_below_a_teacher(overrides: dict[str, Any], said: str) -> None:
    with pytest.raises(LimbeckError, match=said):
        resolve(overlay(KD, nest(overrides)))


def test_no_method() -> None:
    with pytest.raises(LimbeckError, match="the recipe names no method; add a line 'method: SLUG'"):
        resolve({"student": "cnn"})


def test_reading(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("method: supervised\nfit: {optimizer: {lr: 1e-3}}\n")
    assert read(tmp_path / "my.yaml") == {"method": "supervised", "fit": {"optimizer": {"lr": 1e-3}}}
    (tmp_path / "run" / "seed-0").mkdir(parents=True)
    (tmp_path / "run" / "seed-0" / "recipe.yaml").write_text("method: kd\n")
    assert read(tmp_path / "run") == read(tmp_path / "run" / "seed-0") == {"method": "kd"}
    with pytest.raises(LimbeckError, match=r"there is no file .*mi\.yaml\. Did you mean 'my\.yaml'\?"):
        read(tmp_path / "mi.yaml")
    with pytest.raises(LimbeckError, match=r"holds no recipe\.yaml"):
        read(tmp_path)
    with pytest.raises(LimbeckError, match=r"unknown method 'kdd'\. Did you mean 'kd'\?"):
        read("kdd")
    with pytest.raises(LimbeckError, match=r"kd has no recipe 'smal'\. Did you mean 'small'\?"):
        read("kd", "smal")
    (tmp_path / "latin.yaml").write_bytes(b"method: \xe9")
    with pytest.raises(LimbeckError, match="is not a text file in UTF-8"):
        read(tmp_path / "latin.yaml")
