import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from limbeck.data.instance_bags import InstanceBagData, instance_bags
from limbeck.errors import LimbeckError
from limbeck.methods.weak.ins_mil import INSMIL
from limbeck.methods.weak.instance_teaching import InstanceTeaching
from limbeck.methods.weak.sil import SIL
from limbeck.models import Classifier
from limbeck.models.bag_classifier import classify_bags
from limbeck.models.pooling import InstancePooling
from limbeck.stages.fit import Fit
from limbeck.stages.settings import FitSettings
from tests.methods.programs import run_stages
from tests.methods.tables import Floats, log_softmax, plan, softmax, value

N, B, D = 24, 6, 5
OPTIONS: dict[str, Any] = {
    "prot_start": 1,
    "bag_start": 1,
    "contrast_weight": 0.5,
    "bag_weight": 2.0,
    "phi_start": 0.95,
    "phi_end": 0.8,
    "beta": 0.9,
    "tau": 0.07,
    "queue": 8,
    "dim": 3,
    "key_momentum": 0.9,
    "reset_negatives": True,
}


@pytest.fixture(scope="module")
def data() -> InstanceBagData:
    return instance_bags(0, {"name": "digits", "validation": 0.2}, size=6, min_size=4, ratio=0.4, bags=40)


def encoder(seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, D), nn.Linear(D, 2))
    return Classifier(body, ("negative", "positive"), channels=1, size=8)


def objective(epochs: float = 4, **options: Any) -> InstanceTeaching:
    made = InstanceTeaching(classify_bags(encoder(), "max"), **{**OPTIONS, **options}).double()
    made.begin(plan(N, 2, epochs=epochs))
    return made


def batch(number: int, epochs: list[int], **changes: Any) -> Any:
    """Instances of three negative and three positive bags, and two bags."""
    generator = torch.Generator().manual_seed(number)
    index = torch.randperm(N, generator=generator)[:B]
    instances = {
        "query": torch.rand(B, 1, 8, 8, generator=generator),
        "key": torch.rand(B, 1, 8, 8, generator=generator),
        "label": index % 2,
        "hidden_label": (index % 4 == 1).long(),
        "index": index,
        "epoch": torch.tensor(epochs),
    }
    mask = torch.tensor([[True, True, True], [True, True, False]])
    bags = {
        "image": torch.rand(2, 3, 1, 8, 8, generator=generator),
        "mask": mask,
        "label": torch.tensor([1, 0]),
    }
    return {"instances": {**instances, **changes}, "bags": bags}


