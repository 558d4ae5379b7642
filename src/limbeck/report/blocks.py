"""What a section is made of. Sections yield these; page.html knows how each of them looks."""

from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class Text:
    """A paragraph; ``tone`` is "plain", "note" (small print) or "warning"."""

    text: str
    tone: str = "plain"
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Table:
    """A table whose first column names the row; ``marks[i]`` is the colour key of row i, if it has one.

    With ``prose`` cells are sentences, which run from the left and wrap; else numbers.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    marks: tuple[str, ...] = ()
    folded: bool = False
    prose: bool = False
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Chart:
    """A plotly figure as plain JSON; ``alt`` says in words what it shows, ``table`` holds its numbers."""

    title: str
    figure: dict[str, Any]
    alt: str
    caption: str = ""
    height: int = 320
    table: Table | None = None


@dataclass(frozen=True)
class Charts:
    """Charts side by side where the page is wide enough; ``keys``: their legend (name, colour key)."""

    charts: tuple[Chart, ...]
    keys: tuple[tuple[str, str], ...] = ()
    wide: bool = False
    kind: ClassVar[str] = "charts"


@dataclass(frozen=True)
class Opinion:
    """What somebody says a sample is: ``right`` is None for the truth itself."""

    who: str
    says: str
    confidence: str = ""
    right: bool | None = None


@dataclass(frozen=True)
class Picture:
    """One enlarged sample with what everybody says about it; ``source`` is a data URI."""

    source: str
    alt: str
    caption: str
    opinions: tuple[Opinion, ...]
    pixelated: bool


@dataclass(frozen=True)
class Gallery:
    """Pictures in a grid; ``wide``: broad ones, in their own proportions."""

    pictures: tuple[Picture, ...]
    wide: bool = False
    kind: ClassVar[str] = "gallery"


@dataclass(frozen=True)
class Code:
    """A file that can be unfolded."""

    title: str
    text: str
    kind: ClassVar[str] = "code"


Block = Text | Table | Charts | Gallery | Code


@dataclass(frozen=True)
class Section:
    """One part of the page."""

    id: str
    title: str
    blocks: tuple[Block, ...]
