"""Samples, and datasets of the user's own."""

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from limbeck.data import ImageData, Samples, concat, wrap
from limbeck.data.pixels import Lazy
from limbeck.errors import LimbeckError

CLASSES = ("cat", "dog", "emu")


def make(count=6, channels=1):
    images = torch.rand(count, channels, 4, 5, generator=torch.Generator().manual_seed(count))
    return Samples(images, torch.arange(count) % 3, CLASSES)


def test_items_and_batches_agree():
    samples = make().unlabel()
    batch = samples.fetch(torch.tensor([4, 1]))
    for row, position in enumerate((4, 1)):
        item = samples[position]
        assert torch.equal(item.pop("image"), batch["image"][row])
        assert item == {"label": -1, "index": position, "hidden_label": position % 3}
        assert {name: int(batch[name][row]) for name in item} == item
    assert samples[-1]["index"] == 5
    with pytest.raises(IndexError):
        samples[6]
    assert "hidden_label" not in make()[0]


def test_subsets_keep_their_indices():
    whole = make()
    part = whole.subset([5, 3, 1]).subset([2, 0])
    assert part.indices.tolist() == [1, 5]
    assert part.labels.tolist() == [1, 2]
    assert part.num_samples == 6
    assert torch.equal(part[1]["image"], whole[5]["image"])


def test_a_part_of_a_larger_source_knows_its_size():
    part = Samples(
        torch.rand(2, 1, 4, 4), torch.tensor([0, 1]), CLASSES, indices=torch.tensor([70, 12]), num_samples=90
    )
    for derived in (part.subset([0]), part.unlabel(), concat([part, part.subset([1])])):
        assert derived.num_samples == 90
        assert derived.indices[0] == 70


def test_an_empty_subset_is_refused():
    with pytest.raises(LimbeckError, match="no samples"):
        make().subset([])


def test_unlabel_hides_the_truth_only():
    samples = make().unlabel()
    assert samples.labels.unique().tolist() == [-1]
    assert samples.hidden_labels.tolist() == [0, 1, 2, 0, 1, 2]
    # What was hidden once stays the truth, whatever the labels become.
    assert samples.relabel(torch.zeros(6)).hidden_labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_parts_of_one_source_are_joined_with_their_indices():
    whole = make()
    joined = concat([whole.subset([4, 0]), whole.subset([2, 3]).unlabel()])
    assert joined.indices.tolist() == [4, 0, 2, 3]
    assert joined.labels.tolist() == [1, 0, -1, -1]
    assert joined.hidden_labels.tolist() == [1, 0, 2, 0]
    assert joined.num_samples == 6
    assert torch.equal(joined[2]["image"], whole[2]["image"])


def test_different_sources_are_joined_one_after_the_other():
    first, second = make(6), make(4)
    joined = concat([first.subset([5, 1]), second.subset([3, 0])])
    assert joined.indices.tolist() == [5, 1, 9, 6]
    assert joined.num_samples == 10
    images = joined.fetch(torch.tensor([3, 0, 2]))["image"]
    assert torch.equal(images, torch.stack([second[0]["image"], first[5]["image"], second[3]["image"]]))


def test_joining_refuses_what_does_not_match():
    other = Samples(torch.rand(2, 1, 4, 5), torch.tensor([0, 1]), ("a", "b"))
    with pytest.raises(LimbeckError, match=r"cat.*'a', 'b'"):
        concat([make(), other])
    with pytest.raises(LimbeckError, match="shapes"):
        concat([make(), make(channels=3)])


def test_labels_out_of_range_name_the_index():
    with pytest.raises(LimbeckError, match="label 3 at index 1 is out of range, expected 0 to 2"):
        Samples(torch.rand(2, 1, 4, 4), torch.tensor([0, 3]), CLASSES)
    with pytest.raises(LimbeckError, match="label -2 at index 0"):
        Samples(torch.rand(2, 1, 4, 4), torch.tensor([-2, 0]), CLASSES)


def test_one_label_an_image():
    with pytest.raises(LimbeckError, match="2 images but 3 labels"):
        Samples(torch.rand(2, 1, 4, 4), torch.tensor([0, 0, 0]), CLASSES)


def test_wrap_takes_any_dataset():
    images, labels = torch.rand(5, 3, 4, 4), torch.tensor([0, 2, 1, 1, 0])
    tuples = wrap(TensorDataset(images, labels), CLASSES)
    dicts = wrap([{"image": image, "label": int(label)} for image, label in zip(images, labels, strict=True)])
    everything = torch.arange(5)
    assert torch.equal(tuples.fetch(everything)["image"], images)
    assert torch.equal(tuples.labels, labels)
    assert tuples.classes == CLASSES
    assert torch.equal(dicts.fetch(everything)["image"], images)
    assert dicts.classes == ("0", "1", "2")
    assert wrap(tuples) is tuples


