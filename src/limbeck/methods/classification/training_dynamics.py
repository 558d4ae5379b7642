"""Plain training that is watched: how hard each sample is, as the training itself shows it."""

from collections.abc import Generator
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.data.samples import ImageData
from limbeck.data.stream import Stream
from limbeck.errors import LimbeckError
from limbeck.labels.scores import el2n, forgetting_score, forgetting_step
from limbeck.losses.divergence import cross_entropy
from limbeck.models.classifier import Classifier
from limbeck.models.twin import twin
from limbeck.stages.objective import Batch, Plan, Terms
from limbeck.stages.score import GradientNorms, Outputs, Table, score
from limbeck.stages.settings import FitSettings
from limbeck.stages.watched_fit import Watched, WatchedFit, Watching
from limbeck.teachers.past import PastPredictions

Rule = Literal["none", "forgetting", "el2n", "grand"]


class TrainingDynamics(Watching):
    """Cross-entropy on true labels; meanwhile the samples are scored by what the network does with them.

    "forgetting" (arXiv 1812.05159): how often a sample was right, and wrong when it came again, in the view and the
    mode of training, over the whole training. "el2n" and "grand" (arXiv 2107.07075): the length of the error vector and
    of the gradient, in eval mode and without augmentation, mean over the ends of the first epochs (there: one epoch).

    Args:
        student: the model to train.
        rule: what is watched.
        checkpoints: over how many epochs "el2n" and "grand" are averaged.
    """

    updates: Tensor
    measured: Tensor
    sums: Tensor

    def __init__(self, student: Classifier, rule: Rule = "none", checkpoints: int = 3) -> None:
        super().__init__()
        if checkpoints < 1:
            raise LimbeckError(f"checkpoints is {checkpoints}; it must be at least 1")
        self.student: Classifier = student
        self.rule = rule
        self.checkpoints = checkpoints
        self.columns = () if rule == "none" else (rule,)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.register_buffer("measured", torch.zeros((), dtype=torch.int64))

    def streams(self, data: ImageData, batch_size: int, seed: int) -> Stream | dict[str, Stream]:
        """The training samples, which are also what is scored."""
        self._samples = data.train
        return super().streams(data, batch_size, seed)

    def begin(self, plan: Plan) -> None:
        """Make room for what is watched."""
        self.updates_per_epoch = plan.updates / plan.epochs
        self.last_update = plan.updates
        if self.rule == "forgetting":
            self.memory = PastPredictions(plan.num_samples, 3)  # the three numbers of forgetting_step
        elif self.rule != "none":
            self.register_buffer("sums", torch.zeros(len(self._samples)))

    def terms(self, batch: Batch) -> Terms:
        """Mean cross-entropy."""
        logits = self.student(batch).logits
        self.keep(correct=logits.argmax(-1) == batch["label"])
        return {"ce": cross_entropy(logits, batch["label"])}

    def after_update(self, batch: Batch) -> None:
        """Count what was forgotten, or score all samples where an early epoch ends."""
        self.updates += 1
        if self.rule == "forgetting":
            past, _ = self.memory.read(batch["index"])
            self.memory.write(batch["index"], forgetting_step(past, batch["correct"]))
        elif self.rule != "none":
            done = int(self.updates)
            ended = int(done / self.updates_per_epoch + 1e-9)  # 2.9999999999999996 epochs are 3
            if min(ended, self.checkpoints) > int(self.measured) or (done == self.last_update and not self.measured):
                self.sums += self._scores().to(self.sums)
                self.measured += 1

    def _scores(self) -> Tensor:
        """The rule's number of every sample as the network is now."""
        if self.rule == "grand":
            return score(GradientNorms(self.student), self._samples)["gradient"]
        return el2n(score(Outputs(self.student), self._samples)["probabilities"], self._samples.labels)

    def table(self) -> Table:
        """The score of every training sample, under the name of the rule; infinite where it was never learnt."""
        if self.rule == "none":
            return {}
        if self.rule == "forgetting":
            past, _ = self.memory.read(self._samples.indices.to(self.updates.device))
            return {"forgetting": forgetting_score(past).cpu()}
        return {self.rule: (self.sums / self.measured).cpu()}


def watch(
    student: Classifier, data: ImageData, settings: FitSettings, rule: Rule, runs: int, checkpoints: int
) -> Generator[Any, Any, Watched]:
    """Train networks like ``student``, each from first weights of its own, on all samples.

    Returns:
        The first network, and the mean of each score over all of them.
    """
    found: list[Watched] = []
    for number in range(runs):
        dynamics = TrainingDynamics(twin(student), rule, checkpoints)
        found.append((yield WatchedFit(f"full-{number}", dynamics, data, settings)))
    columns = found[0].table
    return Watched(found[0].model, {name: torch.stack([w.table[name] for w in found]).mean(0) for name in columns})
