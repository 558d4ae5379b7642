import hashlib
from urllib.error import URLError

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.utils import Bunch

from limbeck.data.bags import BagData, Bags, into_bags
from limbeck.data.load import load
from limbeck.data.rows import Rows, TableData
from limbeck.data.table_sources import ADULT, MAGIC
from limbeck.errors import LimbeckError
from tests.data.shared_data import needs_shared

COLUMNS = ("a", "b")


def rows(count=20):
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(count, 2, generator=generator)
    return Rows(table, (table[:, 0] > 0).long(), ("no", "yes"), COLUMNS)


def digest(records):
    found = hashlib.sha256()
    records.update_hash(found)
    return found.hexdigest()


def bagged(seed=0, **options):
    data = load("breast_cancer", seed, **options)
    assert isinstance(data, BagData)
    return data


def test_random_bags_hold_each_row_once():
    given = rows(23)
    bags = into_bags(given, 5, seed=1)
    assert bags.rows.shape == (4, 5, 2)
    assert len(bags.rows.flatten(0, 1).unique(dim=0)) == 20  # three are left out
    assert bags.hidden_labels is not None
    assert torch.equal(bags.hidden_labels, (bags.rows[..., 0] > 0).long())
    assert torch.equal(bags.counts, bags.hidden_labels.sum(1))
    assert torch.equal(into_bags(given, 5, seed=1).rows, bags.rows)
    assert not torch.equal(into_bags(given, 5, seed=2).rows, bags.rows)


def test_bags_by_feature_are_alike():
    given = rows(40)
    values = given.rows[:, 0].numpy()
    bags = into_bags(given, 8, seed=0, by="feature", values=values)
    assert torch.equal(bags.rows[..., 0].flatten(), given.rows[:, 0].sort().values)
    assert int(((bags.counts > 0) & (bags.counts < 8)).sum()) <= 1  # the label is a threshold of that feature
    words = np.where(values > 0, "high", "low")
    same = into_bags(given, 8, seed=0, by="feature", values=words)
    other = into_bags(given, 8, seed=1, by="feature", values=words)
    assert torch.equal(same.counts, other.counts)
    assert not torch.equal(same.rows, other.rows)  # of equal words the order is random


def test_batches_of_bags():
    bags = into_bags(rows(), 4, seed=0)
    batch = bags.stream(10, seed=0).batch(0)  # two bags, two rows are not used
    assert batch["row"].shape == (2, 4, 2)
    assert batch["proportion"].dtype == torch.float32
    assert torch.equal(batch["proportion"][:, 1] * 4, bags.counts[batch["index"]].float())
    assert torch.equal(batch["proportion"].sum(1), torch.ones(2))
    assert (batch["label"] == -1).all()
    assert torch.equal(batch["hidden_label"], (batch["row"][..., 0] > 0).long())
    assert bags[1]["index"] == 1


def test_pseudo_labels_reach_the_rows():
    bags = into_bags(rows(), 4, seed=0)
    labels = torch.arange(20) % 2
    labelled = bags.relabel(labels)
    assert torch.equal(labelled.labels.flatten(), labels)
    instances = labelled.instances()
    assert torch.equal(instances.labels, labels)
    assert torch.equal(instances.rows[bags.members], bags.rows)
    assert torch.equal(instances.hidden_labels, (instances.rows[:, 0] > 0).long())
    assert (bags.labels == -1).all()


def test_hash_sees_counts_and_labels_and_not_what_is_hidden():
    bags = into_bags(rows(), 4, seed=0)
    counts, moved = bags.counts.clone(), bags.rows.clone()
    counts[0] = (counts[0] + 1) % 5
    moved[1, 2, 0] += 1
    others = [
        Bags(bags.rows, counts, bags.classes, COLUMNS),
        Bags(moved, bags.counts, bags.classes, COLUMNS),
        bags.relabel(torch.zeros(20, dtype=torch.int64)),
    ]
    assert len({digest(bags), *map(digest, others)}) == 4
    assert digest(Bags(bags.rows, bags.counts, bags.classes, COLUMNS)) == digest(bags)
    given = rows()
    assert digest(given) != digest(given.subset(torch.arange(19)))


def test_standardisation_leaves_categories_as_they_are():
    table = torch.tensor([[1.0, 0.0, 7.0, 10.0], [3.0, 1.0, 7.0, 30.0], [5.0, 0.0, 7.0, 50.0]])
    train = Rows(table, torch.tensor([0, 1, 0]), ("no", "yes"), ("a", "b", "c", "d"))
    task = TableData(train, train, train, None, train.classes).task
    np.testing.assert_allclose(task.mean, [3, 0, 0, 30])
    np.testing.assert_allclose(task.std, [np.std([1, 3, 5]), 1, 1, 10 * np.std([1, 3, 5])])
    bags = into_bags(train, 3, seed=0)
    np.testing.assert_allclose(BagData(bags, train, train, None, train.classes).task.mean, task.mean)


