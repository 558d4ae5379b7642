import copy
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from limbeck.errors import LimbeckError
from limbeck.models import Classifier, ImageTask, build, load, load_weights, save

TASK = ImageTask(("ant", "bee", "été"), channels=1, size=(8, 8), mean=(0.3,), std=(1 / 3,))
IMAGES = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Own(nn.Module):
    def __init__(self, num_classes: int, hidden: int = 4) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.Linear(hidden, num_classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


class Tied(nn.Module):
    """Two layers, one weight."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
        self.second.weight = self.first.weight
        self.head = nn.Linear(64, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(images.flatten(1))))


@pytest.fixture
def model() -> Classifier:
    """A small network whose batch statistics have moved."""
    torch.manual_seed(0)
    model = build("cnn", TASK, width=2)
    model(torch.rand(16, 1, 8, 8))
    return model.eval()


@pytest.fixture
def saved(model: Classifier, tmp_path: Path) -> Path:
    return save(model, tmp_path / "model")


def edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("cnn", {"width": 2, "dropout": 0.5}),
        ("cnn", {"norm": "group"}),
        ("mlp", {"hidden": 3, "layers": 1}),
        ("resnet", {"depth": 8, "width": 2}),
        ("wide_resnet", {"depth": 10, "widen": 1}),
        ("preact_resnet18", {"width": 2}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_predictions_bit_for_bit(name: str, arguments: dict[str, Any], dtype: torch.dtype, tmp_path: Path) -> None:
    model = build(name, TASK, **arguments)
    model(torch.rand(16, 1, 8, 8))
    model = model.to(dtype).eval()
    loaded = load(save(model, tmp_path))
    for first, second in zip(model(IMAGES), loaded(IMAGES), strict=True):
        assert first.dtype == second.dtype == dtype
        assert torch.equal(first, second)
    assert not loaded.training
    assert loaded.classes == model.classes
    assert (loaded.factory, loaded.arguments) == (model.factory, model.arguments)
    assert (loaded.channels, loaded.size, loaded.mean, loaded.std) == (1, (8, 8), (0.3,), (1 / 3,))


def test_config(saved: Path) -> None:
    assert {path.name for path in saved.iterdir()} == {"config.json", "model.safetensors"}
    assert json.loads((saved / "config.json").read_text()) == {
        "format_version": 1,
        "task": "classification",
        "factory": "cnn",
        "arguments": {"width": 2, "norm": "batch", "dropout": 0.0},
        "classes": ["ant", "bee", "été"],
        "preprocessing": {"channels": 1, "size": [8, 8], "mean": [0.3], "std": [1 / 3]},
        "head": "6",
    }


def test_preprocessing_changed_after_building_is_kept(model: Classifier, tmp_path: Path) -> None:
    model.set_preprocessing(channels=1, size=(8, 8), mean=(0.7,), std=(0.1,))
    assert torch.equal(load(save(model, tmp_path))(IMAGES).logits, model(IMAGES).logits)


def test_loading_leaves_the_random_state(saved: Path) -> None:
    before = torch.get_rng_state()
    load(saved)
    assert torch.equal(torch.get_rng_state(), before)


def test_saved_again_and_with_another_architecture(saved: Path) -> None:
    other = build("mlp", TASK, hidden=3).eval()
    save(other, saved)
    assert torch.equal(load(saved)(IMAGES).logits, other(IMAGES).logits)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("same_architecture", [True, False])
def test_interrupted_saving_never_mixes_two_models(
    saved: Path, model: Classifier, monkeypatch: pytest.MonkeyPatch, file: str, same_architecture: bool
) -> None:
    """The crash comes when the new file would take the place of the old one."""
    replace = Path.replace

    def crash(self: Path, target: Path) -> Path:
        if target.name == file:
            raise OSError("no space left on device")
        return replace(self, target)

    old = model(IMAGES).logits
    new = copy.deepcopy(model) if same_architecture else build("cnn", TASK, width=2, norm="batch", dropout=0.1)
    new.eval()
    nn.init.ones_(new.body.get_parameter("6.bias"))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", crash)
        with pytest.raises(OSError, match="no space"):
            save(new, saved)
    assert not list(saved.glob("*.part"))
    if same_architecture:
        expected = old if file == "model.safetensors" else new(IMAGES).logits
        assert torch.equal(load(saved)(IMAGES).logits, expected)
    else:
        with pytest.raises(LimbeckError, match=r"holds no config\.json"):
            load(saved)
    save(new, saved)
    assert torch.equal(load(saved)(IMAGES).logits, new(IMAGES).logits)


def test_tied_weights(tmp_path: Path) -> None:
    model = Classifier(Tied(3), TASK.classes, channels=1).eval()
    loaded = load(save(model, tmp_path), factory=Tied)
    assert torch.equal(loaded(IMAGES).logits, model(IMAGES).logits)
    assert isinstance(loaded.body, Tied)
    assert loaded.body.first.weight is loaded.body.second.weight


def test_own_class_is_called_only_when_handed_over(tmp_path: Path) -> None:
    name = f"{__name__}.Own"
    model = build(name, TASK, hidden=5).eval()
    save(model, tmp_path)
    with pytest.raises(LimbeckError, match=rf"made by '{name}'.* load\(folder, factory=Own\)"):
        load(tmp_path)
    for factory in (Own, name):
        loaded = load(tmp_path, factory=factory)
        assert torch.equal(loaded(IMAGES).logits, model(IMAGES).logits)
        assert (loaded.factory, loaded.arguments) == (name, {"hidden": 5})


def test_own_module_without_factory(tmp_path: Path) -> None:
    model = Classifier(Own(3, hidden=7), TASK.classes, channels=1, head="layers.1").eval()
    save(model, tmp_path)
    loaded = load(tmp_path, factory=lambda num_classes: Own(num_classes, hidden=7))
    for first, second in zip(model(IMAGES), loaded(IMAGES), strict=True):
        assert torch.equal(first, second)
    assert loaded.size is None
    with pytest.raises(LimbeckError, match=r"layers.1.weight is \[7, 64\], the model has \[4, 64\]"):
        load(tmp_path, factory=Own)


@pytest.mark.parametrize("name", ["folder", "hub", "os.system"])
def test_a_file_cannot_name_code(saved: Path, name: str) -> None:
    edit(saved, factory=name, arguments={"path": str(saved)})
    with pytest.raises(LimbeckError, match="code that a file names is not run"):
        load(saved)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pkl"])
def test_refuses_pickles_in_place_of_safetensors(saved: Path, name: str) -> None:
    torch.save(load_file(saved / "model.safetensors"), saved / name)
    (saved / "model.safetensors").unlink()
    with pytest.raises(LimbeckError, match=rf"\['{name}'\]: pickles can run code and are not read"):
        load(saved)


@pytest.mark.parametrize("zipped", [True, False])
def test_refuses_a_pickle_named_safetensors(saved: Path, zipped: bool) -> None:
    path = saved / "model.safetensors"
    if zipped:
        torch.save({}, path)
    else:
        path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(LimbeckError, match="is a pickle, not safetensors"):
        load(saved)


def test_refuses_damaged_weights(saved: Path) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(LimbeckError, match=r"model\.safetensors is damaged"):
        load(saved)


def test_refuses_incomplete_folders(saved: Path, tmp_path: Path) -> None:
    (saved / "model.safetensors").unlink()
    with pytest.raises(LimbeckError, match=r"holds no model\.safetensors"):
        load(saved)
    (saved / "config.json").unlink()
    with pytest.raises(LimbeckError, match=r"holds no config\.json"):
        load(saved)
    with pytest.raises(LimbeckError, match="nowhere is not a folder"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "format_version 2, this limbeck reads 1"),
        ({"format_version": None}, "format_version None"),
        ({"task": "detection"}, "'spec' must be a dict, got None"),
        ({"task": "detection", "spec": {"kind": "odd"}}, "unknown kind 'odd'; known: image, text, points"),
        ({"task": "detection", "spec": {"kind": "image", "clases": []}}, "cannot read 'spec': .*clases"),
        ({"classes": 3}, "'classes' must be a list, got 3"),
        ({"classes": ["a", "a", "b"]}, "more than once"),
        ({"preprocessing": {"channels": 1, "mean": [0.0]}}, r"'preprocessing' lacks \['size', 'std'\]"),
        ({"preprocessing": {"channels": 1, "size": 8, "mean": [0], "std": [1]}}, "cannot read 'preprocessing'"),
        ({"arguments": {"widht": 2}}, "no argument 'widht'. Did you mean 'width'"),
    ],
)
def test_refuses_other_configs(saved: Path, changes: dict[str, Any], message: str) -> None:
    edit(saved, **changes)
    with pytest.raises(LimbeckError, match=message):
        load(saved)


def test_refuses_a_config_that_is_no_json(saved: Path) -> None:
    (saved / "config.json").write_text("{")
    with pytest.raises(LimbeckError, match="is not JSON"):
        load(saved)
    (saved / "config.json").write_text("[]")
    with pytest.raises(LimbeckError, match="format_version None"):
        load(saved)


def test_refuses_missing_and_surplus_keys_with_both_lists(saved: Path) -> None:
    state = load_file(saved / "model.safetensors")
    state["body.9.bias"] = state.pop("body.6.bias")
    save_file(state, saved / "model.safetensors")
    with pytest.raises(LimbeckError, match=r"missing keys \['body.6.bias'\], surplus keys \['body.9.bias'\]"):
        load(saved)


def test_refuses_wrong_shapes_and_changes_nothing(saved: Path, model: Classifier) -> None:
    state = load_file(saved / "model.safetensors")
    state = {key: value + 1 for key, value in state.items()}
    state["body.6.bias"] = torch.zeros(4)
    save_file(state, saved / "model.safetensors")
    before = model(IMAGES).logits
    with pytest.raises(LimbeckError, match=r"body.6.bias is \[4\], the model has \[3\]"):
        load_weights(model, saved)
    assert torch.equal(model(IMAGES).logits, before)


def test_weights_into_a_live_module(saved: Path, model: Classifier) -> None:
    live = build("cnn", TASK, width=2)
    parameters = list(live.parameters())
    load_weights(live, saved)
    assert all(old is new for old, new in zip(parameters, live.parameters(), strict=True))
    assert torch.equal(live.eval()(IMAGES).logits, model(IMAGES).logits)
    half = build("cnn", TASK, width=2).bfloat16()
    load_weights(half, saved)
    bias = model.body.get_parameter("6.bias")
    assert torch.equal(half.body.get_parameter("6.bias"), bias.bfloat16())


def test_weights_of_other_classes_are_refused(saved: Path) -> None:
    other = ImageTask(("bee", "ant", "été"), 1, (8, 8), (0.3,), (0.2,))
    with pytest.raises(LimbeckError, match=r"has the classes \['ant', .*, the model has \['bee', "):
        load_weights(build("cnn", other, width=2), saved)


def test_refuses_to_save_what_cannot_be_loaded(model: Classifier, tmp_path: Path) -> None:
    with pytest.raises(LimbeckError, match="takes a limbeck Classifier or other Model, got Linear"):
        save(nn.Linear(1, 1), tmp_path)  # type: ignore[arg-type]
    model.arguments = {"activation": nn.ReLU}
    with pytest.raises(LimbeckError, match="arguments of cnn cannot be saved as JSON"):
        save(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_folder_as_a_builder(saved: Path, model: Classifier, tmp_path: Path) -> None:
    other = ImageTask(("x", "y"), 3, (9, 9), (0.0,) * 3, (1.0,) * 3)
    built = build("folder", other, path=str(saved))
    assert built.training
    assert (built.classes, built.factory) == (TASK.classes, "cnn")
    again = save(built.eval(), tmp_path / "again")
    shutil.rmtree(saved)
    assert torch.equal(load(again)(IMAGES).logits, model(IMAGES).logits)
