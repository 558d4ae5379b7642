"""A saved model is a folder: ``model.safetensors`` (weights) and ``config.json`` (how to build it).

No pickle is ever read, and no code that the folder names is imported unless the caller hands it over.
"""

import dataclasses
import importlib
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck.errors import LimbeckError
from limbeck.models.build import check_arguments, find, wrap
from limbeck.models.classifier import Classifier, ImageTask
from limbeck.models.hub import download, upload
from limbeck.models.index import BUILDERS, SPECS
from limbeck.models.model import Model
from limbeck.models.weights import WEIGHTS, copy, read_weights, serialise, write

CONFIG = "config.json"
FORMAT_VERSION = 1
HUB = "hf://"
PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
READERS = ("folder", "hub", "store")
"""Builders that read what was saved: a saved model is never one of them."""


def save(model: Model, folder: str | Path) -> Path:
    """Save a model, replacing what the folder held.

    After a crash at any instant the folder holds the old model, the new one, or is refused by :func:`load`.

    Args:
        model: The model. One that :func:`limbeck.models.build` did not make is saved too; to load it its factory
            must be handed to :func:`load`.
        folder: Where to; made if it does not exist.

    Returns:
        The folder.

    Raises:
        LimbeckError: not one of this package's models, or its factory's arguments are not plain data.
    """
    if not isinstance(model, Model):
        raise LimbeckError(
            f"save takes a limbeck Classifier or other Model, got {type(model).__name__}: wrap it in one"
        )
    made = type(model.body) if isinstance(model, Classifier) else type(model)
    config = {
        "format_version": FORMAT_VERSION,
        "task": model.task,
        "factory": model.factory or f"{made.__module__}.{made.__qualname__}",
        "arguments": model.arguments,
        "classes": model.classes,
    }
    if isinstance(model, Classifier):
        preprocessing = {"channels": model.channels, "size": model.size, "mean": model.mean, "std": model.std}
        config |= {"preprocessing": preprocessing, "head": model.head}
    else:
        config["spec"] = _plain_spec(model)
    try:
        text = json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise LimbeckError(f"the arguments of {config['factory']} cannot be saved as JSON: {error}") from None
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    old = folder / CONFIG
    if old.is_file() and old.read_bytes() != text:
        # Two files cannot be replaced at one instant: without a config a half-replaced folder is refused.
        old.unlink()
    write(folder / WEIGHTS, serialise(model))
    write(folder / CONFIG, text)
    return folder


def load(folder: str | Path, factory: str | Callable[..., Any] | None = None) -> Model:
    """Load a model that :func:`save` wrote.

    Args:
        folder: The folder, or ``hf://user/repo`` (``hf://user/repo@revision``) for one on the Hugging Face
            hub.
        factory: Your own class or function (or its ``package.module.Class``) for a model whose factory is not
            one of this package's. It is called with the saved arguments, plus ``num_classes`` where it takes
            it; for another task than classification with what the model was built for, then the arguments.

    Returns:
        The model in eval mode, on the CPU, in the floating dtype in which it was saved. Torch's random state
        is left as it was.

    Raises:
        LimbeckError: a file is missing, damaged, a pickle or of another format version; the factory is not
            known and not handed over; weights are missing, surplus or of another shape.
    """
    path = _locate(folder)
    config = _read_config(path)
    state = read_weights(path)
    # The initial weights are thrown away: drawing them must not move anybody's random state.
    with torch.random.fork_rng(devices=[]):
        model = _make(path, config, factory)
    dtypes = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    if len(dtypes) == 1:
        model.to(dtypes.pop())
    copy(state, model, path)
    return model.eval()


def load_classifier(folder: str | Path) -> Classifier:
    """Load a model that must be a classifier.

    Raises:
        LimbeckError: as of :func:`load`, or it is a model for another task.
    """
    model = load(folder)
    if not isinstance(model, Classifier):
        raise LimbeckError(f"{folder} is a model for {model.task}; this needs a classifier of images")
    return model


def load_weights(module: nn.Module, folder: str | Path) -> None:
    """Copy saved weights into a live module, whatever its device and dtype.

    Raises:
        LimbeckError: as of :func:`load`; or the module is a model whose classes are not the saved ones.
            The module is unchanged then.
    """
    path = _locate(folder)
    config = _read_config(path)
    if isinstance(module, Model) and list(module.classes) != config["classes"]:
        raise LimbeckError(f"{path} has the classes {config['classes']}, the model has {list(module.classes)}")
    copy(read_weights(path), module, path)


def push_to_hub(model: Model, repo: str, private: bool = False) -> str:
    """Save a model into a repository of the Hugging Face hub.

    Args:
        model: The model.
        repo: ``user/repo``; made if it does not exist.
        private: Whether a repository that is made is private.

    Returns:
        The web address of the commit.

    Raises:
        LimbeckError: the model cannot be saved, or the hub refuses.
    """
    with tempfile.TemporaryDirectory() as folder:
        return upload(save(model, folder), repo, private)


def folder(task: Any, *, path: str) -> Model:
    """A model that limbeck saved, with the classes it was saved with.

    Args:
        task: Not used: the saved model has classes and preprocessing of its own.
        path: Folder that holds model.safetensors and config.json.
    """
    return load(path).train()


def hub(task: Any, *, repo: str) -> Model:
    """A model that limbeck saved to the Hugging Face hub, with the classes it was saved with.

    Args:
        task: Not used: the saved model has classes and preprocessing of its own.
        repo: user/repo, or user/repo@revision.
    """
    return load(HUB + repo).train()


