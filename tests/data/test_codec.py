import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.data.codec import Codec
from limbeck.errors import LimbeckError

TOP_FIVE = torch.tensor([0.6, 0.2, 0.1, 0.04, 0.02, 0.01, 0.01, 0.01, 0.005, 0.005])


def back(codec: Codec, logits: torch.Tensor, tail: str = "smooth") -> torch.Tensor:
    return codec.decode(codec.encode(logits), tail).softmax(-1)  # type: ignore[arg-type]


def random_logits(rows: int = 40, classes: int = 10, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(rows, classes, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("kept", "k", "tail", "expected"),
    [
        ("top_k", 5, "smooth", [0.6, 0.2, 0.1, 0.04, 0.02, *[0.008] * 5]),
        ("top_k", 5, "renormalize", [0.625, 0.208333, 0.104167, 0.041667, 0.020833, *[0.0] * 5]),
        ("top_k", 1, "smooth", [0.6, *[0.4 / 9] * 9]),
        ("hard", 0, "smooth", [1.0, *[0.0] * 9]),
        ("dense", 0, "smooth", TOP_FIVE.tolist()),
    ],
)
def test_recovered_labels(kept: str, k: int, tail: str, expected: list[float]) -> None:
    codec = Codec(kept, 10, "float32", k)  # type: ignore[arg-type]
    found = back(codec, TOP_FIVE.log()[None], tail)
    torch.testing.assert_close(found[0], torch.tensor(expected), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("storage", ["float32", "float16", "uint8"])
def test_dense_rows_are_off_by_their_rounding(storage: str) -> None:
    logits = random_logits()
    found = Codec("dense", 10, storage).decode(Codec("dense", 10, storage).encode(logits))  # type: ignore[arg-type]
    spread = logits.max(1).values - logits.min(1).values
    largest = {
        "float32": torch.zeros(40),
        "float16": logits.abs().max(1).values * 2.0**-11,
        "uint8": spread / 510 * (1 + 1e-4),  # half a step, and float32 on the way
    }[storage]
    assert ((found - logits).abs().max(1).values <= largest).all()
    if storage == "uint8":
        assert ((found - logits).abs().max(1).values > spread / 510 / 4).any(), "it is rounded at all"


def test_equal_logits_in_eight_bits() -> None:
    found = Codec("dense", 3, "uint8").decode(Codec("dense", 3, "uint8").encode(torch.full((2, 3), -7.5)))
    assert torch.equal(found, torch.full((2, 3), -7.5))


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 12),
    st.sampled_from(["float32", "float16", "uint8"]),
    st.sampled_from(["smooth", "renormalize"]),
    st.floats(0.01, 300.0),
)
def test_every_recovered_row_is_a_distribution_with_the_same_first_class(
    k: int, storage: str, tail: str, scale: float
) -> None:
    logits = random_logits(20, 12, scale)
    found = back(Codec("top_k", 12, storage, k), logits, tail)  # type: ignore[arg-type]
    assert (found >= 0).all()
    torch.testing.assert_close(found.sum(1), torch.ones(20), atol=1e-5, rtol=0)
    first = logits.argmax(1, keepdim=True)
    # Rounding may move classes of nearly equal probability past each other, by no more than two roundings; what k
    # classes were rounded by in all is spread over the others.
    rounding = {"float32": 2.0**-22, "float16": 2.0**-10, "uint8": 1 / 255}[storage]
    if tail == "smooth" and k < 12:
        rounding *= 1 + k / (12 - k) / 2
    assert (found.gather(1, first)[:, 0] >= found.max(1).values - rounding).all()


def test_divergence_falls_with_k_and_is_nothing_at_all_classes() -> None:
    logits = random_logits(scale=1.0)
    p = logits.double().softmax(-1)
    distances = [
        float((p * (p.log() - back(Codec("top_k", 10, "float32", k), logits).double().log())).sum(1).mean())
        for k in range(1, 11)
    ]
    assert all(a > b for a, b in itertools.pairwise(distances[:9]))
    # Of one class alone nothing is lost either; float32 probabilities.
    assert max(map(abs, distances[8:])) < 1e-6


def test_rest_that_rounding_makes_negative_is_clamped() -> None:
    """255ths of (0.5, 0.5) are 128 each: 256 / 255."""
    codec = Codec("top_k", 3, "uint8", 2)
    columns = codec.encode(torch.tensor([[0.0, 0.0, -60.0]]))
    assert columns["probabilities"].tolist() == [[128, 128]]
    torch.testing.assert_close(codec.decode(columns).exp()[0], torch.tensor([0.5, 0.5, 0.0]))


@pytest.mark.parametrize(
    ("codec", "size"),
    [
        (Codec("dense", 1000, "float16"), 2000),
        (Codec("dense", 10, "uint8"), 18),
        (Codec("top_k", 1000, "float16", 5), 20),
        (Codec("top_k", 256, "uint8", 5), 10),
        (Codec("hard", 257), 2),
        (Codec("hard", 1 << 17), 4),
    ],
)
def test_bytes_of_a_label(codec: Codec, size: int) -> None:
    columns = codec.encode(random_logits(5, codec.num_classes))
    assert sum(column.nbytes for column in columns.values()) == 5 * size
    assert {name: (c.dtype, c.shape[1]) for name, c in columns.items()} == codec.columns


def test_what_cannot_be_kept() -> None:
    with pytest.raises(LimbeckError, match="top_k is 11; it must lie between 1 and the 10 classes"):
        Codec("top_k", 10, "float16", 11)
    large = torch.zeros(3, 2)
    large[1, 0] = 1e6
    with pytest.raises(LimbeckError, match=r"label 1 of the batch is not finite in float16: .*float32"):
        Codec("dense", 2, "float16").encode(large)
    for codec in (Codec("dense", 2, "uint8"), Codec("top_k", 2, "float16", 1), Codec("hard", 2)):
        codec.encode(large)
        with pytest.raises(LimbeckError, match="label 2 of the batch is not finite"):
            codec.encode(torch.tensor([[0.0, 1.0], [1.0, 1.0], [np.nan, 0.0]]))
