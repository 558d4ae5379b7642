import copy

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from limbeck.errors import LimbeckError
from limbeck.models import Classifier, ImageTask, build
from limbeck.teachers import EMA

TASK = ImageTask(("ant", "bee", "cat"), channels=1, size=(8, 8), mean=(0.3,), std=(0.2,))
IMAGES = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model() -> Classifier:
    torch.manual_seed(0)
    model = build("cnn", TASK, width=2, dropout=0.5)
    model(torch.rand(16, 1, 8, 8))
    return model


def move(model: nn.Module, seed: int) -> None:
    """One step of some training: all parameters and statistics change."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
        model(torch.rand(4, 1, 8, 8, generator=generator))


def doubles(model: nn.Module) -> dict[str, NDArray[np.float64]]:
    return {key: value.double().numpy().copy() for key, value in model.state_dict().items()}


@pytest.mark.parametrize("warmup", [True, False, "mean"])
@pytest.mark.parametrize("buffers", ["copy", "average"])
@pytest.mark.parametrize("decay", [0.0, 0.3, 0.99, 1.0])
def test_formula(model: Classifier, decay: float, warmup: bool | str, buffers: str) -> None:
    ema = EMA(model, decay, warmup=warmup, buffers=buffers)  # type: ignore[arg-type]
    expected = doubles(model)
    parameters = {name for name, _ in model.named_parameters()}
    for t in range(12):
        move(model, seed=t)
        d = decay if not warmup else min(decay, 1 - 1 / (t + 1) if warmup == "mean" else (1 + t) / (10 + t))
        assert ema.next_decay() == d
        ema.update(model)
        for key, value in doubles(model).items():
            averaged = key in parameters or (buffers == "average" and not key.endswith("num_batches_tracked"))
            expected[key] = d * expected[key] + (1 - d) * value if averaged else value
    assert int(ema.num_updates) == 12
    for key, value in doubles(ema.model).items():
        # float32 against float64: a dozen roundings of 6e-8 of numbers below 10.
        np.testing.assert_allclose(value, expected[key], atol=1e-5, rtol=1e-6, err_msg=key)


def test_limits(model: Classifier) -> None:
    start = copy.deepcopy(model)
    follows, stays = EMA(model, decay=0.0), EMA(model, decay=1.0, warmup=False, buffers="average")
    for t in range(5):
        move(model, seed=t)
        follows.update(model)
        stays.update(model)
    for key, value in model.state_dict().items():
        assert torch.equal(follows.model.state_dict()[key], value)
    for key, value in stays.model.named_parameters():
        assert torch.equal(value, start.get_parameter(key))


def test_copied_buffers_recover_from_infinity(model: Classifier) -> None:
    ema = EMA(model, decay=0.9, warmup=False)
    broken = next(buffer for buffer in ema.model.buffers() if buffer.is_floating_point() and buffer.ndim)
    broken[0] = torch.inf
    ema.update(model)
    for old, new in zip(ema.model.buffers(), model.buffers(), strict=True):
        assert torch.equal(old, new)


def test_ramp_of_means_is_the_plain_mean(model: Classifier) -> None:
    ema = EMA(model, decay=0.9, warmup="mean")
    name, seen = "body.6.bias", []
    for t in range(10):
        move(model, seed=t)
        ema.update(model)
        seen.append(model.get_parameter(name).detach().clone())
        # float32: up to ten roundings of 6e-8 of numbers below 10.
        torch.testing.assert_close(ema.model.get_parameter(name), torch.stack(seen).mean(0), atol=1e-5, rtol=0)
    assert ema.next_decay() == 0.9


def test_is_a_copy_without_gradient_in_eval_mode(model: Classifier) -> None:
    ema = EMA(model).train()
    expected = copy.deepcopy(model).eval()(IMAGES)
    assert not any(module.training for module in ema.modules())
    assert not any(parameter.requires_grad for parameter in ema.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    move(model, seed=0)
    output = ema({"image": IMAGES.clone().requires_grad_()})
    assert torch.equal(output.logits, expected.logits)
    assert torch.equal(output.features, expected.features)
    assert not output.logits.requires_grad
    assert ema.classes == TASK.classes


def test_state_survives_a_restart(model: Classifier) -> None:
    other = copy.deepcopy(model)
    ema = EMA(model, decay=0.9)
    for t in range(3):
        move(model, seed=t)
        ema.update(model)
    resumed = EMA(other, decay=0.9)
    resumed.load_state_dict({key: value.clone() for key, value in ema.state_dict().items()})
    assert resumed.next_decay() == ema.next_decay() == 4 / 13
    move(model, seed=3)
    ema.update(model)
    resumed.update(model)
    assert set(ema.state_dict()) == {"num_updates"} | {f"model.{key}" for key in model.state_dict()}
    for key, value in ema.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value)


def test_copies_count_for_themselves(model: Classifier) -> None:
    ema = EMA(model)
    ema.update(model)
    other = copy.deepcopy(ema)
    other.update(model)
    assert (int(ema.num_updates), int(other.num_updates)) == (1, 2)
    assert (ema.next_decay(), other.next_decay()) == (2 / 11, 3 / 12)


def test_small_steps_are_not_lost_in_half_precision(model: Classifier) -> None:
    class Owner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student = model
            self.teacher = EMA(model, decay=0.999, warmup=False)

    owner = Owner().to(torch.bfloat16)
    name = "body.6.bias"
    assert owner.student.get_parameter(name).dtype == torch.bfloat16
    with torch.no_grad():
        owner.student.get_parameter(name).fill_(2.0)
        owner.teacher.model.get_parameter(name).fill_(1.0)
    owner.teacher.update(owner.student)
    # 1 + 0.001: bfloat16 has no number between 1 and 1.0078.
    assert owner.teacher.model.get_parameter(name).tolist() == pytest.approx([1.001] * 3, abs=1e-7)
    assert owner.teacher(IMAGES.bfloat16()).logits.isfinite().all()
    assert next(EMA(owner.student).parameters()).dtype == torch.float32


def test_errors(model: Classifier) -> None:
    with pytest.raises(LimbeckError, match=r"must be in \[0, 1\], got 1.5"):
        EMA(model, decay=1.5)
    with pytest.raises(LimbeckError, match="'copy' or 'average', got 'mean'"):
        EMA(model, buffers="mean")  # type: ignore[arg-type]
    with pytest.raises(LimbeckError, match="true, false or 'mean', got 'average'"):
        EMA(model, warmup="average")  # type: ignore[arg-type]
    with pytest.raises(LimbeckError, match="the parameters of the model do not have the shapes"):
        EMA(model).update(build("cnn", TASK, width=3))
