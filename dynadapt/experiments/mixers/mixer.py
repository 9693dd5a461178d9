"""What every mixer is: a rule that turns losses of domains into weights of domains.

    mixer = make_mixer("velocitune", domains, initial, start={...}, target={...})
    weights = mixer.update(step, losses, tokens)      # dictionaries keyed by domain, weights sum to one

`signal` says which losses a rule wants, `cadence` when it wants them, and `sampling` with `token_weights` how the weights act
on training. Losses are mean NLL in nats per token. A domain that is absent (not in the batch, not evaluated) is left out of
`losses`; nothing else means "absent", and a NaN is refused by name.

Rules are as published. What is added to them is in `Shaping`, and is off.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

SUM_TOLERANCE = 1e-6  # of given weights; they are normalised exactly afterwards


class MixerError(ValueError):
    """Weights, losses, settings or a state that a mixer can't use; the message names the domain and the value."""


def check_domains(domains: Sequence[str]) -> tuple[str, ...]:
    """The names of the domains, in the order that all arrays have."""
    if isinstance(domains, str):
        raise MixerError(f"domains {domains!r}: give a list of names")
    domains = tuple(domains)
    if not domains:
        raise MixerError("domains: none are given")
    for index, domain in enumerate(domains):
        if not isinstance(domain, str) or not domain:
            raise MixerError(f"domains: {domain!r} is not a name")
        if domain in domains[:index]:
            raise MixerError(f"domains: {domain!r} is given twice")
    return domains


def by_domain(
    what: str, domains: Sequence[str], values: Mapping[str, float], least: float = -math.inf, partial: bool = False
) -> np.ndarray:
    """[K] float64 of values keyed by domain; NaN where absent, which only `partial` allows. MixerError names what doesn't fit."""
    if not isinstance(values, Mapping):
        raise MixerError(f"{what}: give a dictionary keyed by domain, not {type(values).__name__}")
    for domain in values:
        if domain not in domains:
            raise MixerError(f"{what}: unknown domain {domain!r}; there are {', '.join(domains)}")
    for domain in domains:
        if domain not in values and not partial:
            raise MixerError(f"{what}: domain {domain!r} is missing")
    for domain, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)) or not math.isfinite(value):
            raise MixerError(f"{what}: domain {domain!r} has {value!r}; give a finite number")
        if value < least:
            raise MixerError(f"{what}: domain {domain!r} has {value!r}; give at least {least:g}")
    return np.array([float(values[domain]) if domain in values else math.nan for domain in domains])


def check_weights(what: str, domains: Sequence[str], weights: Mapping[str, float]) -> np.ndarray:
    """[K] weights that are not negative and sum to one."""
    array = by_domain(what, domains, weights, least=0.0)
    if abs(array.sum() - 1.0) > SUM_TOLERANCE:
        raise MixerError(f"{what}: they sum to {array.sum():.6g}, not to 1 ({', '.join(f'{d} {w:g}' for d, w in zip(domains, array))})")
    return array / array.sum()


def check_number(what: str, value: float, least: float, most: float = math.inf, above: bool = False) -> float:
    """A setting: least <= value <= most, or least < value with `above`."""
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or not least <= value <= most or (above and value == least):
        sign = ">" if above else ">="
        raise MixerError(f"{what} {value!r}: give a number {sign} {least:g}" + (f" and <= {most:g}" if most < math.inf else ""))
    return float(value)


def check_choice(what: str, value: str, accepted: Sequence[str]) -> str:
    if value not in accepted:
        raise MixerError(f"{what} {value!r}: give one of {', '.join(accepted)}")
    return value


