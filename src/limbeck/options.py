"""The verbs of the command line and their options. Imports no torch."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import limbeck
from limbeck.errors import LimbeckError, nearest

Overrides = dict[str, Any]

DESCRIPTION = """\
Train small, calibrated models from labels that something else makes.

  limbeck demo                 on digits: a teacher, small students, a report
  limbeck list                 the methods, their papers, their evidence
  limbeck show ps-kd           equation, recipe, claims and evidence of a method
  limbeck run kd --help        every key of a recipe, with its meaning and value
  limbeck run kd --data folder --data.root photos --student.width 16
  limbeck compare supervised kd ps-kd --seeds 5
"""

KEYS = """\
Every key of a recipe is an option, as in

  --fit.epochs 5 --student.width 32
  --student timm --student.model resnet18
  --student my_module.MyNet          a class of yours, in the current folder
  --data folder --data.root photos   photos/CLASS/*.png
  --teacher runs/NAME/seed-0/fit/model

'limbeck run METHOD --help' documents each key.
"""

COMPARISON = """\
An arm is a slug, a recipe file, or either with a name and keys of its own:

  limbeck compare supervised "smooth=supervised --label_smoothing 0.1"

A comparison file names its arms and what they share:

  title: Does smoothing help?
  seeds: 5
  reference: plain
  shared: {data: digits, student: cnn, fit: {epochs: 5}}
  arms:
    plain: {method: supervised}
    smooth: {method: supervised, label_smoothing: 0.1}

Keys on the command line are laid over every arm.

"""

SPACE = """\
A space is a list of values or, continuously, a range; each --space adds a key:

  limbeck tune kd --space "fit.optimizer.lr=[0.01, 0.03, 0.1]"
  limbeck tune kd --space "temperature={low: 1.0, high: 8.0, log: true}"

"""


class Parser(argparse.ArgumentParser):
    """argparse with our errors."""

    def error(self, message: str) -> NoReturn:
        """What is wrong with the line.

        Raises:
            LimbeckError: always.
        """
        raise LimbeckError(f"{message}; see '{self.prog} --help'")


def make_parser() -> Parser:
    """The verbs with their own options; keys of recipes are split off before, by :func:`split_keys`."""
    parser = Parser("limbeck", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"limbeck {limbeck.__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=Parser)

    def verb(name: str, does: str, epilog: str = "") -> argparse.ArgumentParser:
        return verbs.add_parser(
            name,
            help=does,
            description=does[0].upper() + does[1:] + ".",
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def engine(p: argparse.ArgumentParser) -> None:
        p.add_argument(
            "--engine",
            choices=("processes", "ray"),
            default="processes",
            help="processes of this machine (default), or tasks of a Ray cluster",
        )
        p.add_argument(
            "--address",
            help="of a running Ray cluster: auto, HOST:PORT or ray://HOST:PORT (default: one is started and ended)",
        )

    def runs(p: argparse.ArgumentParser, *, workers: bool = True) -> None:
        p.add_argument("--out", default="runs", help="where run folders are made (default: runs)")
        p.add_argument("--quiet", action="store_true", help="show nothing but the result")
        if workers:
            p.add_argument(
                "--workers", type=int, default=1, help="how many runs side by side, one process each (default: 1)"
            )
            engine(p)

    p = verb("list", "the methods, their papers and the state of their evidence")
    p.add_argument("--json", action="store_true", help="as JSON")

    p = verb("show", "one method: its paper, equation, recipes, claims and what was measured")
    p.add_argument("method", help="slug")

    p = verb("run", "train by one method; the same command goes on where it was stopped", KEYS)
    p.add_argument("method", help="slug, recipe file, or the folder of a run to repeat its recipe")
    p.add_argument("--recipe", default="small", help="which recipe of the slug: small (default) or paper")
    p.add_argument("--seed", type=int, default=0, help="splits, first weights, order, augmentation (default: 0)")
    p.add_argument("--name", help="run folder below --out (default: slug and a hash of the recipe)")
    p.add_argument(
        "--dry-run", action="store_true", help="print stages, sizes and an estimate of the time; write nothing"
    )
    p.add_argument("--no-report", action="store_true", help="do not write the report page")
    runs(p, workers=False)

    p = verb(
        "compare",
        "train several arms with the same seeds and compare them pairwise",
        COMPARISON + KEYS,
    )
    p.add_argument("arms", nargs="+", help="slugs or recipe files, or one comparison file (see below)")
    p.add_argument("--seeds", type=int, help="number of seeds, from 0 (default: 3)")
    p.add_argument("--title", help="heading of the report")
    p.add_argument("--reference", help="arm the others are compared with (default: supervised, else the first)")
    p.add_argument("--name", help="folder below --out")
    p.add_argument("--no-report", action="store_true", help="do not write the report page")
    runs(p)

    p = verb("demo", "the digits of scikit-learn: a teacher, students with few labels, a report")
    runs(p)

    p = verb("tune", "search a method's settings on validation data", SPACE + KEYS)
    p.add_argument("method", help="slug or recipe file")
    p.add_argument(
        "--space",
        action="append",
        default=[],
        metavar="KEY=VALUES",
        help="a key and the values it may take (see below)",
    )
    p.add_argument("--trials", type=int, default=8, help="settings tried, at most (default: 8)")
    p.add_argument("--seeds", type=int, default=2, help="seeds of each trial (default: 2)")
    p.add_argument("--metric", default="accuracy", help="validation metric (default: accuracy)")
    p.add_argument("--better", choices=("higher", "lower"), default="higher", help="its better direction")
    p.add_argument("--name", help="folder below --out")
    runs(p)

    p = verb("verify", "measure what a method claims against tuned baselines, and write the evidence", KEYS)
    p.add_argument("method", help="slug")
    p.add_argument("--seeds", type=int, help="fresh seeds (default: the claim's)")
    p.add_argument("--evidence", help="file to write (default: the package's evidence/SLUG.json)")
    runs(p)

    p = verb(
        "evaluate",
        "measure a saved model on data",
        "Data are named as in a recipe:\n\n  limbeck evaluate runs/NAME --data folder --data.root photos\n\n"
        "Without --data a run is measured on its own data, split as it was.",
    )
    p.add_argument("model", help="folder of a saved model, or of a run")
    p.add_argument("--split", default="test", help="test (default), validation or train")
    p.add_argument("--seed", type=int, default=0, help="seed of the split (default: 0)")

    p = verb(
        "label",
        "store a saved model's labels of training samples, for runs that then need no teacher",
        "Data are named as in a recipe; a run that reads the store takes the same data and seed:\n\n"
        "  limbeck label runs/BIG --data digits --views 40 --top-k 5 --out labels\n"
        "  limbeck run kd --data digits --teacher store --teacher.folder labels\n\n"
        "Without --data the data of the model's run are labelled. The same command goes on where it was stopped;\n"
        "with more views it adds the new ones.",
    )
    p.add_argument("model", help="folder of a saved model, or of a run")
    p.add_argument("--out", required=True, help="folder of the store")
    p.add_argument("--views", type=int, default=1, help="views of each sample; epoch e reads e %% views (default: 1)")
    p.add_argument("--top-k", type=int, metavar="K", help="keep the K most probable classes (default: all logits)")
    p.add_argument("--hard", action="store_true", help="keep the most probable class only")
    p.add_argument(
        "--storage", default="float16", choices=("float32", "float16", "uint8"), help="numbers kept (default: float16)"
    )
    p.add_argument(
        "--samples", default="all", choices=("all", "labeled", "unlabeled"), help="which samples (default: all)"
    )
    p.add_argument("--seed", type=int, default=0, help="of the split and the views, as of the run (default: 0)")
    p.add_argument("--batch-size", type=int, default=256, help="samples a forward pass (default: 256)")
    p.add_argument("--device", help="where the model runs, such as cuda (default: the CPU)")
    p.add_argument("--workers", type=int, default=1, help="how many tasks of --engine ray share the work (default: 1)")
    engine(p)
    p.add_argument("--quiet", action="store_true", help="show nothing but the result")

    p = verb("predict", "label images with a saved model")
    p.add_argument("model", help="folder of a saved model, or of a run")
    p.add_argument("images", nargs="+", help="image files or folders")
    p.add_argument("--to", default="predictions.csv", help="file to write, .csv or .jsonl (default: predictions.csv)")
    p.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        help="divides the logits; evaluate fits one on validation data (default: 1)",
    )

    p = verb("export", "write a saved model for other programs, checked against PyTorch")
    p.add_argument("model", help="folder of a saved model, or of a run")
    p.add_argument("--format", default="onnx", choices=("onnx",), help="kind of file (default: onnx)")
    p.add_argument("--to", help="file to write (default: beside the model's folder)")

    p = verb("report", "write the page of a run or a comparison")
    p.add_argument("folder", help="run folder or comparison folder")
    return parser


def split_keys(words: Sequence[str], own: Mapping[str, bool]) -> tuple[list[str], Overrides]:
    """Separate a verb's own options from keys of the recipe.

    Args:
        words: what stands after the verb.
        own: the verb's own options, and whether each takes a value.

    Returns:
        The words for the verb, and the overrides by dotted key.

    Raises:
        LimbeckError: a key without a value.
    """
    from limbeck.yaml_text import parse_value

    kept: list[str] = []
    overrides: Overrides = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        option, _, value = word.partition("=")
        if not word.startswith("--") or option in own:
            kept.append(word)
            if own.get(word) and rest:
                kept.append(rest.pop(0))
            continue
        if "=" not in word:
            if not rest or rest[0].startswith("--"):
                meant = nearest(option, set(own) - {"-h", "--help"})
                raise LimbeckError(f"{option} needs a value, as in {option} VALUE" + (f".{meant}" if meant else ""))
            value = rest.pop(0)
        overrides[option.removeprefix("--")] = parse_value(value)
    return kept, overrides
