"""What a model of bags of instances does on data it is not trained on."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from limbeck.data.instance_bags import InstanceBagData, InstanceBags
from limbeck.data.stream import eval_batches
from limbeck.errors import LimbeckError
from limbeck.metrics import cost
from limbeck.metrics.classification import nll, top_k_accuracy
from limbeck.metrics.cutoff import best_cutoff
from limbeck.metrics.ranking import auc
from limbeck.stages.evaluation.shipped import as_shipped
from limbeck.stages.files import write_atomically

FILE = "instance_bags.safetensors"
SHOWN = 8
"""Test bags whose images are kept for the report: as many of each label as there are, up to half."""

BATCH_SIZE = 16


class BagPredictions(NamedTuple):
    """What a model says of bags and of their instances, on the CPU.

    Attributes:
        logits: float32 [bags, 2].
        scores: float32 [N], of all instances, bag after bag.
    """

    logits: Tensor
    scores: Tensor


def predict_bags(model: nn.Module, bags: InstanceBags, device: torch.device | str | None = None) -> BagPredictions:
    """Logits of every bag and scores of every instance, in order and without augmentation.

    Args:
        model: a :class:`~limbeck.models.bag_classifier.BagClassifier`, or a frozen one.
        bags: what to label.
        device: where to compute; by default where the model is. The model ends where it was.

    Raises:
        LimbeckError: logits or scores that are not numbers, with the first such bag's index.
    """
    logits, scores = [], []
    with as_shipped(model, device) as place:
        for batch in eval_batches(bags, BATCH_SIZE):
            said = model({name: batch[name].to(place) for name in ("image", "mask")})
            broken = ~said.logits.isfinite().all(1) | ~said.scores.isfinite().all(1)
            if broken.any():
                first = int(batch["index"][broken.cpu()][0])
                raise LimbeckError(
                    f"the model gives NaN or infinite values for the bag of index {first}: broken weights, or diverged "
                    "training"
                )
            logits.append(said.logits.float().cpu())
            scores.append(said.scores.float().cpu()[batch["mask"]])
    return BagPredictions(torch.cat(logits), torch.cat(scores))


def quality(said: BagPredictions, bags: InstanceBags) -> dict[str, float]:
    """AUC, accuracy and negative log-likelihood of the bags, and the AUC of all instances where their truth is known.

    A bag's score is its log-odds. Accuracy is that of the more probable label; of an instance only the ranking counts.
    """
    found = {
        "bag_auc": auc(_odds(said), bags.labels),
        "bag_accuracy": top_k_accuracy(said.logits, bags.labels),
        "bag_nll": nll(said.logits, bags.labels),
    }
    if bags.hidden_labels is not None:
        found["instance_auc"] = auc(said.scores, bags.hidden_labels)
    return found


def validate(model: nn.Module, data: InstanceBagData, device: torch.device) -> dict[str, float]:
    """The metrics of :func:`quality` on the validation bags."""
    return quality(predict_bags(model, data.validation, device), data.validation)


def report(
    model: nn.Module, teachers: Mapping[str, nn.Module], data: InstanceBagData, folder: Path, device: torch.device
) -> dict[str, float]:
    """The metrics on the test bags, as ``validation/...`` on the validation bags, and of the teachers.

    ``tuned/bag_accuracy`` is the accuracy with the cutoff of the log-odds that is best on the validation bags.
    ``instance_bags.safetensors`` in ``folder`` holds of the test bags ``logits`` float32 [bags, 2], ``label``,
    ``index`` and ``size`` int64 [bags]; of their instances, bag after bag, ``score`` float32 [N], ``instance``
    int64 [N] (the stable index) and, where it is known, ``truth`` int64 [N]; and for some bags, whose positions are
    ``shown``, the images ``image`` uint8 [n, C, H, W], bag after bag.
    """
    said, held_out = predict_bags(model, data.test, device), predict_bags(model, data.validation, device)
    metrics = quality(said, data.test)
    metrics |= {f"validation/{name}": value for name, value in quality(held_out, data.validation).items()}
    cutoff = best_cutoff(_odds(held_out), data.validation.labels)
    right = (_odds(said) >= cutoff) == (data.test.labels == 1)
    metrics["tuned/bag_accuracy"] = float(right.double().mean())
    metrics["parameters"] = float(cost.parameters(model))
    for name, teacher in teachers.items():
        of_teacher = quality(predict_bags(teacher, data.test, device), data.test)
        metrics |= {f"{name}/{key}": value for key, value in of_teacher.items()}
    _write(folder / FILE, said, data.test)
    return metrics


def _odds(said: BagPredictions) -> Tensor:
    return said.logits[:, 1] - said.logits[:, 0]


def _write(path: Path, said: BagPredictions, bags: InstanceBags) -> None:
    halves = [torch.nonzero(bags.labels == label)[: SHOWN // 2, 0] for label in (1, 0)]
    shown = torch.cat(halves)
    batch = bags.fetch(shown)
    tensors = {
        "logits": said.logits,
        "label": bags.labels,
        "index": bags.indices,
        "size": bags.sizes,
        "score": said.scores,
        "instance": bags.instances.indices,
        "shown": shown,
        "image": (255 * batch["image"][batch["mask"]]).round().to(torch.uint8),
    }
    if bags.hidden_labels is not None:
        tensors["truth"] = bags.hidden_labels
    content = safetensors.torch.save({name: value.contiguous() for name, value in tensors.items()})
    # Not save_file, whose error on a full disk is no OSError.
    write_atomically(path, lambda part: part.write_bytes(content))