def reweighted(weights: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    """weights * exp(exponents), normalised: the multiplicative-weights update. Only differences between exponents matter."""
    product = weights * np.exp(exponents - exponents.max())
    return product / product.sum()


@dataclass(frozen=True)
class Shaping:
    """What may be put on top of a published rule, in this order; the defaults leave it alone.

    step       moves only this share of the way, in log weights: old^(1-step) new^step, normalised (0 < step <= 1).
    smoothing  this share of the weight is spread evenly over the domains (0 <= smoothing <= 1).
    floor      no domain gets less (0 <= floor <= 1/K); what is above the floor shrinks in proportion.

    The shaped weights are the ones a multiplicative rule goes on from, so that a domain can come back.
    """

    step: float = 1.0
    smoothing: float = 0.0
    floor: float = 0.0

    def __post_init__(self):
        check_number("step", self.step, 0.0, 1.0, above=True)
        check_number("smoothing", self.smoothing, 0.0, 1.0)
        check_number("floor", self.floor, 0.0, 1.0)

    def check(self, domains: Sequence[str]) -> None:
        if self.floor * len(domains) > 1.0 + SUM_TOLERANCE:
            raise MixerError(f"floor {self.floor}: {len(domains)} domains can't all have it; give at most {1 / len(domains):.4g}")

    def __call__(self, old: np.ndarray, new: np.ndarray) -> np.ndarray:
        if self.step < 1.0:
            between = old ** (1.0 - self.step) * new**self.step
            new = between / between.sum() if between.sum() > 0 else new
        if self.smoothing:
            new = (1.0 - self.smoothing) * new + self.smoothing / len(new)
        return with_floor(new, self.floor) if self.floor else new


def with_floor(weights: np.ndarray, floor: float) -> np.ndarray:
    """The weights with none under `floor`; those above it share the rest in proportion (a water line, found in at most K rounds)."""
    low = np.zeros(len(weights), bool)
    while True:
        rest = weights[~low].sum()
        scale = (1.0 - floor * low.sum()) / rest if rest > 0 else 0.0
        under = ~low & (weights * scale < floor)
        if not under.any():
            return np.where(low, floor, weights * scale)
        low |= under
        if low.all():
            return np.full(len(weights), 1.0 / len(weights))


class Mixer(ABC):
    """Weights of K domains, and the rule that moves them. Derived classes give `_rule`, and `_kept` (or `_state`/`_load`) if they keep more.

    domains   names; all arrays have this order.      initial   weights before the first update, by domain.
    notes     what the last update has to say (a domain whose loss rises, a loss used again), for people to read.
    """

    name: ClassVar[str]
    signal: ClassVar[str]  # "heldout": held-out losses; "train": losses of the batch; "excess": see doremi.py; "none": losses are not read
    _kept: ClassVar[tuple[str, ...]] = ()  # arrays [K] and numbers of the state; each is the attribute of its name behind an underscore
    cadence: ClassVar[str]  # "evaluation": update after each held-out evaluation; "step": after each training step; "never"

    def __init__(self, domains: Sequence[str], initial: Mapping[str, float], shaping: Shaping = Shaping()):
        self.domains = check_domains(domains)
        self.initial = check_weights("initial weights", self.domains, initial)
        shaping.check(self.domains)
        self.shaping = shaping
        self.notes: tuple[str, ...] = ()
        self._weights = self.initial.copy()
        self._step = 0
        self._tokens = 0
        self._weighted = np.zeros(len(self.domains))  # sum over updates of weights in force * tokens trained under them

    # ------------------------------------------------------------------------------------------------ how weights act

    @property
    def weights(self) -> dict[str, float]:
        return self._named(self._weights)

    @property
    def sampling(self) -> dict[str, float]:
        """Probabilities with which the next training samples are drawn from each domain."""
        return self.weights

    def token_weights(self, tokens: Mapping[str, int]) -> dict[str, float]:
        """Factor of each token's loss, by domain, in a global batch with this many tokens of each; their mean over the tokens is 1."""
        by_domain("tokens", self.domains, tokens, least=0, partial=True)
        return dict.fromkeys(tokens, 1.0)

    @property
    def average(self) -> dict[str, float]:
        """Weights so far, averaged over the tokens trained under them; the initial ones before any."""
        return self._named(self._weighted / self._tokens if self._tokens else self.initial)

    @property
    def static_weights(self) -> dict[str, float]:
        """The static mix this run stands for; what `Replay` trains on. Rules that publish one of their own give that."""
        return self.average

    # --------------------------------------------------------------------------------------------------------- update

    def update(self, step: int, losses: Mapping[str, float], tokens: Mapping[str, int]) -> dict[str, float]:
        """New weights, in force until the next update.

        step    training steps done, counted from 1; each call has a larger one than the call before.
        losses  nats per token by domain, of the kind `signal` names, without the domains that are absent.
        tokens  trained on since the last update, by domain; absent means none.
        """
        if isinstance(step, bool) or not isinstance(step, (int, np.integer)) or step <= self._step:
            raise MixerError(f"step {step!r}: give a whole number greater than {self._step}, the step of the last update")
        loss = by_domain("losses", self.domains, losses, least=0.0, partial=True)
        count = np.nan_to_num(by_domain("tokens", self.domains, tokens, least=0, partial=True))
        self.notes = ()
        raw = self._rule(int(step), loss, count)
        if not np.isfinite(raw).all() or (raw < 0).any():
            raise MixerError(f"{self.name}: weights at step {step} are {self._named(raw)}; losses were {dict(losses)}")
        self._account(count)
        self._step = int(step)
        self._weights = self.shaping(self._weights, raw)
        return self.weights

    def finish(self, tokens: Mapping[str, int]) -> None:
        """Counts the tokens trained on after the last update into `average`; call it at the end of a run."""
        self._account(np.nan_to_num(by_domain("tokens", self.domains, tokens, least=0, partial=True)))

    def _account(self, tokens: np.ndarray) -> None:
        trained = int(tokens.sum())
        self._weighted += trained * self._weights
        self._tokens += trained

    @abstractmethod
    def _rule(self, step: int, losses: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """losses [K] (NaN where absent), tokens [K] -> weights [K] that sum to one. `self._weights` are those in force."""

    def _note(self, text: str) -> None:
        self.notes += (text,)

    def _carried(self, values: np.ndarray, last: np.ndarray, what: str) -> np.ndarray:
        """`values` with the last known ones where absent; MixerError for a domain that was never seen."""
        for domain, value, before in zip(self.domains, values, last):
            if math.isnan(value):
                if math.isnan(before):
                    raise MixerError(f"losses: domain {domain!r} is missing, and no earlier {what} of it is known")
                self._note(f"{domain}: absent, its last {what} {before:.4f} is used again")
        return np.where(np.isnan(values), last, values)

    def _named(self, values: np.ndarray) -> dict[str, float]:
        return dict(zip(self.domains, np.asarray(values).tolist()))

    # ---------------------------------------------------------------------------------------------------------- state

    def state_dict(self) -> dict:
        """Everything that moves, as JSON-able data; floats survive JSON bit for bit."""
        return {
            "mixer": self.name,
            "domains": list(self.domains),
            "step": self._step,
            "tokens": self._tokens,
            "weights": self._weights.tolist(),
            "weighted": self._weighted.tolist(),
            **self._state(),
        }

    def load_state_dict(self, state: Mapping) -> None:
        """Goes on where `state_dict` was taken. MixerError if it is another mixer's or has other domains, before anything changes."""
        if state.get("mixer") != self.name:
            raise MixerError(f"state: it is of mixer {state.get('mixer')!r}, not {self.name!r}")
        if tuple(state.get("domains", ())) != self.domains:
            raise MixerError(f"state: its domains are {', '.join(state.get('domains', ()))}; here they are {', '.join(self.domains)}")
        try:
            self._load(state)
            weights, weighted = np.array(state["weights"], float), np.array(state["weighted"], float)
            self._step, self._tokens, self._weights, self._weighted = int(state["step"]), int(state["tokens"]), weights, weighted
        except (KeyError, TypeError) as error:
            raise MixerError(f"state: {error} is missing or of the wrong kind") from None
        self.notes = ()

    def _state(self) -> dict:
        kept = {name: getattr(self, f"_{name}") for name in self._kept}
        return {name: listed(value) if isinstance(value, np.ndarray) else value for name, value in kept.items()}

    def _load(self, state: Mapping) -> None:
        for name in self._kept:
            kind = type(getattr(self, f"_{name}"))
            setattr(self, f"_{name}", array(state[name]) if kind is np.ndarray else kind(state[name]))


def listed(values: np.ndarray) -> list[float | None]:
    """An array for a state: NaN (never seen) becomes None, which JSON has."""
    return [None if math.isnan(value) else value for value in values.tolist()]


def array(values: Sequence[float | None]) -> np.ndarray:
    return np.array([math.nan if value is None else value for value in values], float)
