"""SimCLR v2: pre-train big, fine-tune on few labels, distil on all images."""

import copy
from typing import Any, Literal

import torch

from limbeck.data.samples import ImageData
from limbeck.data.semi_supervised import Batches, labeled_and_unlabeled, without_labels
from limbeck.data.stream import Stream
from limbeck.errors import LimbeckError
from limbeck.labels.types import Labels
from limbeck.losses.divergence import cross_entropy, soft_cross_entropy
from limbeck.methods.classification.supervised import Supervised
from limbeck.methods.semi_supervised.contrastive import Contrastive, check_contrastive
from limbeck.metrics.pseudo_labels import precision
from limbeck.models.classifier import Classifier
from limbeck.models.projector import project_contrastively
from limbeck.models.tapped import tap
from limbeck.models.twin import twin
from limbeck.stages.fit import Fit
from limbeck.stages.objective import Objective, Terms
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Program
from limbeck.teachers.frozen import Frozen


class Distillation(Objective):
    """The third stage: the teacher's distribution on images without labels; true labels weigh 1 - alpha.

    Args:
        student: the model to train.
        teacher: its classes are the student's.
        finetuned: the first teacher, where ``teacher`` is its student; it is measured beside them.
        alpha: see SimCLRv2.
        temperature: see SimCLRv2.
        transfer_set: see SimCLRv2.
    """

    def __init__(
        self,
        student: Classifier,
        teacher: Frozen,
        finetuned: Frozen | None = None,
        alpha: float = 1.0,
        temperature: float = 1.0,
        transfer_set: Literal["labeled", "all"] = "all",
    ) -> None:
        super().__init__()
        self.student, self.teacher, self.finetuned = student, teacher, finetuned
        self.alpha, self.temperature, self.transfer_set = alpha, temperature, transfer_set

    def streams(self, data: ImageData, batch_size: int, seed: int) -> dict[str, Stream]:
        """The transfer set without labels, and where they count as many labelled images."""
        if self.transfer_set == "all" and self.alpha < 1 and data.unlabeled is not None:
            return labeled_and_unlabeled(data, batch_size, seed, ratio=1, views=data.training_views)
        samples = without_labels(data) if self.transfer_set == "all" else data.train.unlabel()
        views: dict[str, Any] = {"views": data.training_views, "flip": data.flip}
        streams = {"unlabeled": Stream(samples, batch_size, seed, name="unlabeled", **views)}
        return streams if self.alpha == 1 else {"labeled": Stream(data.train, batch_size, seed, **views), **streams}

    def terms(self, batch: Batches) -> Terms:
        """Soft cross-entropy with the teacher on the same view, and cross-entropy with labels."""
        images = batch["unlabeled"]
        given = (self.teacher(images).logits.float() / self.temperature).softmax(dim=-1)
        if "hidden_label" in images:
            self.observe(precision=precision(Labels(given), images["hidden_label"]))

        distilled = soft_cross_entropy(self.student(images).logits, given, temperature=self.temperature)
        found: Terms = {"distil": self.alpha * self.temperature**2 * distilled}
        if "labeled" in batch:
            labels = batch["labeled"]["label"]
            found["ce"] = (1 - self.alpha) * cross_entropy(self.student(batch["labeled"]).logits, labels)
        return found


