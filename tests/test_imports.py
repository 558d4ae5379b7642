"""The order of the house, and how light its door is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = (
    "torch",
    "torchvision",
    "timm",
    "datasets",
    "sklearn",
    "scipy",
    "onnx",
    "onnxruntime",
    "optuna",
    "plotly",
)


def test_no_import_runs_up_the_house() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "module",
    ["limbeck", "limbeck.methods.index", "limbeck.models.index", "limbeck.data.index", "limbeck.cli"],
)
def test_listing_and_help_import_nothing_heavy(module: str) -> None:
    # A process of its own: here torch has long been imported.
    code = f"import {module}, json, sys; print(json.dumps(sorted(name.split('.')[0] for name in sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout))
    assert "limbeck" in loaded
    assert not loaded & set(HEAVY)
