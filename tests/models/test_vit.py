import math

import numpy as np
import pytest
import torch
from torch import nn

from limbeck.errors import LimbeckError
from limbeck.models import ImageTask, build
from limbeck.models.vit import Block, VisionTransformer

TASK = ImageTask(("ant", "bee", "cat"), channels=1, size=(8, 8), mean=(0.0,), std=(1.0,))
SMALL = {"patch": 4, "width": 8, "depth": 2, "heads": 2, "drop_path": 0.0}


def normalised(x: np.ndarray, norm: nn.LayerNorm) -> np.ndarray:
    z = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + norm.eps)
    return z * norm.weight.detach().numpy() + norm.bias.detach().numpy()


def linear(x: np.ndarray, layer: nn.Linear) -> np.ndarray:
    return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


def by_hand(x: np.ndarray, block: Block) -> np.ndarray:
    """One block of tokens [N, D], head by head."""
    width = x.shape[-1]
    size = width // block.heads
    qkv = linear(normalised(x, block.norm1), block.qkv)
    q, k, v = qkv[:, :width], qkv[:, width : 2 * width], qkv[:, 2 * width :]
    found = []
    for h in range(block.heads):
        part = slice(h * size, (h + 1) * size)
        scores = q[:, part] @ k[:, part].T / math.sqrt(size)
        powers = np.exp(scores - scores.max(-1, keepdims=True))
        found.append(powers / powers.sum(-1, keepdims=True) @ v[:, part])
    x = x + linear(np.concatenate(found, -1), block.out)
    hidden = linear(normalised(x, block.norm2), block.mlp[0])
    gelu = 0.5 * hidden * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
    return x + linear(gelu, block.mlp[2])


def test_equations() -> None:
    torch.manual_seed(0)
    model = build("vit", TASK, distillation_token=True, **SMALL)
    body = model.body.double().eval()
    for weight in body.parameters():  # biases too
        nn.init.normal_(weight, std=0.5)
    image = torch.rand(1, 1, 8, 8, dtype=torch.float64)
    kernel, bias = body.embed.weight.detach().numpy(), body.embed.bias.detach().numpy()
    patches = [
        (kernel * image[0].numpy()[:, 4 * r : 4 * r + 4, 4 * c : 4 * c + 4]).sum((1, 2, 3)) + bias
        for r in range(2)
        for c in range(2)
    ]
    x = np.stack([*(token.detach().numpy() for token in body.tokens), *patches]) + body.positions.detach().numpy()
    for block in body.blocks:
        x = by_hand(x, block)
    x = normalised(x, body.norm)
    logits, features = body(image)
    np.testing.assert_allclose(features[0].detach(), x[:2], atol=1e-12)
    expected = np.stack([linear(x[t], body.heads[t]) for t in range(2)])
    np.testing.assert_allclose(logits[0].detach(), expected, atol=1e-12)


def test_base_is_that_of_the_papers() -> None:
    """ViT-B/16 at 224 pixels with 1,000 classes: 86,567,656 weights (DeiT), 87,338,192 with a distillation token."""
    task = ImageTask(tuple(map(str, range(1000))), 3, (32, 32), (0.0,) * 3, (1.0,) * 3)
    with torch.device("meta"):
        counts = [
            sum(p.numel() for p in build("vit", task, size=224, distillation_token=token).parameters())
            for token in (False, True)
        ]
    assert counts == [86_567_656, 87_338_192]


def test_images_are_resized() -> None:
    model = build("vit", TASK, size=16, **SMALL)
    assert model.body.positions.shape == (17, 8)
    assert model.experts == ("cls",)
    assert model(torch.rand(2, 1, 8, 8)).logits.shape == (2, 3)


def test_drop_path() -> None:
    torch.manual_seed(0)
    block = Block(4, 2, 8, 0.25)
    x = torch.ones(4000, 1, 1)
    kept = block._skipped(x)
    assert sorted(set(kept.flatten().tolist())) == pytest.approx([0, 4 / 3])
    # The mean of 4,000 draws of standard deviation 0.58: 5 sigma.
    assert float(kept.mean()) == pytest.approx(1, abs=0.046)
    assert torch.equal(block.eval()._skipped(x), x)


def test_drop_path_grows_from_0() -> None:
    model = build("vit", TASK, **{**SMALL, "depth": 3, "drop_path": 0.2})
    assert isinstance(model.body, VisionTransformer)
    assert [block.drop for block in model.body.blocks] == pytest.approx([0, 0.1, 0.2])
    assert [block.drop for block in build("vit", TASK, **{**SMALL, "depth": 1, "drop_path": 0.2}).body.blocks] == [0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch": 3}, "not made of patches of 3x3"),
        ({"heads": 3}, "the width a multiple of the heads"),
        ({"drop_path": 1.0}, "drop_path"),
        ({"depth": 0}, "must be positive"),
    ],
)
def test_wrong_input(change: dict[str, object], message: str) -> None:
    with pytest.raises(LimbeckError, match=message):
        build("vit", TASK, **{**SMALL, **change})