class SimCLRv2:
    """A big network learns from images without labels, then from few labels, and then labels the images for students.

    Source: Chen, Kornblith, Swersky, Norouzi, Hinton, "Big Self-Supervised Models are Strong Semi-Supervised Learners",
    arXiv 2006.10029 (NeurIPS 2020), and its released code. Three stages:

    1. ``pretrain``: NT-Xent (:func:`limbeck.losses.contrastive.nt_xent`) between two views of all images, of the
       outputs of a projection head with three layers on the big network.
    2. ``finetune``: cross-entropy on the labelled images. The first ``selector`` layers of the head stay; a linear
       classifier, zero at first, follows them; all of it trains.
    3. ``distil``: with teacher logits z_t and student logits z_s of the same view, P(z) = softmax(z / tau),

           L = (1 - alpha) mean_{labelled} CE(y, softmax(z_s)) - alpha tau^2 mean_{all} sum_c P(z_t)_c log P(z_s)_c.

    With alpha = 1 no label is used any more. The student may be the big network anew without the head
    (self-distillation, ``self-distil``), or a smaller one, which learns best from the self-distilled big one.
    The result holds ``teacher/...``, and ``finetuned/...`` where that is another network.

    No training script of stage 3 was released: the loss is that of its notebook (which has tau^2; the paper, from
    memory, has not; at tau = 1 they are the same). From memory: temperature and schedule of stage 3, and that
    the self-distilled student has no projection head. Choices: as many labelled as unlabelled images a batch where
    alpha < 1, and the size of the memory. While it is pre-trained the network is watched by its nearest neighbours,
    not by a linear classifier on the side. Each process of several has batch normalisation of its own (there: global).
    LARS scales the step of the classifier in stage 2 like that of every layer (there: not, nor does it decay it).

    Args:
        data: few labelled and many unlabelled images; ``data.view`` is the light augmentation of stages 2 and 3 (paper:
            crop, with flips).
        big: the network of stages 1 and 2.
        pretraining: of stage 1 (paper: LARS, 0.1 sqrt(batch), weight decay 1e-4, batches of 4096, 800 epochs, 5% of
            warm-up, cosine); without ``accumulate``.
        finetuning: of stage 2 (paper: LARS 0.16, no weight decay, batches of 1024, 60 epochs for 1% of the labels).
        fit: of stage 3, each time.
        student: the smaller network; null: the big one anew.
        pretraining_temperature: of NT-Xent (0.1 on ImageNet; 0.5 on CIFAR-10).
        view: of stage 1, twice: simclr, or for small images simclr_cifar.
        layers: linear layers of the projection head.
        outputs: of the projection head.
        selector: layers of the head that are fine-tuned; 0 is SimCLR v1's way.
        memory: outputs of an averaged network on past batches that are negatives too; 0 for none.
        memory_decay: of that average.
        temperature: tau > 0 of stage 3.
        alpha: weight of the distillation in stage 3.
        transfer_set: distil on all images, or on the labelled ones alone (an ablation of the paper).
        self_distill: whether the big network is distilled into itself before it teaches ``student``.
    """

    def __init__(
        self,
        data: ImageData,
        big: Classifier,
        pretraining: FitSettings,
        finetuning: FitSettings,
        fit: FitSettings,
        student: Classifier | None = None,
        pretraining_temperature: float = 0.1,
        view: str = "simclr",
        layers: int = 3,
        outputs: int = 128,
        selector: int = 1,
        memory: int = 0,
        memory_decay: float = 0.999,
        temperature: float = 1.0,
        alpha: float = 1.0,
        transfer_set: Literal["labeled", "all"] = "all",
        self_distill: bool = True,
    ) -> None:
        check_contrastive(pretraining, "pretraining", view, pretraining_temperature)
        if not 0 <= alpha <= 1:
            raise LimbeckError(f"alpha is {alpha}; it must lie between 0 and 1")
        if not temperature > 0:
            raise LimbeckError(f"temperature is {temperature}; it must be above 0")
        if memory < 0:
            raise LimbeckError(f"memory is {memory}; it is a number of outputs, 0 for none")
        if student is None and not self_distill:
            raise LimbeckError("there is nothing to distil into: give a student, or self_distill: true")
        self.data, self.big, self.student, self.self_distill = data, big, student, self_distill
        self.pretraining, self.finetuning, self.fit = pretraining, finetuning, fit
        self.head: dict[str, Any] = {"layers": layers, "outputs": outputs}
        self.selector = selector
        with torch.random.fork_rng(devices=[]):  # what cannot be made shows before the long training
            tap(project_contrastively(copy.deepcopy(big), data.task, **self.head), selector)
            if self_distill:
                twin(big)
        self.contrast: dict[str, Any] = {"temperature": pretraining_temperature, "view": view}
        self.contrast |= {"memory": memory, "memory_decay": memory_decay}
        self.distillation: dict[str, Any] = {"alpha": alpha, "temperature": temperature, "transfer_set": transfer_set}

    def program(self) -> Program:
        """Pre-train, fine-tune, distil into the same network, and into a smaller one."""
        projector = project_contrastively(self.big, self.data.task, **self.head)
        anew = twin(self.big) if self.self_distill else None
        projector = yield Fit("pretrain", Contrastive(projector, **self.contrast), self.data, self.pretraining)
        begun = tap(copy.deepcopy(projector), self.selector)
        tuned = yield Fit("finetune", Supervised(begun), self.data, self.finetuning)
        model = tuned if anew is None else (yield self._distil("self-distil", anew, tuned))
        if self.student is None:
            return model
        return (yield self._distil("distil", self.student, model, None if anew is None else tuned))

    def _distil(self, name: str, student: Classifier, teacher: Classifier, finetuned: Classifier | None = None) -> Fit:
        first = None if finetuned is None else Frozen(finetuned)
        objective = Distillation(student, Frozen(teacher), first, **self.distillation)
        return Fit(name, objective, self.data, self.fit)
