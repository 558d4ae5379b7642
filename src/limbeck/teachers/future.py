"""Looking ahead: an average absorbs students that training has not reached yet, and training goes back.

FST, "Learning from Future" (arXiv 2209.06993): the student takes virtual steps, the teacher averages the students
they lead to, and the student is put back. The teacher keeps what it absorbed.
"""

import copy
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from limbeck.teachers.ema import EMA


class Snapshot:
    """A student as it is now, to come back to.

    Args:
        student: its parameters are copied.
        buffers: whether its buffers (the statistics of batch normalisation) are copied too.
        optimizers: their state (momentum, moments, step counters) is copied too.
    """

    def __init__(self, student: nn.Module, *, buffers: bool = False, optimizers: Sequence[Optimizer] = ()) -> None:
        self.tensors = [*student.parameters(), *(student.buffers() if buffers else ())]
        self.values = [tensor.detach().clone() for tensor in self.tensors]
        self.optimizers = [(optimizer, copy.deepcopy(optimizer.state_dict())) for optimizer in optimizers]

    @torch.no_grad()
    def restore(self) -> None:
        """Put back what was copied, bit for bit; any number of times."""
        torch._foreach_copy_(self.tensors, self.values)
        for optimizer, state in self.optimizers:
            optimizer.load_state_dict(copy.deepcopy(state))


def look_deep(teacher: EMA, student: nn.Module, steps: Iterable[Callable[[], None]]) -> None:
    """One step after the other, each absorbed by the teacher (FST-D): its labels change on the way.

    Args:
        teacher: has absorbed the student as it is now.
        student: ends where the last step leads.
        steps: each makes one virtual update of the student.
    """
    for step in steps:
        step()
        teacher.update(student)


def look_wide(teacher: EMA, student: nn.Module, steps: Sequence[Callable[[], None]], start: Snapshot) -> None:
    """All steps from the same start, and the mean of the students absorbed once (FST-W).

    Args:
        teacher: labels for all steps as it is now.
        student: ends at the mean.
        steps: each makes one virtual update of the student, on data of its own.
        start: where each begins.
    """
    parameters = [parameter.data for parameter in student.parameters()]
    totals = [torch.zeros_like(parameter) for parameter in parameters]
    for step in steps:
        start.restore()
        step()
        torch._foreach_add_(totals, parameters)
    torch._foreach_div_(totals, len(steps))
    torch._foreach_copy_(parameters, totals)
    teacher.update(student)
