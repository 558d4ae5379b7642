import numpy as np
import pytest
import torch

from limbeck.data.transformations import TRANSFORMATIONS, transform, transformations
from limbeck.errors import LimbeckError

IMAGES = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
SIZES = {
    "none": 1,
    "rotation": 4,
    "rotation2": 2,
    "color_perm": 6,
    "color_perm3": 3,
    "rot_color_perm6": 6,
    "rot_color_perm12": 12,
    "rot_color_perm24": 24,
}


def views(name: str, images: torch.Tensor = IMAGES) -> torch.Tensor:
    """[B, M, C, H, W]"""
    return transform(images, name).unflatten(0, (len(images), -1))


@pytest.mark.parametrize(("name", "count"), SIZES.items())
def test_numbers_and_the_identity_comes_first(name: str, count: int) -> None:
    assert set(SIZES) == set(TRANSFORMATIONS)
    made = views(name)
    assert made.shape == (2, count, 3, 5, 5)
    assert torch.equal(made[:, 0], IMAGES)
    assert len({view.numpy().tobytes() for view in made[0]}) == count


def test_rotation_is_counter_clockwise_and_interleaved() -> None:
    made = views("rotation").numpy()
    for b, j in np.ndindex(2, 4):
        np.testing.assert_array_equal(made[b, j], np.rot90(IMAGES[b].numpy(), j, axes=(1, 2)))
    # The right edge of an image is its top after a quarter turn.
    assert transform(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), "rotation")[1, 0].tolist() == [[2.0, 4.0], [1.0, 3.0]]
    assert torch.equal(views("rotation")[:, 2], IMAGES.flip(-1, -2))
    assert torch.equal(views("rotation2")[:, 1], IMAGES.flip(-1, -2))
    four = IMAGES
    for _ in range(4):
        four = views("rotation", four)[:, 1]
    assert torch.equal(four, IMAGES)


def test_permutations_in_the_order_of_the_released_code() -> None:
    image = torch.tensor([10.0, 20.0, 30.0]).view(1, 3, 1, 1)
    letters = {10.0: "R", 20.0: "G", 30.0: "B"}

    def names(name: str) -> list[str]:
        return ["".join(letters[value] for value in view.flatten().tolist()) for view in transform(image, name)]

    assert names("color_perm") == ["RGB", "RBG", "GRB", "GBR", "BRG", "BGR"]
    assert names("color_perm3") == ["RGB", "GBR", "BRG"]
    assert names("rot_color_perm6") == 2 * ["RGB", "GBR", "BRG"]
    assert torch.equal(views("rot_color_perm6")[:, 4], IMAGES[:, [1, 2, 0]].flip(-1, -2))
    assert torch.equal(views("rot_color_perm12")[:, 3], torch.rot90(IMAGES, 1, (2, 3)))
    assert torch.equal(views("rot_color_perm24")[:, 6], torch.rot90(IMAGES, 1, (2, 3)))


def test_views_of_an_image_without_colour_are_the_same() -> None:
    grey = IMAGES[:, :1].expand(-1, 3, -1, -1)
    assert torch.equal(views("color_perm", grey), grey[:, None].expand(-1, 6, -1, -1, -1))


def test_wrong_input() -> None:
    with pytest.raises(LimbeckError, match=r"no transformations 'rotations'\. Did you mean 'rotation'\?"):
        transformations("rotations")
    with pytest.raises(LimbeckError, match="by 90 degrees, and these are 4x6: take rotation2"):
        transform(torch.zeros(1, 3, 4, 6), "rotation")
    assert transform(torch.zeros(1, 3, 4, 6), "rot_color_perm6").shape == (6, 3, 4, 6)
    with pytest.raises(LimbeckError, match="permutes red, green and blue, and these images have 1 channel"):
        transform(torch.zeros(1, 1, 4, 4), "color_perm")
