"""Liger's Triton kernels give what PyTorch gives, and are asked for nothing else."""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from limbeck.losses import divergence as D
from limbeck.losses import liger


def test_kernels_equal_the_chunks_in_value_and_gradients() -> None:
    if not liger._installed():
        pytest.skip("Liger is not installed: pip install 'limbeck[liger]'")
    script = Path(__file__).with_name("liger_kernels.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    assert done.stdout == "equal\n", done.stderr


@pytest.mark.parametrize(
    ("divergence", "known"),
    [
        (D.forward_kl, (0.0, 1.0)),
        (partial(D.reverse_kl, temperature=2.0), (1.0, 2.0)),
        (partial(D.generalized_jsd, beta=0.1, tail="zero"), (0.1, 1.0)),
        (partial(D.generalized_jsd, interpolation="continuous"), None),
        (partial(D.generalized_jsd, beta=1.5), None),
        (partial(D.forward_kl, beta=0.3), None),
        (partial(D.forward_kl, temperature=0.0), None),
        (partial(D.forward_kl, None), None),
        (D.skewed_forward_kl, None),
        (lambda *given: None, None),
    ],
)
def test_which_divergences_they_know(divergence: Callable[..., Any], known: tuple[float, float] | None) -> None:
    assert liger.as_generalized_jsd(divergence) == known
