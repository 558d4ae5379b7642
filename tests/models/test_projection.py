"""Projection heads, encoders under them, and how their weights are drawn and mixed."""

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from limbeck.data.samples import ImageData
from limbeck.errors import LimbeckError
from limbeck.models import build, load, save
from limbeck.models.heads import ProjectionHead
from limbeck.models.initialise import initialise
from limbeck.models.parameters import interpolate_parameters, perturb_parameters
from limbeck.models.projector import Projector, project

SMALL = {"hidden": 16, "bottleneck": 8, "outputs": 32}


def network(digits: ImageData, seed: int = 0, norm: str = "none", width: int = 16) -> Projector:
    model = project(build("vgg", digits.task, blocks=[[width], [2 * width]], norm=norm), digits.task, **SMALL)
    initialise(model, seed)
    return model


# The head


def test_head_of_the_paper() -> None:
    head = ProjectionHead(512, 65_536)
    shapes = [tuple(m.weight.shape) for m in head.mlp if isinstance(m, nn.Linear)]
    assert shapes == [(2048, 512), (2048, 2048), (256, 2048)]
    assert [type(m) for m in head.mlp] == [nn.Linear, nn.GELU, nn.Linear, nn.GELU, nn.Linear]
    assert tuple(head.last.weight.shape) == (65_536, 256)
    assert head.last.bias is None
    # 16.8 million draws of a normal that is all but not cut off.
    assert head.last.weight.std().item() == pytest.approx(0.02, rel=1e-3)
    assert not any(m.bias.any() for m in head.mlp if isinstance(m, nn.Linear))


def test_head_against_numpy() -> None:
    head = ProjectionHead(3, 5, hidden=4, layers=1, bottleneck=2).double()
    f = np.random.default_rng(0).normal(size=(6, 3))
    w = {name: value.numpy() for name, value in head.state_dict().items()}
    h = f @ w["mlp.0.weight"].T + w["mlp.0.bias"]
    h = h * 0.5 * (1 + np.vectorize(math.erf)(h / math.sqrt(2)))
    h = h @ w["mlp.2.weight"].T + w["mlp.2.bias"]
    rows = w["last.weight"] / np.linalg.norm(w["last.weight"], axis=1, keepdims=True)
    expected = h / np.linalg.norm(h, axis=1, keepdims=True) @ rows.T
    np.testing.assert_allclose(head(torch.tensor(f)).detach(), expected, atol=1e-12)


def test_scale_of_a_bottleneck_input_is_lost_and_outputs_are_cosines() -> None:
    head = ProjectionHead(8, 64, layers=0, bottleneck=4)
    features = torch.randn(5, 8)
    outputs = head(features)
    torch.testing.assert_close(head(features * torch.tensor([[0.01], [3.0], [1.0], [7.0], [1e3]])), outputs)
    assert outputs.abs().max().item() <= 1 + 1e-6
    entropy = -(outputs.softmax(-1) * outputs.log_softmax(-1)).sum(-1)
    # Logits in [-1, 1]: no probability is above e^2 / K.
    assert bool((entropy >= math.log(64) - 2).all())
    assert bool((entropy <= math.log(64) + 1e-6).all())
    raw = ProjectionHead(8, 64, layers=0, bottleneck=4, normalize_last=False)
    assert raw(features).abs().max().item() < 0.2


def test_minimal_head_is_one_linear_layer() -> None:
    head = ProjectionHead(6, 6, layers=0, bottleneck=None, normalize_last=False)
    features = torch.randn(3, 6)
    assert [name for name, _ in head.named_parameters()] == ["last.weight"]
    torch.testing.assert_close(head(features), features @ head.last.weight.T)


def test_an_empty_head_is_refused() -> None:
    with pytest.raises(LimbeckError, match="a bottleneck of 0"):
        ProjectionHead(4, 4, bottleneck=0)


# The encoder under it


