"""DMD2: improved distribution matching distillation."""

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call

from limbeck.errors import LimbeckError
from limbeck.losses.adversarial import non_saturating_discriminator, non_saturating_generator
from limbeck.losses.diffusion import denoising_score_matching, distribution_matching_loss, spread
from limbeck.models.denoiser import LEVELS, Denoiser
from limbeck.models.discriminator import Critic
from limbeck.stages.objective import Batch, Objective, Terms
from limbeck.teachers.frozen import Frozen

if TYPE_CHECKING:
    from limbeck.stages.engine import Engine


class DMD2(Objective):
    """A generator of one or few steps learns to make what its diffusion teacher makes in many.

    Source: Yin et al., "Improved Distribution Matching Distillation for Fast Image Synthesis", arXiv 2405.14867
    (NeurIPS 2024); numbers and details as in the released code. Generator G and critic D_fake begin as copies of the
    teacher D_real. With x = G(z), z pure noise, x_t = x + sigma_t n, t ~ U{20..980}, n ~ N(0, I), in every R-th update

        g = (D_fake(x_t) - D_real(x_t)) / mean|x - D_real(x_t)|
        L_G = mean (x - stopgrad(x - g))^2 / 2 + lambda_g mean softplus(-h(x_tau)),

    and in every update, with x detached, y a real sample, and t and all tau ~ U{0..999} drawn on their own,

        L_fake = mean lambda(sigma_t) (D_fake(x_t) - x)^2 + lambda_c mean [softplus(h(x_tau)) + softplus(-h(y_tau))].

    h is a small head on the bottleneck of D_fake, whose trunk it trains too. ``fit.updates`` counts updates of the
    critic. A generator of several steps visits the levels 999, 749, 499, 249 (four steps); in training it makes its
    own inputs, through a random number of its first steps without gradient (backward simulation).

    Teachers of either parameterisation: one that predicts epsilon has L_fake = mean (eps' - eps)^2, is shown z itself
    at level 999, and may be guided, D_real = D(no class) + s (D(class) - D(no class)).

    Differs from the released code: there is no ``gan_alone``, where L_fake stays on without use; g is 0 where its
    divisor is. Left out: SDXL's one-step generator (level 399, after a regression), text, and encoders of latents.

    Args:
        teacher: a trained denoiser; generator and critic are made of it.
        steps: network calls a sample.
        R: updates of the critic for one of the generator (two time-scale rule; 10 for Stable Diffusion 1.5).
        lambda_g: weight of the generator's adversarial term; 0: no discriminator, no real samples (1e-3 for Stable
            Diffusion 1.5, 5e-3 for SDXL).
        lambda_c: weight of the discriminator's loss.
        guidance_scale: s of a teacher that knows no class too (1.75 and 8 for Stable Diffusion); 1 is no guidance.
        backward_simulation: whether inputs of later steps are the generator's own samples, or (the paper's ablation)
            real ones, each with the noise of a random step.
    """

    progress = ("energy_distance", "lower")
    student: Denoiser

    def __init__(
        self,
        teacher: Frozen,
        steps: int = 1,
        R: int = 5,
        lambda_g: float = 3e-3,
        lambda_c: float = 1e-2,
        guidance_scale: float = 1.0,
        backward_simulation: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(teacher.model, Denoiser):
            raise LimbeckError(
                f"dmd2 distils a denoiser, as edm trains; the teacher is a {type(teacher.model).__name__}"
            )
        if R < 1:
            raise LimbeckError(f"R is {R}; it must be at least 1 update of the critic for one of the generator")
        for name, number in (("lambda_g", lambda_g), ("lambda_c", lambda_c)):
            if number < 0:
                raise LimbeckError(f"{name} is {number}; it must be at least 0")
        if guidance_scale != 1 and not teacher.model.conditional:
            raise LimbeckError(f"guidance_scale is {guidance_scale}, but the teacher knows no classes to be guided by")
        self.teacher = teacher
        self.student = _trainable(teacher.model)
        self.student.set_sampler("few_step", steps)
        self.fake = Critic(_trainable(teacher.model))
        if not lambda_g:
            self.fake.head.requires_grad_(False)
        self.steps = steps
        self.R = R
        self.lambda_g = lambda_g
        self.lambda_c = lambda_c
        self.guidance_scale = guidance_scale
        self.backward_simulation = backward_simulation

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:  # type: ignore[override]  # a list is iterable
        """The generator, and its critic with the head."""
        return {
            "generator": list(self.student.parameters()),
            "fake": [p for p in self.fake.parameters() if p.requires_grad],
        }

    def step(self, batch: Batch, engine: "Engine") -> None:
        """The generator every R-th update, and the critic always, on what the generator made before its step."""
        batch = {**batch, **self.draw(batch)}
        if self.steps > 1:
            # One for the whole batch, on all devices: a batch whose samples are at different steps takes them all.
            position = engine.fabric.broadcast(int(torch.randint(self.steps, ())))
            batch["position"] = torch.full_like(batch["index"], position)
        if engine.number % self.R == 0:
            engine.minimise(batch, terms="generator", optimizer="generator")
            batch["generated"] = torch.cat(self.kept.pop("generated"))
        engine.minimise(batch, terms="guidance", optimizer="fake")

    def draw(self, batch: Batch) -> dict[str, Tensor]:
        """Noise z for each sample that is to be made, and a class: any, or that of the real sample it is made of."""
        like, student = batch["index"], self.student
        label = torch.full_like(like, -1)
        if student.conditional:
            own = self.steps > 1 and not self.backward_simulation
            label = batch["label"] if own else torch.randint_like(like, len(student.classes))
        return {"noise": torch.randn(len(like), *student.shape, device=like.device), "drawn_label": label}

    def generate(self, batch: Batch) -> Tensor:
        """Samples x of the generator, [B, ...], with the gradient of the last of its steps."""
        student, label = self.student, batch["drawn_label"]
        sigmas = student.sigmas[student.few_step_levels(self.steps)]
        position = torch.zeros_like(label)
        noisy = student.noisiest(batch["noise"])
        if self.steps > 1 and not self.backward_simulation:
            position = torch.randint_like(label, self.steps)
            noisy = _noisy(student.encode(batch), sigmas[position], label)["noisy"]
        elif self.steps > 1:
            position = batch["position"]
            with torch.no_grad():
                for here in range(int(position[0])):
                    clean = student({"noisy": noisy, "sigma": sigmas[here].expand(len(noisy)), "label": label}).clean
                    noisy = clean + sigmas[here + 1] * torch.randn_like(clean)
        generated: Tensor = student({"noisy": noisy, "sigma": sigmas[position], "label": label}).clean
        return generated

    def generator(self, batch: Batch) -> Terms:
        """L_G; gradients go through the critic into the sample, not into the critic."""
        label, generated = batch["drawn_label"], self.generate(batch)
        self.keep(generated=generated)

        with torch.no_grad():
            noisy = _noisy(generated, self.levels(generated, 20, 980), label)  # 2 % to 98 %
            real, fake = self.real(noisy), self.fake.denoiser(noisy).clean
        terms: Terms = {"dm": distribution_matching_loss(generated, real, fake)}
        if self.lambda_g:
            constants = {name: weight.detach() for name, weight in self.fake.named_parameters()}
            judged = functional_call(self.fake, constants, (_noisy(generated, self.levels(generated), label),))
            terms["gan"] = self.lambda_g * non_saturating_generator(judged.logit)
        return terms

    def guidance(self, batch: Batch) -> Terms:
        """L_fake on what the generator made."""
        label, generated = batch["drawn_label"], batch.get("generated")
        if generated is None:
            with torch.no_grad():
                generated = self.generate(batch)

        sigma = self.levels(generated)
        denoised = self.fake.denoiser(_noisy(generated, sigma, label)).clean
        weight = self.student.weight(sigma)
        terms: Terms = {"denoising": denoising_score_matching(denoised, generated, weight)}
        if self.lambda_g:
            samples = torch.cat([self.student.encode(batch), generated])
            labels = torch.cat([batch.get("label", label), label])
            real, fake = self.fake(_noisy(samples, self.levels(samples), labels)).logit.chunk(2)
            terms["discriminator"] = self.lambda_c * non_saturating_discriminator(real, fake)
            self.observe(real_logit=real.mean(), fake_logit=fake.mean())
        return terms

    def levels(self, like: Tensor, first: int = 0, last: int = LEVELS - 1) -> Tensor:
        """One noise level a sample, [B], of the positions ``first`` to ``last``, both included."""
        return self.student.sigmas[torch.randint(first, last + 1, (len(like),), device=like.device)]

    def real(self, noisy: Batch) -> Tensor:
        """The teacher's clean samples, guided."""
        clean: Tensor = self.teacher(noisy).clean
        if self.guidance_scale == 1:
            return clean
        free = self.teacher({**noisy, "label": torch.full_like(noisy["label"], -1)}).clean
        return free + self.guidance_scale * (clean - free)


def _noisy(clean: Tensor, sigma: Tensor, label: Tensor) -> dict[str, Tensor]:
    """A batch for a denoiser: samples with fresh noise."""
    return {"noisy": clean + spread(sigma, clean) * torch.randn_like(clean), "sigma": sigma, "label": label}


def _trainable(teacher: Denoiser) -> Denoiser:
    """A copy to train, without the teacher's dropout."""
    twin = copy.deepcopy(teacher).requires_grad_(True)
    for module in twin.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return twin
