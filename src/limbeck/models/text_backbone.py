"""Encoders of the transformers library: small ones from scratch, pretrained ones with their tokenizer."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from limbeck.errors import LimbeckError, require
from limbeck.models.text_task import TextTask


@dataclass(frozen=True)
class Sizes:
    """A transformer in the manner of BERT.

    Attributes:
        width: features of a token.
        layers: transformer blocks.
        heads: attention heads; they divide the width.
        feedforward: width between the two layers of each feed-forward block.
        dropout: share dropped of states and attention.
        initializer_range: standard deviation of the first weights.

    Raises:
        LimbeckError: a number out of range.
    """

    width: int
    layers: int
    heads: int
    feedforward: int
    dropout: float
    initializer_range: float

    def __post_init__(self) -> None:
        if min(self.width, self.layers, self.heads, self.feedforward) < 1 or self.width % self.heads:
            raise LimbeckError(
                f"an encoder of {self.layers} layers, width {self.width}, {self.heads} heads and feedforward "
                f"{self.feedforward} cannot be made: all must be at least 1, and heads must divide the width"
            )
        if not 0 <= self.dropout < 1:
            raise LimbeckError(f"dropout must be in [0, 1), got {self.dropout}")
        if not self.initializer_range > 0:
            raise LimbeckError(f"initializer_range must be above 0, got {self.initializer_range}")


def transformer(
    task: TextTask, sizes: Sizes, pretrained: str | None, config: dict[str, Any] | None
) -> tuple[nn.Module, TextTask]:
    """An encoder without a head, and the tokenizer that belongs to it.

    Args:
        task: tokenizer and longest sentence.
        sizes: of a transformer from scratch.
        pretrained: name on the hub or folder of a pretrained one in its place: weights in safetensors only, and none
            of the repository's own code.
        config: the configuration of a transformer as the library writes it, in the place of the sizes.

    Raises:
        LimbeckError: transformers is not installed, a configuration it does not take, or a pretrained model that
            cannot be had or is too short for two sentences.
    """
    library = require("transformers", extra="text")
    if pretrained is not None:
        return _load(library, pretrained, task.max_length)
    made = config or {
        "model_type": "bert",
        "vocab_size": task.size,
        "pad_token_id": task.pad_id,
        "max_position_embeddings": 2 * task.max_length,  # room for both sentences, in either kind of model
        "hidden_size": sizes.width,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "intermediate_size": sizes.feedforward,
        "hidden_dropout_prob": sizes.dropout,
        "attention_probs_dropout_prob": sizes.dropout,
        "initializer_range": sizes.initializer_range,
    }
    try:
        return library.AutoModel.from_config(library.AutoConfig.for_model(**made)), task
    except (TypeError, ValueError, KeyError) as error:
        raise LimbeckError(f"transformers cannot make an encoder of this configuration: {error}") from error


def _load(library: Any, name: str, max_length: int) -> tuple[nn.Module, TextTask]:
    try:
        backbone: Any = library.AutoModel.from_pretrained(
            name, use_safetensors=True, trust_remote_code=False, dtype=torch.float32
        )
        tokenizer = library.AutoTokenizer.from_pretrained(name, use_fast=True, trust_remote_code=False)
        text: str = tokenizer.backend_tokenizer.to_str()
    # transformers and the hub below it raise errors of any kind for a bad name or a failed download.
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise LimbeckError(f"transformers cannot load the encoder {name!r}: {reason}") from error
    longest = getattr(backbone.config, "max_position_embeddings", 2 * max_length)
    if longest < 2 * max_length:
        raise LimbeckError(
            f"{name} takes {longest} tokens, two sentences of the data have {2 * max_length}: lower its max_length"
        )
    return backbone, TextTask(text, max_length)


def separators(task: TextTask) -> int:
    """How many separators the tokenizer itself puts between the sentences of a pair: 2 in the RoBERTa family."""
    tokenizer = require("tokenizers", extra="text").Tokenizer.from_str(task.tokenizer)
    return 2 if tokenizer.num_special_tokens_to_add(True) == 4 else 1
