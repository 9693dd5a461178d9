"""Continuations of a text with an engine's weights as they are now: scored, or generated greedily. Nothing learns.

Keys and values of a text that is being continued are kept in a memory of their own, beside the engine's: one forward for the
prompt, then one of a single token each. Where positions are learned (GPT-2) the window is run again for every token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager

import torch

from .decoder import Batch
from .memory import MemoryState, SegmentMemory

SINKS = 4  # first tokens that stay when a generated text outgrows the window
CHUNK = 256  # rows whose logits exist at a time


@torch.no_grad()
def score_continuations(engine, rows: Sequence[Sequence[int]], counts: Sequence[int],
                        stream: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each row of tokens: the NLL [n] of its last n = ``counts[i]`` tokens, and whether each would be chosen greedily.

    Args:
        rows: token ids, each row of 2 to ``engine.window + 1`` of them; padded on the right, which changes no score.
        counts: how many of each row's last tokens are scored, at least 1 and less than the row has.
    """
    for row, count in zip(rows, counts):
        if not 2 <= len(row) <= engine.window + 1 or not 1 <= count < len(row):
            raise ValueError(f"rows: {count} of {len(row)} tokens; expected 1 or more, of 2..{engine.window + 1}")
    width = max(map(len, rows))
    tokens = torch.zeros(len(rows), width, dtype=torch.int64)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
    engine._check_ids(tokens)
    tokens = tokens.to(engine.device)
    index = torch.cat([torch.arange(len(row) - 1 - n, len(row) - 1) + i * (width - 1)
                       for i, (row, n) in enumerate(zip(rows, counts))]).to(engine.device)
    targets = tokens[:, 1:].reshape(-1)[index].contiguous()
    with _memory(engine, None):
        hidden = _forward(engine, tokens[:, :-1].contiguous(), stream)
        nll = engine.decoder.score(hidden, index, targets, None)[0].clone()
        likeliest = torch.cat([_logits(engine, part).argmax(1) for part in hidden[index].split(CHUNK)])
    return list(zip(nll.cpu().split(list(counts)), (likeliest == targets).cpu().split(list(counts))))


@torch.no_grad()
def generate(engine, prompt: Sequence[int], limit: int, stop: Callable[[list[int]], bool] = lambda ids: False,
             stream: int = 0, repetition_penalty: float = 1.0) -> list[int]:
    """Up to ``limit`` tokens after ``prompt``, each the most likely one; ends early when ``stop(all so far)``.

    Args:
        prompt: token ids, at least 1. Of more than ``engine.window`` the last ones count.
        repetition_penalty: logits of tokens in the prompt or made so far are divided by it, multiplied where negative
            (Keskar et al., 2019).
    """
    prompt = torch.as_tensor(list(prompt), dtype=torch.int64)[-engine.window :]
    if not len(prompt):
        raise ValueError("prompt: empty; expected at least 1 token")
    if limit < 1:
        raise ValueError(f"limit={limit}: expected at least 1 token")
    engine._check_ids(prompt)
    cached = engine.config.rope_theta is not None
    text, made = prompt.tolist(), []
    with _memory(engine, _cache(engine, len(prompt) + limit) if cached else None):
        while True:
            row = text[-1:] if cached and made else text[-engine.window :]
            hidden = _forward(engine, torch.tensor([row], device=engine.device), stream)
            logits = _logits(engine, hidden[-1:])[0].float()
            if repetition_penalty != 1.0:
                seen = torch.tensor(sorted(set(text)), device=engine.device)
                logits[seen] = torch.where(logits[seen] < 0, logits[seen] * repetition_penalty, logits[seen] / repetition_penalty)
            made.append(int(logits.argmax()))
            text.append(made[-1])
            if len(made) == limit or stop(made):
                return made


def _cache(engine, tokens: int) -> MemoryState:
    """Room for the text, or for as much of it as the window lets a further token see."""
    c, capacity = engine.config, min(tokens, engine.window - 1)
    sinks = min(SINKS, capacity - 1)
    return MemoryState(SegmentMemory(capacity - sinks, sinks), c.layers, 1, c.kv_heads * c.head_dim, c.hidden_size,
                       engine.torch_dtype, engine.device)


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
    decoder, (rows, count) = engine.decoder, inputs.shape
    stream = 0 if engine.shared else engine._check_stream(stream)
    one = lambda values: torch.tensor(values, dtype=torch.int32, device=engine.device)  # noqa: E731
    slot = one([0 if len(engine.learners) > 1 else stream])
    batch = Batch(inputs, slot, one(range(rows)), tuple(range(rows)))
    hidden = decoder.forward(batch, engine._learner([stream]), None)
    decoder.count_memory(count, decoder.lengths)
    decoder.advance_memory(batch, [count] * rows)
    return hidden


def _logits(engine, hidden: torch.Tensor) -> torch.Tensor:
    """[n, V] of hidden states [n, H], in the engine's dtype."""
    head, out = engine.decoder.active.head, engine.config.vocab_size
    y = torch.empty(len(hidden), out, dtype=engine.torch_dtype, device=engine.device)
    slots = torch.zeros(1, dtype=torch.int32, device=engine.device)
    engine.ops.linear_forward(hidden.contiguous(), [head], None, None, None, slots, 0.0, None, y)
    engine.ledger.add("forward", 2 * hidden.numel() * out)
    return y
