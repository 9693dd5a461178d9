"""Continuations of a text with an engine's weights as they are now: scored, or generated. Nothing learns.

Keys and values of a text that is being continued are kept in a memory of their own, beside the engine's: one forward for the
prompt, then one of a single token each. Where positions are learned (GPT-2) the window is run again for every token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager

import torch

from dynadapt.common.checks import integer, is_integer, number, sequence, token_ids, wrong
from dynadapt.ops import linear
from dynadapt.ops.cross_entropy import capped

from .memory import MemoryState, SegmentMemory
from .memory_after_pass import advance_memory, count_memory
from .step_arguments import check_ids, check_stream

SINKS = 4  # first tokens that stay when a generated text outgrows the window
CHUNK = 256  # rows whose logits exist at a time


@torch.no_grad()
def score_continuations(
    engine, rows: Sequence[Sequence[int]], counts: Sequence[int], stream: int = 0
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each row of tokens: the NLL [n] of its last n = ``counts[i]`` tokens, and whether each would be chosen greedily.

    Args:
        rows: token ids, each row of 2 to ``engine.window + 1`` of them; padded on the right, which changes no score.
        counts: how many of each row's last tokens are scored, at least 1 and less than the row has.

    Raises:
        ValueError: naming the argument that does not fit. RuntimeError: the engine is in another call, or a failed one damaged it.
    """
    with engine.calls.call("score_continuations"):
        rows, counts = _checked_rows(engine, rows, counts)
        return _score_continuations(engine, rows, counts, check_stream(stream, engine.streams)) if rows else []


def _checked_rows(engine, rows, counts) -> tuple[list[torch.Tensor], list[int]]:
    """Rows int64 [n] on the host, and how many tokens of each are scored."""
    counts = sequence("counts", counts, "as many numbers as rows")
    rows = [token_ids(f"rows[{i}]", row).cpu() for i, row in enumerate(rows)]
    if len(counts) != len(rows):
        raise wrong("counts", counts, f"{len(rows)} numbers, as many as rows")
    for i, (row, count) in enumerate(zip(rows, counts)):
        if row.dim() != 1 or not 2 <= len(row) <= engine.window + 1 or not is_integer(count) or not 1 <= count < len(row):
            raise ValueError(
                f"rows[{i}]: counts {count!r} of tokens of shape {tuple(row.shape)}; expected 1 or more, of 2..{engine.window + 1}"
            )
        check_ids(row, engine.config.vocab_size, f"rows[{i}]")
    return rows, counts


