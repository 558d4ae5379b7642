import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from limbeck.losses.mutual import peer_divergence


@given(arrays(np.float64, (3, 2, 4), elements=st.floats(-5, 5)), st.floats(0.2, 3))
def test_value_and_gradient(z, T):
    q = np.exp(z / T - (z / T).max(-1, keepdims=True))
    q /= q.sum(-1, keepdims=True)
    loss, gradient = 0.0, np.zeros_like(z)
    for m in range(3):
        others = np.mean([q[n] for n in range(3) if n != m], axis=0)
        loss += (others * (np.log(others) - np.log(q[m]))).sum(-1).mean()
        gradient[m] = (q[m] - others) / T / 2  # a mean over two samples; the others say what they say
    logits = torch.tensor(z, requires_grad=True)
    found = peer_divergence(logits, temperature=T)
    found.backward()
    np.testing.assert_allclose(found.item(), loss, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(logits.grad.numpy(), gradient, rtol=1e-9, atol=1e-12)


def test_agreement_and_extremes():
    agreed = torch.randn(1, 5, 3, dtype=torch.float64).expand(3, -1, -1)
    # Sums of up to fifteen rounding errors of 1e-16.
    assert abs(peer_divergence(agreed, temperature=0.1).item()) < 1e-14
    far = torch.tensor([[[1e3, -1e3]], [[-1e3, 1e3]], [[0.0, 0.0]]], requires_grad=True)
    loss = peer_divergence(far, temperature=0.1)
    loss.backward()
    assert loss.isfinite()
    assert far.grad.isfinite().all()
