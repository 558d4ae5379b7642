"""FST: future self-training."""

from functools import partial
from typing import Literal

from limbeck.data.mask_samples import MaskData
from limbeck.data.semi_supervised import Batches
from limbeck.data.stream import Stream
from limbeck.errors import LimbeckError
from limbeck.methods.segmentation.mean_teacher import MeanTeacher
from limbeck.models.segmenter import Segmenter
from limbeck.stages.engine import Engine
from limbeck.stages.objective import Terms
from limbeck.teachers.future import Snapshot, look_deep, look_wide


class FST(MeanTeacher):
    """A mean teacher that has already averaged where the student is about to go.

    Source: "Learning from Future: A Novel Self-Training Framework for Semantic Segmentation", arXiv 2209.06993
    (NeurIPS 2022). With L, phi and theta of :class:`MeanTeacher` and the learning rate gamma, one
    step of the idea (memory of the paper; the rest is the released code)

        phi' = m phi + (1 - m) (theta - gamma grad L(theta; phi)),   theta <- theta - gamma grad L(theta; phi').

    ``look="deep"`` (FST-D): K virtual steps in a row on the same batch, mixed and coloured anew, each absorbed by
    phi, which labels for the next. ``look="wide"`` (FST-W): K virtual steps from the same theta, each on a batch of
    its own, whose mean phi absorbs once. Then theta is put back and takes the real step on the first batch with the
    labels of phi; phi keeps what it absorbed, and absorbs the new theta. K = 0 is the mean teacher. A step costs
    K + 1 of its forward and backward passes.

    As in the released code the state of the optimiser and the statistics of batch normalisation are not put back
    after virtual steps, so that the real step goes on from their momentum; ``restore_optimizer`` and
    ``restore_buffers`` do that. The ramp of m counts the teacher's updates. Differs from it: the SSL code absorbs
    the new theta twice, its released configurations copy theta over phi throughout the first epoch (a known bug),
    and its purely supervised epochs before are left out.

    Args:
        student: the model to train.
        K: virtual steps.
        look: one after the other, or side by side.
        restore_optimizer: whether the real step knows nothing of the virtual gradients.
        restore_buffers: whether the real step knows nothing of the virtual batches' statistics.
        mu: see :class:`MeanTeacher`, as all that follow.
        selection: how pseudo labels are weighed; "confidence" in the UDA code, "entropy" in the SSL code.
        threshold: of confidence.
        drop_percent: entropy percentile above which pixels are dropped.
        mix: ClassMix in the UDA code, CutMix in the SSL code.
        colours: on in the UDA code.
        ignored_top: rows at the top of unlabelled images.
        ignored_bottom: rows at the bottom of unlabelled images.
    """

    def __init__(
        self,
        student: Segmenter,
        K: int = 3,
        look: Literal["deep", "wide"] = "deep",
        restore_optimizer: bool = False,
        restore_buffers: bool = False,
        mu: float = 0.999,
        selection: Literal["confidence", "entropy"] = "confidence",
        threshold: float = 0.968,
        drop_percent: float = 80.0,
        mix: Literal["classmix", "cutmix", "none"] = "classmix",
        colours: bool = True,
        ignored_top: int = 0,
        ignored_bottom: int = 0,
    ) -> None:
        super().__init__(student, mu, selection, threshold, drop_percent, mix, colours, ignored_top, ignored_bottom)
        if K < 0:
            raise LimbeckError(f"K is {K}; it must be at least 0")
        self.K = K
        self.look = look
        self.restore_optimizer = restore_optimizer
        self.restore_buffers = restore_buffers

    def streams(self, data: MaskData, batch_size: int, seed: int) -> dict[str, Stream]:
        """The streams of the mean teacher; to look wide, K more pairs in other orders."""
        streams = super().streams(data, batch_size, seed)
        for name in list(streams) if self.look == "wide" else []:
            for k in range(1, self.K + 1):
                streams[f"{name}:{k}"] = self.stream(data, f"{name}:{k}", batch_size, seed)
        return streams

    def step(self, batch: Batches, engine: Engine) -> None:
        """Look ahead, come back, and take the real step with what the teacher has seen."""
        main = {name: batch[name] for name in ("labeled", "unlabeled")}
        if self.K:
            optimizers = [engine.optimizers["main"].optimizer] if self.restore_optimizer else []
            start = Snapshot(self.student, buffers=self.restore_buffers, optimizers=optimizers)
            if self.look == "deep":
                look_deep(self.teacher, self.student, [self.virtual_step(main, engine)] * self.K)
            else:
                others = [{name: batch[f"{name}:{k}"] for name in main} for k in range(1, self.K + 1)]
                look_wide(self.teacher, self.student, [self.virtual_step(b, engine) for b in others], start)
            start.restore()
            engine.values.clear()  # a virtual loss is none of this update's
        engine.minimise(main)

    def virtual_step(self, batch: Batches, engine: Engine) -> "partial[None]":
        """A step like the real one that leaves nothing behind but the student."""
        return partial(engine.minimise, batch, terms="virtual")

    def virtual(self, batch: Batches) -> Terms:
        """The terms of a virtual step: those of a real one, unwatched."""
        return self.losses(batch["labeled"], batch["unlabeled"], self.pseudo_labels(batch["unlabeled"]))
