"""A transformers `Trainer` that scores held-out text before its updates: `HeldOutScore`.

The score is that of the weights that the coming update starts from, so that a run's first value is the model's before any training.
Training is not touched: weights, gradients, train mode, random numbers and results are the same to the bit with and without it.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Collection
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import TrainerCallback

from dynadapt.common.checks import integer, is_integer, token_ids
from dynadapt.engine import DTYPES, Engine
from dynadapt.engine.memory import SegmentMemory
from dynadapt.model import ModelError
from dynadapt.model.live import load_live

from .session import attach

__all__ = ["HeldOutScore"]
BOS = ("auto", "yes", "no")


class HeldOutScore(TrainerCallback):
    """Scores held-out text in `on_step_begin`, before the update of a step, and once more when training ends.

    Args:
        text: a UTF-8 file's name, the held-out text itself (a string with white space in it), or token ids [N].
        steps: score before every so many updates, the first one included; or the numbers of updates made before which to score.
        tokenizer: for a text; None: the trainer's `processing_class`.
        segment: tokens scored at a time, T. Without memory a token sees those of its own segment only, and what a text begins with (bos).
        memory: tokens before a segment that it attends to as well, through the engine; 0: none.
        sinks: with memory: first tokens of the text that are never dropped.
        rows: segments that are scored side by side, without memory.
        dtype: of the engine's arithmetic, "bf16" or "fp32"; None: the model's own.
        bos: whether a text begins with the tokenizer's beginning-of-text token, which is not scored and has no bytes: "auto" where the
            tokenizer itself puts it before a text, "yes", or "no". A text that spells it is not given a second one; token ids are as they are.

    `state.log_history` gets {"dynadapt/heldout_nll": nats a token, "dynadapt/heldout_bits_per_byte": ..., "step": updates made}; of
    token ids the bytes are not known, and there is no second value. After `callback.add_to(trainer)` in place of `callbacks=[callback]`
    the values also go where the trainer reports to. `history` keeps (updates made, nats, bits or None).

    The engine is made anew from the model's weights each time, with a copy of them while it scores. A model that it can't compute
    exactly (with PEFT adapters, of another family, ...) is scored by its own forward, which a warning says; with memory it is refused.

    Raises:
        ValueError: an argument that doesn't fit, or a model whose weights are spread over processes.
        ModelError: with memory, a model that the engine can't compute.
    """

    def __init__(
        self,
        text,
        *,
        steps: int | Collection[int] = 100,
        tokenizer=None,
        segment: int = 512,
        memory: int = 0,
        sinks: int = 4,
        rows: int = 8,
        dtype: str | None = None,
        bos: str = "auto",
    ):
        self.text = _content(text)
        self.steps = integer("steps", steps) if is_integer(steps) else frozenset(integer("steps", step, 0) for step in steps)
        self.segment, self.rows = integer("segment", segment), integer("rows", rows)
        self.memory = SegmentMemory(integer("memory", memory, 0), integer("sinks", sinks, 0)) if memory else None
        if dtype not in (None, *DTYPES):
            raise ValueError(f"dtype={dtype!r}: expected one of {', '.join(DTYPES)}, or None for the model's own")
        if bos not in BOS:
            raise ValueError(f"bos={bos!r}: expected one of {', '.join(BOS)}")
        self.tokenizer, self.dtype, self.bos = tokenizer, dtype, bos
        self.history: list[tuple[int, float, float | None]] = []
        self._trainer = self._tokens = self._bytes = self._by_engine = self._last = None
        self._begin = False  # whether the first of the tokens is the tokenizer's

    def add_to(self, trainer) -> HeldOutScore:
        """Adds itself to a trainer, and from then on logs through it."""
        trainer.add_callback(self)
        self._trainer = trainer
        return self

    # ---- what the trainer calls

    def on_train_begin(self, args, state, control, **more):
        """Of another trainer the model, its tokenizer and the numbers of updates are others."""
        self._tokens = self._bytes = self._by_engine = self._last = None

    def on_step_begin(self, args, state, control, model=None, processing_class=None, **more):
        made = state.global_step
        if made in self.steps if isinstance(self.steps, frozenset) else made % self.steps == 0:
            self._report(state, model, processing_class)

    def on_train_end(self, args, state, control, model=None, processing_class=None, **more):
        if self._last != state.global_step:
            self._report(state, model, processing_class)

    def _report(self, state, model, tokenizer) -> None:
        if not state.is_world_process_zero:
            return
        self._read(tokenizer)
        nll = self.score(model)
        bits = nll * (len(self._tokens) - 1) / (math.log(2) * self._bytes) if self._bytes else None
        self.history.append((state.global_step, nll, bits))
        self._last = state.global_step
        values = {"dynadapt/heldout_nll": nll} | ({} if bits is None else {"dynadapt/heldout_bits_per_byte": bits})
        if self._trainer is not None:
            self._trainer.log(values)
        else:
            epoch = {} if state.epoch is None else {"epoch": state.epoch}
            state.log_history.append({**values, **epoch, "step": state.global_step})

    # ---- scoring

    def score(self, model) -> float:
        """Mean NLL in nats of the held-out tokens, with the model's weights as they are."""
        model = getattr(model, "_orig_mod", model)
        _refuse_spread(model)
        self._read(self.tokenizer)
        room = getattr(model.config, "max_position_embeddings", None) or self.segment + 1
        self._in_front = int(self._begin and not self.memory and self.segment < room)
        with _left_alone(model):
            if self._by_engine is None:
                self._by_engine = self._try_engine(model)
            nll = self._scores_by_engine(model) if self._by_engine else self._scores_by_model(model)
        return float(nll.double().mean())

    def _try_engine(self, model) -> bool:
        """Whether engine and model compute the same, which `attach` finds out."""
        try:
            attach(model, None, dtype=self.dtype, segment=min(self.segment, len(self._tokens) - 1)).detach()
        except ModelError as error:
            if self.memory:
                raise
            warnings.warn(f"held-out text is scored by the model's own forward: {error}", stacklevel=2)
            return False
        return True

    def _engine(self, model) -> Engine:
        weights = load_live(model)
        first = next(model.parameters())
        dtype = self.dtype or next(name for name, value in DTYPES.items() if value == first.dtype)
        longest = min(self.segment, len(self._tokens) - 1) + self._in_front
        return Engine(weights, memory=self.memory, segment=longest, dtype=dtype, device=str(first.device))

    def _scores_by_engine(self, model) -> torch.Tensor:
        engine = self._engine(model)
        if self.memory:
            return torch.cat([engine.step(row)[0].cpu() for row in self._segments()])
        return torch.cat([engine.score(rows)[:, first:].flatten().cpu() for rows, first in self._batches()])

    def _scores_by_model(self, model) -> torch.Tensor:
        device, scores = next(model.parameters()).device, []
        for rows, first in self._batches():
            logits = model(rows[:, :-1].to(device), use_cache=False).logits[:, first:].float()
            scores.append(cross_entropy(logits.flatten(0, 1), rows[:, 1 + first :].flatten().to(device), reduction="none").cpu())
        return torch.cat(scores)

    def _segments(self) -> list[torch.Tensor]:
        """[1, T + 1] each, the last one shorter; the last token of one is the first of the next, so all but the first are scored."""
        last = len(self._tokens) - 1
        return [self._tokens[start : start + self.segment + 1][None] for start in range(0, last, self.segment)]

    def _batches(self) -> list[tuple[torch.Tensor, int]]:
        """([R, T + 1] rows that are scored together, the first score that counts): whole segments, then the last shorter one. Where a text
        begins with a token of the tokenizer's, each later segment has it in front as well, and its own first token is scored in the one before."""
        start, *later = self._segments()
        if self._in_front and later:
            return [(start, 0), *self._side_by_side([torch.cat([start[:, :1], row], 1) for row in later], 1)]
        return self._side_by_side([start, *later], 0)

    def _side_by_side(self, segments: list[torch.Tensor], first: int) -> list[tuple[torch.Tensor, int]]:
        whole = [row for row in segments if row.shape[1] == segments[0].shape[1]]
        batches = [torch.cat(whole[i : i + self.rows]) for i in range(0, len(whole), self.rows)]
        return [(rows, first) for rows in batches + segments[len(whole) :]]

    def _read(self, tokenizer) -> None:
        """Tokens [N] of the text, and how many bytes those that are scored have (None: not known)."""
        if self._tokens is not None:
            return
        if not isinstance(self.text, str):
            self._tokens = token_ids("text", self.text)
        else:
            tokenizer = self.tokenizer or tokenizer
            if tokenizer is None:
                raise ValueError("tokenizer: none given, and the trainer has no processing_class; give one, or token ids as text")
            fast = bool(getattr(tokenizer, "is_fast", False))
            read = tokenizer(self.text, add_special_tokens=False, return_offsets_mapping=fast, verbose=False)
            ids = read["input_ids"]
            begin = [] if self.bos == "no" else _begin(tokenizer, self.text, ids, self.bos)
            self._begin = bool(begin)
            if ids[: len(begin)] == begin:  # the text spells it
                begin = []
            self._tokens = torch.tensor([*begin, *ids])
            if fast and ids:
                self._bytes = len((self.text if begin else self.text[read["offset_mapping"][0][1] :]).encode())
        if self._tokens.dim() != 1 or len(self._tokens) < 2:
            raise ValueError(f"text has {tuple(self._tokens.shape)} tokens: expected one row of at least 2")


