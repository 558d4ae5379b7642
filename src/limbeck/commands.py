"""What the verbs of the command line do: call the verb, print what came out."""

import argparse
import inspect
import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from limbeck import show
from limbeck.errors import LimbeckError
from limbeck.options import Overrides, split_keys

Command = Callable[[argparse.Namespace, Overrides], None]


def _list(arguments: argparse.Namespace, overrides: Overrides) -> None:
    from limbeck.catalogue import list_methods, sources

    rows = list_methods()
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    show.methods([row if "claim" in sources(row["slug"]) else {**row, "evidence": "-"} for row in rows])
    print("\n-: claims nothing\n'limbeck show METHOD' for one of them, 'limbeck run METHOD --help' for its keys")


def _show(arguments: argparse.Namespace, overrides: Overrides) -> None:
    from limbeck.catalogue import describe

    method = describe(arguments.method)
    print(show.prose(f"{method['slug']}: {method['paper']} (arXiv {method['arxiv']}, {method['year']})"))
    print(f"\n{show.prose(method['doc'])}")
    for name, text in method["recipes"].items():
        print(f"\n--- {name}.yaml\n{text.rstrip()}")
    print(f"\n--- evidence: {method['evidence']}")
    if method["measured"]:
        show.claims(method["measured"]["claims"])
        print(f"\n{show.prose(method['measured']['finding'])}")


def _run(arguments: argparse.Namespace, overrides: Overrides) -> None:
    from limbeck.stages.stage import is_first_process
    from limbeck.verbs.run import dry_run, run

    _refuse_reserved(run, overrides)
    if arguments.dry_run:
        stages = dry_run(arguments.method, seed=arguments.seed, recipe=arguments.recipe, **overrides)
        keys = {"stage": "stage", "updates": "updates", "batch_size": "batch", "training_samples": "samples"}
        keys |= {"parameters": "weights", "seconds": "seconds"}
        rows = [
            [f"{s[k]:,.0f}" if isinstance(s.get(k), int | float) else str(s.get(k, "")) for k in keys] for s in stages
        ]
        show.table([*keys.values()], rows, numbers=list(keys.values())[1:])
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
    if not is_first_process():
        return
    show.metrics({"student": done.metrics} | show.teacher(done.metrics))
    print(f"model: {done.folder / done.result['stage'] / 'model'}")
    if not arguments.no_report:
        _report_of(done.folder.parent)


def print_keys(verb: argparse.ArgumentParser, arguments: argparse.Namespace, overrides: Overrides) -> None:
    """``limbeck run METHOD --help``: the keys of the recipe, with what the other words of the line change."""
    from limbeck.help import print_help
    from limbeck.verbs.run import prepare, run

    _refuse_reserved(run, overrides)
    print_help(verb, prepare(arguments.method, arguments.recipe, **overrides))


def _refuse_reserved(function: Callable[..., Any], overrides: Overrides) -> None:
    """Words that are parameters of the function, and no keys of a recipe."""
    for key in overrides:
        if key in inspect.signature(function).parameters:
            raise LimbeckError(f"--{key} is neither an option nor a key of the recipe")


def _compare(arguments: argparse.Namespace, overrides: Overrides) -> None:
    from limbeck.recipe import read_text
    from limbeck.verbs.compare import compare, read_comparison

    _refuse_reserved(compare, overrides)
    file = Path(arguments.arms[0])
    if len(arguments.arms) == 1 and file.suffix in (".yaml", ".yml"):
        options = read_comparison(read_text(file), file.name)
    else:
        options = {"arms": _arms(arguments.arms)}
    options |= {
        key: getattr(arguments, key)
        for key in ("seeds", "reference", "title", "name")
        if getattr(arguments, key) is not None
    }
    done = compare(**options, **_how(arguments), **overrides)
    _show_comparison(done, report=not arguments.no_report)


