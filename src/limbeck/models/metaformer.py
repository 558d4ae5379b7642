"""MetaFormer: images and what else is known of them as tokens of one network (arXiv 2203.02751)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError
from limbeck.models.classifier import Classifier, ImageTask, images_of
from limbeck.models.hybrid import MBConv, RelativeBlock

WIDTHS = [64, 96, 192, 384, 768]
DEPTHS = [2, 3, 5, 2]
TIME_AND_PLACE = [4, 3]
"""Sizes of the two groups of :func:`limbeck.data.meta_encoding.encode_time` and ``encode_place``."""


class MetaClassifier(Classifier):
    """A classifier of images with meta-information, ``meta`` [B, M] of a batch; without it all of it is 0: not known.

    Args:
        body: Takes images and meta-information [B, M].
        task: Classes and images.
        meta: M.
    """

    def __init__(self, body: nn.Module, task: ImageTask, meta: int) -> None:
        super().__init__(
            body, task.classes, channels=task.channels, size=task.size, mean=task.mean, std=task.std, head="head"
        )
        self.meta = meta

    def inputs(self, batch: Mapping[str, Tensor] | Tensor) -> tuple[Tensor, ...]:
        """Preprocessed images and meta-information.

        Raises:
            LimbeckError: meta-information of another length.
        """
        (images,) = super().inputs(batch)
        if not self.meta:
            return images, images.new_zeros(len(images), 0)
        meta = None if isinstance(batch, Tensor) else batch.get("meta")
        if meta is None:
            meta = images_of(batch).new_zeros(len(images), self.meta)
        if meta.shape != (len(images), self.meta):
            raise LimbeckError(
                f"meta-information is {list(meta.shape)}, and the network was built for {[len(images), self.meta]}: "
                "meta_dims must be the sizes of its groups"
            )
        return images, meta.to(images.dtype)


class ResidualLayer(nn.Module):
    """``x + LN(ReLU(W_2 LN(ReLU(W_1 x))))``, of one width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = [(nn.Linear(width, width), nn.ReLU(), nn.LayerNorm(width)) for _ in range(2)]
        self.layers = nn.Sequential(*(part for layer in layers for part in layer))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, width]`` to the same."""
        out: Tensor = x + self.layers(x)
        return out


class MetaTokens(nn.Module):
    """One token a group of meta-information: linear, ReLU, LayerNorm and a residual layer.

    Args:
        dims: sizes of the groups.
        width: size of a token.
    """

    def __init__(self, dims: Sequence[int], width: int) -> None:
        super().__init__()
        self.dims = list(dims)
        self.encoders = nn.ModuleList(
            nn.Sequential(nn.Linear(size, width), nn.ReLU(), nn.LayerNorm(width), ResidualLayer(width)) for size in dims
        )

    def forward(self, meta: Tensor) -> list[Tensor]:
        """``[B, M]`` to ``[B, 1, width]`` a group."""
        groups = meta.split(self.dims, dim=1) if self.dims else ()
        return [encode(group)[:, None] for encode, group in zip(self.encoders, groups, strict=True)]


class TokenStage(nn.Module):
    """Overlapping patches (3x3, stride 2), a class token and one a group of meta-information, then blocks."""

    def __init__(
        self,
        inputs: int,
        width: int,
        grid: tuple[int, int],
        dims: Sequence[int],
        heads: int,
        hidden: int,
        drops: Sequence[float],
    ) -> None:
        super().__init__()
        self.grid, self.extra = grid, 1 + len(dims)
        self.patches, self.norm = nn.Conv2d(inputs, width, 3, stride=2, padding=1), nn.LayerNorm(width)
        # One vector: like a bias it needs no weight decay (FitSettings.decay_biases).
        self.token = nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=0.02))
        self.meta = MetaTokens(dims, width)
        self.blocks = nn.Sequential(*(RelativeBlock(width, heads, hidden, drop, grid, self.extra) for drop in drops))

    def forward(self, x: Tensor, meta: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, inputs, H, W]`` and ``[B, M]`` to the class token ``[B, width]`` and the map ``[B, width, h, w]``."""
        patches = self.norm(self.patches(x).flatten(2).transpose(1, 2))
        token = self.token.to(patches.dtype).expand(len(x), 1, -1)
        tokens = self.blocks(torch.cat([token, *self.meta(meta), patches], dim=1))
        return tokens[:, 0], tokens[:, self.extra :].transpose(1, 2).unflatten(2, self.grid)


