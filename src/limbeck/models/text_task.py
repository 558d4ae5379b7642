"""What a model of text is built for: a tokenizer, as plain text, and the longest sequence."""

import functools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import LimbeckError, require

SPECIALS = ("[PAD]", "[UNK]", "[BOS]", "[EOS]", "[SEP]", "[CLS]", "[MASK]")
"""Tokens 0 to 6 of every tokenizer made here."""

_NAMES = {
    "padding": ("[PAD]", "<pad>", "<|endoftext|>", "<|end_of_text|>", "</s>"),
    "unknown": ("[UNK]", "<unk>"),
    "beginning": ("[BOS]", "<s>", "<|begin_of_text|>", "<|endoftext|>", "[CLS]"),
    "end": ("[EOS]", "</s>", "<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "[SEP]"),
    "separator": ("[SEP]", "</s>"),
    "classification": ("[CLS]", "<s>"),
    "mask": ("[MASK]", "<mask>"),
}
"""Role -> the names under which tokenizers hold it, first choice first; causal models pad with their end token."""


@dataclass(frozen=True)
class TextTask:
    """What a model of text is built for: plain data, so that it is saved with the model.

    Token ids are those of the tokenizer; what is not text (padding, beginning, end) is asked for by its role.

    Attributes:
        tokenizer: A tokenizer of the ``tokenizers`` library as its JSON text (what ``tokenizer.json`` holds);
            :func:`characters` and :func:`words` make small ones.
        max_length: Tokens of the longest sequence.

    Raises:
        LimbeckError: the text is not such a JSON text, or ``max_length`` is below 1.
    """

    tokenizer: str
    max_length: int

    def __post_init__(self) -> None:
        if isinstance(self.max_length, bool) or not isinstance(self.max_length, int) or self.max_length < 1:
            raise LimbeckError(f"max_length must be a whole number of tokens >= 1, got {self.max_length!r}")
        try:
            content = json.loads(self.tokenizer)
        except (TypeError, ValueError):
            content = None
        if not isinstance(content, dict) or "model" not in content:
            raise LimbeckError(
                "tokenizer must be the JSON text of a tokenizer of the tokenizers library (the content of "
                f"tokenizer.json), got {str(self.tokenizer)[:60]!r}"
            )

    @property
    def size(self) -> int:
        """Tokens of the vocabulary, special ones included."""
        size: int = _load(self.tokenizer).get_vocab_size(with_added_tokens=True)
        return size

    @property
    def pad_id(self) -> int:
        """Id of the padding token (where a tokenizer has none: of its end token)."""
        return self._role("padding")

    @property
    def unk_id(self) -> int:
        """Id of the token for what the vocabulary does not hold."""
        return self._role("unknown")

    @property
    def bos_id(self) -> int:
        """Id of the token that begins a text."""
        return self._role("beginning")

    @property
    def eos_id(self) -> int:
        """Id of the token that ends a text."""
        return self._role("end")

    @property
    def sep_id(self) -> int:
        """Id of the token between two sentences."""
        return self._role("separator")

    @property
    def cls_id(self) -> int:
        """Id of the token whose state stands for the whole text."""
        return self._role("classification")

    @property
    def mask_id(self) -> int:
        """Id of the token that hides another."""
        return self._role("mask")

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text: no special tokens added, nothing cut.

        Raises:
            LimbeckError: ``texts`` is one string.
        """
        if isinstance(texts, str):
            raise LimbeckError("encode takes a sequence of texts, not one string: pass [text]")
        encoded = _load(self.tokenizer).encode_batch(list(texts), add_special_tokens=False)
        return [row.ids for row in encoded]

    def decode(self, tokens: Sequence[int] | Tensor) -> str:
        """The text of a row of token ids, special tokens left out."""
        ids = tokens.tolist() if isinstance(tokens, Tensor) else list(tokens)
        text: str = _load(self.tokenizer).decode(ids, skip_special_tokens=True)
        return text

    def pad(self, rows: Sequence[Sequence[int]], length: int | None = None) -> tuple[Tensor, Tensor]:
        """Rows of token ids as one tensor, padded on the right.

        Args:
            rows: Token ids, at most ``length`` in a row.
            length: Columns of the result; default the longest row.

        Returns:
            ``input_ids`` int64 ``[N, L]`` and ``attention_mask`` bool ``[N, L]``, true where there is a token.

        Raises:
            LimbeckError: a row is longer than ``length``.
        """
        longest = max((len(row) for row in rows), default=0)
        length = longest if length is None else length
        if longest > length:
            raise LimbeckError(f"a row of {longest} tokens does not fit into {length}: cut it before padding")
        ids = torch.full((len(rows), length), self.pad_id, dtype=torch.int64)
        mask = torch.zeros((len(rows), length), dtype=torch.bool)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row, dtype=torch.int64)
            mask[number, : len(row)] = True
        return ids, mask

    def _role(self, role: str) -> int:
        tokenizer = _load(self.tokenizer)
        for name in _NAMES[role]:
            number: int | None = tokenizer.token_to_id(name)
            if number is not None:
                return number
        raise LimbeckError(f"the tokenizer has no {role} token: none of {list(_NAMES[role])} is in its vocabulary")


def characters(texts: Iterable[str]) -> str:
    """A tokenizer with one token a character: the special tokens, then the characters in the order of Unicode.

    Args:
        texts: Where the characters are taken from; any other character is [UNK].

    Returns:
        The tokenizer as JSON text, for :class:`TextTask`.
    """
    tokenizers = require("tokenizers", extra="text")
    found = sorted(set().union(*(set(text) for text in _texts(texts))))
    tokenizer = _word_level([*SPECIALS, *found])
    # [\s\S] and not a dot, which does not match line breaks.
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = tokenizers.decoders.Fuse()
    return str(tokenizer.to_str())


def words(texts: Iterable[str], size: int) -> str:
    """A tokenizer with one token a word or run of punctuation, in lower case, for the most frequent ones.

    Args:
        texts: Where the words are counted; ties are broken in the order of Unicode.
        size: Tokens of the vocabulary, the 7 special ones included; any other word is [UNK].

    Returns:
        The tokenizer as JSON text, for :class:`TextTask`.

    Raises:
        LimbeckError: ``size`` leaves room for no word.
    """
    if size <= len(SPECIALS):
        raise LimbeckError(f"size must be above {len(SPECIALS)}, the number of special tokens, got {size}")
    tokenizers = require("tokenizers", extra="text")
    normalizer = tokenizers.normalizers.Sequence([tokenizers.normalizers.NFKC(), tokenizers.normalizers.Lowercase()])
    splitter = tokenizers.pre_tokenizers.Whitespace()
    counts: Counter[str] = Counter()
    for text in _texts(texts):
        counts.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    kept = [word for word in ranked if word not in SPECIALS][: size - len(SPECIALS)]
    tokenizer = _word_level([*SPECIALS, *kept])
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    return str(tokenizer.to_str())


def _texts(texts: Iterable[str]) -> Iterator[str]:
    if isinstance(texts, str):
        raise LimbeckError("texts must be several texts, not one string: pass [text]")
    return iter(texts)


def _word_level(tokens: Sequence[str]) -> Any:
    tokenizers = require("tokenizers", extra="text")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.add_special_tokens(list(SPECIALS))
    return tokenizer


@functools.lru_cache(maxsize=8)
def _load(text: str) -> Any:
    """The tokenizer of a JSON text: parsed once, large vocabularies take a second."""
    tokenizers = require("tokenizers", extra="text")
    try:
        tokenizer = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises Exception itself
        raise LimbeckError(f"the tokenizers library cannot read this tokenizer: {error}") from None
    # A tokenizer.json may cut or pad on its own; here that is done by the data alone.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