def _how(arguments: argparse.Namespace) -> dict[str, Any]:
    """Where runs are made, by whom, and what is shown of them."""
    return {key: getattr(arguments, key) for key in ("out", "engine", "workers", "address", "quiet")}


def _arms(words: Sequence[str]) -> dict[str, Any]:
    """``"smooth=supervised --label_smoothing 0.1"`` as a named recipe."""
    from limbeck.recipe import nest, overlay, read

    arms: dict[str, Any] = {}
    for word in words:
        try:
            first, *rest = shlex.split(word) or [""]
        except ValueError as error:
            raise LimbeckError(f"arm {word!r}: {error}") from None
        name, equals, slug = first.partition("=")
        slug = slug if equals else first
        name = name if equals else Path(first).stem
        own, keys = split_keys(rest, {})
        if own:
            raise LimbeckError(f"arm {word!r}: {own[0]!r} is not a key; write --KEY VALUE")
        if name in arms:
            raise LimbeckError(f"two arms are called {name!r}; give them names, as in other={slug}")
        arms[name] = overlay(read(slug), nest(keys))
    return arms


def _demo(arguments: argparse.Namespace, overrides: Overrides) -> None:
    from importlib import resources

    from limbeck.verbs.compare import compare, read_comparison

    file = resources.files("limbeck") / "recipes" / "demo.yaml"
    options = read_comparison(file.read_text(encoding="utf-8"), "demo.yaml")
    done = compare(**options, name="demo", **_how(arguments))
    _show_comparison(done, report=True)


def _show_comparison(done: Any, *, report: bool) -> None:
    from statistics import fmean

    means = {arm: {key: fmean(values) for key, values in metrics.items()} for arm, metrics in done.arms.items()}
    teachers = [found["teacher"] for metrics in means.values() if (found := show.teacher(metrics))]
    show.metrics(means | ({"teacher": teachers[0]} if teachers else {}))
    print("\n" + show.prose(done.finding))
    if report:
        _report_of(done.folder)


def _tune(arguments: argparse.Namespace, overrides: Overrides) -> None:
    from limbeck.verbs.tune import tune
    from limbeck.yaml_text import parse_value

    _refuse_reserved(tune, overrides)
    space = {}
    for text in arguments.space:
        key, equals, values = text.partition("=")
        if not equals:
            raise LimbeckError(f"--space {text!r}: write KEY=VALUES, such as fit.optimizer.lr=[0.01,0.1]")
        space[key] = parse_value(values)
    options = {key: getattr(arguments, key) for key in ("trials", "seeds", "metric", "better", "name")}
    done = tune(arguments.method, space, **options, **_how(arguments), **overrides)
    show.table(
        [*space, f"validation {arguments.metric}"],
        [
            [
                *(f"{v:.4g}" if isinstance(v, float) else str(v) for v in trial["values"].values()),
                " ".join(f"{v:.4f}" for v in trial[arguments.metric]),
            ]
            for trial in done.trials
        ],
    )
    print(
        "\nbest: "
        + " ".join(f"--{key} {value}" for key, value in done.overrides.items())
        + f" ({arguments.metric} {done.value:.4f})"
    )


def _verify(arguments: argparse.Namespace, overrides: Overrides) -> None:
    from limbeck.catalogue import evidence_file
    from limbeck.verbs.verify import verify

    _refuse_reserved(verify, overrides)
    measured = verify(
        arguments.method, evidence=arguments.evidence, seeds=arguments.seeds, **_how(arguments), **overrides
    )
    show.claims(measured["claims"])
    print(f"\nevidence: {arguments.evidence or evidence_file(arguments.method)}")


def _model_folder(word: str) -> str | Path:
    """The folder of a saved model, given itself or a folder that holds one, as that of a run does."""
    folder = Path(word)
    if not folder.is_dir() or (folder / "config.json").exists():
        return word
    runs = sorted(folder.glob("**/run.json"))
    found = [run.parent / json.loads(run.read_text(encoding="utf-8"))["final"] / "model" for run in runs]
    found = found or sorted(file.parent for file in folder.glob("model/config.json"))
    if not found:
        raise LimbeckError(f"{folder} holds no saved model (config.json and model.safetensors)")
    if len(found) > 1:
        raise LimbeckError(f"{folder} holds {len(found)} models; name one of them: {', '.join(map(str, found))}")
    return found[0]


