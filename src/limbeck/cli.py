"""The command line: parses, calls the verb, prints. ``limbeck --help`` imports no torch."""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import limbeck
from limbeck.errors import LimbeckError, nearest

DESCRIPTION = """\
Train small, calibrated models from labels that something else makes.

  limbeck demo                                 digits: a teacher, four students, a report; two minutes
  limbeck list                                 the methods, their papers, their evidence
  limbeck show ps-kd                           equation, recipe, claims and figures of one method
  limbeck run kd --data folder --data.root photos --student.width 16
  limbeck compare supervised kd ps-kd --seeds 5
"""

OVERRIDES = """\
Every key of a recipe is an option: --fit.epochs 5, --student.width 32, --student timm --student.model resnet18,
--data folder --data.root photos. 'limbeck run METHOD --help' documents each of them.
"""


class _Parser(argparse.ArgumentParser):
    """argparse with our errors."""

    def error(self, message: str) -> NoReturn:
        raise LimbeckError(f"{message}; see '{self.prog} --help'")


def _parser() -> _Parser:
    parser = _Parser("limbeck", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"limbeck {limbeck.__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=_Parser)

    def verb(name: str, does: str, epilog: str = "") -> argparse.ArgumentParser:
        return verbs.add_parser(
            name,
            help=does,
            description=does[0].upper() + does[1:] + ".",
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def runs(p: argparse.ArgumentParser, *, workers: bool = True) -> None:
        p.add_argument("--out", default="runs", help="where run folders are made (default: runs)")
        p.add_argument("--quiet", action="store_true", help="show nothing but the result")
        if workers:
            p.add_argument("--workers", type=int, default=1, help="runs side by side, one process each (default: 1)")

    p = verb("list", "the methods, their papers and the state of their evidence")
    p.add_argument("--json", action="store_true", help="as JSON")

    p = verb("show", "everything about one method: paper, equation, recipes, claims and what was measured")
    p.add_argument("method", help="slug")

    p = verb("run", "train by one method; the same command goes on where it was stopped", OVERRIDES)
    p.add_argument("method", help="slug, recipe file or run folder")
    p.add_argument("--recipe", default="small", help="which recipe of the slug: small (default) or paper")
    p.add_argument("--seed", type=int, default=0, help="splits, first weights, order, augmentation (default: 0)")
    p.add_argument("--name", help="run folder below --out (default: slug and a hash of the recipe)")
    p.add_argument("--dry-run", action="store_true", help="print stages, sizes and an estimate of the time")
    p.add_argument("--no-report", action="store_true", help="do not write the report page")
    runs(p, workers=False)

    p = verb(
        "compare",
        "train several arms with the same seeds and compare them pairwise",
        'An arm is a slug or a recipe file, with keys of its own: "smooth=supervised --label_smoothing 0.1".\n'
        + OVERRIDES,
    )
    p.add_argument("arms", nargs="+", help="slugs, recipe files, NAME=SLUG, or one comparison file .yaml")
    p.add_argument("--seeds", type=int, help="number of seeds, from 0 (default: 3)")
    p.add_argument("--reference", help="arm the others are compared with (default: supervised, else the first)")
    p.add_argument("--name", help="folder below --out")
    p.add_argument("--no-report", action="store_true", help="do not write the report page")
    runs(p)

    p = verb("demo", "the digits of scikit-learn: a teacher, four students with few labels, a report")
    runs(p)

    p = verb("tune", "search a method's settings on validation data", OVERRIDES)
    p.add_argument("method", help="slug or recipe file")
    p.add_argument(
        "--space",
        action="append",
        default=[],
        metavar="KEY=VALUES",
        help="fit.optimizer.lr=[0.01,0.03,0.1] or fit.optimizer.lr={low: 0.01, high: 0.3, log: true}; repeatable",
    )
    p.add_argument("--trials", type=int, default=8, help="settings tried (default: 8)")
    p.add_argument("--seeds", type=int, default=2, help="seeds of each trial (default: 2)")
    p.add_argument("--metric", default="accuracy", help="validation metric (default: accuracy)")
    p.add_argument("--better", choices=("higher", "lower"), default="higher", help="its better direction")
    p.add_argument("--name", help="folder below --out")
    runs(p)

    p = verb("verify", "measure what a method claims against tuned baselines, and write the evidence", OVERRIDES)
    p.add_argument("method", help="slug")
    p.add_argument("--seeds", type=int, help="fresh seeds (default: the claim's)")
    p.add_argument("--evidence", help="file to write (default: the package's evidence/SLUG.json)")
    runs(p)

    p = verb(
        "evaluate",
        "measure a saved model on data",
        "Data: --data digits, --data folder --data.root photos ...",
    )
    p.add_argument("model", help="folder of a saved model, or of a run")
    p.add_argument("--seed", type=int, default=0, help="seed of the split (default: 0)")

    p = verb("predict", "label images with a saved model")
    p.add_argument("model", help="folder of a saved model, or of a run")
    p.add_argument("images", nargs="+", help="image files or folders")
    p.add_argument("--to", default="predictions.csv", help="file to write, .csv or .jsonl (default: predictions.csv)")

    p = verb("export", "write a saved model for other programs, checked against PyTorch")
    p.add_argument("model", help="folder of a saved model, or of a run")
    p.add_argument("--format", default="onnx", choices=("onnx",), help="onnx")
    p.add_argument("--to", help="file to write (default: MODEL.onnx beside the folder)")

    p = verb("report", "write the page of a run or a comparison")
    p.add_argument("folder", help="run folder or comparison folder")
    return parser


def split_overrides(argv: Sequence[str], known: dict[str, bool]) -> tuple[list[str], dict[str, Any]]:
    """Separate a verb's own options from keys of the recipe.

    Args:
        argv: the words after the verb.
        known: the verb's own options, and whether each takes a value.

    Returns:
        The words for the verb, and the overrides by dotted key.

    Raises:
        LimbeckError: an override without a value.
    """
    from limbeck.recipe import parse_value

    own: list[str] = []
    overrides: dict[str, Any] = {}
    words = list(argv)
    while words:
        word = words.pop(0)
        option, _, value = word.partition("=")
        if not word.startswith("--") or option in known:
            own.append(word)
            if known.get(word) and words:
                own.append(words.pop(0))
            continue
        if "=" not in word:
            if not words or words[0].startswith("--"):
                raise LimbeckError(f"{option} needs a value: {option} VALUE{nearest(option, known)}")
            value = words.pop(0)
        overrides[option.removeprefix("--")] = parse_value(value)
    return own, overrides


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _main(words)
    except LimbeckError as error:
        print(f"limbeck: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"\nlimbeck: {stop or 'stopped'}; the same command goes on from there", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1


def _main(words: list[str]) -> int:
    parser = _parser()
    verbs = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction)).choices
    if not words:
        parser.print_help()
        return 0
    name, rest = words[0], words[1:]
    if name.startswith("-"):
        parser.parse_args(words)
    if name not in verbs:
        raise LimbeckError(f"unknown verb {name!r}.{nearest(name, verbs)} There are: {', '.join(verbs)}")
    verb = verbs[name]
    wants_help = any(word in ("-h", "--help") for word in rest)
    if wants_help and name == "run" and (slug := next((w for w in rest if not w.startswith("-")), None)):
        from limbeck.help import print_help

        print_help(verb, slug)
        return 0
    known = {option: action.nargs != 0 for action in verb._actions for option in action.option_strings}
    own, overrides = split_overrides(rest, known)
    arguments = verb.parse_args(own)
    if overrides and name not in ("run", "compare", "tune", "verify", "evaluate"):
        key = next(iter(overrides))
        raise LimbeckError(f"limbeck {name} has no option --{key}.{nearest('--' + key, known)}")
    _VERBS[name](arguments, overrides)
    return 0


def _list(arguments: argparse.Namespace, overrides: dict[str, Any]) -> None:
    from limbeck.catalogue import list_methods

    rows = list_methods()
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    _table(
        ["slug", "task", "paper", "arXiv", "kind", "evidence"],
        [[r["slug"], r["task"], r["paper"], r["arxiv"], r["kind"], r["evidence"]] for r in rows],
    )


def _show(arguments: argparse.Namespace, overrides: dict[str, Any]) -> None:
    from limbeck.catalogue import describe

    method = describe(arguments.method)
    print(f"{method['slug']}: {method['paper']} (arXiv {method['arxiv']}, {method['year']}), {method['task']}\n")
    print(method["doc"])
    for name in ("small", "paper", "claim"):
        if name in method["recipes"]:
            print(f"\n--- {name}.yaml\n{method['recipes'][name].rstrip()}")
    print(f"\n--- evidence: {method['evidence']}")
    if method["measured"]:
        for claim in method["measured"]["claims"]:
            difference = claim["difference"]
            state = "reported" if claim["kind"] == "report" else "holds" if claim["holds"] else "does not hold"
            print(
                f"{state:>13}  {claim['text']}: {difference['mean']:+.4f} "
                f"[{difference['low']:+.4f}, {difference['high']:+.4f}] over {len(claim['seeds'])} seeds"
            )
        print(method["measured"]["finding"])


def _run(arguments: argparse.Namespace, overrides: dict[str, Any]) -> None:
    from limbeck.verbs.run import dry_run, run

    if arguments.dry_run:
        stages = dry_run(arguments.method, seed=arguments.seed, recipe=arguments.recipe, **overrides)
        keys = ("stage", "updates", "batch_size", "training_samples", "parameters")
        _table([*keys, "seconds"], [[*(str(s[key]) for key in keys), f"{s['seconds']:.0f}"] for s in stages])
        print(f"about {sum(s['seconds'] for s in stages):.0f} s of training on this machine; nothing was written")
        return
    done = run(
        arguments.method,
        seed=arguments.seed,
        recipe=arguments.recipe,
        name=arguments.name,
        out=arguments.out,
        quiet=arguments.quiet,
        **overrides,
    )
    _metrics_table({"student": done.metrics} | _teacher(done.metrics))
    print(f"model: {done.folder / done.result['stage'] / 'model'}")
    if not arguments.no_report:
        _report_of(done.folder.parent)


def _teacher(metrics: dict[str, float]) -> dict[str, dict[str, float]]:
    found = {key.removeprefix("teacher/"): value for key, value in metrics.items() if key.startswith("teacher/")}
    return {"teacher": found} if found else {}


def _compare(arguments: argparse.Namespace, overrides: dict[str, Any]) -> None:
    from limbeck.recipe import nest, overlay, read_yaml
    from limbeck.verbs.compare import compare

    options: dict[str, Any] = {"out": arguments.out, "workers": arguments.workers, "quiet": arguments.quiet}
    arms: Any = arguments.arms
    seeds = arguments.seeds or 3
    if len(arms) == 1 and Path(arms[0]).suffix in (".yaml", ".yml"):
        file = read_yaml(Path(arms[0]).read_text(encoding="utf-8"), arms[0])
        arms = {name: overlay(file.get("shared", {}), arm) for name, arm in file["arms"].items()}
        seeds = arguments.seeds or file.get("seeds", 3)
        options |= {"title": file.get("title"), "reference": file.get("reference")}
    else:
        arms = _arms(arms)
    if arguments.reference:
        options["reference"] = arguments.reference
    done = compare(arms, seeds=seeds, name=arguments.name, **options, **nest(overrides))
    _show_comparison(done, report=not arguments.no_report)


def _arms(words: Sequence[str]) -> dict[str, Any]:
    """``"smooth=supervised --label_smoothing 0.1"`` as a named recipe."""
    from limbeck.recipe import nest, overlay, read

    arms: dict[str, Any] = {}
    for word in words:
        first, *rest = shlex.split(word)
        name, equals, slug = first.partition("=")
        slug = slug if equals else first
        name = name if equals else Path(first).stem
        own, keys = split_overrides(rest, {})
        if own:
            raise LimbeckError(f"arm {word!r}: {own[0]!r} is not a key; write --KEY VALUE")
        if name in arms:
            raise LimbeckError(f"two arms are called {name!r}; name them: NAME={slug}")
        arms[name] = overlay(read(slug), nest(keys))
    return arms


def _demo(arguments: argparse.Namespace, overrides: dict[str, Any]) -> None:
    from importlib import resources

    from limbeck.recipe import overlay, read_yaml
    from limbeck.verbs.compare import compare

    text = (resources.files("limbeck") / "recipes" / "demo.yaml").read_text(encoding="utf-8")
    demo = read_yaml(text, "demo.yaml")
    done = compare(
        {name: overlay(demo["shared"], arm) for name, arm in demo["arms"].items()},
        seeds=demo["seeds"],
        reference=demo["reference"],
        title=demo["title"],
        name="demo",
        out=arguments.out,
        workers=arguments.workers,
        quiet=arguments.quiet,
    )
    _show_comparison(done, report=True)


def _show_comparison(done: Any, *, report: bool) -> None:
    from statistics import fmean

    means = {arm: {key: fmean(values) for key, values in metrics.items()} for arm, metrics in done.arms.items()}
    teachers = [found["teacher"] for metrics in means.values() if (found := _teacher(metrics))]
    _metrics_table(means | ({"teacher": teachers[0]} if teachers else {}))
    print(done.finding)
    if report:
        _report_of(done.folder)


def _tune(arguments: argparse.Namespace, overrides: dict[str, Any]) -> None:
    from limbeck.recipe import parse_value
    from limbeck.verbs.tune import tune

    space = {}
    for text in arguments.space:
        key, equals, values = text.partition("=")
        if not equals:
            raise LimbeckError(f"--space {text!r}: write KEY=VALUES, such as fit.optimizer.lr=[0.01,0.1]")
        space[key] = parse_value(values)
    options = {
        key: getattr(arguments, key) for key in ("trials", "seeds", "metric", "better", "name", "out", "workers")
    }
    done = tune(arguments.method, space, quiet=arguments.quiet, **options, **overrides)
    _table(
        [*space, f"validation {arguments.metric}"],
        [[*map(str, t["values"].values()), " ".join(f"{v:.4f}" for v in t[arguments.metric])] for t in done.trials],
    )
    print("best: " + " ".join(f"--{key} {value}" for key, value in done.overrides.items()) + f" ({done.value:.4f})")


def _verify(arguments: argparse.Namespace, overrides: dict[str, Any]) -> None:
    from limbeck.verbs.verify import verify

    measured = verify(
        arguments.method,
        out=arguments.out,
        evidence=arguments.evidence,
        workers=arguments.workers,
        seeds=arguments.seeds,
        quiet=arguments.quiet,
        **overrides,
    )
    _table(
        ["claim", "kind", "difference", "95% interval", "holds"],
        [
            [
                c["text"],
                c["kind"],
                f"{c['difference']['mean']:+.4f}",
                ""
                if c["difference"]["low"] is None
                else f"{c['difference']['low']:+.4f} to {c['difference']['high']:+.4f}",
                "reported" if c["kind"] == "report" else "yes" if c["holds"] else "NO",
            ]
            for c in measured["claims"]
        ],
    )


def _model_folder(word: str) -> Path | str:
    """The folder of a saved model, given itself or a run folder that holds one."""
    folder = Path(word)
    if (folder / "config.json").exists() or not folder.is_dir():
        return word
    found = sorted(folder.glob("**/fit/model/config.json"))
    if not found:
        raise LimbeckError(f"{folder} holds no saved model (config.json and model.safetensors)")
    return found[0].parent


def _evaluate(arguments: argparse.Namespace, overrides: dict[str, Any]) -> None:
    from limbeck.recipe import nest
    from limbeck.verbs.evaluate import evaluate

    block = nest(overrides).get("data", {})
    block = {"name": block} if isinstance(block, str) else dict(block)
    if set(nest(overrides)) - {"data"} or "name" not in block:
        raise LimbeckError("limbeck evaluate needs the data and nothing else: --data digits, --data.labels_per_class 5")
    metrics = evaluate(_model_folder(arguments.model), block.pop("name"), seed=arguments.seed, **block)
    _metrics_table({"model": metrics})


def _predict(arguments: argparse.Namespace, overrides: dict[str, Any]) -> None:
    from limbeck.verbs.predict import predict

    images = [Path(word) for word in arguments.images]
    source: Any = images[0] if len(images) == 1 else images
    rows = predict(_model_folder(arguments.model), source, out=arguments.to)
    print(f"{len(rows)} images labelled: {arguments.to}")


def _export(arguments: argparse.Namespace, overrides: dict[str, Any]) -> None:
    from limbeck.verbs.export import export

    folder = Path(_model_folder(arguments.model))
    to = Path(arguments.to) if arguments.to else folder.with_suffix(".onnx")
    print(export(folder, to, format=arguments.format))


def _report(arguments: argparse.Namespace, overrides: dict[str, Any]) -> None:
    _report_of(Path(arguments.folder))


def _report_of(folder: Path) -> None:
    from limbeck.report import write

    print(f"report: {write(folder).resolve()}")


_VERBS: dict[str, Callable[[argparse.Namespace, dict[str, Any]], None]] = {
    "list": _list,
    "show": _show,
    "run": _run,
    "compare": _compare,
    "demo": _demo,
    "tune": _tune,
    "verify": _verify,
    "evaluate": _evaluate,
    "predict": _predict,
    "export": _export,
    "report": _report,
}


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns)
    for row in rows:
        table.add_row(*row)
    Console().print(table, markup=False)


def _metrics_table(models: dict[str, dict[str, float]]) -> None:
    columns = {
        "accuracy": "{:.1%}",
        "nll": "{:.3f}",
        "ece": "{:.1%}",
        "scaled/nll": "{:.3f}",
        "parameters": "{:,.0f}",
        "macs": "{:,.0f}",
        "latency_ms": "{:.2f}",
    }
    titles = ["", "accuracy", "NLL", "ECE", "NLL scaled", "parameters", "MACs", "ms/image"]
    rows = [
        [name, *(form.format(m[key]) if key in m else "" for key, form in columns.items())]
        for name, m in models.items()
    ]
    _table(titles, rows)
