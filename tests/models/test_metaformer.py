import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.models import ImageTask, build, load, save
from limbeck.models.hybrid import MBConv, RelativeBlock
from limbeck.models.metaformer import MetaClassifier, MetaFormerNetwork, MetaTokens, TokenStage

TASK = ImageTask(("ant", "bee", "cat"), channels=1, size=(8, 8), mean=(0.3,), std=(0.4,))
SMALL: dict[str, Any] = {"widths": [4, 4, 6, 8, 12], "depths": [1, 2, 2, 1], "heads": 2, "stem_stride": 1}
IMAGES = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
META = torch.randn(5, 7, generator=torch.Generator().manual_seed(1))


def make(name: str = "metaformer", task: ImageTask = TASK, **options: Any) -> MetaClassifier:
    torch.manual_seed(0)
    found = build(name, task, **({**SMALL, **options} if name == "metaformer" else options))
    assert isinstance(found, MetaClassifier)
    return found.eval()


def logits(model: MetaClassifier, meta: torch.Tensor | None) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model({"image": IMAGES} if meta is None else {"image": IMAGES, "meta": meta}).logits
    return found


@pytest.mark.parametrize("only_last_cls", [False, True])
def test_reads_images_and_meta(only_last_cls: bool) -> None:
    model = make(only_last_cls=only_last_cls)
    with torch.no_grad():
        output = model({"image": IMAGES, "meta": META})
    assert output.logits.shape == (5, 3)
    assert output.features is not None
    assert output.features.shape == (5, 12)
    assert not torch.allclose(output.logits, logits(model, META.flip(0)))
    assert torch.equal(logits(model, None), logits(model, torch.zeros(5, 7)))


def test_images_only() -> None:
    model = make(meta_dims=[])
    assert torch.equal(logits(model, META), logits(model, None))
    assert not [name for name, _ in model.named_parameters() if ".meta." in name]


def test_published_sizes() -> None:
    """28M, 45M and 81M parameters without meta-information, as in table 1 of the paper."""
    task = ImageTask(tuple(map(str, range(1000))), channels=3, size=(224, 224), mean=(0.0,) * 3, std=(1.0,) * 3)
    with torch.device("meta"):
        for millions, widths, depths in (
            (28, [64, 96, 192, 384, 768], [2, 3, 5, 2]),
            (45, [64, 96, 192, 384, 768], [2, 6, 14, 2]),
            (81, [128, 128, 256, 512, 1024], [2, 6, 14, 2]),
        ):
            body = MetaFormerNetwork(task, widths, depths, 8, 4.0, [], 0.0, 4, only_last_cls=False)
            assert sum(p.numel() for p in body.parameters()) / 1e6 == pytest.approx(millions, abs=1.0)


def reference_attention(block: RelativeBlock, x: np.ndarray, grid: tuple[int, int], extra: int) -> np.ndarray:
    """One pair of tokens after the other."""
    qkv, out, table = (t.detach().double().numpy() for t in (block.qkv.weight, block.out.weight, block.bias))
    heads, width, count = block.heads, x.shape[-1], x.shape[1]
    size = width // heads
    found = np.zeros_like(x)
    for b in range(len(x)):
        q, k, v = np.split(x[b] @ qkv.T, 3, axis=-1)
        mixed = np.zeros((count, width))
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            for i in range(count):
                scores = np.zeros(count)
                for j in range(count):
                    scores[j] = q[i, part] @ k[j, part] / np.sqrt(size)
                    if i < extra or j < extra:
                        scores[j] += table[-1, h]
                    else:
                        (r, c), (s, t) = divmod(i - extra, grid[1]), divmod(j - extra, grid[1])
                        place = (r - s + grid[0] - 1) * (2 * grid[1] - 1) + (c - t + grid[1] - 1)
                        scores[j] += table[place, h]
                weights = np.exp(scores - scores.max())
                mixed[i, part] = weights / weights.sum() @ v[:, part]
        found[b] = mixed @ out.T + block.out.bias.detach().numpy()
    return found


