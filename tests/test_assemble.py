"""From a recipe to a method: data once, first weights by seed, models of every kind."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from limbeck.assemble import assemble, load_data
from limbeck.data.samples import ImageData
from limbeck.errors import LimbeckError
from limbeck.methods.method import Nested, Ready, SingleFit
from limbeck.models.classifier import Classifier
from limbeck.recipe import resolve
from limbeck.verbs.run import run

KD: dict[str, Any] = {
    "method": "kd",
    "student": {"name": "mlp", "hidden": 4},
    "teacher": {"method": "supervised", "student": {"name": "mlp", "hidden": 8}},
    "fit": {"updates": 2},
}


def single(recipe: dict[str, Any], seed: int = 0) -> SingleFit:
    found = assemble(resolve(recipe), seed)
    assert isinstance(found, SingleFit)
    return found


def weights(method: SingleFit, name: str = "student") -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in method.models[name]().parameters()])


def test_first_weights_are_a_function_of_the_seed_and_leave_the_global_state_alone() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (weights(single(KD, seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_teacher_of_equal_shape_starts_from_other_weights_than_its_student() -> None:
    method = single(KD | {"teacher": {"method": "supervised", "student": KD["student"]}})
    nested = method.teachers["teacher"]
    assert isinstance(nested, Nested)
    assert nested.name == "teacher"
    teacher = nested.method
    assert isinstance(teacher, SingleFit)
    assert not torch.equal(weights(method), weights(teacher))


def test_equal_data_are_opened_once_and_other_data_are_not_confused() -> None:
    method = single(KD)
    assert method.teachers["teacher"].method.data is method.data  # type: ignore[attr-defined]
    few = single(KD | {"teacher": KD["teacher"] | {"data": {"labels_per_class": 3}}})
    assert len(few.teachers["teacher"].method.data.train) == 30  # type: ignore[attr-defined]
    assert len(few.data.train) > 1000


def test_modules_of_the_user_are_wrapped_and_ready_models_are_not_trained(digits: ImageData) -> None:
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    method = single({"method": "kd", "student": student, "teacher": teacher, "data": digits})
    made = method.models["student"]()
    assert isinstance(made, Classifier)
    assert made.body is student
    assert made.classes == digits.classes
    ready = method.teachers["teacher"]
    assert isinstance(ready, Ready)
    assert ready.model.body is teacher


def test_wrong_arguments_are_refused_before_a_teacher_is_trained(digits: ImageData) -> None:
    with pytest.raises(LimbeckError, match="temperature is -1"):
        next(single(KD | {"temperature": -1.0}).program())
    deep = KD | {"teacher": KD | {"alpha": 2.0}}
    with pytest.raises(LimbeckError, match="alpha is 2"):
        next(single(deep).program())


def test_nothing_is_changed_by_looking_whether_the_arguments_fit(digits: ImageData) -> None:
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    method = single(KD | {"student": student, "data": digits})
    before, weight = torch.random.get_rng_state(), student[1].weight.detach().clone()
    stage = next(method.program())
    assert stage.name == "teacher-fit"
    assert torch.equal(before, torch.random.get_rng_state())
    assert method.models["student"]().body is student  # type: ignore[union-attr]
    assert torch.equal(weight, student[1].weight)


def test_datasets_must_be_wrapped() -> None:
    dataset = torch.utils.data.TensorDataset(torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(LimbeckError, match=r"data is a TensorDataset; .*limbeck\.data\.from_datasets"):
        assemble(resolve({"method": "supervised", "student": "mlp", "data": dataset}), 0)


def test_the_data_of_a_run_are_found_again(tmp_path: Path, digits: ImageData) -> None:
    recipe = {"method": "supervised", "student": {"name": "mlp", "hidden": 4}, "fit": {"updates": 1}}
    done = run(recipe | {"data": {"name": "digits", "labels_per_class": 4}}, seed=3, out=tmp_path, quiet=True)
    again = load_data(done.folder)
    assert len(again.train) == 40
    expected = assemble(resolve(recipe | {"data": {"name": "digits", "labels_per_class": 4}}), 3)
    assert torch.equal(again.train.indices, expected.data.train.indices)  # type: ignore[attr-defined]
    live = run(recipe | {"data": digits}, out=tmp_path, quiet=True)
    with pytest.raises(LimbeckError, match=r"were a limbeck\.data\.samples\.ImageData of a Python program"):
        load_data(live.folder)


FEDERATION = {"method": "fedavg", "data": {"name": "clients", "clients": 2, "alpha": 1.0}, "clients_per_round": 1}


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({**FEDERATION, "data": "digits", "student": "cnn"}, "works on ClientData, .* ImageData; sources .*: clients"),
        (
            {"method": "supervised", "student": "cnn", "data": "digit_boxes"},
            "works on ImageData, and data holds BoxData; sources that fit: digits, folder",
        ),
        (
            {"method": "fst", "student": "unet_segmenter", "data": "digits"},
            "fst works on MaskData, .*; sources that fit: camvid, digit_masks",
        ),
    ],
)
def test_data_of_another_kind_are_refused_with_the_sources_that_fit(recipe: dict[str, Any], message: str) -> None:
    with pytest.raises(LimbeckError, match=message):
        assemble(resolve(recipe), 0)


def test_a_model_of_another_kind_is_refused() -> None:
    with pytest.raises(LimbeckError, match="student must be a Classifier, and unet_segmenter is a Segmenter"):
        assemble(resolve({**FEDERATION, "student": "unet_segmenter"}), 0)
    made = single({"method": "supervised", "student": "gpt"})
    with pytest.raises(LimbeckError, match="'gpt' is built for a TextTask, and the data give a ImageTask"):
        made.models["student"]()


def test_data_that_are_more_than_needed_will_do() -> None:
    found = single({"method": "supervised", "student": "cnn", "data": FEDERATION["data"]})
    assert len(found.data.train) > 0


def test_an_optional_block_may_be_left_out_or_given() -> None:
    start = {"method": "simcse", "student": {"name": "bi_encoder", "width": 8, "layers": 1, "heads": 1}}
    cross = {"name": "cross_encoder", "width": 8, "layers": 1, "heads": 1}
    base = {
        "method": "trans-encoder",
        "data": {"name": "description_pairs", "pairs": 40},
        "start": start,
        "cross": cross,
    }
    alone = resolve(base)
    assert alone["peer_start"] is None
    assert len(assemble(alone, 0).starts) == 1  # type: ignore[attr-defined]
    mutual = assemble(resolve({**base, "peer_start": start, "peer_cross": cross}), 0)
    assert len(mutual.starts) == 2  # type: ignore[attr-defined]
    assert [nested.name for nested in mutual.starts] == ["start", "peer_start"]  # type: ignore[attr-defined]
