"""Run by test_liger in a process of its own, where Triton computes on the CPU."""

from functools import partial
from unittest import mock

import liger_kernel.transformers.functional as functions
import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.losses import divergence as D
from limbeck.losses import liger
from limbeck.losses.fused_linear import Projection, fused_linear_cross_entropy, fused_linear_divergence

N, C, H = 11, 37, 8
MASK = torch.arange(N) % 3 != 0
calls = []


def problem(dtype=torch.float32, bias=False):
    torch.manual_seed(0)
    student = Projection(
        torch.randn(N, H, dtype=dtype, requires_grad=True),
        torch.randn(C, H, dtype=dtype, requires_grad=True),
        torch.randn(C, dtype=dtype, requires_grad=True) if bias else None,
    )
    teacher = Projection(torch.randn(N, 6).to(dtype), torch.randn(C, 6).to(dtype))
    return student, teacher, torch.randint(0, C, (N,))


def both(loss, dtype=torch.float32, bias=False, kernels=True, frozen=False, autocast=False):
    """Value and gradients of a loss as it comes and without the kernels, which must have been called or not."""
    results = []
    for off in (False, True):
        student, teacher, labels = problem(dtype, bias)
        student.weight.requires_grad_(not frozen)
        before = len(calls)
        installed = mock.patch.object(liger, "_installed", lambda off=off: not off)
        with installed, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            mean = loss(student, teacher, labels)
        assert len(calls) - before == (kernels and not off), loss
        # Of two micro-batches: the sum is divided by more than its own rows.
        value = mean.total / (mean.count + 5)
        value.backward()
        results.append([value.detach(), *(p.grad for p in student if p is not None and p.requires_grad)])
    full = dtype == torch.float32 and not autocast
    precision = {"rtol": 1e-4, "atol": 1e-6} if full else {"rtol": 0.05, "atol": 0.003}
    for found, expected in zip(*results, strict=True):
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, **precision)


class Noted:
    """Liger's functions, which note that they were called."""

    def __getattr__(self, name):
        calls.append(name)
        return getattr(functions, name)


liger._functions = Noted

KNOWN = {
    "forward": D.forward_kl,
    "reverse": partial(D.reverse_kl, temperature=2.0),
    "jsd": D.generalized_jsd,
    "skewed towards the student": partial(partial(D.generalized_jsd, beta=0.1), temperature=3.0),
    "at an end": partial(D.generalized_jsd, beta=1.0),
}
for measure in KNOWN.values():
    for weight in (None, MASK):
        both(lambda s, t, y, m=measure, w=weight: fused_linear_divergence(s, t, m, weight=w))
for weight in (None, MASK):
    for bias in (False, True):
        both(lambda s, t, y, w=weight: fused_linear_cross_entropy(s, y, weight=w), bias=bias)
both(lambda s, t, y: fused_linear_divergence(s, t), frozen=True)
both(lambda s, t, y: fused_linear_cross_entropy(s, y), frozen=True)
both(lambda s, t, y: fused_linear_divergence(s, t), kernels=False, autocast=True)  # which casts the teacher before
both(lambda s, t, y: fused_linear_cross_entropy(s, y), autocast=True)
both(lambda s, t, y: fused_linear_divergence(s, t), torch.bfloat16)
both(lambda s, t, y: fused_linear_cross_entropy(s, y.masked_fill(~MASK, -100), weight=MASK), torch.bfloat16)

PLAIN = {
    "another divergence": lambda s, t, y: fused_linear_divergence(s, t, D.total_variation),
    "another interpolation": lambda s, t, y: fused_linear_divergence(
        s, t, partial(D.generalized_jsd, interpolation="continuous", beta=0.3)
    ),
    "hard labels": lambda s, t, y: fused_linear_divergence(s, t, labels=y, hard=0.5),
    "rows that count differently": lambda s, t, y: fused_linear_divergence(s, t, weight=MASK * 0.5),
    "the teacher's logits": lambda s, t, y: fused_linear_divergence(s, t.logits),
    "the teacher's bias": lambda s, t, y: fused_linear_divergence(s, t._replace(bias=torch.linspace(-1, 1, C))),
    "a transposed layer": lambda s, t, y: fused_linear_divergence(
        s._replace(weight=s.weight.mT.contiguous().mT), t._replace(weight=t.weight.mT.contiguous().mT)
    ),
    "chunks": lambda s, t, y: fused_linear_divergence(s, t, chunk=4),
    "no rows": lambda s, t, y: fused_linear_divergence(s, t, weight=torch.zeros(N, dtype=torch.bool)),
    "no rows with labels": lambda s, t, y: fused_linear_cross_entropy(s, y, weight=torch.zeros(N, dtype=torch.bool)),
    "chunks of labels": lambda s, t, y: fused_linear_cross_entropy(s, y, chunk=4),
}
for loss in PLAIN.values():
    both(loss, kernels=False)
both(lambda s, t, y: fused_linear_divergence(s, t), torch.float64, kernels=False)

student, teacher, labels = problem()
fixed = Projection(student.hidden.detach(), student.weight)
before = len(calls)
fused_linear_cross_entropy(fixed, labels).value.backward()  # the kernels would leave out the layer's gradient
assert student.weight.grad.abs().sum() > 0
with torch.no_grad():
    fused_linear_divergence(student, teacher)
assert len(calls) == before
for wrong in (labels - C, labels + C):
    with pytest.raises(LimbeckError, match=rf"label {int(wrong[0])} is out of range: there are {C} classes"):
        fused_linear_cross_entropy(student, wrong)
with pytest.raises(LimbeckError, match="must be the same"):
    fused_linear_divergence(student, teacher._replace(weight=torch.randn(C + 3, 6)))
print("equal")