def test_breast_cancer_is_split():
    data = bagged(bag_size=8)
    whole = load_breast_cancer()
    assert (len(data.test), len(data.validation), len(data.train)) == (113, 91, 45)
    assert data.classes == ("malignant", "benign")
    assert data.train.columns == tuple(whole.feature_names)
    places = np.concatenate([data.test.indices, data.validation.indices])
    assert len({*places.tolist()}) == 113 + 91
    np.testing.assert_array_equal(data.test.rows, whole.data[data.test.indices].astype(np.float32))
    np.testing.assert_array_equal(data.test.labels, whole.target[data.test.indices])
    # No training row is tested.
    held_out = {tuple(row.tolist()) for row in torch.cat([data.test.rows, data.validation.rows])}
    assert not held_out & {tuple(row.tolist()) for row in data.train.rows.flatten(0, 1)}
    other = bagged(1, bag_size=8)
    assert torch.equal(other.test.rows, data.test.rows)
    assert not torch.equal(other.validation.rows, data.validation.rows)


def test_options_of_a_source():
    data = bagged(bag_size=16, train_size=100, validation=50, bags="feature", feature="mean radius")
    assert data.train.rows.shape == (6, 16, 30)
    assert len(data.validation) == 50
    radius = data.train.rows[..., 0].flatten()
    assert torch.equal(radius, radius.sort().values)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bag_size": 0}, "bag_size is 0"),
        ({"bag_size": 1000}, "can be 1 to 365"),
        ({"train_size": 400}, "train_size 400; both must leave rows, and 456"),
        ({"validation": 456}, "validation is 456"),
        ({"validation": 0}, "validation is 0"),
        ({"bags": "feature"}, "set data.feature"),
        ({"bags": "features"}, "must be random or feature"),
        ({"feature": "mean radios"}, "Did you mean 'mean radius'"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(LimbeckError, match=message):
        bagged(**options)


def test_tables_that_are_none():
    table, labels = torch.randn(4, 2), torch.tensor([0, 1, 0, 1])
    with pytest.raises(LimbeckError, match=r"expected float \[N, 2\]"):
        Rows(table[:, :1], labels, ("no", "yes"), COLUMNS)
    with pytest.raises(LimbeckError, match="one label a row"):
        Rows(table, labels[:3], ("no", "yes"), COLUMNS)
    with pytest.raises(LimbeckError, match="label 2 at index 1"):
        Rows(table, torch.tensor([0, 2, 0, 0]), ("no", "yes"), COLUMNS)
    table[2, 1] = torch.inf
    with pytest.raises(LimbeckError, match="row 2: b is not finite"):
        Rows(table, labels, ("no", "yes"), COLUMNS)


def test_bags_that_are_none():
    table, counts = torch.randn(3, 4, 2), torch.tensor([0, 2, 4])
    with pytest.raises(LimbeckError, match="bag 2 of 4 rows has a count of 5"):
        Bags(table, torch.tensor([0, 2, 5]), ("no", "yes"), COLUMNS)
    with pytest.raises(LimbeckError, match="one count a bag"):
        Bags(table, counts[:2], ("no", "yes"), COLUMNS)
    with pytest.raises(LimbeckError, match="two classes"):
        Bags(table, counts, ("no", "yes", "perhaps"), COLUMNS)
    with pytest.raises(LimbeckError, match="rows of each"):
        Bags(table[0], counts, ("no", "yes"), COLUMNS)
    with pytest.raises(LimbeckError, match="hidden_labels have shape"):
        Bags(table, counts, ("no", "yes"), COLUMNS, hidden_labels=torch.zeros(3, 3, dtype=torch.int64))
    with pytest.raises(LimbeckError, match="whole bags of 4 rows"):
        Bags(table, counts, ("no", "yes"), COLUMNS).stream(3, seed=0)


def test_adult_from_a_file(tmp_path):
    line = "39, {}, 77516, Bachelors, 13, Never-married, Adm-clerical, Not-in-family, White, {}, 2174, 0, 40, Cuba, {}"
    parts = [("Private", "Male", "<=50K"), ("?", "Female", ">50K"), ("Private", "Female", "<=50K")] * 10
    (tmp_path / "adult.data").write_text("\n".join(line.format(*part) for part in parts) + "\n\n")
    data = load("adult", 0, root=str(tmp_path), bag_size=2, validation=4)
    assert data.train.columns[:4] == ("age", "workclass=?", "workclass=Private", "fnlwgt")
    assert data.classes == ("<=50K", ">50K")
    everything = torch.cat([data.test.rows, data.validation.rows, data.train.rows.flatten(0, 1)])
    assert len(everything) == 30
    of = {name: everything[:, data.train.columns.index(name)] for name in ("workclass=?", "sex=Female")}
    assert (of["workclass=?"].sum(), of["sex=Female"].sum()) == (10, 20)
    labels = torch.cat([data.test.labels, data.validation.labels, data.train.hidden_labels.flatten()])
    assert torch.equal(labels.float(), of["workclass=?"])
    by_word = load("adult", 0, root=str(tmp_path), bag_size=4, validation=4, bags="feature", feature="workclass")
    assert min(by_word.train.counts.tolist()) == 0
    (tmp_path / "adult.data").write_text(line.format("Private", "Male", "<=50K.") + "\n" + line.format(*parts[0]))
    with pytest.raises(LimbeckError, match=r"income is '<=50K\.' in some row"):
        load("adult", 0, root=str(tmp_path))
    (tmp_path / "adult.data").write_text(line.format(*parts[0]) + "\n1, 2\n")
    with pytest.raises(LimbeckError, match="line 2: 2 values, expected 15"):
        load("adult", 0, root=str(tmp_path))
    with pytest.raises(LimbeckError, match="does not exist"):
        load("adult", 0, root=str(tmp_path / "none"))


@pytest.fixture
def openml(tmp_path, monkeypatch):
    """Nothing on this machine, and a server in the place of OpenML: what it sends, by the number of the data set."""
    sent = {}

    def fetch_openml(*, data_id, data_home, as_frame, parser, n_retries):
        assert (data_home, as_frame, parser) == (str(tmp_path / "cache"), False, "liac-arff")
        assert n_retries >= 1  # scikit-learn refuses 0
        if data_id not in sent:
            raise URLError("no route to host")
        return sent[data_id]

    monkeypatch.setattr("sklearn.datasets.fetch_openml", fetch_openml)
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LIMBECK_DATA", raising=False)
    return sent


def test_adult_from_openml_is_that_of_the_file(tmp_path, monkeypatch, openml):
    """Without pandas scikit-learn gives categories as numbers and a missing value as NaN."""
    words = {name: ["Sales", "Wife", "Cuba"] for name in ADULT[:-1] if name not in ("age", "fnlwgt", "hours-per-week")}
    table = np.random.default_rng(0).integers(0, 3, size=(45, 14)).astype(np.float64)
    table[7, 1] = np.nan
    target = np.array(["<=50K", ">50K", "<=50K"] * 15, dtype=object)
    openml[1590] = Bunch(data=table, target=target, feature_names=list(ADULT[:-1]), categories=words)
    # Its first rows are those of adult.test.
    monkeypatch.setattr("limbeck.data.table_sources.ADULT_ROWS", 40)
    lines = []
    for *values, label in zip(*table.T[:, 5:], target[5:], strict=True):
        named = zip(ADULT[:-1], values, strict=True)
        cells = ["?" if np.isnan(v) else words[name][int(v)] if name in words else f"{v:g}" for name, v in named]
        lines.append(", ".join([*cells, label]))
    (tmp_path / "adult.data").write_text("\n".join(lines) + "\n")
    given, fetched = (load("adult", 0, root=root, bag_size=8) for root in (str(tmp_path), None))
    assert "workclass=?" in fetched.train.columns
    for part in ("train", "validation", "test"):
        assert digest(getattr(fetched, part)) == digest(getattr(given, part))


def test_magic_from_openml(openml):
    table = np.random.default_rng(0).normal(size=(50, 11))
    target = np.array(["g", "h"] * 25, dtype=object)
    names = [*(f"f{name}:" for name in MAGIC[:-1]), "ID"]
    openml[1120] = Bunch(data=table, target=target, feature_names=names, categories={})
    data = load("magic", 0, bag_size=4)
    assert data.train.columns == MAGIC[:-1]
    assert (len(data.test), len(data.validation)) == (10, 4)
    np.testing.assert_array_equal(data.test.rows, table[data.test.indices, :10].astype(np.float32))
    assert torch.equal(data.test.labels, 1 - data.test.indices % 2)  # g is the positive class
    openml[1120] = Bunch(data=table[:, :9], target=target, feature_names=names[:9], categories={})
    with pytest.raises(LimbeckError, match="1120 has no 'Dist'"):
        load("magic", 0)


@pytest.mark.parametrize("name", ["adult", "magic"])
def test_what_cannot_be_downloaded(tmp_path, monkeypatch, openml, name):
    with pytest.raises(LimbeckError, match=rf"{name} is not in \$LIMBECK_DATA and cannot be .* no route to host"):
        load(name, 0)
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path))
    with pytest.raises(LimbeckError, match="no route to host"):
        load(name, 0)
    # A folder that is there is the one that counts, and so is one that is named.
    (tmp_path / name).mkdir()
    with pytest.raises(LimbeckError, match=rf"{name}/\S+ does not exist"):
        load(name, 0)


@needs_shared
def test_adult():
    data = load("adult", 0, bag_size=8)
    assert isinstance(data, BagData)
    assert len(data.test) == 6512
    assert len(data.train) * 8 + len(data.validation) == pytest.approx(32561 - 6512, abs=7)
    assert len(data.train.columns) == 6 + 9 + 16 + 7 + 15 + 6 + 5 + 2 + 42
    labels = torch.cat([data.test.labels, data.validation.labels, data.train.hidden_labels.flatten()])
    assert int(labels.sum()) == pytest.approx(7841, abs=7)


@needs_shared
def test_magic():
    data = load("magic", 0, bag_size=32)
    assert isinstance(data, BagData)
    assert len(data.test) == 3804
    assert int(data.test.labels.sum()) == 2460  # gamma rays
    assert len(data.validation) == 1522
    assert len(data.train) == (15216 - 1522) // 32
    assert data.train.columns[0] == "Length"