class MetaFormerNetwork(nn.Module):
    """Stem, two stages of convolutions, two of tokens, and both class tokens together; see :func:`metaformer`."""

    def __init__(
        self,
        task: ImageTask,
        widths: Sequence[int],
        depths: Sequence[int],
        heads: int,
        mlp_ratio: float,
        meta_dims: Sequence[int],
        drop_path: float,
        stem_stride: int,
        only_last_cls: bool,
    ) -> None:
        super().__init__()
        stem, first, second, third, fourth = widths
        drops = [drop_path * block / max(1, sum(depths) - 1) for block in range(sum(depths))]
        of = [drops[sum(depths[:stage]) : sum(depths[: stage + 1])] for stage in range(4)]
        inner, step = 3 * (stem // 4) or stem, 1 if stem_stride == 1 else 2
        self.stem = nn.Sequential(
            *(nn.Conv2d(task.channels, inner, 3, stride=step, padding=1, bias=False), nn.BatchNorm2d(inner), nn.ReLU()),
            *(nn.Conv2d(inner, stem, 3, padding=1, bias=False), nn.BatchNorm2d(stem), nn.ReLU()),
            *(nn.Conv2d(stem, stem, 3, padding=1, bias=False), nn.BatchNorm2d(stem), nn.ReLU()),
            *([nn.MaxPool2d(3, stride=2, padding=1)] if stem_stride == 4 else []),
        )
        convolutions = [
            MBConv(stem if n == 0 else first, first, expand=mlp_ratio, drop=drop) for n, drop in enumerate(of[0])
        ]
        convolutions += [
            MBConv(first if n == 0 else second, second, stride=2 if n == 0 else 1, expand=mlp_ratio, drop=drop)
            for n, drop in enumerate(of[1])
        ]
        self.convolutions = nn.Sequential(*convolutions)
        high, wide = task.size

        def grid(stride: int) -> tuple[int, int]:
            return -(-high // (stem_stride * stride)), -(-wide // (stem_stride * stride))

        self.stage3 = TokenStage(second, third, grid(4), meta_dims, heads, int(mlp_ratio * third), of[2])
        self.stage4 = TokenStage(third, fourth, grid(8), meta_dims, heads, int(mlp_ratio * fourth), of[3])
        self.norm2 = nn.LayerNorm(fourth)
        self.first: nn.Module | None = None
        if not only_last_cls:
            mlp = (nn.Linear(third, third), nn.GELU(), nn.Linear(third, fourth))
            self.first = nn.Sequential(nn.LayerNorm(third), *mlp, nn.LayerNorm(fourth))
            self.aggregate, self.norm = nn.Conv1d(2, 1, 1), nn.LayerNorm(fourth)
        self.head = nn.Linear(fourth, len(task.classes))
        self.apply(_draw)

    def forward(self, images: Tensor, meta: Tensor) -> Tensor:
        """Images [B, C, H, W] and meta-information [B, M] to logits."""
        token1, x = self.stage3(self.convolutions(self.stem(images)), meta)
        token2, _ = self.stage4(x, meta)
        features = self.norm2(token2)
        if self.first is not None:
            both = torch.stack([self.first(token1), features], dim=1)
            features = self.norm(self.aggregate(both)[:, 0])
        logits: Tensor = self.head(features)
        return logits


def _draw(part: nn.Module) -> None:
    if isinstance(part, nn.Linear):
        nn.init.trunc_normal_(part.weight, std=0.02)
        if part.bias is not None:
            nn.init.zeros_(part.bias)
    elif isinstance(part, nn.Conv2d):
        nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")


def metaformer(
    task: ImageTask,
    *,
    widths: list[int] = WIDTHS,
    depths: list[int] = DEPTHS,
    heads: int = 8,
    mlp_ratio: float = 4.0,
    meta_dims: list[int] = TIME_AND_PLACE,
    drop_path: float = 0.1,
    stem_stride: int = 4,
    only_last_cls: bool = False,
) -> MetaClassifier:
    """MetaFormer (arXiv 2203.02751), a hybrid of convolutions and attention that reads meta-information as tokens.

    Default: variant 0 (28M). Variant 1 (45M) has depths [2, 6, 14, 2]; variant 2 (81M) these and widths [128, 128, 256,
    512, 1024]. As released, except that pairs with a class or meta token have a bias of their own (there they share
    that of one offset of the patches by mistake).

    Args:
        task: Classes and images.
        widths: Of the stem, of the two stages of convolutions and of the two of tokens.
        depths: Blocks of the four stages.
        heads: Attention heads of each block; they divide both widths of tokens.
        mlp_ratio: Hidden units of each block, times its width.
        meta_dims: Sizes of the groups of meta-information, such as [4, 3] for time and place; none: images only.
        drop_path: Probability that a sample skips the last block; it grows linearly from 0 at the first.
        stem_stride: By which the stem shrinks images: 4, or 2 or 1 for small ones; stages shrink by 8 more.
        only_last_cls: Classify by the last class token only, without that of the third stage.

    Raises:
        LimbeckError: sizes that do not fit, or images too small.
    """
    sizes = (*widths, *depths, heads, *meta_dims)
    if len(widths) != 5 or len(depths) != 4 or min(sizes) < 1 or mlp_ratio <= 0 or not 0 <= drop_path < 1:
        raise LimbeckError(
            f"metaformer: five widths {widths}, four depths {depths}, heads {heads}, meta_dims {meta_dims} and "
            f"mlp_ratio {mlp_ratio} must be positive, drop_path {drop_path} from 0 to below 1"
        )
    if widths[3] % heads or widths[4] % heads:
        raise LimbeckError(f"metaformer: heads {heads} must divide the widths of tokens, {widths[3:]}")
    if stem_stride not in (1, 2, 4) or min(task.size) < 4 * stem_stride:
        raise LimbeckError(
            f"metaformer: stem_stride is {stem_stride}, must be 1, 2 or 4, and images of {task.size} at least 4 times "
            "that"
        )
    body = MetaFormerNetwork(task, widths, depths, heads, mlp_ratio, meta_dims, drop_path, stem_stride, only_last_cls)
    return MetaClassifier(body, task, sum(meta_dims))


class MetaNetwork(nn.Module):
    """Meta-information only: the tokens of its groups, one after the other, through a linear layer."""

    def __init__(self, meta_dims: Sequence[int], width: int, classes: int) -> None:
        super().__init__()
        self.tokens = MetaTokens(meta_dims, width)
        self.head = nn.Linear(width * len(meta_dims), classes)

    def forward(self, images: Tensor, meta: Tensor) -> Tensor:
        """Logits of meta-information [B, M]; images are not looked at."""
        logits: Tensor = self.head(torch.cat(self.tokens(meta), dim=-1).flatten(1))
        return logits


def meta_only(task: ImageTask, *, meta_dims: list[int] = TIME_AND_PLACE, width: int = 64) -> MetaClassifier:
    """A classifier by meta-information alone, to see what it is worth.

    Args:
        task: Classes and images, which are not looked at.
        meta_dims: Sizes of the groups of meta-information.
        width: Of the vector that each group becomes.

    Raises:
        LimbeckError: no groups, or sizes below one.
    """
    if not meta_dims or min(*meta_dims, width) < 1:
        raise LimbeckError(f"meta_only: meta_dims {meta_dims} and width {width} must be positive, one group at least")
    return MetaClassifier(MetaNetwork(meta_dims, width, len(task.classes)), task, sum(meta_dims))
