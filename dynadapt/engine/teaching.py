"""What a model says of a segment, as a teacher: its likeliest tokens. And a teacher mixed with the text itself, as one teacher."""

from __future__ import annotations

import math

import torch

from dynadapt.common.checks import integer, number, token_ids, wrong

from .generation import CHUNK, _forward, _logits
from .step_arguments import check_ids


def likeliest(engine, tokens, candidates: int | None = 64):
    """The likeliest next tokens behind each input of a segment, by the weights as they are now and what is remembered; the segment enters memory.

    Nothing learns. FLOPs count as forward.

    Args:
        engine: of one stream, on the host (``static`` False).
        tokens: ids [1, T+1], a segment as ``Engine.step`` takes it.
        candidates: K, at most the vocabulary's size; None: only memory is moved on.

    Returns:
        ids int64 [1, T, K] and their log-probabilities [1, T, K] on the CPU, in float32 or wider, and the NLL [1, T] of the targets;
        None with ``candidates`` None.

    Raises:
        ValueError: naming the argument that does not fit; nothing has changed.
    """
    if engine.streams != 1 or engine.static is not None:
        raise ValueError(f"engine has streams={engine.streams}, static={engine.static is not None}: expected one stream, and static=False")
    if candidates is not None:
        candidates = integer("candidates", candidates, 1, engine.config.vocab_size)
    row = token_ids("tokens", tokens).cpu()
    if row.dim() != 2 or len(row) != 1 or not 2 <= row.shape[1] <= engine.segment + 1:
        raise ValueError(f"tokens has shape {tuple(row.shape)}: expected [1, 2..{engine.segment + 1}]")
    check_ids(row, engine.config.vocab_size, "tokens")
    with torch.no_grad(), engine.calls.call("likeliest"), engine._counted():
        engine.calls.moving()
        hidden = _forward(engine, row[:, :-1].contiguous().to(engine.device), 0)
        if candidates is None:
            return None
        found = [_top(_logits(engine, part), target, candidates) for part, target in zip(hidden.split(CHUNK), row[0, 1:].split(CHUNK))]
    ids, logp, nll = (torch.cat(parts)[None] for parts in zip(*found))
    return ids, logp, nll


def _top(logits: torch.Tensor, targets: torch.Tensor, k: int):
    logp = torch.log_softmax(logits.cpu().to(torch.float64 if logits.dtype == torch.float64 else torch.float32), 1)
    top = logp.topk(k)
    return top.indices, top.values, -logp.gather(1, targets[:, None])[:, 0]


def mixed_teacher(targets: torch.Tensor, ids: torch.Tensor, logp: torch.Tensor, share: float) -> dict[str, torch.Tensor]:
    """Inputs of ``Engine.forward_backward(loss="kl")`` with which it learns (1 - share) x cross-entropy + share x KL from a teacher.

    Up to a number that no weight moves, both are -sum_k p_k log q_k, so that together they are one teacher whose probabilities are
    share x the teacher's, with 1 - share added to the target's: one pass, not two.

    Args:
        targets: int64 [R, T]. ids [R, T, K], logp [R, T, K]: a teacher's tokens, different in each place, -1 for none, and log-probabilities.
        share: 0 < share < 1.

    Returns:
        ids int64 [R, T, K + 1] and logp [R, T, K + 1]; a target that the teacher names itself is there once.
    """
    share = number("share", share, "a number, 0 < share < 1", lambda x: 0 < x < 1)
    if ids.shape != logp.shape or ids.shape[:2] != targets.shape:
        raise wrong("ids", ids, f"tokens [{', '.join(map(str, targets.shape))}, K], as many as logp")
    named = ids == targets[..., None]  # [R, T, K]
    mixed = logp + math.log(share)
    mixed = torch.where(named, torch.logaddexp(mixed, mixed.new_tensor(math.log1p(-share))), mixed)
    there = named.any(-1, keepdim=True)
    own = torch.full_like(mixed[..., :1], math.log1p(-share))
    return {"ids": torch.cat([ids, torch.where(there, -1, targets[..., None])], -1), "logp": torch.cat([mixed, own], -1)}