def test_relative_attention() -> None:
    torch.manual_seed(0)
    block = RelativeBlock(6, 2, 12, 0.0, (2, 3), extra=2).double().eval()
    with torch.no_grad():
        block.bias.normal_()
    x = torch.randn(2, 8, 6, dtype=torch.float64)
    with torch.no_grad():
        found = block._attention(x)
    np.testing.assert_allclose(found, reference_attention(block, x.numpy(), (2, 3), 2), rtol=1e-9, atol=1e-12)


def normalised(x: np.ndarray) -> np.ndarray:
    """Layer normalisation as it is drawn: scale 1, shift 0."""
    found: np.ndarray = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return found


def linear(layer: torch.nn.Module, x: np.ndarray) -> np.ndarray:
    assert isinstance(layer, torch.nn.Linear)
    found: np.ndarray = x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
    return found


def test_tokens_of_groups() -> None:
    """LN(ReLU(linear)) of the group's own numbers, then x + LN(ReLU(W_2 LN(ReLU(W_1 x))))."""
    torch.manual_seed(0)
    tokens = MetaTokens([4, 3], 6).double()
    found = [token.detach().numpy() for token in tokens(META.double())]
    for group, encoder, token in zip(np.split(META.double().numpy(), [4], axis=1), tokens.encoders, found, strict=True):
        first, second = (part for part in encoder[3].modules() if isinstance(part, torch.nn.Linear))
        x = normalised(np.maximum(linear(encoder[0], group), 0))
        inner = normalised(np.maximum(linear(first, x), 0))
        expected = x + normalised(np.maximum(linear(second, inner), 0))
        np.testing.assert_allclose(token[:, 0], expected, rtol=1e-9)


def test_patches_overlap_and_are_normalised() -> None:
    """3x3 of the map every second pixel, normalised over channels; without blocks they are the new map."""
    torch.manual_seed(0)
    stage = TokenStage(3, 8, (2, 3), [4, 3], heads=2, hidden=16, drops=[]).double()
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    with torch.no_grad():
        token, patches = stage(x, META[:2].double())
        padded = np.pad(x.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)))
        assert torch.equal(token, stage.token.expand(2, -1))
    weight, bias = stage.patches.weight.detach().numpy(), stage.patches.bias.detach().numpy()  # type: ignore[union-attr]
    for i, j in np.ndindex(2, 3):
        window = padded[:, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
        expected = normalised(np.einsum("bchw,dchw->bd", window, weight) + bias)
        np.testing.assert_allclose(patches[:, :, i, j], expected, rtol=1e-9)


def test_order_of_groups_does_not_matter_to_patches() -> None:
    """Groups share one bias: exchanged together with their encoders they leave class token and patches as they are."""
    torch.manual_seed(0)
    stage = TokenStage(3, 8, (2, 2), [4, 3], heads=2, hidden=16, drops=[0.0, 0.0]).double().eval()
    twin = copy.deepcopy(stage)
    twin.meta.dims.reverse()
    twin.meta.encoders = torch.nn.ModuleList(reversed(list(twin.meta.encoders)))
    x, meta = torch.randn(2, 3, 4, 4, dtype=torch.float64), META[:2].double()
    with torch.no_grad():
        one = stage(x, meta)
        other = twin(x, torch.cat([meta[:, 4:], meta[:, :4]], dim=1))
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b)


def test_aggregation_of_the_second_token_only() -> None:
    model = make()
    body = model.body
    assert isinstance(body, MetaFormerNetwork)
    with torch.no_grad():
        body.aggregate.weight.copy_(torch.tensor([[[0.0], [1.0]]]))
        body.aggregate.bias.zero_()  # type: ignore[union-attr]
        found = model({"image": IMAGES, "meta": META}).features
        _, x = body.stage3(body.convolutions(body.stem(model.normalise(IMAGES))), META)
        token2, _ = body.stage4(x, META)
    torch.testing.assert_close(found, body.norm(body.norm2(token2)))
    with torch.no_grad():
        body.aggregate.weight.copy_(torch.tensor([[[1.0], [0.0]]]))
        assert not torch.allclose(model({"image": IMAGES, "meta": META}).features, found)
        token1, _ = body.stage3(body.convolutions(body.stem(model.normalise(IMAGES))), META)
        again = model({"image": IMAGES, "meta": META}).features
    # The first token alone: LN(MLP(LN(CLS_1))), normalised once more.
    up, down = (part for part in body.first.modules() if isinstance(part, torch.nn.Linear))  # type: ignore[union-attr]
    hidden = torch.nn.functional.gelu(torch.from_numpy(linear(up, normalised(token1.numpy()))))
    expected = normalised(normalised(linear(down, hidden.numpy())))
    np.testing.assert_allclose(again, expected, rtol=1e-4, atol=1e-5)  # float32


