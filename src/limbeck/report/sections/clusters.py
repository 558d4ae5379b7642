"""Clusters: the images that a model is surest of, what they are in truth, and how large clusters and classes are."""

from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from limbeck.data import Data
from limbeck.errors import LimbeckError
from limbeck.report import figures
from limbeck.report.blocks import Block, Chart, Charts, Gallery, Opinion, Picture, Section, Table, Text
from limbeck.report.folder import Loaded, Seed
from limbeck.report.numbers import NOTHING
from limbeck.report.pictures import strip

_FILE = "clusters.safetensors"
_EACH, _CLUSTERS, _SIDE = 8, 20, 48  # images of a cluster, clusters, pixels of an image


class _Found(NamedTuple):
    """What ``clusters.safetensors`` holds: of the test images, and the training images by cluster and class [K, C]."""

    cluster: Tensor
    probability: Tensor
    label: Tensor
    indices: Tensor
    training: Tensor | None


def clusters(loaded: Loaded, data: Data | None) -> Section | None:
    """Sizes for every arm, the pictures of the featured one; the first seed of each."""
    read = [next(((seed, found) for seed in arm.seeds if (found := _read(seed))), None) for arm in loaded.arms]
    arm = loaded.arms.index(loaded.featured)
    featured = read[arm] or next((one for one in read if one is not None), None)
    if featured is None:
        return None
    seed, found = featured
    data = seed.data if data is None else data
    if not torch.equal(data.test.indices, found.indices):
        raise LimbeckError("the test data is not the one that was clustered (its indices differ)")
    name = loaded.arms[read.index(featured)].name
    gallery, note = _gallery(found, data, f"{name}, seed {seed.seed}")
    blocks: list[Block] = [gallery, Text(note, "note")]
    tables = {at: table for at, one in enumerate(read) if one is not None and (table := one[1].training) is not None}
    if tables:
        blocks.append(Text("Sizes of clusters and of classes", "heading"))
        blocks.append(_sizes(loaded, tables, data.classes))
        if found.training is not None:
            blocks.append(_table(name, found.training, data.classes))
        blocks.append(
            Text(
                "Sizes are those of the training images, which the model was given without their classes, in the first "
                "seed. A cluster's class is the one that most of its images have: of a class that is spread over "
                "several clusters the points lie below the dotted line, those of clusters that join several classes "
                "above it. Empty clusters are not drawn.",
                "note",
            )
        )
    return Section("clusters", "Cluster by cluster", tuple(blocks))


def _read(seed: Seed) -> _Found | None:
    path: Path = seed.final.folder / _FILE
    if not path.is_file():
        return None
    try:
        held = safetensors.torch.load(path.read_bytes())
        parts = [held[name] for name in ("cluster", "probability", "label", "index")]
    except (SafetensorError, KeyError) as error:
        raise LimbeckError(f"{path} does not hold the clusters of test images: {error}") from None
    cluster, probability, label, indices = parts
    return _Found(cluster, probability, label, indices, held.get("training"))


def _gallery(found: _Found, data: Data, whose: str) -> tuple[Gallery, str]:
    """A strip a cluster, the largest first, and what is to be said of them."""
    count = int(found.cluster.max()) + 1 if found.training is None else len(found.training)
    sizes = found.cluster.bincount(minlength=count)
    order = sizes.argsort(descending=True, stable=True)
    order = order[sizes[order] > 0]
    pictures = tuple(_picture(found, data, cluster) for cluster in order[:_CLUSTERS].tolist())
    note = f"Of each cluster the {_EACH} test images that the model is surest of ({whose}), and the class that most of "
    note += "its images have in truth, with its share; training never reads classes."
    if len(order) > _CLUSTERS:
        note += f" Shown are the {_CLUSTERS} largest of {len(order)} clusters."
    if len(order) < count:
        note += f" {count - len(order)} of {count} clusters have no test image."
    return Gallery(pictures, wide=True), note


def _picture(found: _Found, data: Data, cluster: int) -> Picture:
    members = torch.nonzero(found.cluster == cluster)[:, 0]
    surest = members[found.probability[members].argsort(descending=True, stable=True)[:_EACH]]
    images = data.test.fetch(surest)["image"]
    counts = {} if found.training is None else {"training": found.training[cluster]}
    truth = found.label[members]
    counts["test"] = truth[truth >= 0].bincount(minlength=len(data.classes))
    opinions = tuple(_mostly(name, count, data.classes) for name, count in counts.items() if count.any())
    name = f"Cluster {cluster}"
    said = "; ".join(f"{o.who} images mostly {o.says}, {o.confidence}" for o in opinions)
    return Picture(strip(images, _SIDE), f"{name}: {said}", name, opinions, min(images.shape[-2:]) < _SIDE)


