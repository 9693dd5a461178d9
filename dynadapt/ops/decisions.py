"""What a recorded step decides on the device, because a CUDA graph can't ask the host: whose score has changed for the worse, whose update may be
made, which updates were, and what a pass is given of tokens that the host has not seen.

No ops of the table: the engine's step alone takes them (engine/op_set.py), there is nothing in them to differentiate, and they count no FLOPs.
The functions here are the definition: torch of fixed shapes that looks at no number. Every step but a recorded one on a GPU uses them.

A change detector is a one-sided CUSUM (Page 1954) of a stream's segment scores x, float64, since its last reset:

    z = (x - mean) / max(MIN_STD, std)        mean and std of the segments before
    g = max(0, g + z - DRIFT)                 from the WARMUP-th segment on
    flagged where g > THRESHOLD               its statistics start anew
"""

from __future__ import annotations

import torch

DRIFT = 0.5
THRESHOLD = 5.0
WARMUP = 8
MIN_STD = 0.02  # nats; keeps a very even stream from resetting on noise


def observe(table, slots, scores, seen) -> torch.Tensor:
    """Flags bool [S] of the streams whose score has changed for the worse.

    Args:
        table: float64 [4, streams]: how many segments, their mean, the sum of their squared deviations, g. Changed in place.
        slots: int64 [S], different streams. scores: float64 [S], each one's mean NLL of a segment in nats.
        seen: bool [S], False where there was no segment. A score that is not finite counts as none.
    """
    old = table[:, slots]
    count, mean, squares, statistic = old
    seen = seen & torch.isfinite(scores)
    std = (squares / (count - 1).clamp(min=1)).sqrt().clamp(min=MIN_STD)
    warm, step = count >= WARMUP, scores - mean
    statistic = torch.where(warm, (statistic + step / std - DRIFT).clamp(min=0), statistic)
    flagged = seen & warm & (statistic > THRESHOLD)
    new_count = count + 1
    new_mean = mean + step / new_count
    new = torch.stack([new_count, new_mean, squares + step * (scores - new_mean), statistic])
    table.index_copy_(1, slots, torch.where(seen, new, old).masked_fill_(flagged, 0.0))
    return flagged


def detect_changes(nll, counts, slots, table, moving, flags) -> None:
    """The detectors look at a pass's scores; a stream that they flag does not move.

    Args:
        nll: [S * T], T for each of S streams, 0 where no token is scored. counts: int32 [S], tokens of each that are; 0: it rests.
        slots: int32 [S], different streams. table: float64 [4, streams], see ``observe``.
        moving: int32 [S], becomes -1 where flagged. flags: int32 [S], written: 1 where flagged, else 0.
    """
    scores = nll.view(len(counts), -1).double().sum(1) / counts.clamp(min=1)
    flagged = observe(table, slots.long(), scores, counts > 0)
    flags.copy_(flagged)
    moving.masked_fill_(flagged, -1)


def admit_updates(nll, moving, admitted, skipped) -> None:
    """Before gradient kernels that update: a set of weights is left out where a score that it learns from is not finite.

    Args:
        nll: [S * n], the n scores of each set of weights. moving: int32 [S], negative: no update is due.
        admitted: int32 [S], written: 1 where one is due, else 0. skipped: int32 [S], written: 0 where it may be made, else 1.
    """
    due = moving >= 0
    admitted.copy_(due)
    skipped.copy_(~(torch.isfinite(nll).view(len(moving), -1).all(1) & due))


def count_updates(moving, skipped, counters, moved, step=None) -> None:
    """Behind an update: which were made, and which were due and had to be left out.

    Args:
        moving: int32 [S], different slots whose weights an update moves, negative: none's. skipped: int32 [S], not 0 where it could not;
            becomes 1 where it was due and could not, else 0.
        counters: int64 [2], updates and skipped updates, added to. moved: int32 [S], written: ``moving``.
        step: int32 [slots], updates of each slot, added to; None where the update itself has done it.
    """
    due = moving >= 0
    left_out = (skipped != 0) & due
    made = due & ~left_out
    counters += torch.stack([made, left_out]).sum(1)
    skipped.copy_(left_out)
    moved.copy_(moving)
    if step is not None:
        step.index_add_(0, moving.clamp(min=0).long(), made.to(step.dtype))


def take_tokens(tokens, vocabulary, counts, inputs, targets, moving, invalid) -> None:
    """A pass's inputs and targets from tokens that are on the device; a stream with an id outside the vocabulary is not scored and does not move.

    Args:
        tokens: int64 [R, T + 1]. vocabulary: how many ids there are. counts: int32 [R], of how many tokens each row is scored.
        inputs: int64 [R, T], written: all but the last token, within the vocabulary.
        targets: int64 [R * T], written: the next token, -1 behind ``counts`` and in rows with an id that is none.
        moving: int32 [R], becomes -1 in such rows; of one entry for all rows, where any is such.
        invalid: int32 [R], written: 1 in such rows, else 0.
    """
    bad = ((tokens < 0) | (tokens >= vocabulary)).any(1)
    scored = torch.arange(tokens.shape[1] - 1, device=tokens.device) < counts[:, None]
    inputs.copy_(tokens[:, :-1].clamp(0, vocabulary - 1))
    targets.view(len(tokens), -1).copy_(torch.where(scored & ~bad[:, None], tokens[:, 1:], -1))
    moving.masked_fill_(bad if len(moving) == len(bad) else bad.any().view(1), -1)
    invalid.copy_(bad)