def test_vgg(digits: ImageData) -> None:
    model = build("vgg", digits.task, blocks=[[4], [6, 8], [10], [12], [14]], norm="batch").eval()
    output = model(torch.rand(3, 1, 8, 8))
    assert output.features.shape == (3, 14)
    assert sum(isinstance(m, nn.MaxPool2d) for m in model.modules()) == 3  # 8, 4, 2, 1
    convolutions = [m for m in build("vgg", digits.task).modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [64, 128, 256, 256, 512, 512, 512, 512]
    for blocks in ([], [[4], []], [[0]]):
        with pytest.raises(LimbeckError, match="vgg"):
            build("vgg", digits.task, blocks=blocks)


def test_projector_gives_outputs_and_the_features_they_are_of(digits: ImageData, tmp_path: Path) -> None:
    model = network(digits).eval()
    images = digits.test.fetch(torch.arange(5))["image"]
    output = model(images)
    assert torch.equal(output.features, model.encoder(images).features)
    assert torch.equal(output.logits, model.head(output.features))
    names = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert names == {f"encoder.body.{model.encoder.head}.{part}" for part in ("weight", "bias")}
    loaded = load(save(model, tmp_path))
    assert torch.equal(loaded(images).logits, output.logits)
    assert loaded.task == "representation"


def test_projector_runs_no_code_that_a_file_names(digits: ImageData, tmp_path: Path) -> None:
    save(network(digits), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config["arguments"]["encoder"]["name"] = "os.system"
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(LimbeckError, match=r"is built from a builder of limbeck, not from 'os\.system'"):
        load(tmp_path)
    with pytest.raises(LimbeckError, match="projector is one for representation"):
        build("projector", digits.task, encoder={"name": "projector", "encoder": {"name": "cnn"}, "outputs": 4})


# First weights


def test_weights_are_drawn_as_the_paper_says(digits: ImageData) -> None:
    model = network(digits, norm="batch", width=64)
    first, second = (m for m in model.modules() if isinstance(m, nn.Conv2d))
    for convolution in (first, second):
        fan_out = 9 * convolution.out_channels
        # 576 and 73,728 draws: three standard errors of a standard deviation are 9 % and 0.8 %.
        expected = math.sqrt(2 / fan_out)
        assert convolution.weight.std().item() == pytest.approx(expected, rel=0.1 if convolution is first else 0.01)
    assert model.head.mlp[2].weight.std().item() == pytest.approx(0.02, rel=0.15)
    with torch.no_grad():
        for value in (*model.parameters(), *model.buffers()):
            value.add_(1)
    initialise(model, 0)
    norm = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    assert norm.weight.tolist() == norm.running_var.tolist() == [1.0] * 64
    assert not norm.bias.any()
    assert not norm.running_mean.any()
    assert not any(m.bias is not None and m.bias.any() for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear))


def test_weights_depend_on_the_seed_only(digits: ImageData) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one = network(digits, seed=5)
    torch.set_rng_state(before)
    two = network(digits, seed=5)
    other = network(digits, seed=6)
    weights = [dict(m.named_parameters()) for m in (one, two, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    matrices = [name for name, p in weights[0].items() if p.ndim > 1]
    assert not any(torch.equal(weights[0][name], weights[2][name]) for name in matrices)


def test_initialise_leaves_the_global_generator_alone(digits: ImageData) -> None:
    model = network(digits)
    before = torch.get_rng_state()
    initialise(model, 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_without_a_rule_are_refused() -> None:
    with pytest.raises(LimbeckError, match=r"1 \(Embedding\) has weights that no rule is known for"):
        initialise(nn.Sequential(nn.Linear(2, 2), nn.Embedding(3, 2)), 0)


# Between two networks


def test_ends_of_the_interpolation_are_exact(digits: ImageData) -> None:
    teacher, other = network(digits, 1), network(digits, 2)
    for alpha, end in ((0.0, teacher), (1.0, other)):
        for preserving in (True, False):
            mixed = copy.deepcopy(teacher)
            interpolate_parameters(mixed, other, alpha, variance_preserving=preserving)
            assert all(torch.equal(a, b) for a, b in zip(mixed.parameters(), end.parameters(), strict=True))


def test_middle_of_the_interpolation(digits: ImageData) -> None:
    teacher, other = network(digits, 1, norm="batch", width=64), network(digits, 2, norm="batch", width=64)
    mixed, plain, matrices = (copy.deepcopy(teacher) for _ in range(3))
    interpolate_parameters(mixed, other, 0.5)
    interpolate_parameters(plain, other, 0.5, variance_preserving=False)
    interpolate_parameters(matrices, other, 0.5, only_matrices=True)
    rows = zip(*(m.named_parameters() for m in (teacher, other, mixed, plain, matrices)), strict=True)
    for (name, t), (_, o), (_, m), (_, p), (_, x) in rows:
        torch.testing.assert_close(m, (t + o) / math.sqrt(2))
        torch.testing.assert_close(p, (t + o) / 2)
        torch.testing.assert_close(x, m if t.ndim > 1 else p)
        if t.numel() > 50_000:
            assert m.std().item() == pytest.approx(t.std().item(), rel=0.02), name
    norm = next(m for m in mixed.modules() if isinstance(m, nn.BatchNorm2d))
    assert norm.weight.tolist() == pytest.approx([math.sqrt(2)] * 64)  # rescaled too, as in the released code


def test_neighbourhood(digits: ImageData) -> None:
    teacher, other = network(digits, 1), network(digits, 2)
    near, same, matrices = (copy.deepcopy(teacher) for _ in range(3))
    perturb_parameters(near, other, 0.5)
    perturb_parameters(same, other, 0.0)
    perturb_parameters(matrices, other, 0.5, only_matrices=True)
    for t, o, n, s, m in zip(*(x.parameters() for x in (teacher, other, near, same, matrices)), strict=True):
        torch.testing.assert_close(n, (t + 0.5 * o) / math.sqrt(1.25))
        assert torch.equal(s, t)
        torch.testing.assert_close(m, n if t.ndim > 1 else (t + 0.5 * o) / 1.5)


def test_networks_that_cannot_be_mixed(digits: ImageData) -> None:
    one, other = network(digits), network(digits, width=8)
    with pytest.raises(LimbeckError, match="one architecture"):
        interpolate_parameters(one, other, 0.5)
    with pytest.raises(LimbeckError, match=r"interpolation is 1\.1"):
        interpolate_parameters(one, one, 1.1)
    with pytest.raises(LimbeckError, match="neighbourhood is -1"):
        perturb_parameters(one, one, -1.0)
