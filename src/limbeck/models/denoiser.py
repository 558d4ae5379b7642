"""The protocol of diffusion models: noisy samples and their noise levels in, clean samples out."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError, nearest
from limbeck.losses.diffusion import (
    edm_preconditioning,
    edm_weight,
    epsilon_preconditioning,
    epsilon_weight,
    karras_sigmas,
    scaled_linear_sigmas,
    spread,
)
from limbeck.models import samplers
from limbeck.models.classifier import ImageTask
from limbeck.models.denoising_networks import PointNetwork, UNet
from limbeck.models.model import Model
from limbeck.models.point_task import PointTask
from limbeck.models.precision import keep_dtype

Parameterisation = Literal["edm", "epsilon"]
Sampler = Literal["heun", "euler", "few_step"]
LEVELS = 1000
"""Noise levels of the grid, as in every model that DMD2 was shown on."""


class Denoised(NamedTuple):
    """What a denoiser returns.

    Attributes:
        clean: x0, float32 [B, ...].
        features: of the bottleneck, [B, C, H, W], or of the last hidden layer, [B, D].
    """

    clean: Tensor
    features: Tensor


class Network(Protocol):
    """What a :class:`Denoiser` is made around: an ``nn.Module`` with the shape of a sample's features."""

    feature_shape: tuple[int, ...]

    def __call__(self, x: Tensor, time: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """Samples [B, ...], times [B] of about 0 to 1000, classes [B]: the raw answer [B, ...] and the features."""


class Denoiser(Model):
    """``D(x; sigma, y) = skip x + out F(input x, time, y)``, which tells the clean sample in x = x0 + sigma n.

    Noise levels and samples are always those of the variance-exploding form, x0 + sigma n. A network that predicts
    the noise of a variance-preserving process sees ``x / sqrt(1 + sigma^2)`` and the process's step number, so it is
    the same network in other clothes (arXiv 2206.00364, table 1).

    In here images are [-1, 1] and points what they are; :meth:`encode` and :meth:`decode` go between this and the data.

    Args:
        spec: images or points.
        body: the network F.
        parameterisation: ``"edm"`` (arXiv 2206.00364, table 1; the network sees ``250 ln sigma``, where the paper has
            ``ln(sigma) / 4``: networks of libraries expect steps up to 1000), or ``"epsilon"`` with the 1000 steps of
            Stable Diffusion.
        conditional: whether the network takes classes; -1 is then no class.
        sigma_min: the cleanest of the 1000 levels with edm.
        sigma_max: the noisiest of them.
        sigma_data: standard deviation of the data, of which edm's preconditioning is made.
        sampler: how :meth:`sample` makes samples.
        steps: of the sampler.

    Raises:
        LimbeckError: an unknown parameterisation or sampler, or numbers out of range.
    """

    task = "generation"

    def __init__(
        self,
        spec: ImageTask | PointTask,
        body: nn.Module,
        *,
        parameterisation: Parameterisation = "edm",
        conditional: bool = False,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        sigma_data: float = 0.5,
        sampler: Sampler = "heun",
        steps: int = 18,
    ) -> None:
        super().__init__(spec)
        _check_word("parameterisation", parameterisation, ("edm", "epsilon"))
        if not sigma_data > 0:
            raise LimbeckError(f"sigma_data is {sigma_data}; it must be above 0")
        self.body = body
        self.feature_shape: tuple[int, ...] = tuple(body.feature_shape)  # type: ignore[arg-type]  # a Network
        self.parameterisation = parameterisation
        self.conditional = conditional
        self.sigma_data = sigma_data
        edm = parameterisation == "edm"
        grid = karras_sigmas(LEVELS, sigma_min, sigma_max) if edm else scaled_linear_sigmas(LEVELS)
        self.levels = _Levels(grid)
        self.set_sampler(sampler, steps)

    def set_sampler(self, sampler: Sampler, steps: int) -> None:
        """How samples are made from now on, and after saving and loading.

        Args:
            sampler: ``"heun"`` and ``"euler"`` solve the probability flow; ``"few_step"`` predicts the clean sample
                and adds noise again, as a distilled generator does.
            steps: of the sampler.

        Raises:
            LimbeckError: an unknown sampler, or fewer than one step or more than there are levels.
        """
        _check_word("sampler", sampler, ("heun", "euler", "few_step"))
        if not 1 <= steps <= LEVELS:
            raise LimbeckError(f"steps is {steps}; it must be from 1 to {LEVELS}")
        self.sampler, self.steps = sampler, steps
        if self.arguments:
            self.arguments = {**self.arguments, "sampler": sampler, "steps": steps}

    @property
    def sigmas(self) -> Tensor:
        """Noise levels from clean to noisy, float32 [1000]."""
        return self.levels.sigmas

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        spec = self.spec
        return (spec.dimensions,) if isinstance(spec, PointTask) else (spec.channels, *spec.size)  # type: ignore[union-attr]

    @property
    def calls(self) -> int:
        """Calls of the network that :meth:`sample` takes."""
        return 2 * self.steps - 1 if self.sampler == "heun" else self.steps

    def encode(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The samples of a batch of the data as this model sees them.

        Raises:
            LimbeckError: the batch holds no such samples.
        """
        key = "point" if isinstance(self.spec, PointTask) else "image"
        if key not in batch:
            raise LimbeckError(f"the batch holds no {key!r}, only {sorted(batch)}: is it the data of this model?")
        return batch[key].float() if key == "point" else 2 * batch[key].float() - 1

    def decode(self, x: Tensor) -> Tensor:
        """The inverse of :meth:`encode`; images are cut to [0, 1]."""
        return x if isinstance(self.spec, PointTask) else ((x + 1) / 2).clamp(0, 1)

    def forward(self, batch: Mapping[str, Tensor]) -> Denoised:
        """Denoise a batch.

        Args:
            batch: ``noisy`` [B, ...], ``sigma`` [B], and ``label`` [B] for a conditional model (-1, or left out: no
                class).
        """
        x, sigma = batch["noisy"].float(), batch["sigma"].float()
        edm = self.parameterisation == "edm"
        scale = edm_preconditioning(sigma, self.sigma_data) if edm else epsilon_preconditioning(sigma)
        weight = next(self.body.parameters())
        answer, features = self.body(
            (spread(scale.input, x) * x).to(weight.dtype), self.time(sigma), self._label(batch.get("label"), len(x))
        )
        return Denoised(spread(scale.skip, x) * x + spread(scale.out, x) * answer.float(), features)

    def time(self, sigma: Tensor) -> Tensor:
        """What the network is told of noise levels [B]."""
        if self.parameterisation == "edm":
            return 250 * sigma.log()
        # The step number, and between two steps its share in log sigma.
        grid, level = self.sigmas.log(), sigma.log()
        upper = torch.searchsorted(grid, level).clamp(1, LEVELS - 1)
        low, high = grid[upper - 1], grid[upper]
        return upper - 1 + ((level - low) / (high - low)).clamp(0, 1)

    def weight(self, sigma: Tensor) -> Tensor:
        """What squared errors of x0 at noise levels [B] count in training: edm's weight, or that of noise errors."""
        return edm_weight(sigma, self.sigma_data) if self.parameterisation == "edm" else epsilon_weight(sigma)

    def noisiest(self, noise: Tensor) -> Tensor:
        """The sample at the highest level that standard normal noise [B, ...] stands for.

        With edm ``sigma z``. With epsilon the network itself is shown ``z``, as in the released code of DMD2.
        """
        sigma = self.sigmas[-1]
        return noise * (sigma if self.parameterisation == "edm" else (1 + sigma**2).sqrt())

    def few_step_levels(self, steps: int) -> list[int]:
        """Positions in ``sigmas`` that a generator of so many steps visits: 999, 749, 499, 249 for four."""
        return list(range(LEVELS - 1, -1, -(LEVELS // steps)))[:steps]

    @torch.no_grad()
    def sample(self, noise: Tensor, label: Tensor | None = None) -> Tensor:
        """Samples of the data, [B, ...], made from standard normal ``noise`` by the model's own sampler.

        Args:
            noise: [B, ...], of :attr:`shape`.
            label: classes [B] of a conditional model.
        """

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            batch = {"noisy": x, "sigma": sigma}
            return self(batch if label is None else {**batch, "label": label}).clean

        start = self.noisiest(noise)
        if self.sampler == "few_step":
            sigmas = self.sigmas[self.few_step_levels(self.steps)].tolist()
            return self.decode(samplers.few_step(denoise, start, sigmas, _noise_like))
        sigmas = karras_sigmas(self.steps, float(self.sigmas[0]), float(self.sigmas[-1])).flip(0).tolist()
        solve = samplers.heun if self.sampler == "heun" else samplers.euler
        return self.decode(solve(denoise, start, sigmas))

    def _label(self, label: Tensor | None, count: int) -> Tensor | None:
        if not self.conditional:
            return None
        none = len(self.classes)
        if label is None:
            return torch.full((count,), none, device=self.sigmas.device)
        return torch.where(label < 0, none, label)


class _Levels(nn.Module):
    """Noise levels, which stay float32 under every precision: they are many orders of magnitude apart."""

    sigmas: Tensor

    def __init__(self, sigmas: Tensor) -> None:
        super().__init__()
        self.register_buffer("sigmas", sigmas.float(), persistent=False)

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return super()._apply(keep_dtype(function), recurse)


def unet_denoiser(
    task: ImageTask,
    *,
    width: int = 16,
    multipliers: Sequence[int] = (1, 2, 2),
    layers: int = 1,
    attention: int = 0,
    dropout: float = 0.0,
    parameterisation: Parameterisation = "edm",
    conditional: bool = False,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    sigma_data: float = 0.5,
    sampler: Sampler = "heun",
    steps: int = 18,
) -> Denoiser:
    """The U-Net of diffusers (UNet2DModel) as denoiser of images in [-1, 1].

    Args:
        task: Images, and the classes of a conditional model.
        width: Channels of the first level.
        multipliers: Channels of each level in widths; every level after the first halves the image.
        layers: Residual blocks a level.
        attention: Number of the deepest levels with self-attention; the middle has it where this is not 0.
        dropout: In the residual blocks.
        parameterisation: edm, or epsilon for the noise of a variance-preserving process.
        conditional: Whether the class is told to the network.
        sigma_min: Lowest noise level, with edm.
        sigma_max: Highest noise level, with edm.
        sigma_data: Standard deviation of the data, with edm.
        sampler: heun, euler or few_step.
        steps: Steps of the sampler.

    Raises:
        LimbeckError: an image that cannot be halved so often, or options out of range.
    """
    body = UNet(
        task.channels,
        task.size,
        width=width,
        multipliers=multipliers,
        layers=layers,
        attention=attention,
        dropout=dropout,
        classes=len(task.classes) if conditional else 0,
    )
    return Denoiser(
        task,
        body,
        parameterisation=parameterisation,
        conditional=conditional,
        sigma_min=sigma_min,
        sigma_max=sigma_max,
        sigma_data=sigma_data,
        sampler=sampler,
        steps=steps,
    )


def mlp_denoiser(
    task: PointTask,
    *,
    hidden: int = 128,
    layers: int = 3,
    parameterisation: Parameterisation = "edm",
    sigma_min: float = 0.01,
    sigma_max: float = 10.0,
    sigma_data: float = 0.5,
    sampler: Sampler = "heun",
    steps: int = 18,
) -> Denoiser:
    """A multi-layer perceptron as denoiser of points.

    Args:
        task: Points.
        hidden: Units of each hidden layer.
        layers: Hidden layers.
        parameterisation: edm, or epsilon for the noise of a variance-preserving process.
        sigma_min: Lowest noise level, with edm.
        sigma_max: Highest noise level, with edm.
        sigma_data: Standard deviation of the data, with edm.
        sampler: heun, euler or few_step.
        steps: Steps of the sampler.

    Raises:
        LimbeckError: options out of range.
    """
    return Denoiser(
        task,
        PointNetwork(task.dimensions, hidden, layers),
        parameterisation=parameterisation,
        sigma_min=sigma_min,
        sigma_max=sigma_max,
        sigma_data=sigma_data,
        sampler=sampler,
        steps=steps,
    )


def _noise_like(x: Tensor) -> Tensor:
    # Drawn on the CPU: the same numbers on every device.
    return torch.randn(x.shape).to(x.device)


def _check_word(name: str, word: str, known: Sequence[str]) -> None:
    if word not in known:
        raise LimbeckError(f"{name} is {word!r}; it must be one of {', '.join(known)}.{nearest(str(word), known)}")
