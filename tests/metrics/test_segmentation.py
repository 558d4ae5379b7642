import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from limbeck.errors import LimbeckError
from limbeck.metrics.segmentation import iou, miou, pixel_accuracy, pixel_confusion


def drawn(seed: int, classes: int, present: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(-1, present, (3, 8, 9), generator=generator)
    truth[0, 0, 0] = 0
    predicted = torch.randint(present, (3, 8, 9), generator=generator)
    return torch.where(torch.rand(3, 8, 9, generator=generator) < 0.5, truth.clamp(min=0), predicted), truth


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), classes=st.integers(2, 8), absent=st.integers(0, 3))
def test_against_torchmetrics(seed: int, classes: int, absent: int) -> None:
    present = max(1, classes - absent)
    predicted, truth = drawn(seed, classes, present)
    matrix = pixel_confusion(predicted, truth, classes)
    jaccard = MulticlassJaccardIndex(classes, average="none", ignore_index=-1)(predicted, truth)
    ours = iou(matrix)
    # torchmetrics says 0 for a class that is neither there nor predicted, and leaves it out of its mean.
    torch.testing.assert_close(ours.nan_to_num(0.0).float(), jaccard)
    macro = MulticlassJaccardIndex(classes, average="macro", ignore_index=-1)(predicted, truth)
    assert miou(matrix) == pytest.approx(float(macro), abs=1e-6)
    micro = MulticlassAccuracy(classes, average="micro", ignore_index=-1)(predicted, truth)
    assert pixel_accuracy(matrix) == pytest.approx(float(micro), abs=1e-6)


def test_counts() -> None:
    truth = torch.tensor([[0, 0, 1], [2, -1, 1]])
    predicted = torch.tensor([[0, 1, 1], [0, 2, 1]])
    matrix = pixel_confusion(predicted, truth, 4)
    assert matrix.tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert iou(matrix).tolist()[:3] == [1 / 3, 2 / 3, 0.0]
    assert iou(matrix)[3].isnan()
    assert miou(matrix) == pytest.approx(1 / 3)
    assert pixel_accuracy(matrix) == 3 / 5
    # Batches add up.
    parts = [pixel_confusion(p, t, 4) for p, t in zip(predicted, truth, strict=True)]
    assert torch.equal(parts[0] + parts[1], matrix)


def test_perfect_and_hopeless() -> None:
    truth = torch.tensor([0, 1, 2])
    assert miou(pixel_confusion(truth, truth, 3)) == pixel_accuracy(pixel_confusion(truth, truth, 3)) == 1.0
    assert miou(pixel_confusion((truth + 1) % 3, truth, 3)) == 0.0


def test_errors() -> None:
    with pytest.raises(LimbeckError, match="truth has classes 0 to 3, not in"):
        pixel_confusion(torch.tensor([0, 0]), torch.tensor([0, 3]), 3)
    with pytest.raises(LimbeckError, match="no pixels"):
        miou(pixel_confusion(torch.tensor([0]), torch.tensor([-1]), 3))
