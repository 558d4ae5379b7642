"""Divergences of big vocabularies from hidden states: ours against whole logits, Liger and TRL.

Forward KL, Jensen-Shannon, and the latter mixed with the cross-entropy in equal parts; TAID and a teacher's top
64 classes against whole logits only, as the peers have no such loss. Forward and backward, gradients for hidden states
and output layer; float32. That value and gradients agree is asserted first, on 256 rows. Rounds are interleaved in one
process; peak memory is that of further processes that do it once, beyond inputs and imported libraries.

    python benchmarks/fused_linear.py [--rounds 5] [--tokens 4096] [--vocabulary 32768] [--width 512] [--threads N]

Liger and TRL take part where they are installed: pip install 'limbeck[bench]'.
"""

import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from common import alternate, growth, options, quotient, save, show
from limbeck import losses
from limbeck.labels import top_k
from limbeck.labels.interpolate import interpolate
from limbeck.labels.types import TopK
from limbeck.losses import Projection, fused_linear_divergence


class Problem(NamedTuple):
    """Hidden states and output layers, and the tokens."""

    student: Projection
    teacher: Projection
    labels: Tensor


class Case(NamedTuple):
    """A loss, and how it is called elsewhere.

    Attributes:
        name: of the case.
        divergence: as :func:`fused_linear_divergence` takes it.
        beta: of the generalized Jensen-Shannon divergence of Liger and TRL; None where they have no such loss.
        hard: share of the cross-entropy.
        k: classes of the teacher that are known; 0: all.
    """

    name: str
    divergence: Callable[..., Tensor]
    beta: float | None = None
    hard: float = 0.0
    k: int = 0


def taid(logits: Tensor, teacher: Tensor, weight: Tensor | None = None, reduction: str = "mean") -> Tensor:
    """TAID's loss at t = 0.4."""
    return losses.soft_cross_entropy(logits, interpolate(logits, teacher, 0.4), weight=weight, reduction=reduction)


CASES = (
    Case("forward KL", losses.forward_kl, beta=0.0),
    Case("Jensen-Shannon", losses.js, beta=0.5),
    Case("Jensen-Shannon and cross-entropy", losses.js, beta=0.5, hard=0.5),
    Case("TAID", taid),
    Case("forward KL, top 64 and the rest", losses.forward_kl, k=64),
)


def problem(tokens: int, vocabulary: int, width: int) -> Problem:
    """Random numbers with logits of a spread of about two."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(tokens, width), (vocabulary, width)] * 2
    hidden, weight, other, layer = (torch.randn(size, generator=generator) for size in sizes)
    scale = 2 / width**0.5
    student = Projection(hidden.requires_grad_(), (weight * scale).requires_grad_())
    labels = torch.randint(vocabulary, (tokens,), generator=generator)
    return Problem(student, Projection(other, layer * scale), labels)


def known(case: Case, given: Problem) -> Projection | TopK:
    """The teacher, or the top k of it, made a few rows at a time."""
    if not case.k:
        return given.teacher
    rows = given.teacher.hidden.split(256)
    parts = [top_k((part @ given.teacher.weight.T).softmax(-1), case.k) for part in rows]
    return TopK(*(torch.cat(column) for column in zip(*parts, strict=True)))


Step = Callable[[], tuple[Tensor, ...]]


def gradients(loss: Tensor, given: Problem) -> tuple[Tensor, ...]:
    """The loss and what it is differentiated for."""
    return loss.detach(), *torch.autograd.grad(loss, [given.student.hidden, given.student.weight])


def ours(case: Case, given: Problem, teacher: Projection | TopK) -> tuple[Tensor, ...]:
    labels = given.labels if case.hard else None
    mean = fused_linear_divergence(given.student, teacher, case.divergence, labels=labels, hard=case.hard)
    return gradients(mean.value, given)


def whole(case: Case, given: Problem, teacher: Projection | TopK) -> tuple[Tensor, ...]:
    """The same on whole logits."""
    logits = given.student.hidden @ given.student.weight.T
    target = teacher if isinstance(teacher, TopK) else teacher.hidden @ teacher.weight.T
    loss = (1 - case.hard) * case.divergence(logits, target)
    if case.hard:
        loss = loss + case.hard * losses.cross_entropy(logits, given.labels)
    return gradients(loss, given)


def liger(library: ModuleType, case: Case, given: Problem, teacher: Projection) -> tuple[Tensor, ...]:
    """Liger's chunked loss, as it comes but not compiled: a CPU may have no compiler."""
    loss = library.LigerFusedLinearJSDLoss(
        weight_hard_loss=case.hard, weight_soft_loss=1 - case.hard, beta=case.beta, compiled=False
    )
    student = given.student
    found = loss(student.hidden, student.weight, teacher.hidden, teacher.weight, given.labels)
    return gradients(found, given)


