from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import rel_entr

from limbeck.errors import LimbeckError
from limbeck.methods.language.lm_kd import LMKD
from limbeck.methods.language.sft import SFT
from limbeck.teachers.frozen import Frozen

from .tables import Floats, plan, softmax, total, value
from .token_tables import TokenTable, random_case, token_batch


def kl(a: Floats, b: Floats) -> Floats:
    found: Floats = rel_entr(a, b).sum(-1)
    return found


def mix(w: float, a: Floats, b: Floats) -> Floats:
    return w * a + (1 - w) * b


def dkd(p: Floats, q: Floats, labels: Any) -> Floats:
    values = np.zeros(labels.shape)
    for place in np.ndindex(labels.shape):
        y = max(labels[place], 0)
        a, b = p[place], q[place]
        rest_a, rest_b = np.delete(a, y), np.delete(b, y)
        target = kl(np.array([a[y], 1 - a[y]]), np.array([b[y], 1 - b[y]]))
        values[place] = target + 0.5 * kl(rest_a / rest_a.sum(), rest_b / rest_b.sum())
    return values


ZOO = {
    "forward_kl": lambda p, q, y: kl(p, q),
    "reverse_kl": lambda p, q, y: kl(q, p),
    "js": lambda p, q, y: 0.1 * kl(p, mix(0.1, p, q)) + 0.9 * kl(q, mix(0.1, p, q)),
    "skewed_forward_kl": lambda p, q, y: kl(p, mix(0.1, p, q)),
    "skewed_reverse_kl": lambda p, q, y: kl(q, mix(0.9, p, q)),
    "tvd": lambda p, q, y: np.abs(p - q).sum(-1) / 2,
    "dkd": dkd,
}


def objective(s: Any, t: Any, **options: Any) -> tuple[LMKD, TokenTable]:
    student = TokenTable(s)
    made = LMKD(student, Frozen(TokenTable(t)), **options)
    made.begin(plan(1, 0, updates=10))
    return made, student


@pytest.mark.parametrize("divergence", ZOO)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_every_divergence_is_a_mean_over_the_tokens_that_count(divergence: Any, temperature: float) -> None:
    s, t, labels = random_case(1)
    made, _ = objective(s, t, divergence=divergence, temperature=temperature)
    found = made.terms(token_batch(labels))
    p, q = softmax(t[:, :-1] / temperature), softmax(s[:, :-1] / temperature)
    targets = labels[:, 1:]
    values = temperature**2 * ZOO[divergence](p, q, targets)
    assert list(found) == ["kd"]
    # float64; the reference takes logarithms of differences of probabilities.
    assert value(found["kd"]).item() == pytest.approx(values[targets >= 0].mean(), rel=1e-8)


def test_worked_token() -> None:
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.3, 0.2])
    table = {"forward_kl": 0.0851228, "reverse_kl": 0.0920329, "tvd": 0.2, "js": 0.00769469}
    table |= {"skewed_forward_kl": 0.0695779, "skewed_reverse_kl": 0.0728276}
    for divergence, expected in table.items():
        made, _ = objective(np.log([[q, q]]), np.log([[p, p]]), divergence=divergence)
        found = value(made.terms(token_batch([[0, 1]]))["kd"]).item()
        assert found == pytest.approx(expected, abs=1e-7), divergence


@pytest.mark.parametrize("divergence", [*ZOO, "adaptive_kl", "ctkd"])
def test_tokens_that_do_not_count_change_nothing(divergence: Any) -> None:
    s, t, labels = random_case(2)
    losses, gradients = [], []
    for noise in (0.0, 5.0):
        masked = np.zeros(s.shape, dtype=bool)
        masked[:, :-1] = (labels[:, 1:] < 0)[..., None]
        masked[:, -1] = True  # the last position predicts nothing
        made, student = objective(s + noise * masked, t - noise * masked * np.arange(4), divergence=divergence)
        loss = total(made.terms(token_batch(labels)))
        loss.backward()
        losses.append(loss.item())
        gradients.append(student.gradient())
        assert not gradients[-1][masked].any()
    assert losses[0] == losses[1] > 0
    np.testing.assert_array_equal(*gradients)


def test_ratio_mixes_and_its_ends_are_one_term_alone() -> None:
    s, t, labels = random_case(3)
    batch = token_batch(labels)
    ends = [total(objective(s, t, ratio=r)[0].terms(batch)).item() for r in (0.0, 1.0)]
    assert ends[0] == pytest.approx(total(SFT(TokenTable(s)).terms(batch)).item(), rel=1e-12)
    mixed = objective(s, t, ratio=0.3)[0].terms(batch)
    assert list(mixed) == ["ce", "kd"]
    assert total(mixed).item() == pytest.approx(0.7 * ends[0] + 0.3 * ends[1], rel=1e-12)
    assert list(objective(s, t, ratio=0.0)[0].terms(batch)) == ["ce"]


def test_ctkd_learns_its_temperature_against_the_student() -> None:
    s, t, labels = random_case(4)
    made, _ = objective(s, t, divergence="ctkd")
    batch = token_batch(labels)
    assert [name for name, _ in made.named_parameters() if "temperature" in name] == ["learned_temperature.x"]
    fixed = 1 + 20 / (1 + np.exp(-1.0))
    expected = total(objective(s, t, temperature=fixed)[0].terms(batch)).item()
    loss = total(made.terms(batch))
    assert loss.item() == pytest.approx(expected, rel=1e-6)  # the temperature is float32
    loss.backward()
    assert made.learned_temperature.x.grad == 0  # the curriculum begins with no adversary
    for _ in range(5):
        made.finish(batch)
    made.learned_temperature.x.grad = None
    total(made.terms(batch)).backward()
    uphill = made.learned_temperature.x.grad.item()
    with torch.no_grad():
        made.learned_temperature.x -= 1e-2 * np.sign(uphill)
    # What a descending optimiser does raises the loss.
    assert total(made.terms(batch)).item() > loss.item()


def test_refuses_what_cannot_be() -> None:
    s, t, _ = random_case(0)
    with pytest.raises(LimbeckError, match="ratio is 2"):
        objective(s, t, ratio=2)
    with pytest.raises(LimbeckError, match="temperature is 0"):
        objective(s, t, temperature=0)
    with pytest.raises(LimbeckError, match="learns its own"):
        objective(s, t, divergence="ctkd", temperature=2.0)
