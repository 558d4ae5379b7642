"""Fused losses equal the same losses on whole logits, in value and gradients, however the rows are cut."""

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.labels.interpolate import interpolate
from limbeck.labels.types import TopK
from limbeck.losses import divergence as D
from limbeck.losses.adaptive_kl import adaptive_kl
from limbeck.losses.dkd import dkd
from limbeck.losses.fused_linear import (
    Projection,
    fused_linear,
    fused_linear_cross_entropy,
    fused_linear_divergence,
)
from limbeck.losses.reduction import Mean

B, L, C, H = 3, 5, 23, 4
Divergence = Callable[..., Tensor]


def taid(logits: Tensor, teacher: Tensor, weight: Tensor, reduction: str) -> Tensor:
    """TAID's target moves with the student's own prediction, whose gradient it stops."""
    return D.soft_cross_entropy(logits, interpolate(logits, teacher, 0.4), weight=weight, reduction=reduction)


DIVERGENCES: dict[str, Divergence] = {
    "forward_kl": D.forward_kl,
    "reverse_kl": D.reverse_kl,
    "generalized_jsd": functools.partial(D.generalized_jsd, beta=0.3, temperature=2.0),
    "skewed_forward_kl": D.skewed_forward_kl,
    "skewed_reverse_kl": D.skewed_reverse_kl,
    "total_variation": D.total_variation,
    "taid": taid,
    "adaptive_kl": adaptive_kl,
}


def student(bias: bool = True, seed: int = 0) -> Projection:
    torch.manual_seed(seed)
    tensors = torch.randn(B, L, H), torch.randn(C, H), torch.randn(C) if bias else None
    return Projection(*(None if t is None else t.double().requires_grad_() for t in tensors))


def teacher() -> Projection:
    torch.manual_seed(1)
    return Projection(torch.randn(B, L, 6).double(), torch.randn(C, 6).double(), torch.randn(C).double())


def whole(projection: Projection) -> Tensor:
    logits = projection.hidden @ projection.weight.T
    return logits if projection.bias is None else logits + projection.bias


def top_k(logits: Tensor, k: int) -> TopK:
    log_probs, indices = logits.log_softmax(-1).topk(k)
    return TopK(indices, log_probs, 1 - log_probs.exp().sum(-1))


def gradients(loss: Tensor, of: Projection) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [t for t in of if t is not None]))


def weights() -> Tensor:
    weight = torch.rand(B, L, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return weight.masked_fill(torch.arange(B * L).view(B, L) % 3 == 0, 0.0)


@pytest.mark.parametrize("chunk", [1, 7, B * L, None])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_equals_whole_logits(name: str, chunk: int | None) -> None:
    own, other, weight = student(), teacher(), weights()
    found = fused_linear_divergence(own, other, DIVERGENCES[name], weight=weight, chunk=chunk)
    total = DIVERGENCES[name](whole(own), whole(other), weight=weight, reduction="sum")
    torch.testing.assert_close(found.value, total / weight.sum(), check_dtype=False)
    torch.testing.assert_close(gradients(found.value, own), gradients(total / weight.sum(), own), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("tail", ["bucket", "renormalize", "zero"])
@pytest.mark.parametrize("k", [4, C])
def test_top_k(k: int, tail: str) -> None:
    own, labels = student(bias=False), top_k(whole(teacher()), k)
    loss = functools.partial(D.forward_kl, tail=tail)
    found = fused_linear_divergence(own, labels, loss, chunk=4)
    expected = loss(whole(own), labels)
    torch.testing.assert_close(found.value, expected, check_dtype=False)
    torch.testing.assert_close(gradients(found.value, own), gradients(expected, own), rtol=1e-6, atol=1e-9)


def test_hard_and_soft() -> None:
    own, logits, weight = student(), whole(teacher()), weights()
    labels = torch.randint(C, (B, L)).masked_fill(weight == 0, -100)
    found = fused_linear_divergence(own, logits, D.js, labels=labels, hard=0.3, weight=weight, chunk=2)
    z = whole(own)
    hard = torch.nn.functional.cross_entropy(z.flatten(0, 1), labels.flatten(), reduction="none")
    expected = 0.3 * (weight.flatten() * hard).sum() / weight.sum() + 0.7 * D.js(z, logits, weight=weight)
    torch.testing.assert_close(found.value, expected, check_dtype=False)
    torch.testing.assert_close(gradients(found.value, own), gradients(expected, own), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("chunk", [2, None])
def test_cross_entropy_alone(chunk: int | None) -> None:
    own, labels = student(), torch.randint(C, (B, L))
    labels[0, 2] = -100  # has no weight
    weight = weights() * (labels >= 0)
    found = fused_linear_cross_entropy(own, labels, weight=weight, chunk=chunk)
    expected = D.cross_entropy(whole(own), labels, weight=weight)
    torch.testing.assert_close(found.value, expected)
    torch.testing.assert_close(gradients(found.value, own), gradients(expected, own))


def test_arguments_of_rows() -> None:
    own, labels = student(), torch.randint(C, (B, L))
    found = fused_linear_divergence(own, teacher(), dkd, weight=weights(), rows={"labels": labels}, chunk=2).value
    expected = dkd(whole(own), whole(teacher()), labels, weight=weights())
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(found, own), gradients(expected, own))


@pytest.mark.parametrize("chunk", [2, None])
def test_logits_that_are_there_already(chunk: int | None) -> None:
    logits = whole(student()).detach().requires_grad_()
    found = fused_linear_divergence(
        Projection(logits), Projection(whole(teacher())), weight=weights(), chunk=chunk
    ).value
    expected = D.forward_kl(logits, whole(teacher()), weight=weights())
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, logits), torch.autograd.grad(expected, logits))