class Reference:
    """The algorithm of the paper, instance by instance, in float64."""

    def __init__(self, made: InstanceTeaching) -> None:
        self.o = {**OPTIONS}
        self.s: dict[int, Floats] = {}
        self.mu = np.zeros((2, 3))
        self.queue: list[tuple[Floats, int]] = []
        averages = [*made.key_encoder.model.parameters(), *made.key_projection.model.parameters()]
        self.average = [p.numpy().astype(np.float64) for p in averages]

    @staticmethod
    def weights(made: InstanceTeaching) -> list[Floats]:
        parts = [*made.student.encoder.parameters(), *made.projection.parameters()]
        return [p.detach().numpy().copy() for p in parts]

    @staticmethod
    def forward(weights: list[Floats], images: Tensor) -> tuple[Floats, Floats]:
        v, vb, c, cb, one, oneb, two, twob = weights
        features = images.double().flatten(1).numpy() @ v.T + vb
        projected = np.maximum(features @ one.T + oneb, 0) @ two.T + twob
        return features @ c.T + cb, projected / np.linalg.norm(projected, axis=1, keepdims=True)

    def update(self, made: InstanceTeaching, given: Any) -> dict[str, float]:
        x = given["instances"]
        labels, epochs = x["label"].tolist(), x["epoch"].tolist()
        logits, q = self.forward(self.weights(made), x["query"])
        _, k = self.forward(self.average, x["key"])
        allowed = [(1, 0) if y == 0 else (1, 1) for y in labels]
        predicted = [int(np.argmax(softmax(o) * y)) for o, y in zip(logits, allowed, strict=True)]

        ce, contrast = [], []
        for i, index in enumerate(x["index"].tolist()):
            s = self.s.get(index, np.array(allowed[i]) / sum(allowed[i]))
            if epochs[i] >= self.o["prot_start"]:
                d = softmax(q[i] @ self.mu.T)
                phi = 0.95 + (0.8 - 0.95) * min(1.0, epochs[i] / 4)
                s = phi * s + (1 - phi) * np.eye(2)[int(np.argmax(d * allowed[i]))]
            self.s[index] = s
            ce.append(-float(s @ log_softmax(logits[i])))
        for i in range(B):
            if epochs[i] >= self.o["prot_start"]:
                pool = [(q[j], predicted[j]) for j in range(B) if j != i]
                pool += [(k[j], predicted[j]) for j in range(B)] + self.queue
                family = [a for a, label in pool if label == predicted[i]]
            else:
                pool = [(k[i], -1), *self.queue]
                family = [k[i]]
            total = np.log(sum(np.exp(q[i] @ a / 0.07) for a, _ in pool))
            contrast.append(-np.mean([q[i] @ a / 0.07 - total for a in family]))
        bag = 0.0
        if min(epochs) >= self.o["bag_start"]:
            bags = given["bags"]
            for images, mask, y in zip(bags["image"], bags["mask"], bags["label"].tolist(), strict=True):
                log_p = log_softmax(self.forward(self.weights(made), images[mask])[0])
                bag -= float(log_p[np.argmax(log_p[:, 1] - log_p[:, 0]), y]) / 2

        for vector, label in zip(q, predicted, strict=True):
            self.mu[label] = 0.9 * self.mu[label] + 0.1 * vector
        norms = np.linalg.norm(self.mu, axis=1, keepdims=True)
        self.mu = self.mu / np.where(norms > 0, norms, 1)
        self.queue = [*self.queue, *zip(k, predicted, strict=True)][-8:]
        return {"ce": float(np.mean(ce)), "contrast": 0.5 * float(np.mean(contrast)), "bag": 2 * bag}

    def follow(self, made: InstanceTeaching) -> None:
        """The average of the weights, once an update is made."""
        self.average = [0.9 * a + 0.1 * w for a, w in zip(self.average, self.weights(made), strict=True)]


def test_updates_against_a_loop() -> None:
    made = objective()
    with torch.no_grad():
        made.student.encoder.body[2].weight.mul_(10)  # both classes are predicted
    wanted = Reference(made)
    optimizer = torch.optim.SGD(made.parameters(), lr=0.02)
    plans = [[0] * B, [0, 0, 1, 1, 0, 1], [1] * B, [2] * B, [3] * B, [4] * B]
    for number, epochs in enumerate(plans):
        given = batch(number, epochs)
        expected = wanted.update(made, given)
        terms = {name: value(term) for name, term in made.terms(given).items()}
        # Queue and pseudo labels are kept in float32, products are divided by 0.07.
        assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, rel=2e-6, abs=1e-6)
        optimizer.zero_grad()
        sum(terms.values(), torch.zeros(())).backward()
        optimizer.step()
        made.finish(given)
        wanted.follow(made)
        np.testing.assert_allclose(made.prototypes.numpy(), wanted.mu, atol=1e-12)
        held = made.table.read(torch.tensor(list(wanted.s)))[0].numpy()
        np.testing.assert_allclose(held, np.stack(list(wanted.s.values())), atol=1e-6)
        averaged = [p.numpy() for p in (*made.key_encoder.model.parameters(), *made.key_projection.model.parameters())]
        for one, other in zip(averaged, wanted.average, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)  # kept in float32
    assert len({label for _, label in wanted.queue}) == 2
    assert not all(p.requires_grad for p in made.key_encoder.parameters())


def test_negative_bags_are_negative_whatever_is_predicted() -> None:
    made = objective(phi_start=0.0, phi_end=0.0)
    with torch.no_grad():
        made.student.encoder.body[2].bias.copy_(torch.tensor([-50.0, 50.0]))
        made.prototypes[1] = 100.0
    given = batch(0, [2] * B, label=torch.tensor([0, 1, 0, 1, 0, 0]))
    made.terms(given)
    negative = given["instances"]["label"] == 0
    (predicted,), (target,) = made.kept["predicted"], made.kept["target"]
    assert predicted.tolist() == given["instances"]["label"].tolist()
    assert target[negative].tolist() == [[1, 0]] * 4
    without = objective(reset_negatives=False, phi_start=0.0, phi_end=0.0)
    with torch.no_grad():
        without.student.encoder.body[2].bias.copy_(torch.tensor([-50.0, 50.0]))
    without.terms(given)
    assert without.kept["predicted"][0].tolist() == [1] * B


