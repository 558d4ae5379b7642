import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.models import ImageTask, build, load, save
from limbeck.models.hybrid import MBConv, RelativeBlock
from limbeck.models.metaformer import MetaClassifier, MetaFormerNetwork, TokenStage

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


def test_mbconv_keeps_or_halves_the_map() -> None:
    x = torch.randn(2, 4, 7, 5)
    assert MBConv(4, 6, stride=2)(x).shape == (2, 6, 4, 3)
    block = MBConv(4, 4, drop=0.999).train()
    torch.manual_seed(0)
    assert torch.equal(block(x), x)  # every sample skips the block
    assert not torch.equal(block.eval()(x), x)


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
