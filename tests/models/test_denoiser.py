import copy
from pathlib import Path

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.losses.diffusion import scaled_linear_sigmas
from limbeck.models import build, load, save
from limbeck.models.classifier import ImageTask
from limbeck.models.denoiser import Denoiser
from limbeck.models.discriminator import Critic, discriminator_head
from limbeck.models.point_task import PointTask

POINTS = PointTask(2)
IMAGES = ImageTask(("a", "b", "c"), 1, (8, 8), (0.0,), (1.0,))


def points(**arguments):
    torch.manual_seed(0)
    model = build("mlp_denoiser", POINTS, **{"hidden": 16, **arguments})
    assert isinstance(model, Denoiser)
    return model


def images(**arguments):
    pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = build("unet_denoiser", IMAGES, **{"width": 8, "multipliers": [1, 2], **arguments})
    assert isinstance(model, Denoiser)
    return model


def awake(model):
    """With a last layer that is not 0."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def test_begins_as_the_skip_connection():
    model, x, sigma = points(), torch.randn(4, 2), torch.tensor([0.01, 0.5, 1.0, 10.0])
    skip = 0.25 / (sigma**2 + 0.25)
    torch.testing.assert_close(model({"noisy": x, "sigma": sigma}).clean, skip[:, None] * x)


def test_epsilon_network_sees_the_preserving_process():
    """The body gets sqrt(abar) x and the step; its answer is noise: x0 = (x_t - sqrt(1 - abar) eps) / sqrt(abar)."""
    model = awake(points(parameterisation="epsilon"))
    seen = []
    model.body.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    abar = (1 / (1 + scaled_linear_sigmas() ** 2)).float()
    steps = torch.tensor([0, 1, 20, 500, 980, 999])
    x = torch.randn(6, 2)
    clean = model({"noisy": x, "sigma": model.sigmas[steps]}).clean
    x_t = abar[steps, None].sqrt() * x
    torch.testing.assert_close(seen[0][0], x_t)
    # Interpolated between logarithms, exact at the steps up to their rounding.
    torch.testing.assert_close(seen[0][1], steps.float(), atol=1e-3, rtol=0)
    answer, _ = model.body(*seen[0])
    expected = (x_t - (1 - abar[steps, None]).sqrt() * answer) / abar[steps, None].sqrt()
    torch.testing.assert_close(clean, expected, rtol=1e-4, atol=1e-4)
    # Between two steps, and outside.
    assert 499 < float(model.time(model.sigmas[499:501].mean()[None])) < 500
    assert model.time(torch.tensor([1e-4, 1e4])).tolist() == [0, 999]


def test_noisiest():
    z = torch.randn(3, 2)
    torch.testing.assert_close(points().noisiest(z), 10 * z)
    model = points(parameterisation="epsilon")
    scale = float(scaled_linear_sigmas()[-1])
    # What the network is shown is z itself.
    torch.testing.assert_close(model.noisiest(z) / (1 + scale**2) ** 0.5, z)


def test_few_step_levels():
    assert points().few_step_levels(1) == [999]
    assert points().few_step_levels(2) == [999, 499]
    assert points().few_step_levels(4) == [999, 749, 499, 249]
    for steps in (3, 7, 600, 1000):
        levels = points().few_step_levels(steps)
        assert len(levels) == steps
        assert levels[0] == 999
        assert levels == sorted(set(levels), reverse=True)
        assert min(levels) >= 0


@pytest.mark.parametrize(("sampler", "steps", "calls"), [("heun", 3, 5), ("euler", 3, 3), ("few_step", 4, 4)])
def test_sampler_is_saved_and_counted(sampler, steps, calls, tmp_path: Path):
    model = awake(points())
    model.set_sampler(sampler, steps)
    seen = []
    model.body.register_forward_hook(lambda *_: seen.append(1))
    noise = torch.randn(5, 2)
    torch.manual_seed(3)
    samples = model.sample(noise)
    assert len(seen) == calls == model.calls
    save(model, tmp_path)
    loaded = load(tmp_path)
    assert isinstance(loaded, Denoiser)
    assert (loaded.sampler, loaded.steps, loaded.calls) == (sampler, steps, calls)
    torch.manual_seed(3)
    assert torch.equal(loaded.sample(noise), samples)


def test_unet_denoises_samples_and_gives_features(tmp_path: Path):
    model = awake(images(conditional=True, steps=2))
    x = torch.randn(4, 1, 8, 8, requires_grad=True)
    batch = {"noisy": x, "sigma": torch.rand(4) + 0.1}
    free = model(batch)
    assert free.clean.shape == x.shape
    assert free.features.shape == (4, *model.feature_shape) == (4, 16, 4, 4)
    (gradient,) = torch.autograd.grad(free.features.sum(), x)
    assert gradient.abs().sum() > 0
    # No class is a class of its own, however it is said.
    none = model({**batch, "label": torch.full((4,), -1)})
    assert torch.equal(none.clean, free.clean)
    assert not torch.equal(model({**batch, "label": torch.zeros(4, dtype=torch.int64)}).clean, free.clean)
    samples = model.sample(torch.randn(4, 1, 8, 8), torch.arange(4) % 3)
    assert samples.min() >= 0
    assert samples.max() <= 1
    save(model, tmp_path)
    loaded = load(tmp_path)
    assert torch.equal(loaded(batch).clean, model.eval()(batch).clean)


def test_copies_do_not_share_the_hook():
    model = awake(images())
    twin = awake(copy.deepcopy(model))
    batch = {"noisy": torch.randn(2, 1, 8, 8), "sigma": torch.ones(2)}
    first, second = model(batch), twin(batch)
    assert not torch.equal(first.features, second.features)


def test_encode_and_decode():
    picture = torch.rand(2, 1, 8, 8)
    model = images()
    encoded = model.encode({"image": picture})
    assert encoded.min() >= -1
    torch.testing.assert_close(model.decode(encoded), picture)
    assert model.decode(torch.tensor([-3.0, 3.0])).tolist() == [0, 1]
    with pytest.raises(LimbeckError, match="holds no 'image', only"):
        model.encode({"point": picture})
    dots = torch.randn(3, 2)
    assert torch.equal(points().decode(points().encode({"point": dots})), dots)


@pytest.mark.parametrize("make", [points, images])
def test_half_precision_keeps_the_levels(make):
    model = awake(make())
    shape = model.shape
    batch = {"noisy": torch.randn(3, *shape), "sigma": torch.tensor([0.02, 1.0, 9.0])}
    full = model(batch).clean
    model.bfloat16()
    assert model.sigmas.dtype == torch.float32
    half = model(batch)
    assert half.clean.dtype == torch.float32
    # Eight bits in the network, scaled by at most sigma_data.
    torch.testing.assert_close(half.clean, full, atol=0.1, rtol=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"parameterisation": "epsilom"}, "Did you mean 'epsilon'"),
        ({"sampler": "hun"}, "Did you mean 'heun'"),
        ({"steps": 0}, "steps is 0"),
        ({"sigma_min": 20.0}, "sigma_min is 20"),
        ({"sigma_data": 0.0}, "sigma_data is 0"),
        ({"layers": 0}, "layers 0"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(LimbeckError, match=message):
        points(**arguments)


def test_unet_refusals():
    with pytest.raises(LimbeckError, match="8x8 is no multiple of 16"):
        images(multipliers=[1, 1, 1, 1, 1])
    with pytest.raises(LimbeckError, match="attention 3"):
        images(attention=3)


def test_paper_heads():
    """The released code's heads: 4x4 s2 and 4x4 s4 on 768x8x8; three 4x4 s2 and 4x4 s4 on 1280x32x32."""
    kinds = [m for m in discriminator_head((64, 8, 8)) if isinstance(m, torch.nn.Conv2d)]
    assert [(m.kernel_size, m.stride) for m in kinds] == [((4, 4), (2, 2)), ((4, 4), (1, 1)), ((1, 1), (1, 1))]
    kinds = [m for m in discriminator_head((64, 32, 32)) if isinstance(m, torch.nn.Conv2d)]
    assert [m.stride[0] for m in kinds] == [2, 2, 2, 1, 1]


@pytest.mark.parametrize("shape", [(7,), (8, 1, 1), (8, 4, 4), (8, 7, 7), (12, 8, 6), (32, 9, 9)])
def test_heads_give_one_logit_that_depends_on_the_features(shape):
    torch.manual_seed(0)
    head = discriminator_head(shape)
    logits = head(torch.randn(5, *shape)).flatten()
    assert logits.shape == (5,)
    assert logits.unique().numel() == 5


def test_critic():
    critic = Critic(points())
    judged = critic({"noisy": torch.randn(3, 2), "sigma": torch.ones(3)})
    assert judged.clean.shape == (3, 2)
    assert judged.logit.shape == (3,)