@pytest.mark.parametrize("phi", [0.0, 0.7, 1.0])
def test_pseudo_labels_move_towards_the_nearest_prototype(phi: float) -> None:
    """After n updates of class 1 from 1/2: s_1 = 1 - phi^n / 2."""
    made = objective(phi_start=phi, phi_end=phi)
    given = batch(0, [1] * B, label=torch.ones(B, dtype=torch.int64))
    for n in range(1, 5):
        query = torch.nn.functional.normalize(
            made.projection(made.student.encoder(given["instances"]["query"]).features)
        )
        with torch.no_grad():
            made.prototypes.copy_(torch.stack([-query.sum(0), query.sum(0)]))
        made.terms(given)
        nearest = (query @ made.prototypes.T).argmax(-1)
        assert bool((nearest == 1).any())
        target = made.kept["target"][0]
        # Stored in float32.
        wanted = torch.full((int(nearest.sum()),), 1 - 0.5 * phi**n, dtype=target.dtype)
        torch.testing.assert_close(target[nearest == 1, 1], wanted, rtol=0, atol=1e-6)
        torch.testing.assert_close(target.sum(1), torch.ones(B, dtype=target.dtype))
        made.finish(given)


def test_phi_falls_linearly() -> None:
    """One step from (1/2, 1/2) to class 0, where prototypes are all alike: s_0 = 1 - phi / 2."""
    made = objective(epochs=8, prot_start=0)
    given = batch(0, [0, 4, 8, 2, 9, 6], label=torch.ones(B, dtype=torch.int64))
    made.terms(given)
    phi = 2 * (1 - made.kept["target"][0][:, 0])
    torch.testing.assert_close(phi.float(), torch.tensor([0.95, 0.875, 0.8, 0.9125, 0.8, 0.8375]))


def test_contrast_is_info_nce_before_prototypes_and_reads_no_empty_queue() -> None:
    made = objective()
    first = batch(0, [0] * B)
    assert value(made.terms(first)["contrast"]).item() == 0  # nothing to be told from yet
    made.finish(first)
    assert value(made.terms(batch(1, [0] * B))["contrast"]).item() > 0
    assert int((made.queue.labels >= 0).sum()) == B


def test_hidden_labels_change_no_term_and_bags_can_be_left_out(data: InstanceBagData) -> None:
    given = batch(0, [1] * B)
    other = copy.deepcopy(given)
    other["instances"]["hidden_label"] = 1 - other["instances"]["hidden_label"]
    one, two = objective(), objective()
    assert [value(t).item() for t in one.terms(given).values()] == [value(t).item() for t in two.terms(other).values()]
    assert one.observed["precision"][0] != two.observed["precision"][0]  # type: ignore[index]
    made = objective(bag_weight=0.0)
    streams = made.streams(data, 20, seed=0)
    assert list(streams) == ["instances"]
    assert list(made.terms({"instances": given["instances"]})) == ["ce", "contrast"]


def test_streams_keep_step(data: InstanceBagData) -> None:
    streams = objective().streams(data, 20, seed=0)
    instances, bags = streams["instances"], streams["bags"]
    assert len(instances.samples) == int(data.train.sizes.sum())
    updates = len(instances.samples) / instances.batch_size
    assert updates - 2 < len(bags.samples) / bags.batch_size <= updates
    assert set(instances.batch(0)) == {"query", "key", "label", "index", "hidden_label", "epoch"}
    assert instances.views == {"query": data.view, "key": "strong"}
    assert bags.views == {"image": data.view}


def test_summary_counts_right_pseudo_labels_of_positive_bags() -> None:
    """With phi = 0 and vectors that are all alike, all instances of positive bags get the class of one prototype."""
    made = objective(epochs=4, phi_start=0.0, phi_end=0.0)
    with torch.no_grad():
        made.projection.layers[-1][0].bias.fill_(100.0)
    given = batch(0, [0] * B)
    hidden = given["instances"]["hidden_label"][given["instances"]["label"] == 1]
    share = float(hidden.double().mean())
    assert 0 < share < 0.5
    for epoch, said in enumerate([1, 0, 0, 1]):
        made.prototypes.copy_(torch.tensor([[-1.0] * 3, [1.0] * 3]) * (1 if said else -1))
        given["instances"]["epoch"].fill_(epoch)
        made.terms(given)
        made.finish(given)
    assert made.summary() == pytest.approx({"pseudo_accuracy/first": 1 - share, "pseudo_accuracy/last": share})


