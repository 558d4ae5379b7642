"""Vision transformers, with or without a distillation token."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.errors import LimbeckError
from limbeck.models.classifier import ImageTask
from limbeck.models.experts import ExpertClassifier, ExpertOutput


def vit(
    task: ImageTask,
    *,
    patch: int = 16,
    width: int = 768,
    depth: int = 12,
    heads: int = 12,
    mlp_ratio: float = 4.0,
    drop_path: float = 0.1,
    distillation_token: bool = False,
    size: int | None = None,
) -> ExpertClassifier:
    """Vision transformer (arXiv 2010.11929); with a distillation token that of DeiT (arXiv 2012.12877). Default: base.

    Each token is an expert with a linear head of its own, called ``cls`` and ``dist``; the mean of their logits is the
    answer.

    Args:
        task: Classes and images.
        patch: Pixels of a side of a patch.
        width: Size of the tokens.
        depth: Blocks.
        heads: Attention heads of each block.
        mlp_ratio: Hidden units of a block's MLP, times the width.
        drop_path: Probability that a sample skips a residual branch of the last block; it grows linearly from 0 at the
            first (arXiv 1603.09382).
        distillation_token: Whether there is a second token beside the class token.
        size: Pixels of a side that images are resized to; null leaves them as they are.

    Raises:
        LimbeckError: images that are not made of whole patches, or options out of range.
    """
    high, wide = task.size if size is None else (size, size)
    if min(patch, depth, heads) < 1 or width < heads or width % heads or mlp_ratio <= 0 or not 0 <= drop_path < 1:
        raise LimbeckError(
            f"vit: patch {patch}, width {width}, depth {depth}, heads {heads}, mlp_ratio {mlp_ratio}, drop_path "
            f"{drop_path}; all must be positive, the width a multiple of the heads, drop_path from 0 to below 1"
        )
    if high % patch or wide % patch:
        raise LimbeckError(f"vit: images of {high}x{wide} are not made of patches of {patch}x{patch}: set size")
    names = ["cls", "dist"] if distillation_token else ["cls"]
    grid = (high // patch) * (wide // patch)
    drops = [drop_path * block / max(1, depth - 1) for block in range(depth)]
    blocks = [Block(width, heads, int(mlp_ratio * width), drop) for drop in drops]
    body = VisionTransformer(task.channels, patch, grid, width, blocks, len(task.classes), len(names))
    return ExpertClassifier(
        body, task.classes, names, channels=task.channels, size=(high, wide), mean=task.mean, std=task.std
    )


class VisionTransformer(nn.Module):
    """Patches and tokens through blocks; the tokens are normalised and go to a linear head each.

    First weights of linear layers, tokens and positions: normal with standard deviation 0.02 as released with DeiT, for
    other widths than 768 by ``0.02 sqrt(768 / width)`` so that narrow networks begin with answers of the same size (a
    choice); biases 0; the patches' convolution as torch draws it.

    Args:
        channels: of the images.
        patch: pixels of a side of a patch.
        grid: number of patches.
        width: size of the tokens.
        blocks: the blocks.
        classes: outputs of each head.
        tokens: how many tokens beside the patches.
    """

    def __init__(
        self, channels: int, patch: int, grid: int, width: int, blocks: list["Block"], classes: int, tokens: int
    ) -> None:
        super().__init__()
        self.embed = nn.Conv2d(channels, width, patch, stride=patch)
        # One vector a token: like biases they need no weight decay (FitSettings.decay_biases).
        self.tokens = nn.ParameterList(torch.zeros(width) for _ in range(tokens))
        self.positions = nn.Parameter(torch.zeros(tokens + grid, width))
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.heads = nn.ModuleList(nn.Linear(width, classes) for _ in range(tokens))
        std = 0.02 * math.sqrt(768 / width)
        for weight in (*self.tokens, self.positions):
            nn.init.trunc_normal_(weight, std=std)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=std)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> ExpertOutput:
        """Images [B, channels, H, W] to logits and normalised vector of each token."""
        patches = self.embed(images).flatten(2).transpose(1, 2)
        tokens = torch.stack([*self.tokens]).expand(len(images), -1, -1)
        found = self.norm(self.blocks(torch.cat([tokens, patches], 1) + self.positions)[:, : len(self.heads)])
        logits = [head(token) for head, token in zip(self.heads, found.unbind(1), strict=True)]
        return ExpertOutput(torch.stack(logits, 1), found)


class Block(nn.Module):
    """Self-attention and MLP, each normalised before and added after.

    Args:
        width: size of the tokens.
        heads: attention heads.
        hidden: units of the MLP.
        drop: probability that a sample skips a branch in training.
    """

    def __init__(self, width: int, heads: int, hidden: int, drop: float) -> None:
        super().__init__()
        self.heads, self.drop = heads, drop
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, width]`` to the same."""
        x = x + self._skipped(self._attention(self.norm1(x)))
        return x + self._skipped(self.mlp(self.norm2(x)))

    def _attention(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))

    def _skipped(self, branch: Tensor) -> Tensor:
        """0 for a share of the samples, the others scaled so that the mean stays."""
        if not self.training or not self.drop:
            return branch
        kept = torch.rand(len(branch), 1, 1, device=branch.device) >= self.drop
        return branch * kept / (1 - self.drop)
