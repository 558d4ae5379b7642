"""Blocks of networks that are convolutions first and attention later (CoAtNet, arXiv 2106.04803)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from limbeck.models.vit import Block


class MBConv(nn.Module):
    """Inverted bottleneck with squeeze and excitation (arXiv 1801.04381, 1709.01507): 1x1, depthwise 3x3, gate, 1x1.

    Every convolution has batch normalisation, all but the last SiLU too; where shapes match the input is added, and a
    share of the samples skips the block in training.

    Args:
        inputs: channels.
        outputs: channels.
        stride: of the depthwise convolution.
        expand: hidden channels, times the inputs.
        drop: probability that a sample skips the block.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1, expand: float = 4.0, drop: float = 0.0) -> None:
        super().__init__()
        hidden, squeezed = int(expand * inputs), max(1, inputs // 4)
        self.expand = nn.Sequential(
            nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden, eps=1e-2), nn.SiLU()
        )
        self.depthwise = nn.Sequential(
            nn.Conv2d(hidden, hidden, 3, stride=stride, padding=1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden, eps=1e-2),
            nn.SiLU(),
        )
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(hidden, squeezed, 1),
            nn.SiLU(),
            nn.Conv2d(squeezed, hidden, 1),
            nn.Sigmoid(),
        )
        self.project = nn.Sequential(nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs, eps=1e-2))
        self.residual = stride == 1 and inputs == outputs
        self.drop = StochasticDepth(drop, "row")

    def forward(self, x: Tensor) -> Tensor:
        """``[B, inputs, H, W]`` to ``[B, outputs, H / stride, W / stride]``, rounded up."""
        hidden = self.depthwise(self.expand(x))
        out: Tensor = self.project(self.gate(hidden) * hidden)
        return x + self.drop(out) if self.residual else out


class RelativeBlock(Block):
    """A transformer block whose attention knows where patches lie: softmax(q k^T / sqrt(d) + B).

    B has one learnt number a head for each of the (2 h - 1)(2 w - 1) offsets between two patches, and one more that all
    pairs share which have another token on either side.

    Args:
        width: size of the tokens.
        heads: attention heads.
        hidden: units of the MLP.
        drop: probability that a sample skips a branch in training.
        grid: h and w, rows and columns of patches.
        extra: tokens before the patches.
    """

    index: Tensor

    def __init__(self, width: int, heads: int, hidden: int, drop: float, grid: tuple[int, int], extra: int) -> None:
        super().__init__(width, heads, hidden, drop)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        high, wide = grid
        offsets = (2 * high - 1) * (2 * wide - 1)
        self.bias = nn.Parameter(nn.init.trunc_normal_(torch.empty(offsets + 1, heads), std=0.02))
        rows, columns = (
            place.flatten() for place in torch.meshgrid(torch.arange(high), torch.arange(wide), indexing="ij")
        )
        down = rows[:, None] - rows + high - 1
        right = columns[:, None] - columns + wide - 1
        index = F.pad(down * (2 * wide - 1) + right, (extra, 0, extra, 0), value=offsets)
        self.register_buffer("index", index, persistent=False)

    def _attention(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias = self.bias[self.index].permute(2, 0, 1).to(query.dtype)
        mixed: Tensor = self.out(F.scaled_dot_product_attention(query, key, value, bias).transpose(1, 2).flatten(2))
        return mixed
