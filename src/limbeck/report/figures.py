"""Plotly figures as plain JSON. Colours are CSS variables: page.js resolves them for the theme in use."""

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

from limbeck.report.folder import Loaded

ARM_COLOURS = 8
_SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "triangle-down", "star", "hexagon")

Figure = dict[str, Any]


def key(position: int) -> str:
    """The colour key of the arm at a position: a CSS class of the legend, and the variable's name."""
    return f"arm-{position % ARM_COLOURS + 1}"


def colour(key: str) -> str:
    """The CSS variable of a colour key."""
    return f"var(--{key})"


def symbol(position: int) -> str:
    """A marker for an arm, so that colour is never the only difference."""
    return _SYMBOLS[position % ARM_COLOURS]


def keys(loaded: Loaded, *, teacher: bool) -> tuple[tuple[str, str], ...]:
    """The legend of all arms."""
    arms = tuple((arm.name, key(i)) for i, arm in enumerate(loaded.arms))
    return (*arms, ("teacher", "teacher")) if teacher else arms


def plain(text: str) -> str:
    """Text that plotly shows as it is: names such as ``<b>`` must not become its markup."""
    return html.escape(text, quote=False)


def clean(values: Iterable[float | None]) -> list[float | None]:
    """Numbers for JSON: five significant digits, and a gap where one is not finite."""
    return [None if v is None or not math.isfinite(v) else float(f"{v:.5g}") for v in values]


def axis(title: str = "", **options: Any) -> dict[str, Any]:
    """An axis in the page's style."""
    return {
        "title": {"text": title, "font": {"size": 12, "color": colour("muted")}, "standoff": 8},
        "gridcolor": colour("grid"),
        "zeroline": False,
        "linecolor": colour("rule"),
        "tickfont": {"size": 12, "color": colour("muted")},
        "automargin": True,
        "fixedrange": True,
        **options,
    }


def figure(data: Sequence[dict[str, Any]], x: dict[str, Any], y: dict[str, Any], **layout: Any) -> Figure:
    """A figure of traces over one pair of axes."""
    return {
        "data": list(data),
        "layout": {
            "xaxis": x,
            "yaxis": y,
            "showlegend": False,
            "margin": {"l": 8, "r": 12, "t": 8, "b": 8},
            "paper_bgcolor": colour("paper"),
            "plot_bgcolor": colour("paper"),
            "hoverlabel": {
                "bgcolor": colour("raised"),
                "bordercolor": colour("rule"),
                "font": {"color": colour("ink"), "size": 12},
                "align": "left",
            },
            **layout,
        },
    }
