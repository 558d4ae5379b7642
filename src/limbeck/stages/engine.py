"""One update: exact means over micro-batches and processes, backward, clip, step."""

from collections.abc import Iterator, Mapping

import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule, _FabricOptimizer
from torch import Tensor, nn

from limbeck.errors import LimbeckError
from limbeck.losses.reduction import Mean
from limbeck.stages.objective import Batch, Objective, Terms


class Engine:
    """What an objective's ``step`` drives: ``minimise`` makes one update of one optimiser.

    Attributes:
        fabric: Lightning Fabric, for everything that depends on devices and precision.
        module: the objective as Fabric wrapped it; calls go through DDP, FSDP and autocast.
        optimizers: by the names of ``Objective.parameter_groups``.
        values: the logged scalars of the current update.
    """

    def __init__(
        self,
        fabric: Fabric,
        module: _FabricModule,
        optimizers: Mapping[str, _FabricOptimizer],
        *,
        accumulate: int = 1,
        clip_grad_norm: float | None = None,
    ) -> None:
        self.fabric = fabric
        self.module = module
        self.optimizers = dict(optimizers)
        self.accumulate = accumulate
        self.clip_grad_norm = clip_grad_norm
        self.values: dict[str, Tensor] = {}

    @property
    def objective(self) -> Objective:
        """The objective itself, unwrapped."""
        objective = self.module.module
        assert isinstance(objective, Objective)
        return objective

    def update(self, batch: Batch) -> None:
        """One update of the objective, with everything that belongs to it."""
        objective = self.objective
        self.values = {}
        objective.step(batch, self)
        if objective.kept:
            batch = {**batch, **{name: torch.cat(parts) for name, parts in objective.kept.items()}}
            objective.kept.clear()
        with torch.no_grad():
            objective.after_update(batch)

    def minimise(self, batch: Batch, *, terms: str = "terms", optimizer: str = "main") -> None:
        """Minimise the sum of the objective's ``terms`` on ``batch`` by one step of ``optimizer``."""
        stepper = self.optimizers[optimizer]
        stepper.zero_grad(set_to_none=True)
        if self.accumulate == 1:
            self._whole(batch, terms)
        else:
            self._in_parts(list(_parts(batch, self.accumulate)), terms, stepper)
        if self.clip_grad_norm is not None:
            norm = self.fabric.clip_gradients(self.module, stepper, max_norm=self.clip_grad_norm)
            if norm is not None:
                self.values["gradient_norm"] = norm.detach()
        stepper.step()

    def _whole(self, batch: Batch, name: str) -> None:
        terms: Terms = self.module(batch, name)
        values = [self._local_share(term) for term in terms.values()]
        loss = torch.stack(values).sum() if len(values) > 1 else values[0]
        self._record(dict(zip(terms, values, strict=True)), loss)
        self.fabric.backward(loss)

    def _local_share(self, term: Tensor | Mean) -> Tensor:
        """A scalar whose mean over the processes is the exact mean of the term."""
        if isinstance(term, Tensor):
            return term
        if self.fabric.world_size == 1:
            return term.value
        count = self.fabric.all_reduce(term.count.detach().float(), reduce_op="sum")
        assert isinstance(count, Tensor)
        return Mean(term.total * self.fabric.world_size, count).value

    def _in_parts(self, parts: list[Batch], name: str, stepper: _FabricOptimizer) -> None:
        """Gradients of a batch that does not fit at once: the same as of the whole batch."""
        collected: list[Terms] = []
        weighed: dict[str, list[Tensor | None]] = {}
        weights = [p for group in stepper.param_groups for p in group["params"]]
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            with self.fabric.no_backward_sync(self.module, enabled=not last):
                terms: Terms = self.module(part, name)
                scalars = [term for term in terms.values() if isinstance(term, Tensor)]
                means = {key: term for key, term in terms.items() if isinstance(term, Mean)}
                if not means:
                    self.fabric.backward(torch.stack(scalars).sum() / len(parts))
                elif "16-mixed" in str(self.fabric.strategy.precision.precision) or not all(
                    isinstance(w, nn.Parameter) for w in weights
                ):
                    raise LimbeckError(
                        "fit.accumulate cannot be exact for terms with counts of their own under "
                        f"{self.fabric.strategy.precision.precision}; use fit.accumulate 1 or bf16-mixed"
                    )
                else:
                    totals = {key: term.total for key, term in means.items()}
                    if scalars:
                        totals[""] = torch.stack(scalars).sum()
                    _collect(weighed, totals, weights)
            collected.append({k: t.detach() if isinstance(t, Tensor) else _detached(t) for k, t in terms.items()})
        merged: Terms = {key: _merged([terms[key] for terms in collected]) for key in collected[0]}
        if weighed:
            self._set_gradients(weighed, merged, weights, len(parts))
        values = {key: self._local_share(term) for key, term in merged.items()}
        self._record(values, torch.stack(list(values.values())).sum())

    def _set_gradients(
        self,
        weighed: Mapping[str, list[Tensor | None]],
        merged: Terms,
        weights: list[nn.Parameter],
        parts: int,
    ) -> None:
        world = self.fabric.world_size
        for key, gradients in weighed.items():
            term = merged.get(key)
            count = term.count if isinstance(term, Mean) else torch.tensor(float(parts * world))
            if world > 1 and isinstance(term, Mean):
                reduced = self.fabric.all_reduce(count.float(), reduce_op="sum")
                assert isinstance(reduced, Tensor)
                count = reduced
            for weight, gradient in zip(weights, gradients, strict=True):
                if gradient is None:
                    continue
                if world > 1:
                    torch.distributed.all_reduce(gradient)
                share = gradient / count.clamp_min(torch.finfo(torch.float32).tiny).to(gradient)
                weight.grad = share if weight.grad is None else weight.grad + share

    def _record(self, values: Mapping[str, Tensor], loss: Tensor) -> None:
        self.values["loss"] = loss.detach()
        if len(values) > 1:
            for name, value in values.items():
                self.values[f"loss/{name}"] = value.detach()


def _parts(batch: Batch, parts: int) -> Iterator[Batch]:
    split = {name: value.chunk(parts) for name, value in batch.items()}
    for number in range(parts):
        yield {name: chunks[number] for name, chunks in split.items()}


def _collect(
    weighed: dict[str, list[Tensor | None]], totals: Mapping[str, Tensor], weights: list[nn.Parameter]
) -> None:
    """Add the gradient of every total to its own buffers."""
    keys = list(totals)
    for key in keys:
        gradients = torch.autograd.grad(
            totals[key], weights, retain_graph=key != keys[-1], allow_unused=True, materialize_grads=False
        )
        old = weighed.setdefault(key, [None] * len(weights))
        weighed[key] = [
            new if before is None else before if new is None else before + new
            for before, new in zip(old, gradients, strict=True)
        ]


def _detached(term: Mean) -> Mean:
    return Mean(term.total.detach(), term.count.detach())


def _merged(terms: list[Tensor | Mean]) -> Tensor | Mean:
    first = terms[0]
    if isinstance(first, Mean):
        means = [term for term in terms if isinstance(term, Mean)]
        return Mean(torch.stack([m.total for m in means]).sum(), torch.stack([m.count for m in means]).sum())
    return torch.stack([term for term in terms if isinstance(term, Tensor)]).mean()
