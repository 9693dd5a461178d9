"""Text to token ids and back, with the model's own tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dynadapt.common.reprs import safe

from .errors import ModelError

if TYPE_CHECKING:  # a step needs no text
    import tokenizers

_CLEAN = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)

NOWHERE = "the tokenizer"  # of one that was read from no file

# All bytes that UTF-8 has are in it, in some character each.
EVERY_BYTE = "".join(
    map(chr, [*range(0x800), 0x800, *range(0x1000, 0xE000, 0x1000), 0xE000, 0xF000, 0x10000, *range(0x40000, 0x110000, 0x40000)])
)


def check_backend(backend: tokenizers.Tokenizer, where: str) -> None:
    """ModelError unless every text has ids, which are always the same, with special tokens whole."""
    dropout = getattr(backend.model, "dropout", None)
    if dropout:
        raise ModelError(f"{where}: model.dropout = {dropout:g} gives a text other ids each time; accepted: null or 0")
    if backend.encode_special_tokens:
        raise ModelError(f"{where}: encode_special_tokens = True, which splits special tokens, is not supported; accepted: False")
    try:
        backend.encode(EVERY_BYTE, add_special_tokens=False)
    except Exception as error:  # the tokenizers package raises plain Exception
        unknown = getattr(backend.model, "unk_token", None)
        raise ModelError(
            f"{where}: some texts have no ids: the vocabulary lacks {'an unknown token' if unknown is None else f'the unknown token {unknown!r}'} "
            f"({str(error)[:200]}); accepted: a vocabulary that has it, or that has a token for every byte"
        ) from error


class Tokenizer:
    """A `tokenizers.Tokenizer` that adds no special tokens and neither truncates nor pads.

    Special tokens that are spelled out in a text ("<|endoftext|>") are recognised, as transformers does.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        bos_id: int | None = None,
        eos_id: int | None = None,
        limit: int | None = None,
        special_ids: Mapping[str, int] | None = None,
        clean_up: bool = False,
        where: str = NOWHERE,
    ):
        """`limit` is the model's vocabulary size: a text that gives an id beyond it is refused.

        `special_ids` are the tokenizer's own names for its special tokens (bos_token, eos_token, pad_token, ...), which a
        model's `bos_id` and `eos_id` need not be. `clean_up`: `decode` joins punctuation to the word before it. ModelError,
        naming `where` the backend is from, if its ids would be random, its special tokens be split, or texts have no ids.
        """
        check_backend(backend, where)
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.bos_id = bos_id
        self.eos_id = eos_id
        self.limit = limit
        own = {"bos_token": bos_id, "eos_token": eos_id} if special_ids is None else special_ids
        self.special_ids = {name: token for name, token in own.items() if token is not None}
        self.clean_up = clean_up
        self.where = where

    @safe
    def __repr__(self) -> str:
        named = [f"{name} {token}" for name, token in (("bos", self.bos_id), ("eos", self.eos_id)) if token is not None]
        return ", ".join([f"Tokenizer({type(self.backend.model).__name__}, {self.vocab_size:,} ids", *named]) + ")"

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    @property
    def begins(self) -> tuple[int, ...]:
        """The ids that the tokenizer itself puts before a text, as its post-processor says (``<bos>`` of Gemma, Llama, Mistral); ()
        where it puts none. What it puts behind a text is not among them.

        Raises:
            ModelError: one of them is beyond the model's vocabulary.
        """
        import tokenizers

        text = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}))  # one token, whatever this tokenizer's vocabulary is
        around = self.backend.post_process(text.encode("a"))
        places = around.sequence_ids  # None for what was put around
        return tuple(self._within_limit(around.ids[: places.index(0)])) if 0 in places else ()

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Token ids of `text`, with `add_special_tokens` inside what the tokenizer's post-processor puts around a text.

        ValueError if it holds a lone surrogate (it is not valid Unicode).
        """
        return self._encoding(text, add_special_tokens).ids

    def encode_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """(ids, spans): the characters of `text` that each token covers, as (start, end).

        Spans are in order and leave no gap: what the tokenizer drops (a stripped space) belongs to the next token, or
        at the very end to the last one. Tokens that share a character (a byte of it each) all cover it. So the text up
        to and including token i is text[:end_i], and the last end is len(text).
        """
        encoding = self._encoding(text)
        spans, done = [], 0
        for start, end in encoding.offsets:
            spans.append((min(start, done), max(end, done)))
            done = spans[-1][1]
        if spans and done < len(text):
            spans[-1] = (spans[-1][0], len(text))
        return encoding.ids, spans

    def decode(self, ids, skip_special_tokens: bool = False) -> str:
        """The text of token ids, special tokens included unless they are skipped."""
        text = self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        if self.clean_up:
            for apart, joined in _CLEAN:
                text = text.replace(apart, joined)
        return text

    def save(self, path: str | Path) -> None:
        """Write the tokenizer.json."""
        Path(path).write_bytes(self.backend.to_str(pretty=True).encode("utf-8"))

    def fingerprint(self) -> str:
        """Hex sha256 of everything that decides the ids of a text and the bytes that each covers.

        The same for the same tokenizer read from differently formatted files; what only truncates, pads, decodes or is put
        around a text has no part in it. The special ids are: a run may put them between texts.
        """
        content = json.loads(self.backend.to_str())
        for key in ("truncation", "padding", "post_processor", "decoder"):
            content.pop(key, None)
        content.update(bos_id=self.bos_id, eos_id=self.eos_id)
        plain = json.dumps(content, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(plain.encode("ascii")).hexdigest()

    def _encoding(self, text, add_special_tokens=False):
        try:
            encoding = self.backend.encode(text, add_special_tokens=add_special_tokens)
        except (TypeError, UnicodeEncodeError) as error:
            if not isinstance(text, str):
                raise ValueError(f"text is a {type(text).__name__}; accepted: str") from error
            raise ValueError(f"text is not valid Unicode: {error}") from error
        self._within_limit(encoding.ids)
        return encoding

    def _within_limit(self, ids: list[int]) -> list[int]:
        if self.limit is not None and max(ids, default=-1) >= self.limit:
            worst = max(ids)
            raise ModelError(
                f"{'' if self.where == NOWHERE else f'{self.where}: '}the tokenizer gave id {worst} ({self.backend.id_to_token(worst)!r}), the model's vocabulary ends at {self.limit - 1}"
            )
        return ids
