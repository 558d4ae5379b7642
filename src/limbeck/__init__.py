"""limbeck: small, calibrated models from labels that something else makes.

Every verb of the command line is a function here, imported when it is first used::

    import limbeck

    done = limbeck.run("kd", data="digits", student="cnn", teacher="supervised")
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from limbeck.catalogue import list_methods as list_methods
    from limbeck.errors import LimbeckError as LimbeckError
    from limbeck.verbs.compare import compare as compare
    from limbeck.verbs.evaluate import evaluate as evaluate
    from limbeck.verbs.export import export as export
    from limbeck.verbs.label import label as label
    from limbeck.verbs.predict import predict as predict
    from limbeck.verbs.run import Run as Run
    from limbeck.verbs.run import dry_run as dry_run
    from limbeck.verbs.run import run as run
    from limbeck.verbs.tune import tune as tune
    from limbeck.verbs.verify import verify as verify

__version__ = "0.1.0"

_HOMES = {
    "LimbeckError": "errors",
    "Run": "verbs.run",
    "compare": "verbs.compare",
    "dry_run": "verbs.run",
    "evaluate": "verbs.evaluate",
    "export": "verbs.export",
    "label": "verbs.label",
    "list_methods": "catalogue",
    "predict": "verbs.predict",
    "run": "verbs.run",
    "tune": "verbs.tune",
    "verify": "verbs.verify",
}
__all__ = ["__version__", *sorted(_HOMES)]


_PACKAGES = ("data", "labels", "losses", "methods", "metrics", "models", "report", "stages", "teachers")


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"limbeck.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'limbeck' has no attribute {name!r}")
    return getattr(importlib.import_module(f"limbeck.{_HOMES[name]}"), name)
