"""Random teachers: features from a network that has never learnt anything."""

import copy
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from limbeck.data.samples import ImageData, concat
from limbeck.data.stream import Stream
from limbeck.errors import LimbeckError
from limbeck.losses.divergence import forward_kl, soft_cross_entropy
from limbeck.losses.feature import mse
from limbeck.losses.reduction import in_full
from limbeck.methods.classification.linear_probe import LinearProbe
from limbeck.models.classifier import Classifier
from limbeck.models.initialise import initialise
from limbeck.models.parameters import interpolate_parameters, perturb_parameters
from limbeck.models.projector import Projector, project
from limbeck.stages.fit import Fit
from limbeck.stages.objective import Batch, Objective, Terms
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Program
from limbeck.teachers.frozen import Frozen
from limbeck.teachers.random import RandomTeacher


class MatchTeacher(Objective):
    """Match the outputs of a frozen network on the same images, which need no labels and are not augmented.

    ``ce``: ``-mean_b sum_k softmax(z_T / tau_T) log softmax(z_S / tau_S)``; ``kl`` leaves out the entropy of the
    teacher, a constant; ``mse`` is of the raw outputs, the mean over outputs, then over the batch.
    """

    student: Projector
    progress: ClassVar[tuple[str, str]] = ("knn_accuracy", "higher")

    def __init__(
        self, student: Projector, teacher: Frozen, loss: str, tau_S: float, tau_T: float, images: str = "real"
    ) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher
        self.loss, self.tau_S, self.tau_T, self.images = loss, tau_S, tau_T, images

    def streams(self, data: ImageData, batch_size: int, seed: int) -> Stream:
        """All training images, labelled or not, as they are and without their labels."""
        parts = [data.train.unlabel()] + ([] if data.unlabeled is None else [data.unlabeled])
        return Stream(concat(parts), batch_size, seed)

    def terms(self, batch: Batch) -> Terms:
        """The loss; the divergence from the teacher is logged beside it."""
        images = self._noise(batch["image"]) if self.images == "noise" else batch["image"]
        # The outputs differ by parts in a thousand or less, which half precision would round away.
        with torch.autocast(images.device.type, enabled=False):
            given = in_full(self.teacher(images).logits)
            outputs = in_full(self.student(images).logits)
            self.observe(kl=forward_kl(outputs.detach() / self.tau_S, given / self.tau_T))
            if self.loss == "mse":
                return {"mse": mse(outputs, given)}
            if self.loss == "kl":
                return {"kl": forward_kl(outputs / self.tau_S, given / self.tau_T)}
            return {"ce": soft_cross_entropy(outputs, (given / self.tau_T).softmax(dim=-1), temperature=self.tau_S)}

    def _noise(self, images: Tensor) -> Tensor:
        """Gaussian noise with the mean and spread of the images' channels."""
        encoder = self.student.encoder
        mean, std = (torch.tensor(values).to(images).view(1, -1, 1, 1) for values in (encoder.mean, encoder.std))
        noise = torch.randn(len(images), encoder.channels, *images.shape[2:], dtype=images.dtype, device=images.device)
        return mean + std * noise


