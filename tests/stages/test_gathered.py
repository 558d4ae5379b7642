"""Rows of all processes, with a gradient: two processes with shared negatives learn what one does."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from limbeck.data.load import load
from limbeck.data.samples import ImageData
from limbeck.methods.semi_supervised.contrastive import Contrastive
from limbeck.models.projector import project_contrastively
from limbeck.stages.processes import gathered

from .fits import fit, settings
from .toys import small

pytestmark = pytest.mark.filterwarnings(
    # Fabric's own: forking beside the threads of a test run.
    "ignore:.*fork.*:DeprecationWarning"
)


def test_alone_nothing_happens() -> None:
    values = torch.ones(3, 2)
    assert gathered(values) is values


@pytest.mark.parametrize("memory", [0, 24])
def test_two_processes_equal_one(tmp_path: Path, memory: int) -> None:
    data = load("digits", seed=0, train_size=160, view="none")
    assert isinstance(data, ImageData)

    def objective() -> Contrastive:
        torch.manual_seed(0)
        projector = project_contrastively(small(data), data.task, outputs=8, batch_norm=False)
        return Contrastive(projector, 0.5, "simclr_cifar@0.5-1", memory)

    one = fit(tmp_path / "one", objective(), data, settings())
    two = fit(tmp_path / "two", objective(), data, settings(devices=2, strategy="ddp_fork"))
    first, second = (load_file(folder / "model" / "model.safetensors") for folder in (one, two))
    start = objective().student.state_dict()
    moved = 0.0
    for name, weight in first.items():
        # Sums in another order: 1e-7 of a gradient, which the later ones of fifteen updates multiply, on some
        # processors to 4e-5. Without the gradient of the other process's rows it is 0.3.
        torch.testing.assert_close(second[name], weight, rtol=0, atol=2e-4, msg=name)
        moved = max(moved, float((weight - start[name]).abs().max()))
    assert moved > 0.01
