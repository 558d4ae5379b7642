import warnings
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, rel_entr
from torch.nn import functional as F

from limbeck import losses
from limbeck.errors import LimbeckError
from limbeck.labels import TopK, top_k
from limbeck.losses import cross_entropy, soft_cross_entropy

P = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64)
Q = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
jsd = losses.generalized_jsd


def mixed(p, q, share):
    return share * p + (1 - share) * q


def kl(a, b):
    return rel_entr(a, b).sum(-1)


DIVERGENCES = {
    "forward_kl": (losses.forward_kl, kl),
    "reverse_kl": (losses.reverse_kl, lambda p, q: kl(q, p)),
    "js": (losses.js, lambda p, q: (kl(p, mixed(p, q, 0.5)) + kl(q, mixed(p, q, 0.5))) / 2),
    "jsd_0.2": (
        partial(jsd, beta=0.2),
        lambda p, q: 0.2 * kl(p, mixed(p, q, 0.2)) + 0.8 * kl(q, mixed(p, q, 0.2)),
    ),
    "continuous_0.2": (
        partial(jsd, beta=0.2, interpolation="continuous"),
        lambda p, q: 0.8 * kl(p, mixed(p, q, 0.2)) + 0.2 * kl(q, mixed(p, q, 0.2)),
    ),
    "skewed_forward": (
        partial(losses.skewed_forward_kl, skew=0.1),
        lambda p, q: kl(p, mixed(p, q, 0.1)),
    ),
    "skewed_reverse": (
        partial(losses.skewed_reverse_kl, skew=0.1),
        lambda p, q: kl(q, mixed(p, q, 0.9)),
    ),
    "total_variation": (losses.total_variation, lambda p, q: abs(p - q).sum(-1) / 2),
}
every_divergence = pytest.mark.parametrize(("loss", "reference"), DIVERGENCES.values(), ids=DIVERGENCES)
shapes = st.sampled_from([(1,), (3,), (2, 5), (4, 1), (0, 3), (2, 2, 4), (3, 1, 2, 6)])


def pair(shape, seed, scale=3.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(2, *shape, generator=generator, dtype=dtype)


@pytest.mark.parametrize(
    ("loss", "value"),
    [
        (losses.forward_kl, 0.0851228),
        (losses.reverse_kl, 0.0920329),
        (losses.total_variation, 0.2),
        (partial(jsd, beta=0.1), 0.00769469),
        (partial(jsd, beta=0.5), 0.0219012),
        (losses.js, 0.0219012),
        (partial(jsd, beta=0.9), 0.00818476),
        (partial(jsd, beta=0), 0.0851228),
        (partial(jsd, beta=1), 0.0920329),
        (partial(jsd, beta=0.1, interpolation="continuous"), 0.0627020),
        (partial(losses.skewed_forward_kl, skew=0.1), 0.0695779),
        (partial(losses.skewed_reverse_kl, skew=0.1), 0.0728276),
    ],
)
def test_worked_values(loss, value):
    # One unit of the last of 7 decimals: two of the published values are not rounded but cut or rounded up.
    assert loss(Q.log(), P.log()).item() == pytest.approx(value, abs=1e-7)


def test_worked_values_of_cross_entropy_forms():
    assert soft_cross_entropy(Q.log(), P).item() == pytest.approx(0.8869414, abs=5.1e-8)
    entropy = 0.8018186
    skewed = losses.skewed_forward_kl(Q.log(), P.log(), skew=0.1).item()
    assert skewed + entropy == pytest.approx(0.8713965, abs=1.1e-7)


@every_divergence
@settings(max_examples=15, deadline=None)
@given(shape=shapes, seed=st.integers(0, 99), temperature=st.sampled_from([0.5, 1, 4.0]))
def test_against_scipy(loss, reference, shape, seed, temperature):
    student, teacher = pair(shape, seed)
    ours = loss(student, teacher, temperature=temperature, reduction="none")
    p, q = (np.exp(log_softmax(z.numpy() / temperature, axis=-1)) for z in (teacher, student))
    # Differences of logarithms up to 50 in float64.
    np.testing.assert_allclose(ours.numpy(), reference(p, q), atol=1e-13, rtol=1e-11)


@every_divergence
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 99), permutation=st.permutations(range(5)), shift=st.floats(-50, 50))
def test_classes_may_be_permuted_and_logits_shifted(loss, reference, seed, permutation, shift):
    student, teacher = pair((3, 5), seed)
    expected = loss(student, teacher)
    torch.testing.assert_close(loss(student[:, permutation], teacher[:, permutation]), expected)
    torch.testing.assert_close(loss(student + shift, teacher - shift), expected)