def _evaluate(arguments: argparse.Namespace, overrides: Overrides) -> None:
    from limbeck.verbs.evaluate import evaluate

    model = _model_folder(arguments.model)
    data, options = _data_given("evaluate", overrides, Path(model))
    show.metrics({"model": evaluate(model, data, split=arguments.split, seed=arguments.seed, **options)})


def _label(arguments: argparse.Namespace, overrides: Overrides) -> None:
    from limbeck.verbs.label import label

    model = _model_folder(arguments.model)
    data, options = _data_given("label", overrides, Path(model))
    names = ("views", "top_k", "hard", "storage", "samples", "seed", "batch_size", "device")
    found = label(model, data, **{name: getattr(arguments, name) for name in names}, **_how(arguments), **options)
    agreement = f", {found['agreement']:.1%} of them the true label" if "agreement" in found else ""
    print(f"labels of {found['bytes_a_label']:.0f} bytes each{agreement}: {arguments.out}")


def _data_given(verb: str, overrides: Overrides, model: Path) -> tuple[Any, Overrides]:
    """The data that the line names, with their options; without any those of the model's run."""
    from limbeck.recipe import nest

    given = nest(overrides)
    if not given:
        return _data_of(model), {}
    other = next((key for key in given if key != "data"), None)
    if other is not None:
        raise LimbeckError(f"limbeck {verb} has no option --{other}; it takes keys of the data, such as --data digits")
    block = {"name": given["data"]} if isinstance(given["data"], str) else dict(given["data"])
    if "name" not in block:
        raise LimbeckError("which data? Name them, as in --data digits, or --data folder --data.root photos")
    return block.pop("name"), block


def _data_of(model: Path) -> Any:
    """The data that the model of a run was trained with, split as they were."""
    from limbeck.assemble import load_data

    # runs/NAME/seed-N/STAGE/model
    run = model.absolute().parent.parent
    if not (run / "recipe.yaml").is_file():
        raise LimbeckError("which data? This is no model of a run: --data digits, or --data folder --data.root photos")
    return load_data(run)


def _predict(arguments: argparse.Namespace, overrides: Overrides) -> None:
    from limbeck.verbs.predict import predict

    images = [Path(word) for word in arguments.images]
    source: Any = images[0] if len(images) == 1 else images
    rows = predict(_model_folder(arguments.model), source, out=arguments.to, temperature=arguments.temperature)
    print(f"{len(rows)} image{'s' if len(rows) > 1 else ''} labelled: {arguments.to}")


def _export(arguments: argparse.Namespace, overrides: Overrides) -> None:
    from limbeck.verbs.export import export

    model = _model_folder(arguments.model)
    to = Path(arguments.to) if arguments.to else Path(str(model).rstrip("/") + ".onnx")
    if str(model).startswith("hf://") and not arguments.to:
        to = Path(to.name)
    done = export(model, to, format=arguments.format)
    print(f"exported: {done.path} (largest difference to PyTorch's logits: {done.difference:.1e})")


def _report(arguments: argparse.Namespace, overrides: Overrides) -> None:
    _report_of(Path(arguments.folder))


def _report_of(folder: Path) -> None:
    from limbeck.report import write

    print(f"report: {write(folder).resolve()}")


COMMANDS: dict[str, Command] = {
    "list": _list,
    "show": _show,
    "run": _run,
    "compare": _compare,
    "demo": _demo,
    "tune": _tune,
    "verify": _verify,
    "label": _label,
    "evaluate": _evaluate,
    "predict": _predict,
    "export": _export,
    "report": _report,
}