def _content(text):
    """Token ids as they are; of a string the file that it names, or itself."""
    if isinstance(text, os.PathLike) or isinstance(text, str) and len(text) < 4096 and "\0" not in text and os.path.isfile(text):
        return Path(text).read_text("utf-8")
    if isinstance(text, str) and not any(c.isspace() for c in text.strip()):
        raise ValueError(f"text={text!r}: no such file, and too short to be the held-out text itself")
    return text


def _begin(tokenizer, text: str, ids: list[int], bos: str) -> list[int]:
    """The token that transformers' tokenizer puts before this text, of which `ids` are the text's own; [] for none."""
    whole = list(tokenizer(text, verbose=False)["input_ids"])
    before = next((i for i in range(len(whole) - len(ids) + 1) if whole[i : i + len(ids)] == ids), None)
    if before is None or before > 1:
        found = "no run of its ids is the text's own" if before is None else f"it puts {before} tokens before a text, {whole[:before]}"
        raise ValueError(f"bos={bos!r}: {found}; expected a tokenizer that puts at most one before it, bos='no', or token ids as text")
    if not before and bos == "yes":
        if tokenizer.bos_token_id is None:
            raise ValueError("bos='yes': the tokenizer has no beginning-of-text token; expected auto or no")
        return [tokenizer.bos_token_id]
    return whole[:before]


def _refuse_spread(model) -> None:
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "ds_id") or type(parameter).__name__ == "DTensor" or type(parameter.data).__name__ == "DTensor":
            raise ValueError(
                f"model: parameter {name} is spread over processes (DeepSpeed ZeRO-3, FSDP); held-out text is scored by one "
                "process, which needs all of it"
            )


@contextmanager
def _left_alone(model):
    """No gradients, no dropout, and afterwards modes and random numbers as they were."""
    training = [module for module in model.modules() if module.training]
    devices = sorted({parameter.device.index or 0 for parameter in model.parameters() if parameter.device.type == "cuda"})
    try:
        with torch.no_grad(), torch.random.fork_rng(devices, device_type="cuda"):
            model.eval()
            yield
    finally:
        for module in training:
            module.training = True
