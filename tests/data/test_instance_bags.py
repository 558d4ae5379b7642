from typing import Any

import pytest
import torch

from limbeck.data.fingerprint import fingerprint, samples_hash
from limbeck.data.instance_bags import InstanceBagData, InstanceBags, spread
from limbeck.data.load import load
from limbeck.data.samples import ImageData, Samples
from limbeck.data.stream import Stream
from limbeck.data.views import apply
from limbeck.errors import LimbeckError

DIGITS = {"name": "digits", "validation": 0.2}


def bags(seed: int = 0, **options: Any) -> InstanceBagData:
    data = load("instance_bags", seed, **{"dataset": DIGITS, "size": 6, "min_size": 3, "ratio": 0.4, **options})
    assert isinstance(data, InstanceBagData)
    return data


def source() -> ImageData:
    data = load("digits", 0, validation=0.2)
    assert isinstance(data, ImageData)
    return data


def parts(data: InstanceBagData) -> list[InstanceBags]:
    return [data.train, data.validation, data.test]


def test_a_bag_is_positive_if_one_of_its_instances_is() -> None:
    for part in parts(bags()):
        batch = part.fetch(torch.arange(len(part)))
        positives = (batch["hidden_label"] == 1).sum(1)
        assert torch.equal((positives > 0).long(), batch["label"])
        wanted = [max(1, round(0.4 * size)) for size in part.sizes.tolist()]
        assert positives.tolist() == [n * label for n, label in zip(wanted, part.labels.tolist(), strict=True)]
        assert abs(int(part.labels.sum()) - len(part) / 2) <= 0.5
        assert set(part.sizes.tolist()) == {3, 4, 5, 6}


def test_instances_are_images_of_the_source_each_in_one_bag() -> None:
    whole = source()
    splits = (whole.train, whole.validation, whole.test)
    for part, split in zip(parts(bags()), splits, strict=True):
        batch = part.fetch(torch.arange(len(part)))
        indices = batch["instance"][batch["mask"]]
        assert len(indices) == len(set(indices.tolist())) == int(part.sizes.sum())
        at = [split.indices.tolist().index(index) for index in indices.tolist()]
        assert torch.equal(batch["image"][batch["mask"]], split.fetch(torch.tensor(at))["image"])
        assert torch.equal(batch["hidden_label"][batch["mask"]], (split.labels[at] == 9).long())
        assert part.num_samples == split.num_samples > int(indices.max())


def test_filling_up() -> None:
    part = bags().train
    batch = part.fetch(torch.tensor([2, 0]))
    assert batch["index"].tolist() == [2, 0]
    assert batch["mask"].sum(1).tolist() == part.sizes[[2, 0]].tolist()
    outside = ~batch["mask"]
    assert batch["image"].shape == (2, 6, 1, 8, 8)
    assert not batch["image"][outside].any()
    assert set(batch["instance"][outside].tolist()) | set(batch["hidden_label"][outside].tolist()) <= {-1}


def test_instances_one_by_one_have_the_label_of_their_bag() -> None:
    part = bags().train
    instances = part.instances
    assert isinstance(instances, Samples)
    assert torch.equal(instances.labels, part.labels.repeat_interleave(part.sizes))
    assert torch.equal(instances.hidden_labels, part.hidden_labels)
    batch = part.fetch(torch.arange(len(part)))
    assert torch.equal(batch["instance"][batch["mask"]], instances.indices)
    assert instances.classes == ("negative", "positive")


def test_a_view_of_an_instance_is_the_same_in_its_bag_and_alone() -> None:
    data = bags()
    batch = Stream(data.train, 3, seed=5, views={"a": "strong", "b": "weak"}).batch(0)
    mask, epochs = batch["mask"], batch["epoch"]
    alone = data.train.fetch(torch.tensor([*range(len(data.train))]))
    images = torch.cat([alone["image"][alone["index"] == index] for index in batch["index"].tolist()])
    for key, view in (("a", "strong"), ("b", "weak")):
        wanted = apply(
            view,
            images[mask],
            seed=5,
            epochs=epochs[:, None].expand(mask.shape)[mask],
            indices=batch["instance"][mask],
            flip=False,
        )
        assert torch.equal(batch[key][mask], wanted)
        assert not batch[key][~mask].any()
    assert "image" not in batch
    with pytest.raises(LimbeckError, match="no view 'srong'"):
        Stream(data.train, 3, seed=5, views={"a": "srong"})


def test_a_function_of_the_seed_that_hides_the_truth() -> None:
    assert fingerprint(bags()) == fingerprint(bags())
    assert fingerprint(bags()) != fingerprint(bags(seed=1))
    data = bags()
    first = fingerprint(data)
    data.train.hidden_labels = 1 - data.train.hidden_labels
    assert fingerprint(data) == first
    images = data.train.instances.subset(range(6)).relabel(torch.zeros(6))
    two, same, other = (InstanceBags(images, torch.tensor(sizes)) for sizes in ([3, 3], [3, 3], [2, 4]))
    assert samples_hash(two) == samples_hash(same) != samples_hash(other)


def test_shares_of_bags() -> None:
    for share in (0.1, 1 / 3, 0.8):
        part = bags(positive_bags=share, size=3).train
        assert int(part.labels.sum()) == int(len(part) * share + 1e-9)
    several = bags(positive=["8", "9"], bags=30)
    assert len(several.train) == 30
    whole = bags(ratio=1.0).train
    assert torch.equal(whole.hidden_labels, whole.instances.labels)


def test_task() -> None:
    data = bags()
    task = data.task
    assert task.classes == data.classes == ("negative", "positive")
    images = data.train.instances.fetch(torch.arange(len(data.train.instances)))["image"]
    assert task.mean[0] == pytest.approx(float(images.mean()), rel=1e-5)
    assert (task.channels, task.size) == (1, (8, 8))


def test_spread() -> None:
    mask = torch.tensor([[True, False], [True, True]])
    assert spread(torch.tensor([1, 2, 3]), mask, -1).tolist() == [[1, -1], [2, 3]]


def test_records_that_do_not_fit() -> None:
    images = bags().train.instances.subset(range(6))
    with pytest.raises(LimbeckError, match=r"2 bags of 5 instances in all, .* cannot be made of 6 images"):
        InstanceBags(images, torch.tensor([2, 3]))
    with pytest.raises(LimbeckError, match="cannot be made"):
        InstanceBags(images, torch.tensor([6, 0]))
    labels = torch.tensor([0, 0, 0, 1, 0, 1])
    with pytest.raises(LimbeckError, match=f"index {int(images.indices[4])} has another label than its bag"):
        InstanceBags(images.relabel(labels), torch.tensor([3, 3]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 2}, "bags of 3 to 2 instances"),
        ({"ratio": 0.0}, "ratio is 0.0; it must be above 0"),
        ({"positive_bags": 1.0}, "positive_bags is 1.0; it must lie between"),
        ({"bags": 1}, "bags is 1; there must be 2 or more"),
        ({"bags": 900}, "positive training images are too few for 900 bags of each label"),
        ({"size": 200, "min_size": 200}, "too few for a bag of each label"),
        ({"positive": "nine"}, "positive names the class 'nine', which is none of 0, 1"),
        ({"positive": []}, "0 of 10 classes are positive"),
        ({"positive": [str(n) for n in range(10)]}, "10 of 10 classes are positive"),
        ({"dataset": {"name": "digits", "labels_per_class": 5}}, "leave out the dataset's options"),
        ({"dataset": {"name": "digits", "label_noise": 0.1}}, "leave out the dataset's options"),
    ],
)
def test_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(LimbeckError, match=message):
        bags(**options)
