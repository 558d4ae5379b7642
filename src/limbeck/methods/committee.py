"""A committee: several networks, each named by a model block, that are trained first where they are not yet."""

from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.data.samples import ImageData
from limbeck.errors import LimbeckError
from limbeck.methods.classification.supervised import Supervised
from limbeck.models.build import build
from limbeck.models.classifier import Classifier
from limbeck.models.folder import READERS
from limbeck.stages.fit import Fit
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Program
from limbeck.teachers.stored import Stored


def check_committee(committee: Sequence[Mapping[str, Any]]) -> None:
    """Refuse what names no networks.

    Raises:
        LimbeckError: there are none, or one is no model block.
    """
    if not committee:
        raise LimbeckError("committee names no network; give at least one model block, such as {name: cnn, width: 16}")
    for number, block in enumerate(committee):
        if not isinstance(block, Mapping) or not isinstance(block.get("name"), str):
            raise LimbeckError(f"committee[{number}] is {block!r}; it must be a model block with a name")


def squeeze(committee: Sequence[Mapping[str, Any]], data: ImageData, settings: FitSettings) -> Program:
    """Train the networks on the labelled data, one stage each, except for those that come trained.

    Trained are saved ones (name: folder or hub) and those of timm with ``pretrained`` whose weights have as many
    classes as the data; with another number of classes their head is new, and they are trained on. A store of labels
    (name: store) stays what it is.

    Returns:
        The networks, in order.

    Raises:
        LimbeckError: a saved network lacks a class of the data.
    """
    networks: list[Classifier | Stored] = []
    for number, block in enumerate(committee):
        network = build(**block, task=data.task)
        if not isinstance(network, Classifier | Stored):
            raise LimbeckError(f"committee[{number}] is a {type(network).__name__}; it must be a classifier of images")
        missing = [name for name in data.classes if name not in network.classes]
        if missing:
            raise LimbeckError(
                f"committee[{number}] does not know the classes {missing}: it has {list(network.classes)}"
            )
        networks.append(network)
    for number, (block, network) in enumerate(zip(committee, networks, strict=True)):
        if isinstance(network, Classifier) and not _comes_trained(block, network):
            networks[number] = yield Fit(f"squeeze-{number}", Supervised(network), data, settings)
    return networks


def _comes_trained(block: Mapping[str, Any], network: Classifier) -> bool:
    own = getattr(network.body, "pretrained_cfg", {}) or {}
    return block["name"] in READERS or bool(block.get("pretrained") and own.get("num_classes") == len(network.classes))
