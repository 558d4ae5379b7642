"""SRe2L: squeeze, recover and relabel."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.data.samples import ImageData, Samples
from limbeck.data.store import Mix
from limbeck.data.stored_views import StoredViews
from limbeck.data.stream import Stream
from limbeck.data.views import check
from limbeck.errors import LimbeckError
from limbeck.losses.divergence import forward_kl
from limbeck.methods.dataset.assessment import compare_images, verify_images
from limbeck.methods.dataset.recovery import Init, Recovery
from limbeck.methods.method import Method
from limbeck.metrics.dataset_distillation import hard_label_recovery, improvement_over_random, label_robust_score
from limbeck.models.classifier import Classifier
from limbeck.stages.evaluation import predict_logits, quality
from limbeck.stages.fit import Fit
from limbeck.stages.label import Label
from limbeck.stages.objective import Batch, Objective, Terms
from limbeck.stages.pixels import PixelSettings
from limbeck.stages.processes import make_fabric
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Program
from limbeck.stages.synthesise import Synthesise
from limbeck.teachers.batch_statistics import BatchStatistics
from limbeck.teachers.ensemble import Ensemble


class PostEvaluation(Objective):
    """A fresh student on exactly the views that were labelled: ``KL(softmax(z_T / tau) || softmax(z_S / tau))``.

    The mean over the batch, without a factor tau^2. ``scores`` go into the result; with ``real/accuracy``,
    ``hard/accuracy`` and ``random/accuracy`` among them, so do HLR, IOR and LRS.
    """

    def __init__(self, student: Classifier, temperature: float, scores: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.student = student
        self.temperature = temperature
        self.scores = tuple((scores or {}).items())  # plain data: part of what decides the result

    def streams(self, data: ImageData, batch_size: int, seed: int) -> Stream:
        """The stored views, in the order in which they were labelled."""
        assert isinstance(data.train, StoredViews)
        self._test = data.test
        return data.train.stream(batch_size)

    def terms(self, batch: Batch) -> Terms:
        """The divergence from the stored labels."""
        return {"kl": forward_kl(self.student(batch).logits, batch["logits"], temperature=self.temperature)}

    def summary(self) -> dict[str, float]:
        """What was measured of the images, and the scores of DD-Ranking."""
        scores = dict(self.scores)
        if "hard/accuracy" not in scores:
            return scores
        own = quality(predict_logits(self.student, self._test))["accuracy"]
        hlr = hard_label_recovery(scores["real/accuracy"], scores["hard/accuracy"])
        ior = improvement_over_random(own, scores["random/accuracy"])
        return {**scores, "hlr": hlr, "ior": ior, "lrs": label_robust_score(hlr, ior)}


class SRe2L:
    """Images that carry a trained network's knowledge of a data set, a few a class, with its soft labels.

    Source: Yin, Xing, Shen, "Squeeze, Recover and Relabel: Dataset Condensation at ImageNet Scale From A New
    Perspective", arXiv 2306.13092 (2023). Squeeze: a network f is trained on the data (``teacher``). Recover: images x
    of each class y are optimised so that, for what f sees of them after crop, flip and shift (x'),

        CE(f(x'), y) + alpha sum_l rho_l (||mu_l(x') - mu_l||_2 + ||var_l(x') - var_l||_2)

    is small: statistics of the inputs of batch normalisation layer l against its running ones, rho = ``first_bn`` for
    the first layer and 1 for the others. Adam (0.5, 0.9) in normalised space, cosine to 0, clamped to real pixels after
    each step, the last iterate is kept. Relabel: f's logits for every view of a training are stored (arXiv
    2112.01528). Post-evaluation: a fresh student replays these views, see :class:`PostEvaluation`.

    SRe2L++ (the strong baseline of arXiv 2501.07575) is ``init="patches"``, ``labels="batch"``, small batches in two
    micro-batches and a cosine with eta. There a patch of medium difficulty is downloaded; here it is the median of five
    random crops by the network's cross-entropy (a reconstruction).

    Differs from the released code: mixed images are labelled explicitly (there CutMix works by an alias, and mixup
    would label unmixed images); views are stored by sample, so any batch can be replayed; the rate of the
    post-evaluation falls every update, not every epoch. One crop, flip and shift serves a whole step, as there.

    Args:
        data: the real data.
        student: trained on the synthetic images and returned.
        teacher: f, with batch normalisation; a nested method squeezes it.
        fit: of the post-evaluation (paper: AdamW 1e-3, weight decay 0.01 without biases, 300 epochs, batches of 1024).
        ipc: images a class.
        iterations: steps of recovery.
        lr: of recovery, in normalised pixels.
        alpha: weight of the statistics.
        first_bn: rho of the first layer (released code).
        tv: weight of the total variation of the images.
        l2: weight of the norm of the images.
        init: images start from normal noise, from patches of real images, or are real images (a baseline, with
            iterations 0).
        crop: f sees random parts of the images in recovery.
        jitter: largest shift in recovery, in pixels.
        view: augmentation of relabelling and post-evaluation.
        labels: f in eval mode, or normalised by each batch (batch-specific soft labels) in the student's micro-batches.
        mix: cutmix or mixup of the labelled batches.
        mix_alpha: of their Beta distribution.
        temperature: tau.
        storage: precision of stored logits.
        assess: measure nothing more; the images, by the student's architecture trained on the real data; or all of
            HLR, IOR and LRS, by further trainings.
    """

    def __init__(
        self,
        data: ImageData,
        student: Classifier,
        teacher: Method,
        fit: FitSettings,
        ipc: int = 50,
        iterations: int = 4000,
        lr: float = 0.25,
        alpha: float = 0.01,
        first_bn: float = 10.0,
        tv: float = 0.0,
        l2: float = 0.0,
        init: Init = "noise",
        crop: bool = True,
        jitter: int = 32,
        view: str = "crop",
        labels: Literal["eval", "batch"] = "eval",
        mix: Mix = "cutmix",
        mix_alpha: float = 1.0,
        temperature: float = 20.0,
        storage: Literal["float16", "float32"] = "float16",
        assess: Literal["nothing", "images", "all"] = "nothing",
    ) -> None:
        for name, value in (("ipc", ipc), ("temperature", temperature), ("mix_alpha", mix_alpha)):
            if not value > 0:
                raise LimbeckError(f"{name} is {value}; it must be above 0")
        if labels == "batch" and fit.batch_size < 2 * fit.accumulate:
            raise LimbeckError(
                f"labels: batch needs at least 2 images in each of fit.accumulate {fit.accumulate} micro-batches; "
                f"fit.batch_size is {fit.batch_size}"
            )
        check(view)
        self.data, self.student, self.teacher, self.fit, self.ipc = data, student, teacher, fit, ipc
        self.pixels = PixelSettings(iterations, lr, crop=crop, flip=crop and data.flip, jitter=jitter)
        self.recovery: dict[str, Any] = {"alpha": alpha, "first_bn": first_bn, "tv": tv, "l2": l2, "init": init}
        self.view, self.labels, self.mix, self.mix_alpha = view, labels, mix, mix_alpha
        self.temperature, self.storage, self.assess = temperature, storage, assess
        self.device = make_fabric(dataclasses.replace(fit, devices=1, num_nodes=1, strategy="auto")).device

    def program(self) -> Program:
        """Squeeze (the teacher's program), then recover, relabel and train the student."""
        network = yield from self.teacher.program()
        return (yield from self.distil([network], torch.ones(self.ipc, 1), [1.0]))

    def distil(self, voters: Sequence[Classifier], votes: Tensor, weights: Sequence[float]) -> Program:
        """Recover images by ``votes`` [ipc, voters], label them by all voters with ``weights``, train the student."""
        self.voters = voters
        maker = Recovery(self.data, voters, votes, self.pixels, **self.recovery)
        images = yield Synthesise("recover", maker, device=self.device)
        members = [BatchStatistics(v, parts=self.fit.accumulate) if self.labels == "batch" else v for v in voters]
        labeller = Ensemble(members, weights, average="logits")
        scores: dict[str, float] = {}
        if self.assess != "nothing":
            scores |= yield from verify_images(self, images)
        if self.assess == "all":
            scores |= yield from compare_images(self, images, labeller)
        return (yield from self.post_evaluate(images, labeller, self.student, scores))

    def post_evaluate(
        self,
        images: Samples,
        labeller: nn.Module,
        student: Classifier,
        scores: Mapping[str, float] | None = None,
        prefix: str = "",
    ) -> Program:
        """Store the labels of every view that the training of ``student`` will see, and train it."""
        labelled = yield Label(
            f"{prefix}relabel",
            labeller,
            images,
            view=self.view,
            flip=self.data.flip,
            batches=self.fit.total_updates(len(images)),
            batch_size=self.fit.batch_size,
            mixing=self.mix,
            alpha=self.mix_alpha,
            storage=self.storage,
            device=self.device,
        )
        data = dataclasses.replace(self.data, train=labelled, unlabeled=None)
        return (yield Fit(f"{prefix}fit", PostEvaluation(student, self.temperature, scores), data, self.fit))