def test_mbconv_keeps_or_halves_the_map() -> None:
    x = torch.randn(2, 4, 7, 5)
    assert MBConv(4, 6, stride=2)(x).shape == (2, 6, 4, 3)
    block = MBConv(4, 4, drop=0.999).train()
    torch.manual_seed(0)
    assert torch.equal(block(x), x)  # every sample skips the block
    assert not torch.equal(block.eval()(x), x)


def test_gate_of_mbconv_scales_channels() -> None:
    """Shut but for its bias it lets sigmoid(bias) of each hidden channel through, before the last convolution."""
    torch.manual_seed(0)
    x, block = torch.randn(2, 3, 5, 5), MBConv(3, 4).eval()
    expanded, spread = block.expand, block.depthwise
    last = block.gate[3]
    assert isinstance(last, torch.nn.Conv2d)
    assert last.bias is not None
    assert (last.in_channels, last.out_channels) == (1, 12)  # max(1, 3 // 4), 4 * 3
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.linspace(-2, 2, 12))
        hidden = torch.nn.functional.silu(expanded[1](expanded[0](x)))
        hidden = torch.nn.functional.silu(spread[1](spread[0](hidden)))
        share = 1 / (1 + torch.exp(-torch.linspace(-2, 2, 12)))
        expected = block.project(hidden * share[:, None, None])
        torch.testing.assert_close(block(x), expected)


def test_blocks_are_skipped_more_and_more_often() -> None:
    body = make(drop_path=0.5).body
    assert isinstance(body, MetaFormerNetwork)
    drops = [part.drop.p for part in body.convolutions if isinstance(part, MBConv)]
    drops += [part.drop for stage in (body.stage3, body.stage4) for part in stage.blocks]
    assert drops == pytest.approx(np.linspace(0, 0.5, 6))


@pytest.mark.parametrize("size", [(8, 8), (9, 13)])
@pytest.mark.parametrize("stride", [1, 2])
def test_images_of_any_size(size: tuple[int, int], stride: int) -> None:
    task = ImageTask(TASK.classes, channels=1, size=size, mean=(0.3,), std=(0.4,))
    model = make(task=task, stem_stride=stride)
    assert model({"image": torch.rand(2, 1, *size), "meta": META[:2]}).logits.shape == (2, 3)


@pytest.mark.parametrize("name", ["metaformer", "meta_only"])
def test_saved_and_loaded(name: str, tmp_path: Path) -> None:
    model = make(name)
    loaded = load(save(model, tmp_path / "model"))
    assert isinstance(loaded, MetaClassifier)
    assert torch.equal(logits(loaded, META), logits(model, META))


def test_meta_only_does_not_look_at_images() -> None:
    model = make("meta_only", width=8)
    with torch.no_grad():
        assert torch.equal(model({"image": 1 - IMAGES, "meta": META}).logits, logits(model, META))
    assert not torch.allclose(logits(model, META.flip(0)), logits(model, META))


def test_refuses() -> None:
    with pytest.raises(LimbeckError, match=r"meta-information is \[5, 4\], and the network was built for \[5, 7\]"):
        logits(make(), META[:, :4])
    with pytest.raises(LimbeckError, match="must divide the widths of tokens"):
        make(heads=3)
    with pytest.raises(LimbeckError, match="five widths"):
        make(widths=[4, 4, 8])
    with pytest.raises(LimbeckError, match="stem_stride is 4"):
        make(stem_stride=4)
    with pytest.raises(LimbeckError, match="one group at least"):
        make("meta_only", meta_dims=[])
