"""Write a trained model as one file that other programs run without PyTorch."""

import copy
import json
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from limbeck import __version__
from limbeck.errors import LimbeckError, nearest, require
from limbeck.models.classifier import Classifier
from limbeck.models.folder import load_classifier
from limbeck.stages.files import write_atomically

FORMATS = ("onnx",)

TOLERANCE = 1e-4
"""Largest difference to PyTorch that passes, relative to the largest logit: float32 keeps 7 digits, and
another
order of summation over the 1e3 to 1e4 terms of a layer, many layers deep, costs up to three of them."""


class Exported(NamedTuple):
    """A written file.

    Attributes:
        path: the file.
        difference: largest absolute difference to PyTorch's logits over the checked inputs; None if
            unchecked.
    """

    path: Path
    difference: float | None


class _Logits(nn.Module):
    """Images in, logits out: the graph that is exported."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.model(image).logits
        return logits


def export(
    model: Classifier | str | Path,
    out: str | Path,
    *,
    format: Literal["onnx"] = "onnx",  # noqa: A002  the word that the command line has for it
    size: tuple[int, int] | None = None,
    check: bool = True,
) -> Exported:
    """Export a classifier to a single ONNX file.

    The file takes ``image``, float32 [batch, C, H, W] in [0, 1] with any batch size, and gives ``logits``,
    float32 [batch, classes]; normalising happens inside. Its metadata hold ``classes`` (JSON list, in the
    order of the logits), ``preprocessing`` (JSON: channels, size, range), ``normalization_in_graph`` (JSON:
    mean, std) and ``limbeck_version``. Weights are written in float32.

    Args:
        model: a classifier, or a folder it was saved to.
        out: file to write, ending in ``.onnx``.
        format: the kind of file.
        size: height and width of the input in pixels; by default the model's own.
        check: compare with PyTorch in onnxruntime, for batches of 1 and 5 images that are random, black,
            white and made of extreme pixels. Nothing is written if the check fails.

    Raises:
        LimbeckError: an unknown format, another file ending, a model without a size when none is given, one
            that cannot be exported, or logits that differ from PyTorch's.
    """
    if format not in FORMATS:
        raise LimbeckError(f"unknown format {format!r}.{nearest(format, FORMATS)} Known: {', '.join(FORMATS)}")
    out = Path(out)
    if out.suffix != f".{format}":
        raise LimbeckError(f"{out} does not end in .{format}")
    if out.is_dir():
        raise LimbeckError(f"{out} is a folder: name a file")
    require("onnx", extra="export")
    require("onnxscript", extra="export")
    if check:
        require("onnxruntime", extra="export")
    if not isinstance(model, Classifier):
        model = load_classifier(model)
    size = size or model.size
    if size is None:
        raise LimbeckError("this model takes images of any size, and a file needs one: give size=(height, width)")

    # A copy: exporting must not move, cast or switch the caller's model.
    graph = _Logits(copy.deepcopy(model)).cpu().float().eval()
    shape = (model.channels, *size)
    file = _onnx(graph, shape, _metadata(model, size))
    difference = _check(file, graph, shape) if check else None

    def write(part: Path) -> None:
        part.write_bytes(file)

    write_atomically(out, write)
    return Exported(out, difference)


def _metadata(model: Classifier, size: tuple[int, int]) -> dict[str, str]:
    return {
        "classes": json.dumps(list(model.classes)),
        "preprocessing": json.dumps({"channels": model.channels, "size": list(size), "range": [0, 1]}),
        "normalization_in_graph": json.dumps({"mean": model.mean, "std": model.std}),
        "limbeck_version": __version__,
    }


def _onnx(graph: nn.Module, shape: tuple[int, ...], metadata: dict[str, str]) -> bytes:
    # An example of two: a batch of one would be taken for a constant.
    with torch.no_grad():
        try:
            program = torch.onnx.export(
                graph,
                (torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)),),
                dynamo=True,
                input_names=["image"],
                output_names=["logits"],
                dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise LimbeckError(f"this model cannot be exported to ONNX: {reason}") from error
    assert program is not None  # torch types it as optional for its older exporter
    program.model.metadata_props.update(metadata)
    return program.model_proto.SerializeToString()


def _check(file: bytes, graph: nn.Module, shape: tuple[int, ...]) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    worst, largest = 0.0, 1.0
    generator = torch.Generator().manual_seed(0)
    for batch in (1, 5):
        random = torch.rand(batch, *shape, generator=generator)
        for image in (random, torch.zeros_like(random), torch.ones_like(random), random.round()):
            with torch.no_grad():
                ours = graph(image)
            theirs = torch.from_numpy(session.run(["logits"], {"image": image.numpy()})[0])
            if theirs.shape != ours.shape or not torch.isfinite(theirs).all():
                raise LimbeckError(
                    f"the exported model gives {tuple(theirs.shape)} logits that are not all numbers or not "
                    f"{tuple(ours.shape)} as in PyTorch; nothing was written"
                )
            worst = max(worst, float((ours - theirs).abs().max()))
            largest = max(largest, float(ours.abs().max()))
    if worst > TOLERANCE * largest:
        raise LimbeckError(
            f"the exported model's logits differ from PyTorch's by {worst:.3g} "
            f"(allowed: {TOLERANCE * largest:.3g}); nothing was written"
        )
    return worst
