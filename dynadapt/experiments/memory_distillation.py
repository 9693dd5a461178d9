"""Distilling memory into weights: the same model with its memory teaches the model without.

A stream's engine has long memory, which the student does not read: each segment is scored and learned from without it. Beside the text,
which counts 1 - share, the student learns from what the same weights say of the segment with memory in front of it, which counts share (Hinton et al.
2015, arXiv 1503.02531; of context, Snell et al. 2022, arXiv 2209.15189): context that is gone at the next text is to stay in the weights. Both losses are
one (``engine.teaching.mixed_teacher``), so that a taught segment costs one forward more than one that is not, and the head's logits.

Every score is made before the learning that sees its tokens: the teacher's pass behind a segment's own changes nothing that scores it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dynadapt.common.checks import integer, number, token_ids
from dynadapt.engine.memory import SegmentMemory
from dynadapt.engine.teaching import likeliest, mixed_teacher


@dataclass(frozen=True)
class Distilled:
    """``nll`` [n]: of each token, by the student, without memory. ``teacher_nll`` [n]: with it, NaN in segments that were not taught.
    ``flops``: by phase, those of the teacher among them."""

    nll: torch.Tensor
    teacher_nll: torch.Tensor
    flops: dict[str, int]


def distil_memory(engine, tokens, share: float = 0.3, candidates: int = 64, every: int = 1) -> Distilled:
    """Score one document without memory, learning from it and from what the model says with memory.

    Args:
        engine: that learns, of one stream with ``SegmentMemory`` and an update at every segment.
        tokens: ids [n + 1] of the document.
        share: of the teacher in the loss, 0 <= share < 1; 0: none is asked.
        candidates: the likeliest tokens K that it gives, whose probabilities are used as they are (docs/learning.md).
        every: it is asked at every k-th segment, the first k segments aside; memory moves on at each.

    Raises:
        ValueError: naming the argument that does not fit; nothing has changed.
    """
    share = number("share", share, "a number, 0 <= share < 1", lambda x: 0 <= x < 1)
    every, candidates = integer("every", every), integer("candidates", candidates, 1, engine.config.vocab_size)
    if not isinstance(engine.memory, SegmentMemory):
        raise ValueError(f"engine has memory={engine.memory!r}: expected SegmentMemory(...), which the teacher reads")
    if not engine.learners or engine.every != 1 or engine.accumulate or engine.streams != 1 or engine.static is not None:
        raise ValueError(
            f"engine has adapt={engine.adapt!r}, every={engine.every}, accumulate={engine.accumulate}, streams={engine.streams}, "
            f"static={engine.static is not None}: expected one stream that learns at every segment, and static=False"
        )
    ids = token_ids("tokens", tokens).cpu()
    if ids.dim() != 1 or len(ids) < 2:
        raise ValueError(f"tokens has shape {tuple(ids.shape)}: expected [n + 1] of a document, n >= 1")
    before, scores, taught = engine.flops, [], []
    for k, start in enumerate(range(0, len(ids) - 1, engine.segment)):
        row = ids[None, start : start + engine.segment + 1]
        asked = bool(share) and k > 0 and k % every == 0
        found = likeliest(engine, row, candidates if asked else None)
        with engine.without_memory():
            if found is None:
                scores.append(engine.step(row)[0])
            else:
                inputs = mixed_teacher(row[:, 1:], found[0], found[1], share)
                scores.append(engine.forward_backward(row, loss="kl", inputs=inputs)[0])
                engine.optim_step()
        taught.append(torch.full((row.shape[1] - 1,), torch.nan) if found is None else found[2][0].float())
    flops = {phase: n - before[phase] for phase, n in engine.flops.items()}
    return Distilled(torch.cat(scores).cpu(), torch.cat(taught), flops)
