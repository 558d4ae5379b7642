"""Run folders with real numbers: softmax regressions on scikit-learn's digits, a kernel machine as the teacher."""

import csv
import json
import statistics
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from scipy.stats import ttest_rel
from sklearn.datasets import load_digits
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from torch import Tensor

from limbeck.data.samples import ImageData, Samples
from limbeck.metrics.calibration import fit_temperature
from limbeck.metrics.classification import summary

VERSIONS = {"limbeck": "0.1.0", "python": "3.11.2", "torch": torch.__version__.split("+")[0]}
COMPARED = {"accuracy": "higher", "nll": "lower", "ece": "lower", "aurc": "lower"}
UPDATES = 120


class Digits:
    """The digits in three parts, and a teacher's logits on each of them."""

    def __init__(self, classes: tuple[str, ...] = tuple("0123456789")) -> None:
        bunch = load_digits()
        rest, test = train_test_split(range(1797), test_size=450, stratify=bunch.target, random_state=0)
        train, validation = train_test_split(rest, test_size=150, stratify=bunch.target[rest], random_state=0)
        self.pixels = torch.from_numpy(bunch.images).float() / 16
        self.labels = torch.from_numpy(bunch.target).long()
        self.parts = {
            "train": torch.tensor(train),
            "validation": torch.tensor(validation),
            "test": torch.tensor(test),
        }
        self.classes = classes
        flat = self.pixels.flatten(1).numpy()
        teacher = make_pipeline(
            Nystroem(gamma=0.08, n_components=200, random_state=0),
            LogisticRegression(C=30, tol=1e-2, max_iter=500),
        ).fit(flat[self.parts["train"]], bunch.target[self.parts["train"]])
        self.teacher = torch.from_numpy(teacher.decision_function(flat)).float()

    @property
    def data(self) -> ImageData:
        whole = Samples(self.pixels[:, None], self.labels, self.classes)
        train, validation, test = (whole.subset(self.parts[name]) for name in ("train", "validation", "test"))
        return ImageData(train, validation, test, None, self.classes, "none", False)


def run_folder(
    folder: Path, digits: Digits, method: str = "kd", seeds: int = 3, *, teacher: bool = True
) -> dict[str, list[float]]:
    """``folder/seed-*`` of one method: "ce", "label-smoothing" or "kd"; returns the test metrics over seeds."""
    rows = [_seed_folder(folder / f"seed-{seed}", digits, method, seed, teacher) for seed in range(seeds)]
    return {name: [row[name] for row in rows] for name in rows[0]}


def comparison_folder(folder: Path, digits: Digits, seeds: int = 5) -> None:
    """Three arms and ``comparison.json``."""
    arms: list[dict[str, Any]] = []
    for method in ("ce", "label-smoothing", "kd"):
        metrics = run_folder(folder / method, digits, method, seeds, teacher=method == "kd")
        own = {name: values for name, values in metrics.items() if not name.startswith("teacher/")}
        teacher = {n.removeprefix("teacher/"): v for n, v in metrics.items() if n.startswith("teacher/")}
        arm = {"name": method, "method": method, "folder": method, "metrics": own, "teacher": teacher or None}
        arms.append({**arm, "seconds": [1.5] * seeds})
    differences = []
    for arm in arms[1:]:
        for metric, better in COMPARED.items():
            ours, base = arm["metrics"][metric], arms[0]["metrics"][metric]
            low, high = ttest_rel(ours, base).confidence_interval(0.95)
            mean = statistics.fmean(ours) - statistics.fmean(base)
            row = {"arm": arm["name"], "baseline": "ce", "metric": metric, "better": better}
            differences.append({**row, "mean": mean, "low": low, "high": high, "seeds": seeds})
    content = {
        "format_version": 1,
        "title": "Digits from 200 labels",
        "reference": "ce",
        "seeds": list(range(seeds)),
        "arms": arms,
        "differences": differences,
        "finding": "",
        "versions": VERSIONS,
    }
    (folder / "comparison.json").write_text(json.dumps(content))


