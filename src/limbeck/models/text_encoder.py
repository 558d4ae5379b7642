"""Models that score a pair of sentences: each sentence on its own (bi-encoder), or both together (cross-encoder).

Both wrap the same kind of transformer of the transformers library, so that weights can be carried over.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError
from limbeck.losses.feature import direction
from limbeck.losses.reduction import in_full
from limbeck.models.model import Model
from limbeck.models.text_backbone import Sizes, separators, transformer
from limbeck.models.text_task import TextTask

Pooling = Literal["cls", "mean"]


class BiEncoderOutput(NamedTuple):
    """What a bi-encoder returns.

    Attributes:
        score: cosine of the two embeddings, float32 ``[B]`` in [-1, 1].
        first: embeddings of the sentences a, ``[B, D]``.
        second: embeddings of the sentences b, ``[B, D]``.
    """

    score: Tensor
    first: Tensor
    second: Tensor


class CrossEncoderOutput(NamedTuple):
    """What a cross-encoder returns.

    Attributes:
        score: sigmoid of the logits, float32 ``[B]`` in [0, 1].
        logits: ``[B]``.
    """

    score: Tensor
    logits: Tensor


class TextEncoder(Model):
    """A transformer that turns tokens into states, and what both formulations share.

    Args:
        spec: tokenizer and longest sentence.
        backbone: an encoder of the transformers library without a head: its output has ``last_hidden_state``.
    """

    task: ClassVar[str] = "similarity"
    spec: TextTask

    def __init__(self, spec: TextTask, backbone: nn.Module) -> None:
        super().__init__(spec)
        self.backbone = backbone
        config: Any = backbone.config
        self.width: int = config.hidden_size
        self.has_types = getattr(config, "type_vocab_size", 0) > 1

    def states(self, ids: Tensor, mask: Tensor, types: Tensor | None = None) -> Tensor:
        """States of the last layer, ``[B, L', D]``: padding at the end that all rows have in common is cut off.

        Args:
            ids: token ids, int64 ``[B, L]``, padded on the right.
            mask: bool ``[B, L]``, true where there is a token.
            types: which sentence a token belongs to, int64 ``[B, L]``; default the first.
        """
        length = int(mask.sum(1).max())
        arguments = {"input_ids": ids[:, :length], "attention_mask": mask[:, :length].long()}
        if types is not None and self.has_types:
            arguments["token_type_ids"] = types[:, :length]
        states: Tensor = self.backbone(**arguments).last_hidden_state
        return states

    def carry_over(self, other: "TextEncoder") -> None:
        """Take the weights of the other's transformer; heads are left alone.

        Raises:
            LimbeckError: the transformers are not of one architecture, or the tokenizers differ.
        """
        own, theirs = ({k: v.shape for k, v in model.backbone.state_dict().items()} for model in (self, other))
        if own != theirs or self.spec != other.spec:
            differ = sorted(key for key in own.keys() | theirs.keys() if own.get(key) != theirs.get(key))
            raise LimbeckError(
                f"weights of a {type(other).__name__} cannot be carried over to a {type(self).__name__}: "
                + (f"the transformers differ in {', '.join(differ[:3])}" if differ else "the tokenizers differ")
            )
        self.backbone.load_state_dict(other.backbone.state_dict())


class BiEncoder(TextEncoder):
    """Embeds each sentence by itself; the score of a pair is the cosine of its two embeddings.

    Args:
        spec: tokenizer and longest sentence.
        backbone: see :class:`TextEncoder`.
        pooling: the embedding is the state of the first token, or the mean over all tokens.
    """

    def __init__(self, spec: TextTask, backbone: nn.Module, pooling: Pooling) -> None:
        super().__init__(spec, backbone)
        self.pooling = pooling

    def embed(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Embeddings of sentences, ``[B, D]``; arguments as of :meth:`states`."""
        states = self.states(ids, mask)
        if self.pooling == "cls":
            return states[:, 0]
        weight = mask[:, : states.shape[1], None].to(states.dtype)
        return (states * weight).sum(1) / weight.sum(1)

    def forward(self, batch: Mapping[str, Tensor]) -> BiEncoderOutput:
        """Score and embeddings of pairs; while training, a and b see different dropout.

        Args:
            batch: ``a_ids``, ``b_ids`` int64 ``[B, L]`` and ``a_mask``, ``b_mask`` bool ``[B, L]``.
        """
        both = self.embed(torch.cat([batch["a_ids"], batch["b_ids"]]), torch.cat([batch["a_mask"], batch["b_mask"]]))
        first, second = both.chunk(2)
        score = (direction(in_full(first)) * direction(in_full(second))).sum(-1)
        return BiEncoderOutput(score, first, second)


class CrossEncoder(TextEncoder):
    """Reads both sentences together; the score is the sigmoid of one logit from the state of the first token.

    The input is [CLS] a [SEP] b [SEP], or <s> a </s> </s> b </s> for the RoBERTa family. The head is BERT's: a dense
    layer, tanh, dropout and one output.

    Args:
        spec: tokenizer and longest sentence.
        backbone: see :class:`TextEncoder`.
        dense: the dense layer of the head, ``[D, D]``: the transformer's own where it was trained with one.
        dropout: share of the units dropped before the output.
        double_separator: whether two separators stand between the sentences.
    """

    def __init__(
        self, spec: TextTask, backbone: nn.Module, dense: nn.Linear, dropout: float, double_separator: bool
    ) -> None:
        super().__init__(spec, backbone)
        self.head = nn.Sequential(dense, nn.Tanh(), nn.Dropout(dropout), nn.Linear(self.width, 1))
        self.double_separator = double_separator

    def join(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Both sentences of each pair in one row: ids int64, mask bool and types int64, all ``[B, 2 L]``."""
        second, there = batch["b_ids"].clone(), batch["b_mask"].clone()
        if self.double_separator:
            second[:, 0] = self.spec.sep_id
        else:
            there[:, 0] = False
        ids, mask = torch.cat([batch["a_ids"], second], 1), torch.cat([batch["a_mask"], there], 1)
        types = torch.cat([torch.zeros_like(batch["a_ids"]), torch.ones_like(second)], 1)
        # Tokens to the left, in their order: the padding of a stands between the two.
        order = mask.int().argsort(dim=1, descending=True, stable=True)
        mask = mask.gather(1, order)
        ids = ids.gather(1, order).masked_fill(~mask, self.spec.pad_id)
        return ids, mask, types.gather(1, order).masked_fill(~mask, 0)

    def forward(self, batch: Mapping[str, Tensor]) -> CrossEncoderOutput:
        """Score and logits of pairs.

        Args:
            batch: ``a_ids``, ``b_ids`` int64 ``[B, L]`` and ``a_mask``, ``b_mask`` bool ``[B, L]``.
        """
        logits = self.head(self.states(*self.join(batch))[:, 0]).squeeze(-1)
        return CrossEncoderOutput(in_full(logits).sigmoid(), logits)


def bi_encoder(
    task: TextTask,
    *,
    pretrained: str | None = None,
    pooling: Pooling = "cls",
    width: int = 128,
    layers: int = 2,
    heads: int = 4,
    feedforward: int = 512,
    dropout: float = 0.1,
    initializer_range: float = 0.02,
    config: dict[str, Any] | None = None,
) -> BiEncoder:
    """Bi-encoder: a transformer in the manner of BERT from scratch, or a pretrained one with its own tokenizer.

    Args:
        task: Tokenizer and longest sentence; of a pretrained model only the latter is used.
        pretrained: Name on the Hugging Face hub or folder of a model with safetensors weights, such as
            princeton-nlp/unsup-simcse-bert-base-uncased; sizes and dropout are then its own.
        pooling: The embedding is the state of the first token ("cls") or the mean over tokens ("mean").
        width: Features of a token.
        layers: Transformer blocks.
        heads: Attention heads; they divide the width.
        feedforward: Width between the two layers of each feed-forward block.
        dropout: Share dropped of states and attention.
        initializer_range: Standard deviation of the first weights: 0.02 is BERT's, for a width of 768; attention of
            a narrow model begins all but uniform with it.
        config: The configuration of a transformer of the transformers library in place of these sizes.

    Raises:
        LimbeckError: Options out of range, or a pretrained model that cannot be had.
    """
    if pooling not in ("cls", "mean"):
        raise LimbeckError(f"bi_encoder: pooling must be 'cls' or 'mean', got {pooling!r}")
    sizes = Sizes(width, layers, heads, feedforward, dropout, initializer_range)
    backbone, spec = transformer(task, sizes, pretrained, config)
    backbone.pooler = None  # type: ignore[assignment]  # of no use to either
    model = BiEncoder(spec, backbone, pooling)
    if pretrained is not None:
        _remember(model, "bi_encoder", pooling=pooling)
    return model


def cross_encoder(
    task: TextTask,
    *,
    pretrained: str | None = None,
    width: int = 128,
    layers: int = 2,
    heads: int = 4,
    feedforward: int = 512,
    dropout: float = 0.1,
    initializer_range: float = 0.02,
    config: dict[str, Any] | None = None,
) -> CrossEncoder:
    """Cross-encoder: a transformer in the manner of BERT from scratch, or a pretrained one with its own tokenizer.

    Args:
        task: Tokenizer and longest sentence; of a pretrained model only the latter is used.
        pretrained: Name on the Hugging Face hub or folder of a model with safetensors weights, such as
            bert-base-uncased; sizes and dropout are then its own.
        width: Features of a token.
        layers: Transformer blocks.
        heads: Attention heads; they divide the width.
        feedforward: Width between the two layers of each feed-forward block.
        dropout: Share dropped of states, attention, and before the output.
        initializer_range: Standard deviation of the first weights: 0.02 is BERT's, for a width of 768; attention of
            a narrow model begins all but uniform with it.
        config: The configuration of a transformer of the transformers library in place of these sizes.

    Raises:
        LimbeckError: Options out of range, or a pretrained model that cannot be had.
    """
    sizes = Sizes(width, layers, heads, feedforward, dropout, initializer_range)
    backbone, spec = transformer(task, sizes, pretrained, config)
    settings: Any = backbone.config
    pooler = getattr(backbone, "pooler", None)
    dense = nn.Linear(settings.hidden_size, settings.hidden_size)
    if pretrained is not None and isinstance(getattr(pooler, "dense", None), nn.Linear):
        dense.load_state_dict(pooler.dense.state_dict())  # type: ignore[union-attr]  # looked at above
    backbone.pooler = None  # type: ignore[assignment]  # its layer is the head's now
    share = float(getattr(settings, "hidden_dropout_prob", dropout))
    model = CrossEncoder(spec, backbone, dense, share, separators(spec) == 2)
    if pretrained is not None:
        _remember(model, "cross_encoder")
    return model


def _remember(model: TextEncoder, factory: str, **arguments: Any) -> None:
    """A saved model has its own weights: loading it downloads nothing."""
    settings: Any = model.backbone.config
    model.factory = factory
    model.arguments = {"config": {**settings.to_diff_dict(), "model_type": settings.model_type}, **arguments}
