"""The protocol of causal language models, and its two builders: small ones from scratch, pretrained ones."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError, require
from limbeck.losses.fused_linear import Projection
from limbeck.models.model import Model
from limbeck.models.text_task import TextTask

Attention = Literal["sdpa", "eager"]


class CausalLMOutput(NamedTuple):
    """What a causal language model returns.

    Attributes:
        projection: of logits ``[B, L, V]``; those at position l are about the token at l + 1.
    """

    projection: Projection

    @property
    def logits(self) -> Tensor:
        """``[B, L, V]``, all of them."""
        return self.projection.logits


class CausalLM(Model):
    """A language model of transformers that predicts the next token.

    Sequences are padded on the right, where a causal model never looks: no attention mask is needed.

    Args:
        body: maps ``input_ids`` ``[B, L]`` to an object with ``logits`` ``[B, L, V]``, and takes ``use_cache`` and
            ``past_key_values`` as transformers' models do.
        spec: tokenizer and longest sequence.
    """

    task: ClassVar[str] = "language"
    spec: TextTask

    def __init__(self, body: nn.Module, spec: TextTask) -> None:
        super().__init__(spec)
        self.body = body
        self._projects = self._is_projection()

    def forward(self, batch: Mapping[str, Tensor]) -> CausalLMOutput:
        """Logits of a batch.

        Args:
            batch: holds ``input_ids`` int64 ``[B, L]``.

        Raises:
            LimbeckError: no ``input_ids`` in the batch, or rows longer than the model takes.
        """
        if "input_ids" not in batch:
            raise LimbeckError(f"the batch holds no 'input_ids', only {sorted(batch)}")
        tokens = batch["input_ids"]
        if tokens.shape[-1] > self.spec.max_length:
            raise LimbeckError(
                f"rows of {tokens.shape[-1]} tokens are longer than the {self.spec.max_length} this model was built for"
            )
        layer = self._output_layer() if self._projects else None
        if layer is None:
            return CausalLMOutput(Projection(self.body(input_ids=tokens, use_cache=False).logits))
        return CausalLMOutput(Projection(self._hidden(tokens), layer.weight, layer.bias))

    def _output_layer(self) -> nn.Linear | None:
        """The layer that makes logits of hidden states, where it is a plain one (FSDP may have wrapped it)."""
        layer = getattr(self.body, "get_output_embeddings", lambda: None)()
        return layer if type(layer) is nn.Linear else None

    def _hidden(self, tokens: Tensor) -> Tensor:
        base: Any = self.body.base_model
        hidden: Tensor = base(input_ids=tokens, use_cache=False).last_hidden_state
        return hidden

    @torch.no_grad()
    def _is_projection(self) -> bool:
        """Whether the logits are those of the output layer and nothing else: some models scale or bound them."""
        layer = self._output_layer()
        if layer is None:
            return False
        tokens = torch.arange(2, device=layer.weight.device)[None]
        training = self.body.training
        self.body.eval()
        logits = self.body(input_ids=tokens, use_cache=False).logits
        projected = Projection(self._hidden(tokens), layer.weight, layer.bias).logits
        self.body.train(training)
        return torch.equal(logits, projected)

    @torch.no_grad()
    def generate(self, prompts: Tensor, length: int, generator: torch.Generator) -> Tensor:
        """Sample continuations at temperature 1.

        Args:
            prompts: int64 ``[B, P]``, P >= 1, all of one length.
            length: tokens to add.
            generator: draws the tokens, on the CPU; no other random state is touched.

        Returns:
            int64 ``[B, P + length]``, the prompts included; an end token does not stop a row.

        Raises:
            LimbeckError: prompt and continuation do not fit into the model.
        """
        if prompts.shape[1] + length > self.spec.max_length:
            raise LimbeckError(
                f"a prompt of {prompts.shape[1]} and {length} new tokens do not fit into {self.spec.max_length}"
            )
        rows, new, cache = prompts, prompts, None
        for _ in range(length):
            output = self.body(input_ids=new, use_cache=True, past_key_values=cache)
            cache = output.past_key_values
            probabilities = output.logits[:, -1].float().softmax(-1).cpu()
            new = torch.multinomial(probabilities, 1, generator=generator).to(rows.device)
            rows = torch.cat([rows, new], dim=1)
        return rows


def gpt(
    task: TextTask,
    *,
    layers: int = 2,
    width: int = 96,
    heads: int = 4,
    architecture: Literal["gpt2", "llama"] = "gpt2",
    dropout: float = 0.0,
    attention: Attention = "sdpa",
) -> CausalLM:
    """A small transformer from scratch, its output layer tied to its input embedding.

    Args:
        task: Tokenizer and longest sequence.
        layers: Transformer blocks.
        width: Features of a token; the feed-forward layers have 4 times as many.
        heads: Attention heads; they divide the width.
        architecture: GPT-2 (learned positions, LayerNorm, GELU) or Llama (rotary positions, RMSNorm, SwiGLU).
        dropout: Fraction dropped of attention, residual branches and embeddings; llama has it on attention alone.
        attention: Kernel of transformers' attention.

    Raises:
        LimbeckError: transformers is not installed, or options out of range.
    """
    if min(layers, width, heads) < 1 or width % heads:
        raise LimbeckError(f"gpt: {layers} layers, width {width} and {heads} heads; heads must divide the width")
    if architecture == "llama" and (width // heads) % 2:
        raise LimbeckError(f"gpt: rotary positions need an even width a head, got {width} / {heads}")
    if not 0 <= dropout < 1:
        raise LimbeckError(f"gpt: dropout must be in [0, 1), got {dropout}")
    library = require("transformers", extra="text")
    shared = {"vocab_size": task.size, "bos_token_id": task.bos_id, "eos_token_id": task.eos_id}
    if architecture == "gpt2":
        rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
        config = library.GPT2Config(
            **shared, **rates, n_positions=task.max_length, n_embd=width, n_layer=layers, n_head=heads
        )
    elif architecture == "llama":
        config = library.LlamaConfig(
            **shared,
            max_position_embeddings=task.max_length,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            attention_dropout=dropout,
            pad_token_id=task.pad_id,
            tie_word_embeddings=True,
        )
    else:
        raise LimbeckError(f"gpt: architecture must be gpt2 or llama, got {architecture!r}")
    return CausalLM(library.AutoModelForCausalLM.from_config(config, attn_implementation=attention), task)


def transformers_lm(
    task: TextTask,
    *,
    model: str,
    revision: str | None = None,
    pretrained: bool = True,
    attention: Attention = "sdpa",
    gradient_checkpointing: bool = False,
    config: dict[str, Any] | None = None,
) -> CausalLM:
    """A pretrained causal language model of the Hugging Face hub or of a folder: safetensors only, no remote code.

    Its embedding is resized to the tokenizer of the task, so that teacher and student of one tokenizer agree in V
    (models of one family pad it differently).

    Args:
        task: Tokenizer and longest sequence.
        model: Repository on the hub (user/model) or a folder that transformers wrote.
        revision: Branch, tag or commit on the hub.
        pretrained: Whether to load the weights; without, they are drawn anew.
        attention: Kernel of transformers' attention.
        gradient_checkpointing: Whether activations are computed again in the backward pass: less memory, more time.
        config: The model's configuration as transformers writes it, in the place of that of the repository: how a
            saved model is built again with nothing downloaded.

    Raises:
        LimbeckError: transformers is not installed, the model cannot be loaded, or it takes fewer tokens than the
            task's longest sequence has.
    """
    library = require("transformers", extra="text")
    source = {} if Path(model).is_dir() or revision is None else {"revision": revision}
    options: dict[str, Any] = {"attn_implementation": attention, "dtype": torch.float32}
    try:
        if config is not None:
            made = library.AutoConfig.for_model(**config)
        else:
            made = library.AutoConfig.from_pretrained(model, trust_remote_code=False, **source)
        if pretrained:
            body: Any = library.AutoModelForCausalLM.from_pretrained(
                model, config=made, trust_remote_code=False, use_safetensors=True, **source, **options
            )
        else:
            body = library.AutoModelForCausalLM.from_config(made, **options)
    # transformers and the hub below it raise errors of any kind for a bad name or a failed download.
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise LimbeckError(f"transformers cannot load the causal language model {model!r}: {reason}") from error
    longest = getattr(body.config, "max_position_embeddings", None)
    if longest is not None and longest < task.max_length:
        raise LimbeckError(
            f"{model} takes {longest} tokens, the data has rows of {task.max_length}: lower its max_length"
        )
    if body.get_input_embeddings().num_embeddings != task.size:
        body.resize_token_embeddings(task.size)
    if gradient_checkpointing:
        body.gradient_checkpointing_enable()
    language_model = CausalLM(body, task)
    # A saved model has its own weights: loading it downloads nothing.
    language_model.factory = "transformers_lm"
    language_model.arguments = {
        "model": model,
        "revision": revision,
        "pretrained": False,
        "attention": attention,
        "gradient_checkpointing": gradient_checkpointing,
        "config": body.config.to_dict(),
    }
    return language_model


def check_vocabularies(student: nn.Module, teacher: nn.Module) -> None:
    """Refuse a teacher that reads other tokens than the student: token-level distillation compares id by id.

    Raises:
        LimbeckError: their tokenizers differ.
    """
    own, other = getattr(student, "spec", None), getattr(getattr(teacher, "model", teacher), "spec", None)
    if isinstance(own, TextTask) and isinstance(other, TextTask) and own.tokenizer != other.tokenizer:
        raise LimbeckError(
            f"the teacher reads another tokenizer ({other.size} tokens) than the student ({own.size}): distillation "
            "token by token needs the same one; train the teacher on this data, or give the data its tokenizer"
        )
