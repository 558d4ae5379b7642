"""EDM: the training of a diffusion model, which distillation starts from."""

import torch
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.losses.diffusion import denoising_score_matching, spread
from limbeck.models.denoiser import Denoiser
from limbeck.stages.objective import Batch, Objective, Terms
from limbeck.teachers.ema import EMA


class EDM(Objective):
    """A denoiser learns to remove noise of every level; the average of its weights is kept.

    Source: Karras, Aittala, Aila, Laine, "Elucidating the Design Space of Diffusion-Based Generative Models",
    arXiv 2206.00364 (2022), equations 2 and 8, table 1, and appendix F.2 for the average. With n ~ N(0, I):

        ln sigma ~ N(P_mean, P_std^2)
        L = mean lambda(sigma) (D(x + sigma n; sigma) - x)^2,  lambda = 1 / sigma^2 + 1 / sigma_data^2.

    A model that predicts epsilon is trained as in DDPM instead (arXiv 2006.11239, equation 14): its 1000 levels are
    equally likely, and lambda = 1 / sigma^2 makes errors of x those of the noise.

    The average keeps ``0.5^(B / min(ema_halflife, ema_rampup n))`` of itself in an update of B samples after n, as in
    the released code. Samples are made by the model's own sampler: 18 steps of Heun's method unless it is told
    otherwise. Left out: the paper's augmentations (the flip of the data's view remains) and its churn of noise.

    Args:
        student: the denoiser to train.
        P_mean: mean of ln sigma.
        P_std: standard deviation of ln sigma.
        label_dropout: share of samples whose class is hidden from a conditional model, for guidance without a
            classifier (arXiv 2207.12598); the paper hides none.
        ema_halflife: samples after which the average has forgotten half (500,000 on CIFAR-10, 50 million on ImageNet).
        ema_rampup: the half-life is at most this share of the samples seen.
    """

    progress = ("denoising", "lower")
    student: Denoiser
    seen: Tensor

    def __init__(
        self,
        student: Denoiser,
        P_mean: float = -1.2,
        P_std: float = 1.2,
        label_dropout: float = 0.0,
        ema_halflife: float = 500_000,
        ema_rampup: float = 0.05,
    ) -> None:
        super().__init__()
        if not 0 <= label_dropout <= 1:
            raise LimbeckError(f"label_dropout is {label_dropout}; it must lie between 0 and 1")
        if label_dropout and not student.conditional:
            raise LimbeckError("label_dropout hides classes, and the student is told none: set student.conditional")
        for name, number in (("P_std", P_std), ("ema_halflife", ema_halflife), ("ema_rampup", ema_rampup)):
            if not number > 0:
                raise LimbeckError(f"{name} is {number}; it must be above 0")
        self.student = student
        self.P_mean = P_mean
        self.P_std = P_std
        self.label_dropout = label_dropout
        self.ema_halflife = ema_halflife
        self.ema_rampup = ema_rampup
        self.average = EMA(student, decay=0.0, warmup=False)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def noise_levels(self, like: Tensor) -> Tensor:
        """One level a sample, [B]."""
        if self.student.parameterisation == "epsilon":
            sigmas = self.student.sigmas
            return sigmas[torch.randint(len(sigmas), (len(like),), device=like.device)]
        return (self.P_mean + self.P_std * torch.randn(len(like), device=like.device)).exp()

    def terms(self, batch: Batch) -> Terms:
        """The weighted error of the denoised samples."""
        clean = self.student.encode(batch)
        sigma = self.noise_levels(clean)
        noisy = {"noisy": clean + spread(sigma, clean) * torch.randn_like(clean), "sigma": sigma}
        if self.student.conditional:
            hidden = torch.rand(len(clean), device=clean.device) < self.label_dropout
            noisy["label"] = batch["label"].masked_fill(hidden, -1)

        denoised = self.student(noisy).clean
        return {"denoising": denoising_score_matching(denoised, clean, self.student.weight(sigma))}

    def after_update(self, batch: Batch) -> None:
        """Move the average of the weights."""
        world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        size = len(batch["index"]) * world
        self.seen += size
        halflife = min(self.ema_halflife, self.ema_rampup * float(self.seen))
        self.average.decay = 0.5 ** (size / halflife)
        self.average.update(self.student)

    def trained(self) -> Denoiser:
        """The average."""
        model: Denoiser = self.average.model  # type: ignore[assignment]  # a copy of the student
        return model