def test_the_keys_see_averaged_statistics() -> None:
    body = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 2))
    network = Classifier(body, ("negative", "positive"), channels=1, size=8)
    made = InstanceTeaching(classify_bags(network, "max"), **OPTIONS)
    made.begin(plan(N, 2, epochs=4))
    given = batch(0, [0] * B)
    made.terms(given)
    made.finish(given)
    # From 0 a tenth of the way (key_momentum 0.9) to the student's, which went a tenth of the way to the batch's mean.
    mean = 0.01 * given["instances"]["query"].flatten(1).mean(0)
    torch.testing.assert_close(made.key_encoder.model.body[1].running_mean, mean)


def settings(updates: int) -> FitSettings:
    return FitSettings(updates=updates, batch_size=40, accelerator="cpu", evaluations=1, log_every=5)


def test_program(data: InstanceBagData, tmp_path: Path) -> None:
    options: dict[str, Any] = {"prot_start": 1, "bag_start": 2, "queue": 50, "key_momentum": 0.9, "pooling": "mean"}
    method = INSMIL(data, encoder(), settings(30), settings(5), **options)
    stages = run_stages(method, tmp_path)
    assert list(stages) == ["bag-labels", "fit"]
    first, last = stages["bag-labels"], stages["fit"]
    assert isinstance(first, Fit)
    assert isinstance(last, Fit)
    assert isinstance(first.objective, SIL)
    made = last.objective
    assert isinstance(made, InstanceTeaching)
    assert made.student is first.objective.student
    assert isinstance(made.student.pooling, InstancePooling)
    assert made.student.pooling.how == "mean"
    assert (first.settings.updates, last.settings.updates) == (5, 30)
    assert bool(made.table.seen[data.train.instances.indices].all())
    # Every instance of a negative bag is negative in the table.
    negative = data.train.instances.indices[data.train.instances.labels == 0]
    assert made.table.table[negative].tolist() == [[1, 0]] * len(negative)

    summary = made.summary()
    assert set(summary) == {"pseudo_accuracy/first", "pseudo_accuracy/last"}
    # 30 updates of 40 instances in epochs of the training instances: the first with prototypes is seen whole.
    assert made.right[0, 1] == int((data.train.instances.labels == 1).sum())
    rows = (tmp_path / "fit" / "metrics.csv").read_text(encoding="utf-8")
    assert all(f",train,{name}," in rows for name in ("precision", "positive_share", "loss/bag"))


def test_positive_ratio_1_is_supervised(tmp_path: Path) -> None:
    """All instances of positive bags are positive: the first stage has right labels and tells them well apart."""
    data = instance_bags(0, {"name": "digits", "validation": 0.2}, size=5, ratio=1.0)
    method = INSMIL(data, encoder(), settings(1), settings(150), prot_start=0)
    seen: list[float] = []

    def look(stage: Any) -> None:
        said = stage.objective.trained().encoder(
            data.test.instances.fetch(torch.arange(len(data.test.instances)))["image"]
        )
        seen.append(float((said.logits.argmax(1) == data.test.hidden_labels).double().mean()))

    run_stages(method, tmp_path, look=look)
    # Nine against the other digits, linearly, about half of each.
    assert seen[1] > 0.85 > seen[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 1.1}, r"beta is 1\.1; it must lie between 0 and 1"),
        ({"phi_end": -0.1}, r"phi_end is -0\.1"),
        ({"key_momentum": 2.0}, r"key_momentum is 2\.0"),
        ({"tau": 0.0}, r"tau is 0\.0; it must be above 0"),
        ({"bag_weight": -1.0}, r"bag_weight is -1\.0; it must be at least 0"),
        ({"prot_start": -1}, "prot_start is -1"),
        ({"queue": 0}, "queue is 0; it must be at least 1"),
    ],
)
def test_wrong_input(data: InstanceBagData, options: dict[str, Any], message: str) -> None:
    with pytest.raises(LimbeckError, match=message):
        INSMIL(data, encoder(), settings(1), settings(1), **options)


def test_needs_a_head(data: InstanceBagData) -> None:
    headless = Classifier(nn.Flatten(), ("negative", "positive"), channels=1, size=8)
    with pytest.raises(LimbeckError, match="INS needs the features of its student"):
        INSMIL(data, headless, settings(1), settings(1))
