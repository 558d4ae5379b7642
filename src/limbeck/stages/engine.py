"""One update: exact means over micro-batches and processes, backward, clip, step."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError
from limbeck.losses.reduction import Mean
from limbeck.stages.objective import Batch, Objective, Terms
from limbeck.stages.processes import in_full_precision, is_sharded
from limbeck.stages.sam import SAM, unremembered

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.wrappers import _FabricModule, _FabricOptimizer


class Engine:
    """What an objective's ``step`` drives: ``minimise`` makes one update of one optimiser.

    Attributes:
        fabric: Lightning Fabric, for everything that depends on devices and precision.
        module: the objective as Fabric wrapped it; calls go through DDP, FSDP and autocast.
        objective: the objective itself, unwrapped.
        optimizers: by the names of ``Objective.parameter_groups``.
        values: the logged scalars of the current update.
        number: which update of the fit this is, from 0.
    """

    def __init__(
        self,
        fabric: "Fabric",
        module: "_FabricModule",
        optimizers: Mapping[str, "_FabricOptimizer"],
        *,
        accumulate: int = 1,
        clip_grad_norm: float | None = None,
        watch_every: int = 1,
    ) -> None:
        self.fabric = fabric
        self.module = module
        assert isinstance(module.module, Objective)
        self.objective = module.module
        self.optimizers = dict(optimizers)
        if is_sharded(fabric) and any(isinstance(o.optimizer, SAM) for o in self.optimizers.values()):
            raise LimbeckError(
                "fit.optimizer sam does not go with FSDP, where the length of the gradient would be that of one shard; "
                "use ddp"
            )
        self.accumulate = accumulate
        self.clip_grad_norm = clip_grad_norm
        self.watch_every = watch_every
        self.values: dict[str, Tensor] = {}
        self.number = 0
        # In full precision on one device Fabric's wrappers change nothing and cost more than a small loss.
        self.plain = module._forward_module is module.module and in_full_precision(fabric)
        self.call = module.module if self.plain else module

    @property
    def sharded_module(self) -> nn.Module:
        """What Fabric's strategy made of the objective."""
        module: nn.Module = self.module._forward_module
        return module

    def update(self, batch: Batch) -> None:
        """One update of the objective, with everything that belongs to it."""
        objective = self.objective
        # Past nn.Module.__setattr__, which costs as much as an operation.
        objective.__dict__["watched"] = self.number % self.watch_every == 0
        self.values = {}
        objective.step(batch, self)
        for name, parts in objective.observed.items():
            self.values[name] = self._seen(_merged(parts))
        objective.finish(batch)
        self.number += 1

    def minimise(self, batch: Batch, *, terms: str = "terms", optimizer: str = "main") -> None:
        """Minimise the sum of the objective's ``terms`` on ``batch`` by one step of ``optimizer``."""
        stepper = self.optimizers[optimizer]
        if isinstance(stepper.optimizer, SAM):
            self._worst_gradients(batch, terms, stepper, stepper.optimizer)
        else:
            self._gradients(batch, terms, stepper)
        if self.clip_grad_norm is not None:
            # Not an error here: 16-mixed skips such a step, and elsewhere the log names the update.
            norm = self.fabric.clip_gradients(
                self.module, stepper, max_norm=self.clip_grad_norm, error_if_nonfinite=False
            )
            if norm is not None:
                self.values["gradient_norm" + ("" if optimizer == "main" else f"/{optimizer}")] = norm.detach()
        (stepper.optimizer if self.plain else stepper).step()

    def _gradients(self, batch: Batch, terms: str, stepper: "_FabricOptimizer") -> None:
        if self.plain:  # what zero_grad does, without its entry for a profiler
            for group in stepper.optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None
        else:
            stepper.zero_grad(set_to_none=True)
        if self.accumulate == 1:
            self._whole(batch, terms)
        else:
            self._in_parts(list(_parts(batch, self.accumulate)), terms, stepper)

    def _worst_gradients(self, batch: Batch, terms: str, stepper: "_FabricOptimizer", sam: SAM) -> None:
        """The gradients where the loss is worst nearby; what is logged, kept and remembered is of the first pass."""
        objective, device = self.objective, self.fabric.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            self._gradients(batch, terms, stepper)
        values: dict[str, Tensor] = self.values
        collected: list[dict[str, Any]] = [objective.kept, objective.observed]
        self.values = {}
        before = [{name: list(parts) for name, parts in found.items()} for found in collected]
        with sam.at_worst(), unremembered(objective):
            self._gradients(batch, terms, stepper)
        self.values = values
        for found, first in zip(collected, before, strict=True):
            found.clear()
            found.update(first)

    def _whole(self, batch: Batch, name: str) -> None:
        terms: Terms = self.call(batch, name)
        values = [self._local_share(term) for term in terms.values()]
        loss = sum(values[1:], values[0])
        self._record(dict(zip(terms, values, strict=True)), loss, name)
        if self.plain:
            loss.backward()
        else:
            self.fabric.backward(loss)

    def _local_share(self, term: Tensor | Mean) -> Tensor:
        """A scalar whose mean over the processes is the exact mean of the term."""
        if isinstance(term, Tensor):
            return term
        if self.fabric.world_size == 1:
            return term.value
        return Mean(term.total * self.fabric.world_size, self._over_processes(term.count)).value

    def _seen(self, value: Tensor | Mean) -> Tensor:
        """What the log keeps of an observed value: NaN for a mean over nothing, which it leaves out."""
        if isinstance(value, Tensor):
            return value.to(self.fabric.device)  # a schedule's state may be known on the host
        if self.fabric.world_size == 1:
            return value.total / value.count
        # Over several processes the log takes the mean of the shares.
        return value.total * self.fabric.world_size / self._over_processes(value.count)

    def _over_processes(self, count: Tensor | float) -> Tensor:
        # A copy: the reduction works in place, and terms may share a count.
        own = torch.as_tensor(count, dtype=torch.float32, device=self.fabric.device).detach().clone()
        total = self.fabric.all_reduce(own, reduce_op="sum")
        assert isinstance(total, Tensor)
        return total

    def _in_parts(self, parts: list[Batch], name: str, stepper: "_FabricOptimizer") -> None:
        """Gradients of a batch that does not fit at once: the same as of the whole batch."""
        collected: list[Terms] = []
        weighed: dict[str, list[Tensor | None]] = {}
        weights = [p for group in stepper.param_groups for p in group["params"]]
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            # Gradients of sums are added up over the processes below, once their counts are known.
            with self.fabric.no_backward_sync(self.module, enabled=not last or bool(weighed)):
                terms: Terms = self.call(part, name)
                scalars = [term for term in terms.values() if isinstance(term, Tensor)]
                means = {key: term for key, term in terms.items() if isinstance(term, Mean)}
                if not means:
                    self.fabric.backward(torch.stack(scalars).sum() / len(parts))
                elif is_sharded(self.fabric):
                    raise LimbeckError(
                        f"fit.accumulate {len(parts)} does not go with FSDP here: {', '.join(means)} of "
                        f"{type(self.objective).__name__} are means over counts of their own, whose gradients must be "
                        "kept apart, and shards hold only one; use ddp, or fit.accumulate 1"
                    )
                else:
                    totals = {key: term.total for key, term in means.items()}
                    if scalars:
                        totals[""] = torch.stack(scalars).sum()
                    self._collect(weighed, totals, weights)
            collected.append({key: term.detach() for key, term in terms.items()})
        merged: Terms = {key: _merged([terms[key] for terms in collected]) for key in collected[0]}
        if weighed:
            self._set_gradients(weighed, merged, weights, len(parts))
        values = {key: self._local_share(term) for key, term in merged.items()}
        self._record(values, torch.stack(list(values.values())).sum(), name)

    def _collect(
        self,
        weighed: dict[str, list[Tensor | None]],
        totals: Mapping[str, Tensor],
        weights: list[nn.Parameter],
    ) -> None:
        """Add the gradient of every total to buffers of its own."""
        left = [key for key, total in totals.items() if total.requires_grad]
        for key in left:
            before = weighed.setdefault(key, [None] * len(weights))
            for weight, gradient in zip(weights, before, strict=True):
                weight.grad = gradient
            self.fabric.backward(totals[key], retain_graph=key != left[-1])
            weighed[key] = [weight.grad for weight in weights]
        for weight in weights:
            weight.grad = None

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
            count = term.count if isinstance(term, Mean) else float(parts * world)
            if world > 1 and isinstance(term, Mean):
                count = self._over_processes(count)
            divisor = torch.as_tensor(count).clamp_min(torch.finfo(torch.float32).tiny)
            for weight, gradient in zip(weights, gradients, strict=True):
                if world > 1:
                    gradient = torch.zeros_like(weight) if gradient is None else gradient
                    torch.distributed.all_reduce(gradient)
                if gradient is None:
                    continue
                share = gradient / divisor
                weight.grad = share if weight.grad is None else weight.grad + share

    def _record(self, values: Mapping[str, Tensor], loss: Tensor, terms: str) -> None:
        prefix = "loss" if terms == "terms" else f"loss/{terms}"
        self.values[prefix] = loss.detach()
        if len(values) > 1:
            for name, value in values.items():
                self.values[f"{prefix}/{name}"] = value.detach()


def _parts(batch: Batch, parts: int) -> Iterator[Batch]:
    # Several streams are a mapping of batches.
    split = {
        name: list(_parts(value, parts)) if isinstance(value, Mapping) else value.chunk(parts)
        for name, value in batch.items()
    }
    for number in range(parts):
        yield {name: chunks[number] for name, chunks in split.items()}


def _merged(terms: list[Tensor | Mean]) -> Tensor | Mean:
    first = terms[0]
    if len(terms) == 1:
        # A copy: it may be a buffer that the end of the update changes.
        return first.clone() if isinstance(first, Tensor) else first
    if isinstance(first, Mean):
        means = [term for term in terms if isinstance(term, Mean)]
        return Mean(torch.stack([m.total for m in means]).sum(), sum((m.count for m in means[1:]), means[0].count))
    return torch.stack([term for term in terms if isinstance(term, Tensor)]).mean()