def _seed_folder(folder: Path, digits: Digits, method: str, seed: int, teacher: bool) -> dict[str, float]:
    stage = folder / "fit"
    stage.mkdir(parents=True)
    logits, rows = _train(digits, method, seed)
    test, validation = digits.parts["test"], digits.parts["validation"]
    temperature = fit_temperature(logits[validation], digits.labels[validation])
    metrics = _metrics(logits[test], digits.labels[test], temperature)
    metrics |= {
        "temperature": temperature,
        "parameters": 650.0,
        "macs": 640.0,
        "latency_ms": 0.02 + seed * 1e-3,
    }
    kept = {"logits": logits[test].contiguous(), "label": digits.labels[test], "index": test}
    if teacher:
        said = summary(digits.teacher[test], digits.labels[test])
        said |= {"parameters": 14810.0, "macs": 14800.0, "latency_ms": 0.11 + seed * 1e-3}
        metrics |= {f"teacher/{name}": value for name, value in said.items()}
        kept["teacher_logits"] = digits.teacher[test].contiguous()
        rows.insert(0, (0, "teacher", "accuracy", _accuracy(digits.teacher, digits, validation)))
    save_file(kept, stage / "predictions.safetensors", {"classes": json.dumps(digits.classes)})
    with (stage / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["update", "epoch", "split", "name", "value"])
        writer.writerows([update, update / 4, split, name, value] for update, split, name, value in rows)
    shared = {"format_version": 1, "method": method, "seed": seed, "seconds": 1.5, "versions": VERSIONS}
    counts = {"updates": UPDATES, "samples_seen": 50 * UPDATES}
    (stage / "result.json").write_text(json.dumps({**shared, **counts, "stage": "fit", "metrics": metrics}))
    (folder / "run.json").write_text(json.dumps({**shared, "stages": ["fit"], "final": "fit", "teacher": None}))
    recipe = f"method: {method}\nstudent:\n  name: linear\ndata:\n  name: digits\n  train_size: 200\nseed: {seed}\n"
    (folder / "recipe.yaml").write_text(recipe)
    return metrics


def _train(digits: Digits, method: str, seed: int) -> tuple[Tensor, list[tuple[int, str, str, float]]]:
    """Softmax regression on 200 labels of the training part: logits of all samples, and what was logged."""
    generator = torch.Generator().manual_seed(seed)
    train = digits.parts["train"]
    train = train[torch.randperm(len(train), generator=generator)[:200]]
    pixels, labels = digits.pixels.flatten(1), digits.labels
    weight = (0.01 * torch.randn(64, 10, generator=generator)).requires_grad_()
    bias = torch.zeros(10, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=0.03)
    rows: list[tuple[int, str, str, float]] = []
    for update in range(1, UPDATES + 1):
        batch = train[torch.randint(len(train), (50,), generator=generator)]
        logits = pixels[batch] @ weight + bias
        terms = {"ce": F.cross_entropy(logits, labels[batch], label_smoothing=0.1 * (method == "label-smoothing"))}
        if method == "kd":
            target = (digits.teacher[batch] / 2).softmax(-1)
            terms = {"ce": 0.1 * terms["ce"], "kl": 3.6 * F.cross_entropy(logits / 2, target)}
        loss = torch.stack(list(terms.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rows.append((update, "train", "loss", float(loss.detach())))
        rows += [(update, "train", f"loss/{name}", float(value.detach())) for name, value in terms.items()]
        if update % 10 == 0:
            with torch.no_grad():
                known, validation = pixels @ weight + bias, digits.parts["validation"]
            rows.append((update, "validation", "accuracy", _accuracy(known, digits, validation)))
            rows.append((update, "validation", "nll", float(F.cross_entropy(known[validation], labels[validation]))))
    return (pixels @ weight + bias).detach(), rows


def _metrics(logits: Tensor, labels: Tensor, temperature: float) -> dict[str, float]:
    scaled = summary(logits / temperature, labels)
    return summary(logits, labels) | {f"scaled/{name}": scaled[name] for name in ("accuracy", "nll", "ece")}


def _accuracy(logits: Tensor, digits: Digits, part: Tensor) -> float:
    return float((logits[part].argmax(-1) == digits.labels[part]).float().mean())
