"""Write what is generated: README's table of methods, docs/methods/SLUG.md, docs/benchmarks.md, CONTRIBUTING's code.

The words of a method's finding.yaml, written after measuring, go into its evidence here.

python docs/generate.py            # write
python docs/generate.py --check    # exit 1 where something is out of date
"""

import argparse
import ast
import json
import statistics
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limbeck.catalogue import describe, evidence_file, list_methods
from limbeck.metrics.directions import BETTER

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "limbeck"
FRACTIONS = ("accuracy", "ece", "scaled/ece", "error", "map", "map_50", "map_75", "miou", "pixel_accuracy")
COLUMNS = ("accuracy", "nll", "ece", "scaled/nll", "scaled/ece", *(name for name in BETTER if name != "aurc"))


def pages() -> dict[Path, str]:
    """Every generated file with its content."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = {ROOT / "README.md": _between(readme, "methods", _table())}
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    guide = _between(guide, "ps-kd:row", _code("python", _row("ps-kd")))
    guide = _between(guide, "ps-kd:label", _code("python", _function("labels/refine.py", "mix_with_past")))
    guide = _between(guide, "ps-kd:objective", _code("python", _function("methods/classification/ps_kd.py", "PSKD")))
    small = (PACKAGE / "recipes" / "ps-kd" / "small.yaml").read_text(encoding="utf-8")
    found[ROOT / "CONTRIBUTING.md"] = _between(guide, "ps-kd:recipe", _code("yaml", small))
    for row in list_methods():
        method = describe(row["slug"])
        found[ROOT / "docs" / "methods" / f"{row['slug']}.md"] = _page(method)
        if method["measured"]:
            found[evidence_file(row["slug"])] = json.dumps(method["measured"], indent=2) + "\n"
    found[ROOT / "docs" / "benchmarks.md"] = _benchmarks()
    cost = (ROOT / "docs" / "cost.md").read_text(encoding="utf-8")
    found[ROOT / "docs" / "cost.md"] = _between(cost, "growth", _growth())
    return found


def _function(file: str, name: str) -> str:
    """The source of a function or class, without its docstring."""
    text = (PACKAGE / file).read_text(encoding="utf-8")
    node = next(node for node in ast.parse(text).body if getattr(node, "name", None) == name)
    node.body = node.body[1:]
    kept = text.splitlines()[node.body[0].lineno - 1 : node.end_lineno]
    head = text.splitlines()[node.lineno - 1 : node.body[0].lineno - 1]
    head = head[: next(number for number, line in enumerate(head) if line.lstrip().startswith('"""'))]
    return "\n".join([*head, *kept])


def _row(slug: str) -> str:
    """The method's row in the index."""
    text = (PACKAGE / "methods" / "index.py").read_text(encoding="utf-8")
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call) and node.args]
    call = next(n for n in calls if isinstance(n.args[0], ast.Constant) and n.args[0].value == slug)
    return textwrap.dedent(" " * call.col_offset + (ast.get_source_segment(text, call) or ""))


def _code(language: str, text: str) -> str:
    return f"```{language}\n{text.rstrip()}\n```"


def _between(text: str, name: str, content: str) -> str:
    start, end = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
    before, _, rest = text.partition(start)
    _, _, after = rest.partition(end)
    return f"{before}{start}\n{content}\n{end}{after}"


def _table() -> str:
    lines = ["| method | paper | task | evidence | primary claim, measured |", "|---|---|---|---|---|"]
    for row in list_methods():
        measured = describe(row["slug"])["measured"]
        claims = "claim" in describe(row["slug"])["recipes"]
        nothing = "stated, not measured yet" if claims else "a baseline: claims nothing"
        claim = nothing if measured is None else _claim(measured["claims"][0])
        paper = f"{row['paper']} ([{row['arxiv']}](https://arxiv.org/abs/{row['arxiv']}))"
        evidence = row["evidence"] if claims else "-"
        if measured is not None:
            tested = [claim for claim in measured["claims"] if claim["kind"] != "report"]
            evidence += f": {sum(claim['holds'] for claim in tested)} of {len(tested)} claims hold"
        page = f"[`{row['slug']}`](docs/methods/{row['slug']}.md)"
        lines.append(f"| {page} | {paper} | {row['task']} | {evidence} | {claim} |")
    return "\n".join(lines)


def _claim(claim: Mapping[str, Any]) -> str:
    verdict = {"report": "reported"}.get(claim["kind"], "holds" if claim["holds"] else "**does not hold**")
    return f"{claim['text']}: {verdict}, {_difference(claim)}, {len(claim['seeds'])} seeds"


def _difference(claim: Mapping[str, Any]) -> str:
    difference = claim["difference"]
    scale, unit = (100, " points") if claim["metric"] in FRACTIONS else (1, "")
    digits = 1 if scale == 100 else 3
    mean, low, high = (scale * difference[key] for key in ("mean", "low", "high"))
    return f"{mean:+.{digits}f}{unit} [{low:+.{digits}f}, {high:+.{digits}f}]"


