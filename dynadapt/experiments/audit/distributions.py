"""What an engine would have scored other tokens at, asked in the middle of its own step, where it scores those that are there."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
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
def asking(engine, question: Question, stream: int = 0):
    """The next step, of one row of `stream`, answers the question before it scores: with the hidden states and the weights that it scores with.

    With a guard the prior answers, too, and the answer is that of their mixture, whose weights are made here anew from the scores before each place.
    """
    guarding = engine.guarding
    steps = [engine.driver.step, *([guarding.prior.driver.step] if guarding else [])]
    weights = guarding.mixture.weights(stream).cpu().numpy() if guarding else None
    own = [Question(question.tokens, question.places) for _ in steps]
    captures = [driver for driver in (engine.driver, guarding and guarding.prior.driver) if hasattr(driver, "capture")]
    recorded = [driver.capture for driver in captures]
    for one, asked in zip(steps, own):
        one.decoder.score = _asked(engine, one.decoder, asked)
    for driver in captures:
        driver.capture = False  # what is recorded calls nothing any more
    try:
        yield
    finally:
        for one in steps:
            del one.decoder.score
        for driver, capture in zip(captures, recorded):
            driver.capture = capture
    if guarding is None or not own[1].nats:  # a segment on which the prior is not looked at
        question.nats, question.distributions = own[0].nats, own[0].distributions
    else:
        losses = [each[0].double().cpu().numpy() for each in (engine.last.nll_adapted, engine.last.nll_static)]
        _mix(question, own, fixed_share_weights(weights[::-1], losses, guarding.mixture.share))


def fixed_share_weights(weights: np.ndarray, losses: list[np.ndarray], share: float) -> np.ndarray:
    """[T, 2]: what each of two experts counts in each token, from `weights` [2] before the first, by its losses [T] of the tokens before
    (adapt/mixture.py has the rule; this is that rule token by token)."""
    found = [np.asarray(weights, np.float64)]
    for both in zip(*losses):
        finite = [x for x in both if math.isfinite(x)]
        if not finite:  # nobody gave the token a probability: weights stay
            found.append(found[-1])
            continue
        v = found[-1] * [math.exp(min(finite) - x) if math.isfinite(x) else 0.0 for x in both]
        v = v / v.sum()
        found.append((1 - share) * v + share * v[::-1])
    return np.array(found[:-1])


def _mix(question: Question, own: list[Question], weights: np.ndarray) -> None:
    """The mixture's answer of the experts' own."""
    total = lambda place, values: sum(w * x for w, x in zip(weights[place].tolist(), values) if w)  # noqa: E731
    cost = lambda place, nats: -math.log(p) if (p := total(place, [math.exp(-x) for x in nats])) > 0 else math.inf  # noqa: E731
    question.nats = {place: cost(place, [each.nats[place] for each in own]) for place in own[0].nats}
    for place in own[0].distributions:
        both = [each.distributions[place] for each in own]
        masses = (total(place, [getattr(one, name) for one in both]) for name in ("mass", "rest", "error"))
        question.distributions[place] = Distribution(*masses, cost(place, [one.own for one in both]))


def _asked(engine, decoder, question: Question):
    """A decoder's score, which answers first: of the row's own pass alone, behind which one over a text that is kept may come."""
    score, answered = decoder.score, False

    def asked(hidden, rows, targets, weights, *more):
        nonlocal answered
        if not answered:
            _answer(engine, decoder, score, question, hidden, rows, targets)
            answered = True
        return score(hidden, rows, targets, weights, *more)

    return asked


def _answer(engine, decoder, score, question: Question, hidden, rows, targets) -> None:
    places = list(question.tokens)
    scored = torch.arange(len(hidden), device=hidden.device) if rows is None else rows

    def nats(place: int, ids: torch.Tensor) -> torch.Tensor:
        return score(hidden, scored[place].expand(len(ids)).contiguous(), ids, None)[0].double().cpu()

    for place in places:
        question.nats[place] = float(nats(place, torch.tensor([question.tokens[place]], device=hidden.device)))
    for place in question.places:
        logits = _logits(engine, hidden[scored[place]][None], decoder)[0]
        question.distributions[place] = _distribution(logits, nats, place, targets[place : place + 1])


def _distribution(logits: torch.Tensor, nats, place: int, target: torch.Tensor) -> Distribution:
    ids = logits.topk(min(LIKELIEST, len(logits))).indices
    p = logits.double().softmax(0)
    p[ids] = 0.0
    rest, step = float(p.sum()), float(logits.abs().max()) * torch.finfo(logits.dtype).eps
    mass = float(torch.exp(-nats(place, ids)).sum()) + rest
    return Distribution(mass, rest, rest * math.expm1(min(step, 1.0)), float(nats(place, target)))
