"""Store what a trained model says of the training samples, so that trainings read it and run no teacher."""

import json
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from limbeck.data.codec import Storage
from limbeck.data.data import Data
from limbeck.data.load import load as load_data
from limbeck.data.random import derive
from limbeck.data.samples import ImageData, concat
from limbeck.errors import LimbeckError
from limbeck.models.classifier import Classifier
from limbeck.models.folder import load_classifier
from limbeck.stages.evaluation import predict_logits, quality
from limbeck.stages.evaluation.shipped import device_of
from limbeck.stages.files import locked
from limbeck.stages.label import Label
from limbeck.stages.progress import Reporter
from limbeck.stages.stage import Context
from limbeck.teachers.frozen import Frozen
from limbeck.verbs.on_ray import Engine, connected, spread_in_order

ROWS_A_FILE = 1 << 17


def label(
    model: Classifier | str | Path,
    data: Data | str,
    *,
    out: str | Path,
    views: int = 1,
    top_k: int | None = None,
    hard: bool = False,
    storage: Storage = "float16",
    samples: Literal["all", "labeled", "unlabeled"] = "all",
    seed: int = 0,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    engine: Engine = "processes",
    workers: int = 1,
    address: str | None = None,
    quiet: bool = False,
    **arguments: Any,
) -> dict[str, float]:
    """Label ``views`` views of every training sample; the same call goes on where it was stopped.

    With more views than before it adds the new ones. A fit of ``limbeck run METHOD --seed SEED`` on the same data sees
    these very views: in epoch e the one of number ``e % views``.

    Args:
        model: a classifier, or a folder it was saved to. Its classes are matched with the data's by name.
        data: the name of a data set with its ``arguments``, or data that is loaded already. ``data.view`` is labelled.
        out: folder of the store.
        views: how many views of each sample.
        top_k: keep the probabilities of the k most probable classes only; by default all logits are kept.
        hard: keep the most probable class only.
        storage: type of the numbers that are kept: float32, float16 or uint8.
        samples: which training samples are labelled.
        seed: of the split and of the views, as of the run that will read them.
        batch_size: samples a forward pass.
        device: where the model runs; by default where it is.
        engine: ``processes`` labels in this one; the tasks of a Ray cluster (``ray``) share the batches, and the files
            are those of one process with one thread.
        workers: how many tasks at once.
        address: of a running Ray cluster, such as ``auto``; by default one is started for the call.
        quiet: show nothing.
        **arguments: of the data set and its split, where ``data`` is a name.

    Returns:
        ``validation/accuracy`` of the model, its ``agreement`` with the labels of the samples, ``bytes_a_label``.

    Raises:
        LimbeckError: no such model or data, classes that the model lacks, numbers that cannot be, or a folder that
            holds other labels.
    """
    if views < 1 or batch_size < 1:
        raise LimbeckError(f"views is {views} and batch_size {batch_size}; both must be at least 1")
    if engine != "ray" and workers != 1:
        raise LimbeckError(f"workers is {workers}; several share the labelling on Ray only: engine 'ray'")
    if hard and top_k is not None:
        raise LimbeckError("hard keeps one class and no probability; give either hard or top_k")
    if not isinstance(model, Classifier):
        model = load_classifier(model)
    if not isinstance(data, Data):
        data = load_data(data, seed, **arguments)
    if not isinstance(data, ImageData):
        raise LimbeckError(f"label works on images, and data holds {type(data).__name__}")
    parts = {"labeled": data.train, "unlabeled": data.unlabeled}
    chosen = [part for name, part in parts.items() if samples in ("all", name) and part is not None]
    if not chosen:
        raise LimbeckError("there are no unlabelled samples to be labelled")
    teacher = Frozen(model, classes=data.classes)
    folder = Path(out)
    reporter = Reporter(quiet=quiet)
    gpu = torch.device(device_of(model) if device is None else device).type == "cuda"
    stage = Label(
        "label",
        teacher,
        concat(chosen),
        view=data.view,
        flip=data.flip,
        batch_size=batch_size,
        views=views,
        kept="hard" if hard else "dense" if top_k is None else "top_k",
        k=top_k or 0,
        storage=storage,
        every=max(1, ROWS_A_FILE // batch_size),
        seed=derive(seed, "fit"),
        device=device,
        spread=partial(spread_in_order, workers=workers, shared=folder, gpu=gpu) if engine == "ray" else None,
    )
    with connected(engine, workers, address), locked(folder):
        accuracy = quality(predict_logits(teacher, data.validation))["accuracy"] if len(data.validation) else None
        if accuracy is not None:
            reporter.say(f"the model's validation accuracy is {accuracy:.3f}")
        stage.run(folder, Context(folder.parent, "label", seed, reporter=reporter))
    found: dict[str, float] = json.loads((folder / "result.json").read_text(encoding="utf-8"))["metrics"]
    return found if accuracy is None else {"validation/accuracy": accuracy, **found}
