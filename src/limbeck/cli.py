"""The command line: parses, runs the verb, and says in one line what a user can mend."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from limbeck import show
from limbeck.commands import COMMANDS, print_keys
from limbeck.errors import LimbeckError, nearest
from limbeck.options import make_parser, split_keys
from limbeck.signature import UnknownKeyError

TAKE_KEYS = ("run", "compare", "tune", "verify", "label", "evaluate")
"""Verbs that take keys of a recipe as options."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0, 2 for what the user can mend, 130 for an interrupted run.
    """
    # Last, so that a file of the current folder cannot stand in for a library.
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        _main(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except LimbeckError as error:
        print(f"limbeck: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"\nlimbeck: {str(stop) or 'stopped'}; the same command goes on from there", file=sys.stderr)
        return 130
    except BrokenPipeError:
        show.out_of_pipe()
        return 1
    except OSError as error:
        if error.filename is None:
            raise
        print(f"limbeck: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


def _main(words: list[str]) -> None:
    parser = make_parser()
    verbs = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction)).choices
    if not words:
        parser.print_help()
        return
    name, rest = words[0], words[1:]
    if name.startswith("-"):
        _refuse_misspelt(parser, name)
        try:
            parser.parse_args(words)
        except SystemExit:
            return
    if name not in verbs:
        raise LimbeckError(f"unknown verb {name!r}.{nearest(name, verbs)} There are: {', '.join(verbs)}")
    verb = verbs[name]
    own = {option: action.nargs != 0 for action in verb._actions for option in action.option_strings}
    wants_help = any(word in ("-h", "--help") for word in rest)
    if wants_help:
        rest = [word for word in rest if word not in ("-h", "--help")]
        if name != "run" or not rest:
            verb.print_help()
            return
    if name not in TAKE_KEYS:
        for word in rest:
            _refuse_misspelt(verb, word)
    kept, overrides = split_keys(rest, own)
    arguments = verb.parse_args(kept)
    try:
        if wants_help:
            print_keys(verb, arguments, overrides)
        else:
            COMMANDS[name](arguments, overrides)
    except UnknownKeyError as error:
        meant = nearest(f"--{error.key}", own) if error.key in overrides else ""
        raise LimbeckError(
            f"{error}; options of limbeck {name}: {', '.join(own)}.{meant}" if meant else error
        ) from None


def _refuse_misspelt(parser: argparse.ArgumentParser, word: str) -> None:
    options = [option for action in parser._actions for option in action.option_strings]
    option = word.partition("=")[0]
    if word.startswith("-") and word != "-" and option not in options:
        raise LimbeckError(
            f"{parser.prog} has no option {option}.{nearest(option, options)} See '{parser.prog} --help'"
        )
