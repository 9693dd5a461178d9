"""What an engine would have scored other tokens at, asked in the middle of its own step, where it scores those that are there."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from dynadapt.engine.generation import _logits

LIKELIEST = 2048  # tokens whose probabilities are the scoring op's own; those of the others are the logits'


@dataclass
class Distribution:
    """`mass`: the sum of all probabilities; `rest`: of those beyond the likeliest; `error`: by how much rounded logits may put `mass` off;
    `own`: nats of the token that is there."""

    mass: float
    rest: float
    error: float
    own: float


@dataclass
class Question:
    """Of one row: the nats of `tokens` {place in the row: id}, and the distribution at some `places`."""

    tokens: dict[int, int]
    places: list[int]
    nats: dict[int, float] = field(default_factory=dict)
    distributions: dict[int, Distribution] = field(default_factory=dict)


@contextmanager
def asking(engine, question: Question):
    """The next step, of one row, answers the question before it scores: with the hidden states and the weights that it scores with."""
    decoder, captures = engine.decoder, engine.static
    score = decoder.score

    def asked(hidden, rows, targets, weights, *more):
        _answer(engine, score, question, hidden, rows, targets)
        return score(hidden, rows, targets, weights, *more)

    decoder.score, recorded = asked, captures and captures.capture
    if captures is not None:
        captures.capture = False  # what is recorded calls nothing any more
    try:
        yield
    finally:
        del decoder.score
        if captures is not None:
            captures.capture = recorded


def _answer(engine, score, question: Question, hidden, rows, targets) -> None:
    places = list(question.tokens)
    scored = torch.arange(len(hidden), device=hidden.device) if rows is None else rows

    def nats(place: int, ids: torch.Tensor) -> torch.Tensor:
        return score(hidden, scored[place].expand(len(ids)).contiguous(), ids, None)[0].double().cpu()

    for place in places:
        question.nats[place] = float(nats(place, torch.tensor([question.tokens[place]], device=hidden.device)))
    for place in question.places:
        question.distributions[place] = _distribution(engine, nats, place, hidden[scored[place]][None], targets[place : place + 1])


def _distribution(engine, nats, place: int, hidden: torch.Tensor, target: torch.Tensor) -> Distribution:
    logits = _logits(engine, hidden)[0]
    ids = logits.topk(min(LIKELIEST, len(logits))).indices
    p = logits.double().softmax(0)
    p[ids] = 0.0
    rest, step = float(p.sum()), float(logits.abs().max()) * torch.finfo(logits.dtype).eps
    mass = float(torch.exp(-nats(place, ids)).sum()) + rest
    return Distribution(mass, rest, rest * math.expm1(min(step, 1.0)), float(nats(place, target)))
