"""What ``Engine.generate`` does with text: a prompt to ids, ids back to text as they come, and where to stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from dynadapt.common.checks import integer, sequence, token_ids, wrong
from dynadapt.common.reprs import counted, safe

from .generation import generate
from .sampling import Sampler
from .step_arguments import check_ids

CONTEXT = 8  # last tokens of the prompt that the continuation is decoded with: the first word's space is theirs to show
UNFINISHED = "\ufffd"  # of a character whose last bytes are yet to come


@dataclass(frozen=True, repr=False)
class Continuation:
    """``text`` is what follows the prompt (None where the model has no tokenizer), ``ids`` its tokens, those that ended it included;
    ``ended`` by "stop" (a stop string, not part of the text), "end" (an end-of-text token) or "length"."""

    text: str | None
    ids: list[int]
    prompt_ids: list[int] = field(repr=False)
    ended: str = "length"

    def __str__(self) -> str:
        return repr(self) if self.text is None else self.text

    @safe
    def __repr__(self) -> str:
        text = None if self.text is None else self.text if len(self.text) <= 60 else self.text[:57] + "..."
        return f"Continuation({text!r}, {counted(len(self.ids), 'token')}, ended={self.ended!r})"


def continue_text(
    engine, prompt, limit, sampler: Sampler, stop, end, stream: int, repetition_penalty: float, on_text: Callable[[str], None] | None
) -> Continuation:
    """See ``Engine.generate``."""
    limit, tokenizer = integer("max_tokens", limit), engine.model.tokenizer
    stops = _stop_strings(stop)
    if on_text is not None and not callable(on_text):
        raise wrong("on_text", on_text, "a function of the text as it comes, or None")
    if tokenizer is None and (isinstance(prompt, str) or stops or on_text is not None):
        what = "a prompt of text" if isinstance(prompt, str) else "stop strings" if stops else "on_text"
        raise ValueError(
            f"prompt: model {engine.model.name!r} has no tokenizer, which {what} needs; give token ids, and stop=() with on_text=None"
        )
    ids = _prompt_ids(prompt, tokenizer)
    check_ids(torch.tensor(ids), engine.config.vocab_size, "prompt")
    reader = _Reader(tokenizer, ids, stops, _end_ids(end, engine), on_text)
    made = generate(engine, ids, limit, reader, stream, repetition_penalty, sampler)
    return Continuation(reader.finish(made), made, ids, reader.ended)


def _prompt_ids(prompt, tokenizer) -> list[int]:
    if isinstance(prompt, str):
        ids, begins = tokenizer.encode(prompt), list(tokenizer.begins)
        if not ids and not begins:
            raise wrong("prompt", prompt, "text of at least 1 token")
        return ids if ids[: len(begins)] == begins else begins + ids
    ids = token_ids("prompt", prompt)
    if ids.dim() != 1:
        raise ValueError(f"prompt has shape {tuple(ids.shape)}: expected text, or ids [tokens]")
    return ids.tolist()


def _stop_strings(stop) -> list[str]:
    strings = [stop] if isinstance(stop, str) else sequence("stop", stop, "a string or a list of strings")
    for string in strings:
        if not isinstance(string, str) or not string:
            raise wrong("stop", stop, "a string or a list of strings, none of them empty")
    return strings


def _end_ids(end, engine) -> set[int]:
    """True: the model's end-of-text tokens; False: none; else the ids given."""
    if end is True:
        known = {engine.config.eos_token_id, getattr(engine.model.tokenizer, "eos_id", None)} - {None}
        return {i for each in known for i in (each if isinstance(each, (list, tuple)) else [each])}
    if end is False:
        return set()
    return {integer("end", each, 0, engine.config.vocab_size - 1) for each in sequence("end", end, "True, False, or token ids")}


class _Reader:
    """Called with all ids so far: whether to stop. Tells the text as it becomes sure: no half character, nothing that may begin a stop string."""

    def __init__(self, tokenizer, prompt: Sequence[int], stops: list[str], ends: set[int], on_text):
        self.tokenizer, self.stops, self.ends, self.on_text = tokenizer, stops, ends, on_text
        self.before = list(prompt[-CONTEXT:])
        self.known = "" if tokenizer is None else tokenizer.decode(self.before, skip_special_tokens=True)
        self.told, self.ended, self.held = "", "length", max(map(len, stops), default=1) - 1

    def __call__(self, ids: list[int]) -> bool:
        if ids[-1] in self.ends:
            self.ended = "end"
            return True
        if not self.stops and self.on_text is None:
            return False
        text = self._text(ids)
        if self._cut(text) is not None:
            self.ended = "stop"
            return True
        sure = text.rstrip(UNFINISHED)
        self._tell(sure[: len(sure) - self.held])
        return False

    def finish(self, ids: list[int]) -> str | None:
        """The whole text; what was not told of it is told. The last of ``limit`` tokens is seen here alone."""
        if ids[-1] in self.ends:
            self.ended = "end"
        if self.tokenizer is None:
            return None
        text = self._text(ids[:-1] if self.ended == "end" else ids)
        cut = self._cut(text)
        if cut is not None:
            text, self.ended = text[:cut], "stop"
        self._tell(text)
        return text

    def _text(self, ids: list[int]) -> str:
        both = self.tokenizer.decode([*self.before, *ids], skip_special_tokens=True)
        return both[len(self.known) :] if both.startswith(self.known) else self.tokenizer.decode(ids, skip_special_tokens=True)

    def _cut(self, text: str) -> int | None:
        return min((at for string in self.stops if (at := text.find(string)) >= 0), default=None)

    def _tell(self, text: str) -> None:
        if self.on_text is not None and len(text) > len(self.told) and text.startswith(self.told):
            piece, self.told = text[len(self.told) :], text
            self.on_text(piece)
