import shutil
from pathlib import Path

import pytest

from .folders import Digits, comparison_folder, run_folder


@pytest.fixture(scope="session")
def digits() -> Digits:
    return Digits()


@pytest.fixture(scope="session")
def sources(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run and a comparison; not to be changed."""
    folder = tmp_path_factory.mktemp("runs")
    run_folder(folder / "digits-kd", digits)
    comparison_folder(folder / "digits-compared", digits)
    return {"run": folder / "digits-kd", "comparison": folder / "digits-compared"}


@pytest.fixture
def run(sources: dict[str, Path], tmp_path: Path) -> Path:
    """A run folder of the test's own."""
    return shutil.copytree(sources["run"], tmp_path / "digits-kd")


@pytest.fixture
def comparison(sources: dict[str, Path], tmp_path: Path) -> Path:
    """A comparison folder of the test's own."""
    return shutil.copytree(sources["comparison"], tmp_path / "digits-compared")
