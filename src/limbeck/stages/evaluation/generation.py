"""What a generative model makes: distances of its samples from the data's, and what a sample costs.

All models of a report make their samples from the same noise. A model is measured with its own sampler, and, where
that takes several calls of the network, with one call too (``one_step/...``), which is what few-step generators
compete with. Of a teacher there are both.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.data.data import Data, Records
from limbeck.data.points import PointData
from limbeck.data.random import derive
from limbeck.data.samples import ImageData
from limbeck.losses.diffusion import denoising_score_matching, spread
from limbeck.metrics import cost
from limbeck.metrics.generation import energy_distance, frechet_distance, modes_hit, sliced_wasserstein
from limbeck.models.build import build
from limbeck.models.classifier import Classifier
from limbeck.models.denoiser import LEVELS, Denoiser
from limbeck.stages.evaluation.shipped import as_shipped
from limbeck.stages.files import write_atomically
from limbeck.teachers.frozen import Frozen

FILE = "generated.safetensors"
_POINTS, _IMAGES = 4000, 512
"""Samples that are made for a report, if the test split has as many."""
_QUICK_POINTS, _QUICK_IMAGES = 1000, 100
_SHOWN = {PointData: 1000, ImageData: 64}
_BATCH = 250
_JUDGE_UPDATES, _JUDGE_BATCH = 300, 100


def validate(model: nn.Module, data: Any, device: torch.device) -> dict[str, float]:
    """``energy_distance`` of some samples to the validation split; of images in pixels.

    Of a model that is no generator of few steps also ``denoising``, its training loss over all noise levels alike,
    which falls long before samples become better.
    """
    count = _QUICK_POINTS if isinstance(data, PointData) else _QUICK_IMAGES
    generated = generate(model, count, device)
    found = {"energy_distance": energy_distance(generated.flatten(1), _real(data.validation, count).flatten(1))}
    if _denoiser(model).sampler != "few_step":
        found["denoising"] = _denoising(_denoiser(model), data.validation, count, device)
    return found


def report(
    model: nn.Module, teachers: Mapping[str, nn.Module], data: Any, folder: Path, device: torch.device
) -> dict[str, float]:
    """Distances to the test and the validation split; writes ``generated.safetensors`` into ``folder``.

    Metrics: ``energy_distance`` and ``sliced_wasserstein`` (of images in pixels); of points ``modes``, where the data
    know theirs; of labelled images ``frechet_distance`` on the features of a small classifier, which is trained here
    on the training split from a seed of its own, the same for all models. ``calls`` of the network a sample.

    The file holds a few samples of every model, ``student``, ``student_one_step``, the same of each teacher, and
    ``data`` of the test split, in the data's own values.
    """
    judge = _judge(data, device)
    metrics: dict[str, float] = {}
    count = min(_POINTS if _kind(data) is PointData else _IMAGES, len(data.test))
    shown = {"data": data.test.fetch(torch.arange(min(_SHOWN[_kind(data)], len(data.test))))[_key(data)]}
    for name, one in {"": model, **teachers}.items():
        prefix = f"{name}/" if name else ""
        denoiser = _denoiser(one)
        for way, single in (("", False), ("one_step/", True)):
            if single and denoiser.calls == 1:
                continue
            samples = generate(denoiser, count, device, single=single)
            for part, records in (("", data.test), ("validation/", data.validation)):
                found = distances(samples, records, data, judge)
                metrics |= {f"{prefix}{part}{way}{key}": value for key, value in found.items()}
            shown[(name or "student") + ("_one_step" if single else "")] = samples[: len(shown["data"])]
        metrics[f"{prefix}calls"] = float(denoiser.calls)
        metrics[f"{prefix}parameters"] = float(cost.parameters(denoiser))
    write_atomically(
        folder / FILE,
        lambda part: part.write_bytes(safetensors.torch.save({k: v.contiguous() for k, v in shown.items()})),
    )
    return metrics


def generate(model: nn.Module, count: int, device: torch.device, *, single: bool = False) -> Tensor:
    """Samples of a model, [count, ...] on the CPU, from noise that depends on nothing.

    Args:
        model: a denoiser, or a frozen one.
        count: number of samples; classes of a conditional model take turns.
        device: where to compute.
        single: by one call of the network from the highest noise level instead of the model's own sampler.
    """
    denoiser = _denoiser(model)
    with as_shipped(denoiser, device) as place:
        torch.manual_seed(derive(0, "generation"))
        noise = torch.randn(count, *denoiser.shape)
        label = torch.arange(count) % len(denoiser.classes) if denoiser.conditional else None
        samples = []
        for rows in torch.arange(count).split(_BATCH):
            z, y = noise[rows].to(place), None if label is None else label[rows].to(place)
            samples.append((_one_step(denoiser, z, y) if single else denoiser.sample(z, y)).float().cpu())
    return torch.cat(samples)


def distances(generated: Tensor, records: Records, data: Data, judge: Classifier | None) -> dict[str, float]:
    """The metrics of samples against a split."""
    real = _real(records, len(generated), _key(data))
    rows = generated.flatten(1), real.flatten(1)
    found = {"energy_distance": energy_distance(*rows), "sliced_wasserstein": sliced_wasserstein(*rows)}
    if isinstance(data, PointData) and data.centres is not None:
        found["modes"] = float(modes_hit(generated, data.centres, data.reach))
    if judge is not None:
        features = [_features(judge, one) for one in (generated, real)]
        found["frechet_distance"] = frechet_distance(*features)
    return found


def _denoising(denoiser: Denoiser, records: Records, count: int, device: torch.device) -> float:
    batch = records.fetch(torch.arange(min(count, len(records))))
    errors = []
    with as_shipped(denoiser, device) as place:
        torch.manual_seed(derive(0, "denoising"))
        clean = denoiser.encode(batch)
        # Evenly over the levels, from the cleanest to the noisiest.
        levels = torch.linspace(0, LEVELS - 1, len(clean)).round().long()
        noise = torch.randn_like(clean)
        label = batch.get("label", torch.full((len(clean),), -1))
        for rows in torch.arange(len(clean)).split(_BATCH):
            x, sigma = clean[rows].to(place), denoiser.sigmas[levels[rows].to(place)]
            noisy = x + spread(sigma, x) * noise[rows].to(place)
            found = denoiser({"noisy": noisy, "sigma": sigma, "label": label[rows].to(place)}).clean
            errors.append(denoising_score_matching(found, x, denoiser.weight(sigma), reduction="none").cpu())
    return float(torch.cat(errors).mean())


def _one_step(denoiser: Denoiser, noise: Tensor, label: Tensor | None) -> Tensor:
    batch = {"noisy": denoiser.noisiest(noise), "sigma": denoiser.sigmas[-1].expand(len(noise))}
    return denoiser.decode(denoiser(batch if label is None else {**batch, "label": label}).clean)


def _denoiser(model: nn.Module) -> Denoiser:
    return cast("Denoiser", model.model if isinstance(model, Frozen) else model)


def _kind(data: Any) -> type:
    return PointData if isinstance(data, PointData) else ImageData


def _key(data: Any) -> str:
    return "point" if isinstance(data, PointData) else "image"


def _real(records: Records, count: int, key: str | None = None) -> Tensor:
    batch = records.fetch(torch.arange(min(count, len(records))))
    return batch["point" if "point" in batch else "image"]


def _judge(data: Any, device: torch.device) -> Classifier | None:
    """A small classifier whose features stand for what an image shows; None without labelled images."""
    if not isinstance(data, ImageData) or len(data.classes) < 2:
        return None
    labelled = torch.nonzero(data.train.labels >= 0)[:, 0]
    if not len(labelled):
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(0, "judge"))
        judge = cast("Classifier", build("cnn", data.task, width=16, norm="group"))
        optimizer = torch.optim.Adam(judge.parameters(), lr=2e-3)
        for _ in range(_JUDGE_UPDATES):
            batch = data.train.fetch(labelled[torch.randint(len(labelled), (_JUDGE_BATCH,))])
            optimizer.zero_grad()
            F.cross_entropy(judge(batch["image"]).logits, batch["label"]).backward()
            optimizer.step()
    return judge.eval()


@torch.no_grad()
def _features(judge: Classifier, images: Tensor) -> Tensor:
    parts = [judge(part).features for part in images.split(_BATCH)]
    return torch.cat([part for part in parts if part is not None])