def _score_continuations(engine, rows, counts, stream: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    width = max(map(len, rows))
    tokens = torch.zeros(len(rows), width, dtype=torch.int64)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    tokens = tokens.to(engine.device)
    index = torch.cat([torch.arange(len(row) - 1 - n, len(row) - 1) + i * (width - 1) for i, (row, n) in enumerate(zip(rows, counts))]).to(
        engine.device
    )
    targets = tokens[:, 1:].reshape(-1)[index].contiguous()
    with _memory(engine, None):
        hidden = _forward(engine, tokens[:, :-1].contiguous(), stream)
        nll = engine.decoder.score(hidden, index, targets, None)[0].clone()
        likeliest = torch.cat([_logits(engine, part).argmax(1) for part in hidden[index].split(CHUNK)])
    return list(zip(nll.cpu().split(list(counts)), (likeliest == targets).cpu().split(list(counts))))


@torch.no_grad()
def generate(
    engine,
    prompt: Sequence[int],
    limit: int,
    stop: Callable[[list[int]], bool] = lambda ids: False,
    stream: int = 0,
    repetition_penalty: float = 1.0,
    choose: Callable[[torch.Tensor], int] | None = None,
) -> list[int]:
    """Up to ``limit`` tokens after ``prompt``, each the most likely one; ends early when ``stop(all so far)``.

    Args:
        prompt: token ids, at least 1. Of more than ``engine.window`` the last ones count.
        repetition_penalty: logits of tokens in the prompt or made so far are divided by it, multiplied where negative
            (Keskar et al., 2019).
        stop: called with all tokens so far; it must not call the engine.
        choose: the next token of float32 logits [V] on the engine's device (sampling.Sampler); None: the most likely one.

    Raises:
        ValueError: naming the argument that does not fit. RuntimeError: the engine is in another call, or a failed one damaged it.
    """
    with engine.calls.call("generate"):
        limit, stream = integer("limit", limit), check_stream(stream, engine.streams)
        repetition_penalty = number("repetition_penalty", repetition_penalty, "a finite number above 0", lambda x: x > 0)
        if not callable(stop):
            raise wrong("stop", stop, "a function of the tokens so far")
        if choose is not None and not callable(choose):
            raise wrong("choose", choose, "a function of logits [V], or None for the most likely token")
        ids = token_ids("prompt", prompt).cpu()
        if ids.dim() != 1:
            raise ValueError(f"prompt has shape {tuple(ids.shape)}: expected [tokens]")
        check_ids(ids, engine.config.vocab_size, "prompt")
        return _generate(
            engine, ids.tolist()[-engine.window :], limit, stop, stream, repetition_penalty, choose or (lambda logits: int(logits.argmax()))
        )


def _generate(engine, text: list[int], limit: int, stop, stream: int, repetition_penalty: float, choose) -> list[int]:
    cached = engine.config.rope_theta is not None and engine.window > 1  # a window of one token sees no other
    made: list[int] = []
    with _memory(engine, _cache(engine, len(text) + limit) if cached else None):
        while True:
            row = text[-1:] if cached and made else text[-engine.window :]
            hidden = _forward(engine, torch.tensor([row], device=engine.device), stream)
            logits = _logits(engine, hidden[-1:])[0].float()
            if repetition_penalty != 1.0:
                seen = torch.tensor(sorted(set(text)), device=engine.device)
                logits[seen] = torch.where(logits[seen] < 0, logits[seen] * repetition_penalty, logits[seen] / repetition_penalty)
            made.append(choose(logits))
            text.append(made[-1])
            if len(made) == limit or stop(made):
                return made


def _cache(engine, tokens: int) -> MemoryState:
    """Room for the text, or for as much of it as the window lets a further token see."""
    capacity = min(tokens, engine.window - 1)
    sinks = min(SINKS, capacity - 1)
    memory = SegmentMemory(capacity - sinks, sinks)
    return MemoryState.of(engine.config, memory, 1, engine.torch_dtype, engine.device)


@contextmanager
def _memory(engine, memory: MemoryState | None):
    """Passes inside read and write ``memory`` in place of the engine's own. Their FLOPs count as forward."""
    decoder = engine.decoder
    own, decoder.memory = decoder.memory, memory
    engine.ledger.begin_step()
    try:
        with torch.cuda.device(engine.device) if engine.device.type == "cuda" else torch.no_grad():
            yield
    finally:
        decoder.memory = own


def _forward(engine, inputs: torch.Tensor, stream: int) -> torch.Tensor:
    """Hidden states [R T, H] of inputs [R, T] on the engine's device; the rows enter the memory where there is one."""
    decoder, step, (rows, count) = engine.decoder, engine.driver.step, inputs.shape
    batch = step.batch_of(stream, inputs)
    hidden = decoder.forward(batch, step.learner(stream), None)
    count_memory(decoder, count, decoder.lengths)
    advance_memory(decoder, batch, [count] * rows)
    return hidden


def _logits(engine, hidden: torch.Tensor, decoder=None) -> torch.Tensor:
    """[n, V] of hidden states [n, H] of a decoder (None: the engine's own), in the engine's dtype."""
    decoder = engine.decoder if decoder is None else decoder
    head, out = decoder.active.head, engine.config.vocab_size
    y = torch.empty(len(hidden), out, dtype=engine.torch_dtype, device=engine.device)
    adapted, slots, rank = decoder.adapted_head, torch.zeros(1, dtype=torch.int32, device=engine.device), 0
    adapter, u = (None, None, slots, 0.0), None
    if adapted is not None:
        rank = adapted.A.shape[1]
        adapter, u = (adapted.A, adapted.Bt, adapted.slots[:1], adapted.scale), y.new_empty(len(hidden), rank)
    engine.ops.linear_forward(hidden.contiguous(), [head], None, *adapter, u, y)
    engine.ledger.add("forward", linear.forward_flops(len(hidden), hidden.shape[1], [out], rank))
    return capped(y, engine.config.logits_softcap)
