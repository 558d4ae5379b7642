"""The parts of the page, top to bottom. Each looks at what the run holds and returns a section, or None.

A section is chosen by the files that exist, never by the name of a method: one for another kind of model is
a new module here and a line in ``SECTIONS``.
"""

from collections.abc import Callable

from limbeck.data import Data
from limbeck.report.blocks import Section
from limbeck.report.folder import Loaded
from limbeck.report.sections.bags import bags
from limbeck.report.sections.calibration import calibration
from limbeck.report.sections.classes import classes
from limbeck.report.sections.clients import clients
from limbeck.report.sections.clusters import clusters
from limbeck.report.sections.confusion import confusion
from limbeck.report.sections.curves import curves
from limbeck.report.sections.detection import detection
from limbeck.report.sections.differences import differences
from limbeck.report.sections.disagreements import disagreements
from limbeck.report.sections.generation import generation
from limbeck.report.sections.instance_bags import instance_bags
from limbeck.report.sections.language import language
from limbeck.report.sections.provenance import provenance
from limbeck.report.sections.pseudo_labels import pseudo_labels
from limbeck.report.sections.rounds import rounds
from limbeck.report.sections.scores import scores
from limbeck.report.sections.segmentation import segmentation
from limbeck.report.sections.similarity import similarity
from limbeck.report.sections.stream import stream
from limbeck.report.sections.synthetic import synthetic
from limbeck.report.sections.tail import tail

Make = Callable[[Loaded, Data | None], Section | None]

SECTIONS: tuple[Make, ...] = (
    scores,
    differences,
    stream,
    similarity,
    language,
    clients,
    rounds,
    calibration,
    disagreements,
    generation,
    classes,
    tail,
    confusion,
    segmentation,
    clusters,
    bags,
    instance_bags,
    detection,
    synthetic,
    pseudo_labels,
    curves,
    provenance,
)

__all__ = ["SECTIONS", "Make"]
