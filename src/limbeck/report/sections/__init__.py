"""The parts of the page, top to bottom. Each looks at what the run holds and returns a section, or None.

A section is chosen by the files that exist, never by the name of a method: one for another kind of model is
a new module here and a line in ``SECTIONS``.
"""

from collections.abc import Callable

from limbeck.data import ImageData
from limbeck.report.blocks import Section
from limbeck.report.folder import Loaded
from limbeck.report.sections.calibration import calibration
from limbeck.report.sections.classes import classes
from limbeck.report.sections.confusion import confusion
from limbeck.report.sections.curves import curves
from limbeck.report.sections.differences import differences
from limbeck.report.sections.disagreements import disagreements
from limbeck.report.sections.provenance import provenance
from limbeck.report.sections.scores import scores

Make = Callable[[Loaded, ImageData | None], Section | None]

SECTIONS: tuple[Make, ...] = (
    scores,
    differences,
    calibration,
    disagreements,
    classes,
    confusion,
    curves,
    provenance,
)

__all__ = ["SECTIONS", "Make"]
