"""Data that stay with their clients: labelled and unlabelled images divided among the parties of a federation."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.data.load import load_images
from limbeck.data.random import derive, permutation
from limbeck.data.samples import ImageData, Samples
from limbeck.errors import LimbeckError

_DRAWS = 1000
"""How often a partition is drawn anew until every client has enough samples."""


class Client(NamedTuple):
    """What one client holds.

    Attributes:
        labeled: its samples with labels, at least one.
        unlabeled: its samples without labels; None where all have one.
    """

    labeled: Samples
    unlabeled: Samples | None


@dataclass(frozen=True, kw_only=True)
class ClientData(ImageData):
    """Images divided among clients; ``train`` and ``unlabeled`` are what all of them hold together.

    Attributes:
        labeled_owner: int64, which client holds each sample of ``train``; every client holds at least one.
        unlabeled_owner: int64, which client holds each sample of ``unlabeled``; empty where there are none.
    """

    labeled_owner: Tensor
    unlabeled_owner: Tensor

    @cached_property
    def clients(self) -> tuple[Client, ...]:
        """What each client holds, in the order of their numbers."""

        def held(samples: Samples | None, owner: Tensor, number: int) -> Samples | None:
            mine = torch.nonzero(owner == number)[:, 0]
            return samples.subset(mine) if samples is not None and len(mine) else None

        count = int(self.labeled_owner.max()) + 1
        labeled = [held(self.train, self.labeled_owner, number) for number in range(count)]
        unlabeled = [held(self.unlabeled, self.unlabeled_owner, number) for number in range(count)]
        return tuple(Client(part, rest) for part, rest in zip(labeled, unlabeled, strict=True) if part is not None)

    def update_hash(self, digest: "hashlib._Hash") -> None:
        """Add which client holds which samples."""
        super().update_hash(digest)
        for owner in (self.labeled_owner, self.unlabeled_owner):
            digest.update(owner.numpy().tobytes())


def clients(
    seed: int,
    dataset: str | dict[str, Any] = "digits",
    clients: int = 20,
    alpha: float = 0.1,
    labeled: float = 0.2,
    min_samples: int = 10,
) -> ClientData:
    """The training images of a data set divided among clients, with class shares from a Dirichlet distribution.

    For each class the shares of the clients are drawn from Dir(alpha, ..., alpha) (arXiv 1909.06335, section 3);
    the labelled samples of a client are drawn uniformly from all of its samples (arXiv 2307.08809, section 4).

    Args:
        seed: decides splits and partition.
        dataset: the data set, as a data block: the name of a source, or a mapping of name and options.
        clients: number of clients.
        alpha: concentration of the Dirichlet distribution: small means that a client has few classes.
        labeled: share of each client's samples that have labels, in (0, 1].
        min_samples: a partition in which a client has fewer samples is drawn anew.

    Raises:
        LimbeckError: the data set cannot be opened or holds no images with classes, an option out of range, or
            too few samples for so many clients.
    """
    if clients < 1 or min_samples < 1:
        raise LimbeckError(f"clients: clients is {clients} and min_samples {min_samples}; both must be at least 1")
    if not alpha > 0:
        raise LimbeckError(f"clients: alpha is {alpha}; it must be above 0")
    if not 0 < labeled <= 1:
        raise LimbeckError(f"clients: labeled is {labeled}; it must be above 0 and at most 1")
    data = load_images(dataset, seed, "clients")
    if data.unlabeled is not None:
        raise LimbeckError("clients: dataset already has unlabelled samples; the share of labels is set by labeled")
    owner = dirichlet_partition(
        data.train.labels.numpy(), len(data.classes), clients, alpha, min_samples, derive(seed, "clients")
    )
    with_label = np.zeros(len(owner), dtype=bool)
    for number in range(clients):
        mine = np.flatnonzero(owner == number)
        order = permutation(derive(seed, "labels", number), len(mine))
        with_label[mine[order[: max(1, round(labeled * len(mine)))]]] = True
    chosen, rest = torch.from_numpy(np.flatnonzero(with_label)), torch.from_numpy(np.flatnonzero(~with_label))
    return ClientData(
        train=data.train.subset(chosen),
        validation=data.validation,
        test=data.test,
        unlabeled=data.train.subset(rest).unlabel() if len(rest) else None,
        classes=data.classes,
        view=data.view,
        flip=data.flip,
        labeled_owner=torch.from_numpy(owner)[chosen],
        unlabeled_owner=torch.from_numpy(owner)[rest],
    )


def dirichlet_partition(
    labels: NDArray[np.int64], num_classes: int, clients: int, alpha: float, min_samples: int, seed: int
) -> NDArray[np.int64]:
    """Which client gets each sample, int64 [N].

    Args:
        labels: int64 [N].
        num_classes: number of classes.
        clients: number of clients.
        alpha: concentration; infinity gives every client the same shares.
        min_samples: fewest samples a client may have.
        seed: decides the draws.

    Raises:
        LimbeckError: no such partition was found.
    """
    if len(labels) < clients * min_samples:
        raise LimbeckError(f"{len(labels)} training samples are too few for {clients} clients of {min_samples} each")
    for attempt in range(_DRAWS):
        # A generator of its own for each attempt: no global state, the same on every machine.
        generator = np.random.Generator(np.random.PCG64(derive(seed, attempt)))
        owner = np.empty(len(labels), dtype=np.int64)
        for number in range(num_classes):
            members = np.flatnonzero(labels == number)
            members = members[permutation(derive(seed, attempt, number), len(members))]
            shares = np.full(clients, 1 / clients) if np.isinf(alpha) else generator.dirichlet([alpha] * clients)
            ends = (np.cumsum(shares)[:-1] * len(members)).round().astype(np.int64)
            for client, mine in enumerate(np.split(members, ends)):
                owner[mine] = client
        if np.bincount(owner, minlength=clients).min() >= min_samples:
            return owner
    raise LimbeckError(
        f"no partition of {len(labels)} samples among {clients} clients with alpha {alpha:g} leaves each at least "
        f"{min_samples} (tried {_DRAWS}); use fewer clients, a larger alpha or a smaller min_samples"
    )
