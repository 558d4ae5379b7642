"""How the command line prints: tables and prose for a terminal of 80 columns."""

import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

METRICS = {
    "accuracy": ("accuracy", "{:.1%}"),
    "nll": ("NLL", "{:.3f}"),
    "ece": ("ECE", "{:.1%}"),
    "scaled/nll": ("scaled NLL", "{:.3f}"),
    "parameters": ("weights", "{:,.0f}"),
    "macs": ("MACs", "{:,.0f}"),
    "latency_ms": ("ms", "{:.2f}"),
}


def width() -> int:
    """Columns that prose fills: those of the terminal, and never more than reads well."""
    return min(shutil.get_terminal_size().columns, 100)


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numbers: Iterable[str] = (),
    names: Iterable[str] = (),
) -> None:
    """Print a table; the columns ``numbers`` are set to the right, they and ``names`` are never wrapped."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    right, fixed = set(numbers), set(names)
    for name in columns:
        whole = name in right or name in fixed
        drawn.add_column(name, justify="right" if name in right else "left", no_wrap=whole, overflow="fold")
    for row in rows:
        drawn.add_row(*row)
    # Without markup: names of arms and papers are other people's text.
    Console(markup=False, highlight=False, emoji=False).print(drawn)


def methods(rows: Sequence[Mapping[str, str]]) -> None:
    """Print the methods by task, a line each: slug, evidence, kind, arXiv id and as much of the title as fits."""
    keys = ("slug", "evidence", "kind", "arxiv")
    wide = [max(len(row[key]) for row in rows) for key in keys]
    room = shutil.get_terminal_size().columns - sum(wide) - 2 * len(wide) - 2
    for task in dict.fromkeys(row["task"] for row in rows):
        print(f"\n{task}")
        for row in [row for row in rows if row["task"] == task]:
            title = row["paper"] if len(row["paper"]) <= room else row["paper"][: max(room - 1, 0)] + "…"
            print("  " + "  ".join(f"{row[key]:<{size}}" for key, size in zip(keys, wide, strict=True)) + "  " + title)


def metrics(models: Mapping[str, Mapping[str, float]]) -> None:
    """Print a line of metrics for each model."""
    from limbeck.metrics.directions import BETTER  # not above: it comes with torch

    known = {**METRICS, **{key: (key.replace("_", " "), "{:.3f}") for key in BETTER if key not in METRICS}}
    known |= {key: known.pop(key) for key in ("parameters", "macs", "latency_ms")}  # cost comes last
    shown = {key: how for key, how in known.items() if any(key in found for found in models.values())}
    if "accuracy" in shown:
        shown = {key: how for key, how in shown.items() if key in METRICS}
    # + 0.0: no minus before a zero.
    rows = [
        [name, *(form.format(round(found[key], 9) + 0.0) if key in found else "" for key, (_, form) in shown.items())]
        for name, found in models.items()
    ]
    titles = [title for title, _ in shown.values()]
    table(["", *titles], rows, numbers=titles)


def teacher(found: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """The metrics of a run's teacher, by its name; empty where there is none."""
    own = {key.removeprefix("teacher/"): value for key, value in found.items() if key.startswith("teacher/")}
    return {"teacher": own} if own else {}


def claims(rows: Iterable[Mapping[str, Any]]) -> None:
    """Print claims beside what was measured."""
    table(
        ["claim", "difference", "95% interval", "seeds", "holds"],
        [
            [
                row["text"],
                f"{row['difference']['mean']:+.4f}",
                _interval(row["difference"]),
                str(len(row["seeds"])),
                "reported" if row["kind"] == "report" else "yes" if row["holds"] else "NO",
            ]
            for row in rows
        ],
        numbers=["difference", "95% interval", "seeds", "holds"],
    )


def _interval(difference: Mapping[str, float | None]) -> str:
    low, high = difference["low"], difference["high"]
    return "" if low is None or high is None else f"{low:+.4f} to {high:+.4f}"


def prose(text: str) -> str:
    """A docstring for the terminal: paragraphs filled, equations left as they are, no markup."""
    lines: list[str] = []
    for paragraph in text.replace("``", "").split("\n\n"):
        lines += [*_filled(paragraph.splitlines()), ""]
    return "\n".join(lines).rstrip()


def _filled(paragraph: Sequence[str]) -> list[str]:
    lines: list[str] = []
    text: list[str] = []
    for line in [*paragraph, " "]:
        if not line.startswith(" "):
            text.append(line)
            continue
        lines += textwrap.wrap(" ".join(text), width())
        text = []
        indent = line[: len(line) - len(line.lstrip())]
        lines += textwrap.wrap(line.strip(), width(), initial_indent=indent, subsequent_indent=indent + "    ")
    return lines


def out_of_pipe() -> None:
    """Nobody reads standard output any more: let the interpreter end without complaining about it."""
    sys.stdout = open("/dev/null", "w", encoding="utf-8")  # noqa: PTH123, SIM115  must outlive this function