def test_micro_batches_add_up() -> None:
    own, other, weight = student(), teacher(), weights()
    at_once = fused_linear_divergence(own, other, weight=weight)
    parts = []
    for row in range(B):
        mine, theirs = own._replace(hidden=own.hidden[row]), other._replace(hidden=other.hidden[row])
        parts.append(fused_linear_divergence(mine, theirs, weight=weight[row]))
    together = Mean(sum(p.total for p in parts), sum(p.count for p in parts))  # type: ignore[arg-type]
    torch.testing.assert_close(together.value, at_once.value)
    torch.testing.assert_close(gradients(together.value, own), gradients(at_once.value, own), rtol=1e-6, atol=1e-9)


def test_nothing_that_counts() -> None:
    own = student()
    found = fused_linear_divergence(own, teacher(), weight=torch.zeros(B, L))
    assert found.value == 0
    assert all(bool((g == 0).all()) for g in gradients(found.value, own))


def test_only_what_learns_has_a_gradient() -> None:
    own, other = student(), teacher()
    frozen = Projection(own.hidden, own.weight.detach(), None)
    loss = fused_linear_divergence(frozen, other._replace(weight=other.weight.clone().requires_grad_())).value
    (found,) = torch.autograd.grad(loss, [own.hidden])
    (expected,) = torch.autograd.grad(D.forward_kl(whole(frozen), whole(other)), [own.hidden])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    with torch.no_grad():
        assert not fused_linear_divergence(own, other).total.requires_grad


def test_half_precision_sums_in_full() -> None:
    own, other = student(), teacher()
    half = Projection(*(t.detach().bfloat16().requires_grad_() for t in own))  # type: ignore[union-attr]
    found = fused_linear_divergence(half, whole(other).bfloat16(), chunk=3)
    assert found.total.dtype == torch.float32
    expected = D.forward_kl(whole(half), whole(other).bfloat16())
    torch.testing.assert_close(found.value, expected, rtol=1e-2, atol=1e-3)
    for ours, theirs in zip(gradients(found.value, half), gradients(expected, half), strict=True):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.01)


def test_under_autocast() -> None:
    own = Projection(*(t.detach().float().requires_grad_() for t in student()))  # type: ignore[union-attr]
    logits = whole(teacher()).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = fused_linear_divergence(own, logits, chunk=4).value
    expected = D.forward_kl(whole(own), logits)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.01)
    for ours, theirs in zip(gradients(found, own), gradients(expected, own), strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=0.1, atol=0.01)


def test_any_loss_of_rows() -> None:
    own = student()
    flat = own._replace(hidden=own.hidden.reshape(-1, H))
    targets = torch.arange(B * L).double()
    found = fused_linear(flat, lambda z, rows: ((z.mean(-1) - targets[rows]) ** 2).sum(), chunk=4)
    expected = ((whole(flat).mean(-1) - targets) ** 2).sum()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(found, own), gradients(expected, own))


def test_refused() -> None:
    own, other = student(), teacher()
    with pytest.raises(LimbeckError, match=r"hard is 0\.5"):
        fused_linear_divergence(own, other, hard=0.5)
    with pytest.raises(LimbeckError, match=r"rows \[3, 5\] and the teacher \[3, 4\]"):
        fused_linear_divergence(own, whole(other)[:, :4])
    with pytest.raises(LimbeckError, match=r"rows \[3, 5\] and the weight \[15\]"):
        fused_linear_divergence(own, other, weight=torch.ones(15))
    with pytest.raises(LimbeckError, match="chunk is 0"):
        fused_linear_divergence(own, other, chunk=0)
    with pytest.raises(LimbeckError, match=r"expected \[rows, width\]"):
        fused_linear(own, lambda z, rows: z.sum())