class RandomTeachers:
    """A student that matches a random network, started at or near it, ends with better features than the network has.

    Source: Sarnthein, Bachmann, Anagnostidis, Hofmann, "Random Teachers are Good Teachers", arXiv 2302.12091 (ICML
    2023). Teacher and student are an encoder and a projection head z (:class:`~limbeck.models.heads.ProjectionHead`).
    The teacher's weights theta_T are drawn and never trained; the student starts at

        ((1 - alpha) theta_T + alpha theta') / sqrt(alpha^2 + (1 - alpha)^2)      s_init "interpolated"
        (theta_T + alpha theta') / sqrt(1 + alpha^2)                              s_init "neighborhood"

    with theta' another draw, and minimises, without labels, augmentation, centring or any change of the teacher,

        L = -mean_b sum_k softmax(z_T / tau_T)[b, k] log softmax(z_S / tau_S)[b, k].

    Then linear probes are fitted to the features of teacher, student and the student's start. What is kept is a
    classifier: the student's encoder with its probe as classification head (a choice; the encoder is the paper's
    result). The result holds its metrics, ``teacher/...`` and ``start/...`` those of the others, ``knn_accuracy`` of
    all three (k = 20), and ``gain``, its accuracy less that of the start. The last weights are probed, not the best.

    With alpha 0 the student is the teacher. With batch normalisation they differ all the same: the teacher, which has
    seen nothing, does not normalise, the student does by its batches. Without, the gradient is exactly 0 in exact
    arithmetic; what moves the student is rounding, which AdamW makes large (with SGD nothing happens). A small alpha
    such as 1e-6 does the same by intention.

    Differs from the released code: there the rows of the head's last layer are not normalised, as its linear layer
    ignores the normalised weight (``normalize_last: false`` is that); always float32; and the head of its minimal
    version (``layers: 0, bottleneck: null, outputs: null, loss: mse``) is drawn like the others.

    Args:
        data: images; labels are for the probes only.
        student: the architecture of the encoder; its own weights are not used.
        fit: of the distillation (released code: AdamW 1e-3 without weight decay, batches of 256, 100 epochs).
        probe: of the linear probes (released code: AdamW 1e-3, batches of 256, 10 epochs).
        s_init: how the student's first weights come from the teacher's.
        alpha: how far they are from them, 0 to 1 (interpolated; 1 is another draw) or from 0 on (neighborhood).
        variance_preserving: whether interpolated weights are divided by the root above.
        only_matrices: whether biases and the scales of normalisation are left out of that division.
        loss: see :class:`MatchTeacher`.
        tau_S: temperature of the student.
        tau_T: temperature of the teacher.
        hidden: units of each hidden layer of the head.
        layers: hidden layers of the head.
        bottleneck: units of its L2-normalised bottleneck; null for none.
        outputs: K, of the head; null for as many as there are features.
        normalize_last: whether the rows of the last layer have length 1.
        images: distil on the data's images, or on Gaussian noise of their mean and spread (an ablation of the paper).
    """

    def __init__(
        self,
        data: ImageData,
        student: Classifier,
        fit: FitSettings,
        probe: FitSettings,
        s_init: Literal["interpolated", "neighborhood"] = "interpolated",
        alpha: float = 0.0,
        variance_preserving: bool = True,
        only_matrices: bool = False,
        loss: Literal["ce", "kl", "mse"] = "ce",
        tau_S: float = 1.0,
        tau_T: float = 1.0,
        hidden: int = 2048,
        layers: int = 2,
        bottleneck: int | None = 256,
        outputs: int | None = 65_536,
        normalize_last: bool = True,
        images: Literal["real", "noise"] = "real",
    ) -> None:
        if not alpha >= 0 or (s_init == "interpolated" and alpha > 1):
            limits = "between 0 and 1" if s_init == "interpolated" else "at 0 or above"
            raise LimbeckError(f"alpha is {alpha}; with s_init {s_init} it must lie {limits}")
        for name, temperature in (("tau_S", tau_S), ("tau_T", tau_T)):
            if not temperature > 0:
                raise LimbeckError(f"{name} is {temperature}; it must be above 0")
        self.data, self.fit, self.probe = data, fit, probe
        self.s_init, self.alpha = s_init, alpha
        self.variance_preserving, self.only_matrices = variance_preserving, only_matrices
        self.matching: dict[str, Any] = {"loss": loss, "tau_S": tau_S, "tau_T": tau_T, "images": images}
        head: dict[str, Any] = {
            "hidden": hidden,
            "layers": layers,
            "bottleneck": bottleneck,
            "normalize_last": normalize_last,
        }
        self.projector = project(student, data.task, outputs=outputs, **head)

    def program(self) -> Program:
        """Draw teacher and student, distil, and probe the features of both and of the start."""
        seeds = torch.randint(2**62, (2,)).tolist()
        teacher = RandomTeacher(self.projector, seeds[0])
        drawn = teacher.model
        assert isinstance(drawn, Projector)
        student = self.start(drawn, seeds[1])
        first = copy.deepcopy(student.encoder)
        objective = MatchTeacher(student, teacher, **self.matching)
        student = yield Fit("distil", objective, self.data, self.fit)

        random = yield self.probe_of("probe-teacher", copy.deepcopy(drawn.encoder))
        start = random if self.alpha == 0 else (yield self.probe_of("probe-start", first))
        return (yield self.probe_of("probe", student.encoder, Frozen(random), Frozen(start)))

    def start(self, teacher: Projector, seed: int) -> Projector:
        """The student's first weights."""
        student, other = copy.deepcopy(self.projector), copy.deepcopy(teacher)
        student.load_state_dict(teacher.state_dict())
        initialise(other, seed)
        if self.s_init == "interpolated":
            options = {"variance_preserving": self.variance_preserving, "only_matrices": self.only_matrices}
            interpolate_parameters(student, other, self.alpha, **options)
        else:
            perturb_parameters(student, other, self.alpha, only_matrices=self.only_matrices)
        return student

    def probe_of(
        self, name: str, encoder: Classifier, teacher: Frozen | None = None, start: Frozen | None = None
    ) -> Fit:
        """A linear probe on the features of ``encoder``."""
        return Fit(name, LinearProbe(encoder, self.data.train, teacher, start), self.data, self.probe)