@every_divergence
def test_zero_when_equal_and_not_negative(loss, reference):
    student, teacher = pair((64, 7), 0)
    assert loss(student, teacher, reduction="none").min() > 0
    # Rounding only: log-probabilities of size 10 in float64.
    assert loss(teacher, teacher, reduction="none").abs().max() < 1e-14
    # log(0.1 + 0.9) is not exactly 0.
    assert abs(loss(student[:, :1], teacher[:, :1]).item()) < 1e-16


@every_divergence
def test_gradients(loss, reference):
    student, teacher = pair((2, 3), 1)
    student.requires_grad_()
    teacher.requires_grad_()
    assert torch.autograd.gradcheck(partial(loss, temperature=2.0), (student, teacher))
    student.data[0], teacher.data[0] = torch.tensor([4.0, 0, 0]), torch.tensor([0, -2.0, 1])
    for k, tail in [(1, "bucket"), (2, "bucket"), (2, "renormalize"), (3, "bucket")]:
        target = top_k(teacher.detach().softmax(-1), k)
        assert torch.autograd.gradcheck(partial(loss, teacher=target, tail=tail), (student,))


@every_divergence
@pytest.mark.parametrize("k", [None, 1, 2])
def test_extreme_logits_give_finite_values_and_gradients(loss, reference, k):
    student = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [0.0, 0.0, -1e4]], requires_grad=True)
    teacher = torch.tensor([[-1e4, 1e4, 0.0], [1e4, -1e4, 1e4], [0.0, 0.0, 0.0]])
    if k is not None:
        log_p = teacher.log_softmax(-1)
        kept = log_p.topk(k)
        # A teacher's underflowed rest would be 0, where the reverse KL is rightly infinite.
        teacher = TopK(kept.indices, kept.values, torch.full((3,), 1e-6))
    value = loss(student, teacher)
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


@every_divergence
def test_classes_that_both_sides_exclude_count_for_nothing(loss, reference):
    student, teacher = pair((2, 3), 3)
    expected = loss(student, teacher)
    out = torch.full((2, 1), -torch.inf, dtype=torch.float64)
    wide = torch.cat([student, out], -1).requires_grad_()
    value = loss(wide, torch.cat([teacher, out], -1))
    value.backward()
    torch.testing.assert_close(value, expected)
    assert wide.grad.isfinite().all()
    assert wide.grad[:, 3].tolist() == [0.0, 0.0]


def test_a_class_that_only_the_teacher_excludes():
    student = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[0.0, -torch.inf]], dtype=torch.float64)
    value = losses.forward_kl(student, teacher)
    value.backward()
    assert value.item() == pytest.approx(np.log(2), abs=1e-15)
    assert student.grad.tolist() == [[-0.5, 0.5]]
    assert losses.js(student, teacher).item() == pytest.approx(0.75 * np.log(4 / 3), abs=1e-15)
    assert losses.reverse_kl(student, teacher).item() == torch.inf