def _page(method: Mapping[str, Any]) -> str:
    lines = [
        f"# {method['slug']}",
        "",
        f"{method['paper']}, [arXiv {method['arxiv']}](https://arxiv.org/abs/{method['arxiv']}) ({method['year']}). "
        f"Task: {method['task']}. Evidence: {method['evidence']}.",
        "",
        "```",
        method["doc"],
        "```",
        "",
        "```",
        f"limbeck run {method['slug']}           # the small recipe",
        f"limbeck run {method['slug']} --help    # every key",
        "```",
    ]
    if method["measured"]:
        lines += ["", "## Claims", "", *_claims(method["measured"]), "", *_arms(method["measured"])]
    lines += ["", "## Recipes"]
    for name, text in method["recipes"].items():
        lines += ["", f"`{name}.yaml`", "", "```yaml", text.rstrip(), "```"]
    return "\n".join(lines) + "\n"


def _claims(measured: Mapping[str, Any]) -> list[str]:
    lines = ["| claim | kind | difference, 95% interval | outcome |", "|---|---|---|---|"]
    for claim in measured["claims"]:
        outcome = {"report": "reported"}.get(claim["kind"], "holds" if claim["holds"] else "**does not hold**")
        lines.append(f"| {claim['text']} | {claim['kind']} | {_difference(claim)} | {outcome} |")
    return [
        *lines,
        "",
        f"Paired differences over {len(measured['claims'][0]['seeds'])} fresh seeds, last update; "
        f"{measured['tuning']['trials']} tuning trials an arm on the {measured['tuning']['metric']}; "
        f"{measured['budget']['rule']}. Measured by `limbeck verify {measured['slug']}` with torch "
        f"{measured['versions']['torch']}.",
        "",
        measured["finding"],
        *(["", "Regimes that were tried:", ""] if measured["regimes_tried"] else []),
        *(f"- {row['regime']}: {row['outcome']}" for row in measured["regimes_tried"]),
    ]


def _arms(measured: Mapping[str, Any]) -> list[str]:
    known = [name for name in dict.fromkeys(COLUMNS) if all(name in metrics for metrics in measured["arms"].values())]
    names = known[:5]
    lines = ["| arm | " + " | ".join(names) + " | tuned to |", "|---" * (len(names) + 2) + "|"]
    for arm, metrics in measured["arms"].items():
        cells = []
        for name in names:
            values = [value * (100 if name in FRACTIONS else 1) for value in metrics[name]]
            unit = "%" if name in FRACTIONS else ""
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            digits = 1 if unit else 3
            cells.append(f"{statistics.fmean(values):.{digits}f}{unit} ± {spread:.{digits}f}")
        chosen = ", ".join(f"{key} {value}" for key, value in measured["tuning"]["chosen"][arm].items())
        lines.append(f"| {arm} | " + " | ".join(cells) + f" | {chosen} |")
    return lines


def _benchmarks() -> str:
    """Every row of benchmarks/results."""
    lines = [
        "# Benchmarks",
        "",
        "Ratios of the time that ours takes to the peer's, in interleaved rounds of one process, after equal results",
        "were asserted: below 1, ours takes less. Median and range over rounds. `make bench` measures them again.",
    ]
    for file in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        script = ROOT / "benchmarks" / f"{result['name']}.py"
        what = (ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or "").splitlines()[0]
        versions = ", ".join(f"{name} {value}" for name, value in result["versions"].items())
        lines += ["", f"## {result['name']}", "", what, "", f"{result['device']}; {versions}.", ""]
        lines += ["| case | peer | ours | peer's | ratio | peak memory | goal | |", "|---|---|---|---|---|---|---|---|"]
        for row in result["rows"]:
            ratio, memory = row["ratio"], row.get("peak_mib")
            medians = [f"{statistics.median(row[key]):.4g} {row['unit']}" for key in ("ours", "peer")]
            held = f"{memory['ours']:,.0f} to {memory['peer']:,.0f} MiB" if memory else "-"
            cells = [
                row["case"],
                row["peer_name"],
                *medians,
                f"{ratio['median']:.3g} [{ratio['low']:.3g}, {ratio['high']:.3g}]",
            ]
            cells += [held, row["goal"], "holds" if row["holds"] else "does not hold"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _growth() -> str:
    """The curves of benchmarks/growth.py as a table."""
    file = ROOT / "benchmarks" / "results" / "growth.json"
    result = json.loads(file.read_text(encoding="utf-8"))
    lines = [f"{result['device']}, medians:", "", "| case | a step | peer | its step | ratio | before the first step |"]
    lines.append("|---|---|---|---|---|---|")
    for row in result["rows"]:
        ours, peer = (f"{1e3 * statistics.median(row[key]):.2f} ms" for key in ("ours", "peer"))
        cells = [row["case"], ours, row["peer_name"], peer, f"{row['ratio']['median']:.2f}"]
        lines.append(f"| {' | '.join(cells)} | {row['first_seconds']:.2f} s |")
    return "\n".join(lines)


def main() -> int:
    """Write the pages, or say which are out of date."""
    parser = argparse.ArgumentParser(description="Write what is generated.")
    parser.add_argument("--check", action="store_true", help="only say what is out of date")
    check = parser.parse_args().check
    old = [path for path, text in pages().items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in old:
        print(f"{'out of date' if check else 'wrote'}: {path.relative_to(ROOT)}")
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(pages()[path], encoding="utf-8")
    return int(check and bool(old))


if __name__ == "__main__":
    sys.exit(main())
