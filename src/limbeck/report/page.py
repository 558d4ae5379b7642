"""Puts the sections on one page and writes it."""

import os
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from limbeck import __version__
from limbeck.data import Data
from limbeck.errors import LimbeckError
from limbeck.report.blocks import Section, Text
from limbeck.report.folder import Loaded, load
from limbeck.report.sections import SECTIONS, Make
from limbeck.report.verdict import headline

_HERE = Path(__file__).parent


def write(folder: Path, data: Data | None = None) -> Path:
    """Write ``FOLDER/report.html``: one file that shows a run or a comparison, without any network.

    Args:
        folder: A run folder (``seed-*``) or a comparison folder (``comparison.json``).
        data: The data of the runs, for pictures of test samples; read again by the recipe when left out.

    Returns:
        The path of the page. It is replaced in one step: a reader sees the old page or the new one.

    Raises:
        LimbeckError: the folder holds no finished run, or a file of another format.
    """
    page = _render(load(folder), data)
    path = folder / "report.html"
    part = folder / "report.html.part"
    with part.open("w", encoding="utf-8") as file:
        file.write(page)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    return path


def _made(make: Make, loaded: Loaded, data: Data | None) -> Section | None:
    """A section; where it cannot be made the page says why, and the rest of the result is still shown."""
    try:
        return make(loaded, data)
    except LimbeckError as error:
        name = make.__name__
        return Section(name, name.capitalize(), (Text(f"This part cannot be shown: {error}", "warning"),))


def _render(loaded: Loaded, data: Data | None) -> str:
    from plotly.offline import get_plotlyjs

    sections = [section for make in SECTIONS if (section := _made(make, loaded, data)) is not None]
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,  # class names, recipes and findings are other people's text
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        loaded=loaded,
        headline=headline(loaded),
        sections=sections,
        css=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup((_HERE / "page.js").read_text(encoding="utf-8")),
        plotly=Markup(get_plotlyjs()),
        version=__version__,
    )