@every_divergence
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(loss, reference, dtype):
    student, teacher = pair((8, 5), 4).to(dtype)
    value = loss(student, teacher)
    assert value.dtype == torch.float32
    assert value == loss(student.float(), teacher.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(student, teacher) == value


@every_divergence
def test_weights_select(loss, reference):
    student, teacher = pair((4, 3), 5)
    student[1] = torch.nan
    weight = torch.tensor([1.0, 0.0, 2.0, 0.0], dtype=torch.float64)
    each = loss(student, teacher, reduction="none")
    expected = (each[0] + 2 * each[2]) / 3
    torch.testing.assert_close(loss(student, teacher, weight=weight), expected)
    empty = loss(student[2:], teacher[2:], weight=torch.zeros(2, dtype=torch.float64))
    assert empty.item() == 0.0


def test_micro_batches_give_the_same_gradient():
    whole, teacher = pair((4, 6), 6)
    whole.requires_grad_()
    weight = torch.tensor([1.0, 0.0, 0.5, 2.0], dtype=torch.float64)
    losses.js(whole, teacher, weight=weight).backward()
    for parts in (1, 2, 4):
        student = whole.detach().clone().requires_grad_()
        for s, t, w in zip(student.chunk(parts), teacher.chunk(parts), weight.chunk(parts), strict=True):
            each = losses.js(s, t, weight=w, reduction="none")
            (losses.Mean.of(each).total / weight.sum()).backward()
        torch.testing.assert_close(student.grad, whole.grad)


@given(beta=st.floats(0.05, 0.95))
@settings(max_examples=20, deadline=None)
def test_interior_gradient_by_hand(beta):
    student, teacher = pair((1, 5), 7)
    student.requires_grad_()
    losses.generalized_jsd(student, teacher, beta=beta).backward()
    p, q = teacher.softmax(-1), student.detach().softmax(-1)
    of_log_q = (1 - beta) * q * (q.log() - mixed(p, q, beta).log())
    torch.testing.assert_close(student.grad, of_log_q - q * of_log_q.sum())


def test_ends_of_the_two_interpolations():
    student, teacher = pair((3, 4), 8)
    forward, reverse = losses.forward_kl(student, teacher), losses.reverse_kl(student, teacher)
    continuous = partial(jsd, interpolation="continuous")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # The distance from the end is of first order in beta, with slopes below 100 here.
        assert continuous(student, teacher, beta=1e-7).item() == pytest.approx(forward.item(), abs=1e-5)
        assert continuous(student, teacher, beta=1 - 1e-7).item() == pytest.approx(reverse.item(), abs=1e-5)
    with pytest.warns(UserWarning, match=r"beta=0\.999\) tends to 0 near beta = 1"):
        near = jsd(Q.log(), P.log(), beta=0.999)
    assert near.item() == pytest.approx(9.2e-5, abs=5e-7)
    with pytest.warns(UserWarning, match="continuous"):
        jsd(student, teacher, beta=0.01)


def test_skew_limits():
    student, teacher = pair((3, 4), 9)
    assert losses.skewed_forward_kl(student, teacher, skew=0) == losses.forward_kl(student, teacher)
    assert losses.skewed_reverse_kl(student, teacher, skew=0) == losses.reverse_kl(student, teacher)
    assert losses.skewed_forward_kl(student, teacher, skew=1).item() == 0.0
    far = torch.tensor([[0.0, -1e4]]), torch.tensor([[-1e4, 0.0]])
    # The bound is reached; one rounding of float32.
    assert losses.skewed_forward_kl(*far, skew=0.1).item() == pytest.approx(-np.log(0.1), rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(shape=shapes, seed=st.integers(0, 99), smoothing=st.sampled_from([0, 0.1, 1.0]))
def test_cross_entropy_against_torch(shape, seed, smoothing):
    logits = pair(shape, seed)[0]
    labels = torch.randint(shape[-1], shape[:-1], generator=torch.Generator().manual_seed(seed))
    ours = cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
    flat, target = logits.reshape(-1, shape[-1]), labels.reshape(-1)
    theirs = F.cross_entropy(flat, target, label_smoothing=smoothing, reduction="none")
    torch.testing.assert_close(ours.reshape(-1), theirs)
    mean = theirs.mean() if theirs.numel() else torch.zeros_like(theirs.sum())  # of nothing it is 0, not NaN
    torch.testing.assert_close(cross_entropy(logits, labels, label_smoothing=smoothing), mean)


def test_cross_entropy_of_one_hot_targets_is_the_same_bit_for_bit():
    logits = pair((16, 10), 0, dtype=torch.float32)[0].requires_grad_()
    labels = torch.randint(10, (16,), generator=torch.Generator().manual_seed(0))
    target = F.one_hot(labels, 10).float()
    values = cross_entropy(logits, labels, reduction="none")
    assert torch.equal(values, soft_cross_entropy(logits, target, reduction="none"))
    hard, soft, by_value = cross_entropy(logits, labels), soft_cross_entropy(logits, target), values.mean()
    gradients = [torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (hard, soft, by_value)]
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])
    torch.testing.assert_close(hard, by_value)  # torch adds the values up in another order where it takes their mean


def test_the_gradient_of_a_learned_weight_is_the_value_of_its_label():
    logits, labels = torch.randn(3, 4, dtype=torch.float64), torch.tensor([2, -1, 3])
    weight = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    cross_entropy(logits, labels, weight=weight, reduction="sum").backward()
    expected = -logits.log_softmax(-1)[[0, 2], labels[[0, 2]]]
    torch.testing.assert_close(weight.grad[[0, 2]], expected)
    assert weight.grad[1] == 0  # an unknown label has no value


