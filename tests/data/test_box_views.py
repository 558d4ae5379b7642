import numpy as np
import pytest
import torch
from torch import Tensor

from limbeck.data import box_views
from limbeck.errors import LimbeckError

SIZE = (40, 60)
BOXES = torch.tensor([[[5.0, 4.0, 25.0, 30.0], [50.0, 30.0, 60.0, 40.0]]], dtype=torch.float64)


def _matrix(rows: list[list[float]]) -> Tensor:
    return torch.tensor([rows], dtype=torch.float64)


IDENTITY = _matrix([[1, 0, 0], [0, 1, 0], [0, 0, 1]])
FLIP = _matrix([[-1, 0, SIZE[1]], [0, 1, 0], [0, 0, 1]])
HALF = _matrix([[0.5, 0, 0], [0, 0.5, 0], [0, 0, 1]])


def _images(count: int = 6, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


def _view(name: str, images: Tensor, epoch: int = 0, first: int = 0, **options: float) -> box_views.BoxView:
    indices = torch.arange(first, first + len(images))
    epochs = torch.full_like(indices, epoch)
    return box_views.apply(name, images, seed=7, epochs=epochs, indices=indices, flip=True, **options)


def test_identity_only_clips() -> None:
    assert torch.equal(box_views.transform_boxes(IDENTITY, BOXES, SIZE), BOXES)
    outside = BOXES + 20
    expected = torch.tensor([[[25.0, 24.0, 45.0, 40.0], [60.0, 40.0, 60.0, 40.0]]], dtype=torch.float64)
    assert torch.equal(box_views.transform_boxes(IDENTITY, outside, SIZE), expected)


def test_flip_mirrors_x() -> None:
    x1, y1, x2, y2 = BOXES.unbind(-1)
    expected = torch.stack([SIZE[1] - x2, y1, SIZE[1] - x1, y2], -1)
    assert torch.equal(box_views.transform_boxes(FLIP, BOXES, SIZE), expected)


def test_quarter_turn_keeps_the_area() -> None:
    turn = _matrix([[0, -1, 50], [1, 0, 0], [0, 0, 1]])
    turned = box_views.transform_boxes(turn, BOXES[:, :1], (100, 100))
    sides = turned[..., 2:] - turned[..., :2]
    assert torch.equal(sides, torch.tensor([[[26.0, 20.0]]], dtype=torch.float64))


def test_there_and_back() -> None:
    for matrix in (FLIP, HALF, FLIP @ HALF):
        moved = box_views.transform_boxes(matrix, BOXES, SIZE)
        back = box_views.transform_boxes(torch.linalg.inv(matrix), moved, SIZE)
        torch.testing.assert_close(back, BOXES, rtol=0, atol=1e-12)  # float64, numbers up to 60
    angle = np.pi / 8
    turn = _matrix([[np.cos(angle), -np.sin(angle), 15], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    inner = BOXES[:, :1] / 2
    hull = box_views.transform_boxes(torch.linalg.inv(turn), box_views.transform_boxes(turn, inner, SIZE), SIZE)
    assert (hull[..., :2] < inner[..., :2]).all()
    assert (hull[..., 2:] > inner[..., 2:]).all()


def test_hull_against_brute_force() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        matrix = np.eye(3) + rng.normal(0, 0.3, (3, 3)) * [[1, 1, 20], [1, 1, 20], [0, 0, 0]]
        box = np.concatenate([rng.uniform(0, 20, 2), rng.uniform(20, 40, 2)])
        points = [matrix @ [x, y, 1] for x in box[[0, 2]] for y in box[[1, 3]]]
        xs, ys = [np.clip(p[0] / p[2], 0, SIZE[1]) for p in points], [np.clip(p[1] / p[2], 0, SIZE[0]) for p in points]
        found = box_views.transform_boxes(torch.from_numpy(matrix), torch.from_numpy(box)[None], SIZE)
        np.testing.assert_allclose(found[0], [min(xs), min(ys), max(xs), max(ys)], atol=1e-12)


def test_no_boxes() -> None:
    assert box_views.transform_boxes(FLIP, torch.zeros(1, 0, 4), SIZE).shape == (1, 0, 4)
    boxes, labels = box_views.move_boxes(FLIP.float(), torch.zeros(1, 0, 4), torch.zeros(1, 0, dtype=torch.int64), SIZE)
    assert boxes.shape == (1, 0, 4)
    assert labels.shape == (1, 0)


def test_what_leaves_the_image_has_no_label() -> None:
    away = _matrix([[1, 0, 12], [0, 1, 0], [0, 0, 1]])
    _, labels = box_views.move_boxes(away, BOXES, torch.tensor([[3, 4]]), SIZE)
    assert labels.tolist() == [[3, -1]]
    _, labels = box_views.move_boxes(IDENTITY, BOXES, torch.tensor([[3, 4]]), SIZE, least=10.0)
    assert labels.tolist() == [[3, -1]]


def test_warp_by_a_flip_is_a_flip() -> None:
    images = _images()
    moved = box_views.warp(images, FLIP.expand(6, 3, 3))
    # Bilinear weights of float32 coordinates: up to 60 pixels x 2^-24 x a few.
    torch.testing.assert_close(moved, images.flip(-1), rtol=0, atol=1e-4)
    torch.testing.assert_close(box_views.warp(images, IDENTITY.expand(6, 3, 3)), images, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["weak", "labeled", "strong"])
def test_boxes_follow_what_they_show(name: str) -> None:
    """A bright rectangle on black lies, in every view, inside the box that the matrix makes of its own."""
    box = torch.tensor([18.0, 12.0, 40.0, 26.0])
    images = torch.zeros(32, 1, *SIZE)
    images[:, :, 12:26, 18:40] = 1.0
    view = _view(name, images, min_scale=0.5)
    moved = box_views.transform_boxes(view.matrix, box.expand(32, 1, 4), SIZE)[:, 0]
    # Colours change, so what is looked for is what was moved: the image with its colours left alone.
    shown = box_views.warp(images, view.matrix.double())[:, 0] > 0.75
    for inside, (x1, y1, x2, y2) in zip(shown, moved.tolist(), strict=True):
        rows, columns = torch.nonzero(inside.any(1))[:, 0], torch.nonzero(inside.any(0))[:, 0]
        assert x1 - 1 <= columns.min()
        assert columns.max() + 1 <= x2 + 1
        assert y1 - 1 <= rows.min()
        assert rows.max() + 1 <= y2 + 1
    assert len({tuple(row) for row in view.matrix.flatten(1).tolist()}) > 8


def test_kinds_of_views() -> None:
    images = _images(64)
    assert _view("none", images).image is images
    weak, labeled, strong = (_view(name, images) for name in ("weak", "labeled", "strong"))
    flips = weak.matrix[:, 0, 0] == -1
    assert 16 < int(flips.sum()) < 48
    torch.testing.assert_close(
        weak.image, torch.where(flips[:, None, None, None], images.flip(-1), images), atol=1e-4, rtol=0
    )
    assert ((labeled.matrix == IDENTITY.float()) | (labeled.matrix == FLIP.float())).flatten(1).all(1).all()
    assert not ((strong.matrix == IDENTITY.float()) | (strong.matrix == FLIP.float())).flatten(1).all(1).any()
    # A square of grey in every strong view, and none in the others.
    grey = [int((view.image == 0.5).all(1).flatten(1).sum(1).min()) for view in (weak, strong)]
    assert grey[0] == 0
    assert int((strong.image == 0.5).all(1).flatten(1).sum(1).median()) > 10
    for view in (weak, labeled, strong):
        assert view.image.min() >= 0
        assert view.image.max() <= 1


def test_scale() -> None:
    matrices = _view("weak", _images(200), min_scale=0.5).matrix
    scales = matrices[:, 1, 1]
    assert 0.5 <= float(scales.min()) < 0.55
    assert 0.95 < float(scales.max()) <= 1
    assert torch.equal(matrices[:, 0, 0].abs(), scales)


def test_a_view_depends_on_seed_epoch_index_and_name_only() -> None:
    images = _images()
    for name in ("weak", "labeled", "strong", "strong:2"):
        view, alone = _view(name, images), _view(name, images[4:5], first=4)
        assert torch.equal(view.image[4:5], alone.image)
        assert torch.equal(view.matrix[4:5], alone.matrix)
    assert not torch.equal(_view("strong", images).matrix, _view("strong:2", images).matrix)
    assert not torch.equal(_view("strong", images).matrix, _view("strong", images, epoch=1).matrix)


def test_unknown_view() -> None:
    with pytest.raises(
        LimbeckError, match=r"no view 'stong' of images with boxes; known: none, weak, labeled, strong\. Did"
    ):
        box_views.check_view("stong")
    with pytest.raises(LimbeckError, match="no view 'weak:x'"):
        box_views.check_view("weak:x")
