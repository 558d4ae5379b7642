"""What happens between the fits of models that score pairs: teachers label pairs, and the best model is chosen."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from limbeck.data.fingerprint import fingerprint
from limbeck.data.pairs import PairData, PairSamples
from limbeck.errors import LimbeckError
from limbeck.metrics import cost
from limbeck.models.folder import save
from limbeck.models.text_encoder import TextEncoder
from limbeck.stages.digest import module_hash
from limbeck.stages.evaluation.similarity import SCORES, predict_scores, quality, write_scores
from limbeck.stages.files import saving, write_json
from limbeck.stages.processes import make_fabric
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import FORMAT_VERSION, Context, is_first_process, source_hash, versions, write_result

LABELS = "labels.safetensors"
"""``score`` float32 [N] (the labels), ``index`` int64 [N] and, where the truth is known, ``gold`` float32 [N]."""
CHOICE = "choice.json"
"""``kept``: name of the kind that is kept; ``number``: of each kind the number of its best model, from 0."""


class LabelPairs:
    """Score pairs by every model, in eval mode and without gradient; the artefact is the mean score, float32 [N].

    The arithmetic mean of the scores themselves, of cosines or of sigmoids. Where the truth is known the labels are
    measured against it, for ``result.json`` only.

    Args:
        name: the stage's folder.
        models: the teachers; each reads the pairs through its own tokenizer.
        samples: the pairs; their own scores are not read.
        settings: of the fit that the labels are for: they are made on its accelerator.
    """

    def __init__(self, name: str, models: Sequence[TextEncoder], samples: PairSamples, settings: FitSettings) -> None:
        self.name = name
        self.models = tuple(models)
        self.samples = samples.unlabel()
        self.settings = settings

    def identity(self, context: Context) -> Mapping[str, Any]:
        """What decides the labels: models and pairs."""
        return {
            "models": [module_hash(model) for model in self.models],
            "pairs": fingerprint(PairData(self.samples, self.samples, self.samples)),
            "source": source_hash(type(self)),
            "limbeck": versions()["limbeck"],
        }

    def run(self, folder: Path, context: Context) -> None:
        """Label all pairs; a labelling that was killed starts again."""
        begin = time.perf_counter()
        device = make_fabric(self.settings).device
        with context.reporter.stage(self.name, 0, len(self.models)):
            each = [predict_scores(model, self.samples, device=device) for model in self.models]
        # In float64, where the mean of equal numbers is that number.
        labels = torch.stack(each).double().mean(0).float()
        gold = self.samples.hidden_scores
        known = gold is not None and bool(gold.isfinite().all())
        metrics = quality(labels, self.samples.relabel(gold)) if known and gold is not None else {}
        if is_first_process():
            write_scores(folder / LABELS, self.samples, {"score": labels})
            _write_result(folder, self.name, context, metrics, len(self.samples), begin)
        _wait_for_first_process()

    def load(self, folder: Path) -> Tensor:
        """The labels, in the order of the pairs."""
        return safetensors.torch.load_file(folder / LABELS)["score"]

    def describe(self) -> dict[str, Any]:
        """Sizes, and the time that a few pairs lead to expect."""
        return {
            "stage": self.name,
            "pairs": len(self.samples),
            "seconds": sum(_seconds(model, self.samples) for model in self.models),
        }

    def untrained(self) -> Tensor:
        """Labels that say nothing."""
        return torch.zeros(len(self.samples))


class ChooseEncoder:
    """Of every kind of model the best on the validation pairs, by Spearman's correlation; of these the best is kept.

    The order by Spearman's correlation with binary gold scores is that of the AUC (without ties they are a linear
    function of each other), so one rule serves both tasks.

    Args:
        name: the stage's folder.
        candidates: kind (``bi``, ``cross`` ...) -> its models, in the order of training; of equal ones the first wins.
        ensembles: name -> kinds whose best models' mean test score is measured too.
        data: validation and test pairs.
        settings: of the fits that made the models: they are measured on their accelerator.

    Raises:
        LimbeckError: no candidates.
    """

    def __init__(
        self,
        name: str,
        candidates: Mapping[str, Sequence[TextEncoder]],
        ensembles: Mapping[str, Sequence[str]],
        data: PairData,
        settings: FitSettings,
    ) -> None:
        if not candidates or not all(candidates.values()):
            raise LimbeckError(f"{name}: there is nothing to choose from")
        self.name = name
        self.candidates = {kind: tuple(models) for kind, models in candidates.items()}
        self.ensembles = {key: tuple(kinds) for key, kinds in ensembles.items()}
        self.data = data
        self.settings = settings

    def identity(self, context: Context) -> Mapping[str, Any]:
        """What decides the choice: models and data."""
        return {
            "candidates": {kind: [module_hash(model) for model in models] for kind, models in self.candidates.items()},
            "ensembles": self.ensembles,
            "data": fingerprint(self.data),
            "source": source_hash(type(self)),
            "limbeck": versions()["limbeck"],
        }

    def run(self, folder: Path, context: Context) -> None:
        """Measure all candidates on the validation pairs, the best of each kind on the test pairs."""
        begin = time.perf_counter()
        device = make_fabric(self.settings).device
        number: dict[str, int] = {}
        valid: dict[str, dict[str, float]] = {}
        test: dict[str, Tensor] = {}
        with context.reporter.stage(self.name, 0, len(self.candidates)):
            for kind, models in self.candidates.items():
                found = [
                    quality(predict_scores(model, self.data.validation, device=device), self.data.validation)
                    for model in models
                ]
                number[kind] = max(range(len(models)), key=lambda place: found[place]["spearman"])
                valid[kind] = found[number[kind]]
                test[kind] = predict_scores(models[number[kind]], self.data.test, device=device)
                context.reporter.advance(len(test), None)
        kept = max(valid, key=lambda kind: valid[kind]["spearman"])
        means = {key: torch.stack([test[kind] for kind in kinds]).mean(0) for key, kinds in self.ensembles.items()}
        metrics = quality(test[kept], self.data.test)
        metrics |= {f"validation/{key}": value for key, value in valid[kept].items()}
        for kind, scores in {**test, **means}.items():
            metrics |= {f"{kind}/{key}": value for key, value in quality(scores, self.data.test).items()}
        best = self.candidates[kept][number[kept]]
        metrics["parameters"] = float(cost.parameters(best))
        if is_first_process():
            with saving(folder / "model"):
                save(best, folder / "model")
            each = {f"{kind}_score": scores for kind, scores in {**test, **means}.items()}
            write_scores(folder / SCORES, self.data.test, {"score": test[kept].clone(), **each})
            write_json(folder / CHOICE, {"format_version": FORMAT_VERSION, "kept": kept, "number": number})
            pairs = len(self.data.validation) + len(self.data.test)
            _write_result(folder, self.name, context, metrics, pairs, begin)
        _wait_for_first_process()

    def load(self, folder: Path) -> TextEncoder:
        """The model that is kept."""
        choice = json.loads((folder / CHOICE).read_text(encoding="utf-8"))
        return self.candidates[choice["kept"]][choice["number"][choice["kept"]]].eval()

    def describe(self) -> dict[str, Any]:
        """Sizes, and the time that a few pairs lead to expect."""
        models = [model for group in self.candidates.values() for model in group]
        seconds = sum(_seconds(model, self.data.validation) for model in models)
        seconds += sum(_seconds(group[0], self.data.test) for group in self.candidates.values())
        return {"stage": self.name, "models": len(models), "seconds": seconds}

    def untrained(self) -> TextEncoder:
        """The first of the candidates."""
        return next(iter(self.candidates.values()))[0]


def _seconds(model: TextEncoder, samples: PairSamples, pairs: int = 64) -> float:
    few = samples.subset(torch.arange(min(pairs, len(samples))))
    begin = time.perf_counter()
    predict_scores(model, few)
    return (time.perf_counter() - begin) * len(samples) / len(few)


def _write_result(
    folder: Path, name: str, context: Context, metrics: Mapping[str, float], pairs: int, begin: float
) -> None:
    write_result(
        folder,
        context,
        name,
        metrics=dict(metrics),
        updates=0,
        samples_seen=pairs,
        seconds=time.perf_counter() - begin,
    )


def _wait_for_first_process() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
