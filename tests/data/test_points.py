import hashlib

import numpy as np
import pytest
import torch

from limbeck.data.load import load
from limbeck.data.points import PointData, PointSamples
from limbeck.data.stream import Stream
from limbeck.errors import LimbeckError


def points(seed=0, **options):
    data = load("points", seed, **options)
    assert isinstance(data, PointData)
    return data


def test_ring():
    data = points(train_size=8000)
    assert len(data.train) == 8000
    assert data.task.dimensions == 2
    assert data.centres is not None
    np.testing.assert_allclose(data.centres.norm(dim=1), 0.7, rtol=1e-6)
    distance, nearest = torch.cdist(data.train.points, data.centres).min(dim=1)
    # 1000 each, with a standard deviation of 30.
    assert (torch.bincount(nearest) - 1000).abs().max() < 120
    # Rayleigh: the mean of squares is 2 std^2, and 98.9 % lie within three std.
    assert float(distance.square().mean()) == pytest.approx(2 * 0.05**2, rel=0.05)
    assert float((distance <= data.reach).float().mean()) == pytest.approx(1 - np.exp(-4.5), abs=0.005)
    np.testing.assert_allclose(data.train.points.std(dim=0), 0.5, atol=0.01)


def test_checkerboard():
    data = points(shape="checkerboard", train_size=8000)
    assert data.centres is not None
    side = 2 * data.reach
    squares = (data.train.points / side).floor().long()
    assert squares.min() == -2
    assert squares.max() == 1
    assert not ((squares.sum(dim=1)) % 2).any()  # of one colour
    offsets = (data.train.points / side) % 1
    assert offsets.mean().item() == pytest.approx(0.5, abs=0.01)
    nearest = torch.cdist(data.train.points, data.centres).argmin(dim=1)
    assert (torch.bincount(nearest, minlength=8) - 1000).abs().max() < 120
    np.testing.assert_allclose(data.train.points.std(dim=0), 0.5, atol=0.02)


def test_draws_depend_on_seed_and_split_only():
    one, again, other = points(3), points(3), points(4)
    assert torch.equal(one.train.points, again.train.points)
    assert not torch.equal(one.train.points, other.train.points)
    assert not torch.equal(one.train.points[:2000], one.validation.points[:2000])
    # A larger set begins with the smaller one.
    assert torch.equal(points(3, train_size=100).train.points, one.train.points[:100])


def test_batches_of_a_stream():
    samples = points(train_size=10).train
    batch = Stream(samples, 4, seed=0, views={}).batch(0)
    assert set(batch) == {"point", "index", "epoch"}
    assert torch.equal(batch["point"], samples.points[batch["index"]])
    assert samples[3]["index"] == 3


def test_hash_sees_a_coordinate():
    samples, moved = PointSamples(torch.randn(5, 2)), None
    moved = PointSamples(samples.points.clone())
    moved.points[2, 1] += 1e-6 * moved.points[2, 1].abs() + 1e-6
    digests = []
    for one in (samples, PointSamples(samples.points), moved):
        digest = hashlib.sha256()
        one.update_hash(digest)
        digests.append(digest.hexdigest())
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": "star"}, "ring or checkerboard"),
        ({"train_size": 1}, "train_size is 1"),
        ({"std": 0.0}, "std is 0"),
        ({"radius": float("inf")}, "radius is inf"),
        ({"sigma": 1.0}, "has no option 'sigma'"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(LimbeckError, match=message):
        points(**options)


def test_points_that_are_none():
    with pytest.raises(LimbeckError, match="index 1 is not finite"):
        PointSamples(torch.tensor([[0.0, 1.0], [torch.nan, 0.0]]))
    with pytest.raises(LimbeckError, match=r"shape \[0, 2\]"):
        PointSamples(torch.zeros(0, 2))