def _mostly(split: str, counts: Tensor, classes: tuple[str, ...]) -> Opinion:
    """The class of most images of a cluster, and its share in them; ``counts`` [C]."""
    share = float(counts.max() / counts.sum())
    return Opinion(split, classes[int(counts.argmax())], f"{100 * share:.0f} % of {int(counts.sum()):,}")


def _sizes(loaded: Loaded, tables: dict[int, Tensor], classes: tuple[str, ...]) -> Charts:
    """Sizes of clusters against those of classes: in the order of their size, and each with its class."""
    truth = next(iter(tables.values())).sum(0)
    places, ordered = _falling(truth)
    ranks = [_trace(places, ordered, "teacher", "circle-open", dash="dot")]
    ranks[0]["text"] = [f"{place}. class: {n:,} images" for place, n in zip(places, ordered, strict=True)]
    ends = [ordered[-1], ordered[0]]
    pairs = [{**_trace(ends, ends, "teacher", "circle-open", dash="dot"), "mode": "lines", "hoverinfo": "skip"}]
    said, keys = [], []
    for at, table in tables.items():
        name, key, symbol = loaded.arms[at].name, figures.key(at), figures.symbol(at)
        plain, sizes = figures.plain(name), table.sum(1)
        places, ordered = _falling(sizes)
        ranks.append(_trace(places, ordered, key, symbol))
        ranks[-1]["text"] = [
            f"{plain}, {place}. cluster: {n:,} images" for place, n in zip(places, ordered, strict=True)
        ]
        held = torch.nonzero(sizes)[:, 0]
        major = table[held].argmax(1)
        pairs.append({**_trace(truth[major].tolist(), sizes[held].tolist(), key, symbol), "mode": "markers"})
        pairs[-1]["text"] = [
            f"{plain}, cluster {k}: {int(sizes[k]):,} images, {100 * float(table[k, c] / sizes[k]):.0f} % "
            f"{figures.plain(classes[c])} ({int(truth[c]):,})"
            for k, c in zip(held.tolist(), major.tolist(), strict=True)
        ]
        said.append(f"{name} {ordered[-1]:,} to {ordered[0]:,}, most images of {len(major.unique())} classes")
        keys.append((name, key))
    known = f"{len(classes)} classes of {int(truth.min()):,} to {int(truth.max()):,} training images"
    log = {"type": "log", "dtick": "D2", "tickformat": ","}
    charts = (
        Chart(
            "Sizes in their order",
            figures.figure(ranks, figures.axis("place by size", nticks=8), figures.axis("training images", **log)),
            f"Sizes of clusters beside {known}: {'; '.join(said)}.",
        ),
        Chart(
            "Each cluster against its class",
            figures.figure(
                pairs, figures.axis("images of the class", **log), figures.axis("images of the cluster", **log)
            ),
            f"Size of each cluster over that of the class of most of its images; {known}: {'; '.join(said)}.",
        ),
    )
    return Charts(charts, (*keys, ("classes in truth", "teacher")), wide=True)


def _falling(sizes: Tensor) -> tuple[list[int], list[int]]:
    """Places from 1, and the sizes above 0, the largest first."""
    ordered = sizes[sizes > 0].sort(descending=True).values.tolist()
    return list(range(1, len(ordered) + 1)), ordered


def _trace(x: list[int], y: list[int], key: str, symbol: str, dash: str = "solid") -> dict[str, Any]:
    return {
        "x": x,
        "y": y,
        "mode": "lines+markers",
        "line": {"color": figures.colour(key), "width": 2, "dash": dash},
        "marker": {"color": figures.colour(key), "size": 9, "symbol": symbol},
        "hovertemplate": "%{text}<extra></extra>",
    }


def _table(name: str, table: Tensor, classes: tuple[str, ...]) -> Table:
    sizes, truth = table.sum(1), table.sum(0)
    rows = []
    for k in sizes.argsort(descending=True, stable=True).tolist():
        c, size = int(table[k].argmax()), int(sizes[k])
        told = (classes[c], f"{100 * int(table[k, c]) / size:.1f} %", f"{int(truth[c]):,}") if size else (NOTHING,) * 3
        rows.append((str(k), f"{size:,}", *told))
    columns = ("Cluster", "Images", "Mostly", "Purity", "Images of that class")
    return Table(f"Clusters of the training images, {name}", columns, tuple(rows), folded=True)