def _locate(folder: str | Path) -> Path:
    if isinstance(folder, str) and folder.startswith(HUB):
        return download(folder.removeprefix(HUB), (CONFIG, WEIGHTS))
    return Path(folder)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not folder.is_dir():
        raise LimbeckError(f"no saved model: {folder} is not a folder")
    _refuse_pickles(folder)
    if not path.is_file():
        raise LimbeckError(f"{folder} holds no {CONFIG}: not a saved limbeck model, or its saving was interrupted")
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise LimbeckError(f"{path} is not JSON: {error}") from None
    version = config.get("format_version") if isinstance(config, dict) else None
    if version != FORMAT_VERSION:
        raise LimbeckError(
            f"{path} has format_version {version!r}, this limbeck reads {FORMAT_VERSION}: "
            "not a limbeck model, or one of another version of limbeck"
        )
    kinds = {"task": str, "factory": str, "arguments": dict, "classes": list}
    kinds["preprocessing" if config.get("task") == Classifier.task else "spec"] = dict
    for key, kind in kinds.items():
        if not isinstance(config.get(key), kind):
            raise LimbeckError(f"{path}: {key!r} must be a {kind.__name__}, got {config.get(key)!r}")
    if config["task"] == Classifier.task:
        lacking = {"channels", "size", "mean", "std"} - set(config["preprocessing"])
        if lacking:
            raise LimbeckError(f"{path}: 'preprocessing' lacks {sorted(lacking)}")
    elif config["spec"].get("kind") not in SPECS:
        raise LimbeckError(
            f"{path}: 'spec' is of the unknown kind {config['spec'].get('kind')!r}; known: {', '.join(SPECS)}"
        )
    return config


def _plain_spec(model: Model) -> dict[str, Any]:
    """What a model was built for, as plain data."""
    kind = type(model.spec)
    for name, where in SPECS.items():
        if where == f"{kind.__module__}:{kind.__qualname__}":
            return {"kind": name, **dataclasses.asdict(model.spec)}  # type: ignore[call-overload]  # a dataclass
    raise LimbeckError(f"{type(model).__name__} was built for a {kind.__qualname__}; known: {', '.join(SPECS)}")


def _spec(config: Mapping[str, Any], path: Path) -> Any:
    fields = {key: _tuples(value) for key, value in config["spec"].items() if key != "kind"}
    module, _, name = SPECS[config["spec"]["kind"]].partition(":")
    try:
        return getattr(importlib.import_module(module), name)(**fields)
    except TypeError as error:
        raise LimbeckError(f"{path / CONFIG}: cannot read 'spec': {error}") from None


def _tuples(value: Any) -> Any:
    """What JSON made a list was a tuple: specs are frozen."""
    return tuple(_tuples(part) for part in value) if isinstance(value, list) else value


def _make(path: Path, config: Mapping[str, Any], factory: str | Callable[..., Any] | None) -> Model:
    name, arguments = config["factory"], config["arguments"]
    if factory is None and (name not in BUILDERS or name in READERS):
        raise LimbeckError(
            f"{path} was made by {name!r}, which is not a builder of limbeck; code that a file names is "
            f"not run: hand it over, load(folder, factory={name.rpartition('.')[2]})"
        )
    if config["task"] == Classifier.task:
        return _make_classifier(path, config, factory)
    function = find(name) if factory is None else find(factory) if isinstance(factory, str) else factory
    model: Model = function(_spec(config, path), **arguments)
    if not isinstance(model, Model) or model.task != config["task"]:
        raise LimbeckError(f"{path} holds a model for {config['task']!r}, and {name} made a {type(model).__name__}")
    model.factory, model.arguments = name, arguments
    return model


def _make_classifier(path: Path, config: Mapping[str, Any], factory: str | Callable[..., Any] | None) -> Classifier:
    name, arguments, classes = config["factory"], config["arguments"], tuple(config["classes"])
    preprocessing = config["preprocessing"]
    channels, size = preprocessing["channels"], preprocessing["size"]
    try:
        # Only a module of the user's own may have no size, and it is not shown the task.
        height, width = (1, 1) if size is None else size
        mean, std = tuple(preprocessing["mean"]), tuple(preprocessing["std"])
        task = ImageTask(classes, channels, (height, width), mean, std)
    except (TypeError, ValueError) as error:
        raise LimbeckError(f"{path / CONFIG}: cannot read 'preprocessing' {preprocessing}: {error}") from None
    if factory is None:
        check_arguments(name, find(name), arguments, given=("task",))
        model: Classifier = find(name)(task, **arguments)
    else:
        function = find(factory) if isinstance(factory, str) else factory
        check_arguments(name, function, arguments, given=("num_classes",))
        model = wrap(name, function, task, arguments)
        if config.get("head") not in (None, model.head):
            model = Classifier(model.body, classes, channels=channels, head=config["head"])
    model.set_preprocessing(**{key: preprocessing[key] for key in ("channels", "size", "mean", "std")})
    model.factory, model.arguments = name, arguments
    return model


def _refuse_pickles(folder: Path) -> None:
    if (folder / WEIGHTS).is_file():
        return
    found = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if found:
        raise LimbeckError(
            f"{folder} holds no {WEIGHTS} but {found}: pickles can run code and are not read; "
            "save the model with limbeck.models.save"
        )