def test_wrap_reads_every_item_once():
    class Counting:
        classes = ("yes", "no")
        read = 0

        def __len__(self):
            return 4

        def __getitem__(self, row):
            self.read += 1
            return np.full((4, 4), row, dtype=np.uint8), row % 2

    dataset = Counting()
    samples = wrap(dataset)
    samples.fetch(torch.tensor([0, 1]))
    # The first item is read once more, to learn the size of the images.
    assert dataset.read == 5
    assert samples.classes == ("yes", "no")


def test_wrap_is_lazy_for_large_datasets(monkeypatch):
    monkeypatch.setattr("limbeck.data.pixels.read.__kwdefaults__", {"threads": 1, "limit": 10})
    images = torch.rand(3, 1, 4, 4)
    samples = wrap(TensorDataset(images, torch.tensor([0, 1, 1])))
    assert isinstance(samples.images, Lazy)
    assert torch.equal(samples.fetch(torch.tensor([2, 0]))["image"], images[[2, 0]])
    assert samples.labels.tolist() == [0, 1, 1]


GOOD = (torch.zeros(1, 4, 4), 0)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ((torch.zeros(1, 4, 4), -1), "label -1 is out of range"),
        ((torch.zeros(1, 4, 4), 1.5), "label 1.5 is out of range"),
        ((torch.zeros(1, 4, 4), "cat"), "label 'cat' is no class number"),
        ((torch.full((1, 4, 4), float("nan")), 0), "NaN"),
        ((torch.full((1, 4, 4), 7.0), 0), "expected \\[0, 1\\]"),
        ((torch.zeros(1, 4, 5), 0), "different shapes"),
        ({"img": 0, "label": 0}, "keys \\['img', 'label'\\]"),
        (torch.zeros(1, 4, 4), "a Tensor, expected"),
    ],
)
def test_wrap_names_the_wrong_item(item, message):
    with pytest.raises(LimbeckError, match=f"mine, index 2.*{message}|{message}.*mine, index 2"):
        wrap([GOOD, GOOD, item], where="mine")


def test_wrap_refuses_labels_beyond_the_classes():
    with pytest.raises(LimbeckError, match="label 5 at index 1 is out of range, expected 0 to 2"):
        wrap([GOOD, (torch.zeros(1, 4, 4), 5)], CLASSES)


def test_wrap_refuses_what_has_no_positions():
    with pytest.raises(LimbeckError, match="map-style"):
        wrap(iter([GOOD]))
    with pytest.raises(LimbeckError, match="no samples"):
        wrap([])


def test_task_describes_the_training_images():
    images = torch.rand(40, 3, 6, 7, dtype=torch.float64)
    samples = Samples(images, torch.arange(40) % 3, CLASSES)
    data = ImageData(samples.subset(range(30)), samples, samples, samples.subset(range(30, 36)).unlabel(), CLASSES)
    seen = images[:36].transpose(0, 1).flatten(1)
    assert data.task.classes == CLASSES
    assert (data.task.channels, data.task.size) == (3, (6, 7))
    # Six digits are kept, of images that are stored in single precision.
    assert data.task.mean == pytest.approx(seen.mean(1).tolist(), abs=1e-6)
    assert data.task.std == pytest.approx(seen.std(1, correction=0).tolist(), abs=1e-6)


def test_task_of_constant_images_leaves_their_scale():
    samples = Samples(torch.full((4, 1, 4, 4), 0.25), torch.zeros(4, dtype=torch.int64), CLASSES)
    task = ImageData(samples, samples, samples, None, CLASSES).task
    assert (task.mean, task.std) == ((0.25,), (1.0,))


def test_class_counts_are_those_of_the_labelled_training_samples():
    images = torch.rand(6, 1, 4, 4)
    train = Samples(images, torch.tensor([0, 2, 2, -1, 2, 0]), ("a", "b", "c"))
    data = ImageData(train, train, train, None, train.classes)
    assert data.class_counts == (2, 0, 3)


def of_sizes(*counts: int) -> ImageData:
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    train = Samples(torch.zeros(len(labels), 1, 1, 1), labels, [str(number) for number in range(len(counts))])
    return ImageData(train, train, train, None, train.classes)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((1000, 599, 359, 215, 129, 77, 46, 27, 16, 10), True),
        ((120, 86, 6), True),
        ((1000, 500), True),
        ((1000, 501), False),  # well beyond chance, but less than twice
        ((50, 10), True),
        ((27, 14), False),  # few samples of even classes are often so uneven
        ((100, 50), False),
        ((1000, 0), False),  # a class without samples is no tail
        ((7,), False),
    ],
)
def test_a_long_tail_is_clearly_one(counts: tuple[int, ...], expected: bool) -> None:
    assert of_sizes(*counts).long_tailed is expected
    assert of_sizes(*counts[::-1]).long_tailed is expected


def test_even_classes_are_no_long_tail_by_chance() -> None:
    draws = np.random.default_rng(0).multinomial([40, 200, 1000], [0.1] * 10, size=(100, 3)).reshape(-1, 10)
    assert (draws.max(1) >= 2 * draws.min(1)).sum() > 100, "none is uneven: this test shows nothing"
    assert not any(of_sizes(*row).long_tailed for row in draws.tolist())
