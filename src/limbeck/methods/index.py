"""Every method of limbeck as plain data: importable without torch.

``path`` is ``module:Class``; ``kind`` is ``paper`` or, for what papers are compared with, ``baseline``.
"""

from typing import Literal, NamedTuple


class Method(NamedTuple):
    """One row of the index."""

    slug: str
    task: str
    paper: str
    arxiv: str
    year: int
    kind: Literal["paper", "baseline"]
    path: str


METHODS: dict[str, Method] = {
    row.slug: row
    for row in (
        Method(
            "supervised",
            "classification",
            "Cross-entropy on true labels, with label smoothing (Rethinking the Inception Architecture)",
            "1512.00567",
            2015,
            "baseline",
            "limbeck.methods.classification.supervised:Supervised",
        ),
        Method(
            "kd",
            "classification",
            "Distilling the Knowledge in a Neural Network",
            "1503.02531",
            2015,
            "baseline",
            "limbeck.methods.classification.kd:KD",
        ),
        Method(
            "ps-kd",
            "classification",
            "Self-Knowledge Distillation with Progressive Refinement of Targets",
            "2006.12000",
            2021,
            "paper",
            "limbeck.methods.classification.ps_kd:PSKD",
        ),
    )
}