def test_a_learned_weight_of_zero_takes_no_infinite_value():
    logits, labels = torch.randn(2, 3), torch.tensor([0, 1])
    weight = torch.tensor([1.0, 0.0], requires_grad=True)
    left_out = torch.tensor([True, False, True])  # the class of the second label: its value is infinite
    cross_entropy(logits, labels, classes=left_out, weight=weight, reduction="sum").backward()
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int8])
def test_labels_of_other_integers(dtype):
    logits, labels, weight = torch.randn(3, 4), torch.tensor([2, 1, 3]), torch.tensor([1.0, 0.0, 2.0])
    assert torch.equal(
        cross_entropy(logits, labels.to(dtype), weight=weight), cross_entropy(logits, labels, weight=weight)
    )


@pytest.mark.parametrize("weight", [torch.tensor([1.0, 0.0, 2.0]), torch.tensor([True, False, True])])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_what_is_not_read_counts_for_nothing_whatever_its_logits(weight, reduction):
    logits, labels = torch.randn(3, 4), torch.tensor([2, 1, 3])
    far = logits.clone()
    far[1] = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0])
    for smoothing in (0.0, 0.1):
        given = {"weight": weight, "reduction": reduction, "label_smoothing": smoothing}
        assert torch.equal(cross_entropy(far, labels, **given), cross_entropy(logits, labels, **given))
    left_out = torch.tensor([True, False, True, True])  # the class of the label that is not read
    assert cross_entropy(logits, labels, classes=left_out, weight=weight, reduction=reduction).isfinite().all()


@pytest.mark.parametrize("unknown", [-1, -100])  # torch's own default leaves -100 out
def test_unknown_labels_are_left_out_by_their_weight_only(unknown):
    logits = pair((3, 4), 1)[0].requires_grad_()
    labels, weight = torch.tensor([2, unknown, 0]), torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    value = cross_entropy(logits, labels, weight=weight)
    value.backward()
    known = torch.tensor([0, 2])
    torch.testing.assert_close(value, F.cross_entropy(logits[known], labels[known]))
    assert logits.grad[1].tolist() == [0.0] * 4
    with pytest.raises((RuntimeError, IndexError), match="out of bounds"):
        cross_entropy(logits, labels)
    with pytest.raises((RuntimeError, IndexError), match="out of bounds"):
        cross_entropy(logits, labels, weight=torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("temperature", [1, 4.0])
def test_soft_cross_entropy_is_kl_plus_entropy(temperature):
    student, teacher = pair((5, 6), 2)
    p = (teacher / temperature).softmax(-1)
    expected = losses.forward_kl(student, teacher, temperature=temperature) - (p * p.log()).sum(-1).mean()
    torch.testing.assert_close(soft_cross_entropy(student, p, temperature=temperature), expected)
    dense = soft_cross_entropy(student, teacher.softmax(-1))
    torch.testing.assert_close(soft_cross_entropy(student, top_k(teacher.softmax(-1), 6)), dense)


def test_soft_cross_entropy_takes_targets_as_they_are():
    target = torch.tensor([[0.08, 0.8, 0.12]], dtype=torch.float64)
    logits = torch.tensor([[0.25, 0.6, 0.15]], dtype=torch.float64).log().requires_grad_()
    loss = soft_cross_entropy(logits, target)
    loss.backward()
    assert loss.item() == pytest.approx(0.7472184, abs=5.1e-8)
    torch.testing.assert_close(logits.grad, torch.tensor([[0.17, -0.2, 0.03]], dtype=torch.float64))
    assert soft_cross_entropy(logits, 3 * target).item() == pytest.approx(3 * loss.item(), rel=1e-14)
    excluded = torch.tensor([[0.0, -torch.inf]], requires_grad=True)
    value = soft_cross_entropy(excluded, torch.tensor([[1.0, 0.0]]))
    value.backward()
    assert value.item() == 0.0
    assert excluded.grad.tolist() == [[0.0, 0.0]]


def test_errors_name_what_is_wrong():
    student, teacher = pair((2, 3), 0)
    for temperature in (0, -1.0, float("nan")):
        with pytest.raises(LimbeckError, match="temperature is"):
            losses.forward_kl(student, teacher, temperature=temperature)
    with pytest.raises(LimbeckError, match=r"beta is 1\.5"):
        jsd(student, teacher, beta=1.5)
    with pytest.raises(LimbeckError, match=r"skew is -0\.1"):
        losses.skewed_forward_kl(student, teacher, skew=-0.1)
    with pytest.raises(LimbeckError, match='tail="zero"'):
        losses.reverse_kl(student, top_k(teacher.softmax(-1), 2), tail="zero")