def trl(library: ModuleType, case: Case, given: Problem, teacher: Projection) -> tuple[Tensor, ...]:
    """TRL's chunked divergence."""
    student = given.student
    values, _ = library.ChunkedDivergenceFunction.apply(
        student.hidden, student.weight, None, teacher.hidden, teacher.weight, None, case.beta
    )
    return gradients(values.mean(), given)


def works(case: Case, given: Problem) -> dict[str, Step]:
    """Every solver of a case that is installed."""
    teacher = known(case, given)
    found: dict[str, Step] = {
        "ours": partial(ours, case, given, teacher),
        "whole logits": partial(whole, case, given, teacher),
    }
    if case.beta is None:
        return found
    assert isinstance(teacher, Projection)
    try:
        import liger_kernel.chunked_loss as library

        found["Liger"] = partial(liger, library, case, given, teacher)
    except ImportError:
        pass
    try:
        import trl.kernels.chunked_divergence as kernels

        if not case.hard:  # its cross-entropy is another function
            found["TRL"] = partial(trl, kernels, case, given, teacher)
    except ImportError:
        pass
    return found


def compare(case: Case, size: Sequence[int], rounds: int, threads: int) -> list[dict[str, object]]:
    """The rows of a case, one a peer."""
    small = works(case, problem(256, *size[1:]))
    expected = small["whole logits"]()
    for name, step in small.items():
        for value, wanted in zip(step(), expected, strict=True):
            torch.testing.assert_close(value, wanted, rtol=1e-3, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")
    steps = works(case, problem(*size))
    seconds = alternate(steps, rounds)
    memory = {name: peak(case.name, name, size, threads) for name in steps}
    rows = []
    for peer in list(steps)[1:]:
        ratio, share = quotient(seconds["ours"], seconds[peer]), memory["ours"] / memory[peer]
        goal = 0.35 if peer == "whole logits" else 1.0
        rows.append(
            {
                "case": f"{case.name}, {size[0]:,} tokens x {size[1]:,} words, width {size[2]:,}, float32",
                "peer_name": peer,
                "ours": seconds["ours"],
                "peer": seconds[peer],
                "unit": "seconds",
                "peak_mib": {"ours": memory["ours"], "peer": memory[peer]},
                "ratio": ratio,
                "goal": f"at most the time, and {goal:g} of the memory",
                "holds": ratio["median"] <= 1 and share <= goal,
            }
        )
        show(rows[-1], f"; {memory['ours']:,.0f} against {memory[peer]:,.0f} MiB ({share:.2f})")
    return rows


def peak(case: str, solver: str, size: Sequence[int], threads: int) -> float:
    """MiB that a process which does the work once needs beyond its inputs."""
    command = [sys.executable, __file__, "--once", case, solver, *map(str, size), str(threads)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def once(name: str, solver: str, *numbers: str) -> None:
    """Do the work once and print what it needed."""
    tokens, vocabulary, width, threads = map(int, numbers)
    torch.set_num_threads(threads)
    case = next(case for case in CASES if case.name == name)
    works(case, problem(8, vocabulary, width))[solver]()  # what is loaded on first use is not counted
    print(growth(works(case, problem(tokens, vocabulary, width))[solver]) / 2**20)


def main() -> None:
    if sys.argv[1:2] == ["--once"]:
        once(*sys.argv[2:])
        return
    parser = options(__doc__, rounds=5)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--vocabulary", type=int, default=32768)
    parser.add_argument("--width", type=int, default=512)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    size = (arguments.tokens, arguments.vocabulary, arguments.width)
    rows = [row for case in CASES for row in compare(case, size, arguments.rounds, arguments.threads)]
    if size == (4096, 32768, 512):
        save("fused_linear", rows, arguments.threads)


if __name__ == "__main__":
    main()
