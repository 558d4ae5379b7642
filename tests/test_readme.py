"""The code in the README runs as it is written."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

ROOT = Path(__file__).resolve().parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def _picture(label: int, number: int) -> np.ndarray:
    """Class 0 is bright on the left, class 1 on the right."""
    image = np.random.default_rng(number).integers(0, 100, (16, 16, 3), dtype=np.uint8)
    image[:, :8] += np.uint8(120 * (label == 0))
    image[:, 8:] += np.uint8(120 * (label == 1))
    return image


class MyDataset(Dataset[tuple[np.ndarray, int]]):
    def __init__(self, split: str) -> None:
        self.first = 0 if split == "train" else 1000

    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return _picture(index % 2, self.first + index), index % 2


class MyNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(768, 8), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def test_five_lines_each() -> None:
    assert len(BLOCKS) == 2
    for block in BLOCKS:
        assert len([line for line in block.splitlines() if line.strip()]) <= 5


def test_own_folder_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(20):
            Image.fromarray(_picture(label, 100 * label + number)).save(tmp_path / "photos" / name / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(BLOCKS[0], names)
    done = names["done"]
    assert (done.folder / "fit" / "model" / "model.safetensors").exists()
    assert 0 <= done.metrics["accuracy"] <= 1


def test_own_module_and_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, Any] = {"MyDataset": MyDataset, "MyNet": MyNet, "my_teacher": MyNet()}
    exec(BLOCKS[1], names)
    done = names["done"]
    assert "teacher/accuracy" in done.metrics
    assert done.result["method"] == "kd"


def test_generated_pages_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + "run: python docs/generate.py"
