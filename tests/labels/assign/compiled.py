"""Run by test_transport in a process of its own, where no import hook checks shapes: dynamo cannot trace those."""

import torch

from limbeck.labels.assign import scaling
from limbeck.labels.assign.scaling import Columns, absorb, first_point, sweep

scaling.SWEEP = 1  # one iteration is traced as well as four

torch.manual_seed(0)
cost, a = 3 * torch.rand(20, 4, dtype=torch.float64), torch.full((20,), 0.05, dtype=torch.float64)
target = Columns(torch.full((4,), 0.25, dtype=torch.float64), torch.tensor([0.9, 1.0, 0.0, 0.5], dtype=torch.float64))
at, kernel = torch.zeros(4, dtype=torch.float64), torch.empty_like(cost)
absorb(cost, 0.1, at, out=kernel)
point = first_point(kernel, a, target, at)
compiled = torch.compile(sweep, backend="aot_eager", fullgraph=True)
for ours, theirs in zip(compiled(kernel, a, target, at, point), sweep(kernel, a, target, at, point), strict=True):
    torch.testing.assert_close(ours, theirs)
print("equal")
