"""Label images with a trained model."""

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.data.files import channels_of, read_files
from limbeck.data.folder import SUFFIXES
from limbeck.data.pixels import Images, Memory
from limbeck.data.samples import Samples
from limbeck.errors import LimbeckError
from limbeck.models.classifier import Classifier
from limbeck.models.folder import load_classifier
from limbeck.stages.evaluation import as_shipped
from limbeck.stages.files import write_text


class Prediction(NamedTuple):
    """What the model says about one image.

    Attributes:
        source: the image's file, or its index in the samples or the tensor.
        label: name of the most probable class.
        probability: its probability.
        probabilities: every class with its probability, in the model's order.
    """

    source: str | int
    label: str
    probability: float
    probabilities: dict[str, float]


def predict(
    model: Classifier | str | Path,
    images: Samples | Tensor | str | Path | Sequence[str | Path],
    *,
    out: str | Path | None = None,
    size: int | None = None,
    temperature: float = 1.0,
    batch_size: int = 256,
    device: torch.device | str | None = None,
) -> list[Prediction]:
    """Classes and probabilities of images, in the order of the images.

    Args:
        model: a classifier, or a folder it was saved to.
        images: a folder (searched through, in the order of the file names), an image file, a list of these,
            samples, or a tensor [N, C, H, W] (uint8, or float in [0, 1]).
        out: file to write as well, one row an image: ``.csv`` (columns file or index, class, probability and
            ``probability/CLASS`` for each class) or ``.jsonl`` (the same as an object, with
            ``probabilities`` as an object of its own).
        size: pixels that the shorter side of an image file is brought to before the centre square is cut
            out, as for the training data; by default what the model takes.
        temperature: the logits are divided by it; :func:`limbeck.evaluate` fits one.
        batch_size: images a forward pass.
        device: where to compute; by default where the model is. The model ends where it was.

    Raises:
        LimbeckError: no images, an image that cannot be read (with its name), images of different sizes for
            a model without a square size, a temperature that is not positive, another file ending.
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise LimbeckError(f"temperature is {temperature}; it must be a positive number")
    if batch_size < 1:
        raise LimbeckError(f"batch_size is {batch_size}; it must be at least 1")
    if out is not None and Path(out).suffix not in (".csv", ".jsonl"):
        raise LimbeckError(f"{out} ends in neither .csv nor .jsonl")
    if not isinstance(model, Classifier):
        model = load_classifier(model)
    if size is None and model.size is not None and model.size[0] == model.size[1]:
        size = model.size[0]
    sources, pixels, rows = _open(images, size)

    predictions: list[Prediction] = []
    with as_shipped(model, device) as place:
        for part in torch.arange(len(sources)).split(batch_size):
            logits = model(pixels.take(rows[part]).to(place)).logits.double().cpu()
            names = [sources[number] for number in part.tolist()]
            broken = ~logits.isfinite().all(dim=-1)
            if broken.any():
                first = names[int(broken.nonzero()[0])]
                raise LimbeckError(f"the model gives NaN or infinite logits for {first}: its weights are broken")
            predictions += _rows(names, torch.softmax(logits / temperature, dim=-1), model.classes)
    if out is not None:
        _write(Path(out), predictions)
    return predictions


def _open(
    images: Samples | Tensor | str | Path | Sequence[str | Path], size: int | None
) -> tuple[Sequence[str | int], Images, Tensor]:
    """The name or number of each image, the pixels, and the row of each image in them."""
    if isinstance(images, Samples):
        return images.indices.tolist(), images.images, images.rows
    if isinstance(images, Tensor):
        return range(len(images)), Memory(images), torch.arange(len(images))
    files = _files(images)
    pixels = read_files(files, size, channels_of(files))
    return [str(file) for file in files], pixels, torch.arange(len(files))


def _files(images: str | Path | Sequence[str | Path]) -> list[Path]:
    files: list[Path] = []
    for name in [images] if isinstance(images, str | Path) else images:
        path = Path(name)
        if path.is_dir():
            files += sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        else:
            files.append(path)
    if not files:
        raise LimbeckError(f"no images in {images} (looked for {' '.join(sorted(SUFFIXES))})")
    return files


def _rows(sources: Sequence[str | int], probabilities: Tensor, classes: Sequence[str]) -> list[Prediction]:
    best, winners = probabilities.max(dim=-1)
    return [
        Prediction(source, classes[winner], probability, dict(zip(classes, row, strict=True)))
        for source, winner, probability, row in zip(
            sources, winners.tolist(), best.tolist(), probabilities.tolist(), strict=True
        )
    ]


def _write(out: Path, rows: Sequence[Prediction]) -> None:
    source = "file" if isinstance(rows[0].source, str) else "index"
    if out.suffix == ".jsonl":
        objects = (
            {
                source: row.source,
                "class": row.label,
                "probability": row.probability,
                "probabilities": row.probabilities,
            }
            for row in rows
        )
        write_text(out, "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in objects))
        return
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow([source, "class", "probability", *(f"probability/{name}" for name in rows[0].probabilities)])
    table.writerows([row.source, row.label, row.probability, *row.probabilities.values()] for row in rows)
    write_text(out, buffer.getvalue())
