"""What one pass is given and what it leaves: small tensors, filled by the host from a plan.

A stream enters or leaves, rests, waits for its update or goes back to the prior by other numbers in the same buffers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from . import losses
from .losses import Fields, Loss
from .plan import LossWeights, Pass, StreamState

ALIGN = 64


@dataclass(frozen=True)
class Kind:
    """What a pass does and its shape; passes of one kind differ only in the numbers in their buffers."""

    rows: int
    width: int  # inputs of a row, context in front included
    scored: int  # places for scored tokens, of all rows together
    gathers: bool  # whether the scored rows are only some of the inputs
    sets: int  # of weights, that an update may move
    backward: bool
    update: bool
    learner: int
    choosing: bool
    adds: bool = False  # its gradient, to what waits for an update
    loss: str = "cross_entropy"
    candidates: int = 0  # tokens of a teacher, for each scored one
    selects: bool = False  # which tokens are learned from hangs on their scores


def given_fields(kind: Kind, wide: torch.dtype) -> Fields:
    """Names, dtypes and shapes of what a pass is given."""
    i32, i64 = torch.int32, torch.int64
    fields: Fields = {
        "inputs": (i64, (kind.rows, kind.width)),
        "targets": (i64, (kind.scored,)),  # -1: not scored after all
        "weights": (wide, (kind.scored,)),  # of each NLL in the loss
        "slots": (i32, (kind.rows,)),  # whose memory
        "adapter": (i32, (kind.sets,)),  # whose weights
        "counts": (i32, (kind.rows,)),
        "moving": (i32, (kind.sets,)),  # whose weights an update moves; -1: none's
    }
    if kind.gathers:
        fields["rows"] = (i64, (kind.scored,))
    return fields | losses.given_fields(kind.loss, kind.scored, kind.candidates, wide)


def made_fields(kind: Kind, wide: torch.dtype) -> Fields:
    """Names, dtypes and shapes of what a pass leaves."""
    i32 = torch.int32
    own: Fields = {"loss": (wide, (kind.scored,))} if kind.loss == "kl" else {}  # else it follows from the scores
    if kind.selects:
        own["kept"] = (i32, (kind.rows,))  # tokens that are learned from
    return {
        **own,
        "nll": (wide, (kind.scored,)),
        "norms": (torch.float32, (kind.sets,)),
        "skipped": (i32, (kind.sets,)),
        "moving": (i32, (kind.sets,)),  # of passes that update: as given, less what the change detectors have stopped
        "reset": (i32, (kind.rows,)),
        "invalid": (i32, (kind.rows,)),
    }


@dataclass(frozen=True)
class StepCall:
    """The arguments of a step, checked."""

    tokens: torch.Tensor  # int64 [R, T+1]
    lengths: list[int]
    streams: list[int]
    weights: LossWeights | None
    loss: Loss


class Arena:
    """Named tensors side by side in one buffer, so that one copy moves them all."""

    def __init__(self, fields: Fields):
        self.fields: dict[str, tuple[torch.dtype, tuple[int, ...], int]] = {}
        self.size = 0
        for name, (dtype, shape) in fields.items():
            self.fields[name] = (dtype, shape, self.size)
            self.size += -(-math.prod(shape) * dtype.itemsize // ALIGN) * ALIGN

    def views(self, buffer: torch.Tensor) -> dict[str, torch.Tensor]:
        return {
            name: buffer[start : start + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)
            for name, (dtype, shape, start) in self.fields.items()
        }

    def empty(self, device, pinned: bool = False) -> torch.Tensor:
        return torch.empty(self.size, dtype=torch.uint8, device=device, pin_memory=pinned)


def fill(
    given: dict[str, torch.Tensor],
    p: Pass,
    call: StepCall,
    states: Sequence[StreamState],
    places: Sequence[int],
    divisor: int,
    own_slots: bool,
    with_tokens: bool = True,
) -> None:
    """A plan and its tokens into zeroed buffers on the host.

    Args:
        places: of each row among the scored tokens, ``counts`` of them or more.
        divisor: updates add up the gradients of so many segments.
        own_slots: whether each row has weights of its own in the learner.
        with_tokens: else the device puts them in.
    """
    width, at, tokens, weights = given["inputs"].shape[1], 0, call.tokens, None if call.weights is None else call.weights.tokens
    given["targets"].fill_(-1)
    shares = torch.tensor(p.shares, dtype=given["weights"].dtype) / divisor
    for i, (row, stream, n, room) in enumerate(zip(p.rows, p.streams, p.counts, places)):
        past = states[stream].history
        if with_tokens:
            if past:
                given["inputs"][i, : len(past)] = torch.tensor(past, dtype=torch.int64)
            given["inputs"][i, len(past) : len(past) + n] = tokens[row, :n]
            given["targets"][at : at + n] = tokens[row, 1 : n + 1]
        if "rows" in given:
            given["rows"][at : at + room] = _scored_rows(len(past), n, room, width) + i * width
        if p.backward:
            given["weights"][at : at + n] = shares[i] if weights is None else shares[i] * weights[row, :n]
            for name, values in call.loss.inputs.items():
                given[name][at : at + n] = values[row, :n]
        at += room
    given["slots"].copy_(torch.tensor(p.streams))
    given["counts"].copy_(torch.tensor(p.counts))
    if own_slots:
        given["adapter"].copy_(given["slots"])
        given["moving"].copy_(torch.tensor([s if moves else -1 for s, moves in zip(p.streams, p.moves)]))
    else:
        given["moving"].fill_(0 if any(p.moves) else -1)


def _scored_rows(past: int, n: int, room: int, width: int) -> torch.Tensor:
    """Which of a row's ``width`` inputs are scored: n behind ``past`` of context; others, each once, fill the rest of the room."""
    scored = torch.arange(past, past + n)
    if room == n:
        return scored
    idle = torch.cat([torch.arange(past), torch.arange(past + n, width)])
    return torch.cat([scored, idle[: room - n]])
