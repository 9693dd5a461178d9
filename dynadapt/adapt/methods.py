"""What learns: LoRA adapters, chosen output rows, or whole weights.

``targets`` names the linear groups of each layer: ``attn`` (q, k, v, o, or what a layer of the gated delta rule has in their place),
``mlp`` (gate, up, down) or ``all``; with ``Full``
also ``model``: every parameter there is, and ``norms`` and ``biases``; with ``LoRA`` also single linears. ``layers`` is a ``range`` of layers, None for every one.
Which linears of a model these are: targets.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

from dynadapt.common.checks import choice, flag, integer, keep, number, sequence, wrong

GROUPS = ("qkv", "o", "mlp_in", "down")  # in the order of the forward pass
LINEAR = {"all": GROUPS, "attn": ("qkv", "o"), "mlp": ("mlp_in", "down")}
TARGETS = {**LINEAR, "model": GROUPS}
BESIDE = ("norms", "biases")  # what learns without the linear weights
# Where in a layer something may learn: before a group (its norm), or in it and behind it. In the order of the forward pass.
PLACES = ("attn_norm", "qkv", "o", "mlp_norm", "mlp_in", "down")
# Linears of a layer, as dynadapt.model.layout names them, and of one with the gated delta rule in attention's place.
PARTS = ("q", "k", "v", "qkv", "o", "gate", "up", "gate_up", "down", "delta_qkv", "delta_z", "delta_b", "delta_a", "delta_o")
HEAD, EMBED = "head", "embed"  # around the layers: (layers, "head") and (-1, "embed")
MEANT = "attn: q, k, v and o; mlp: gate, up and down"
EXPECTED = (
    f"one of {', '.join(LINEAR)}, a list of linears ({', '.join((*PARTS, HEAD, EMBED))}, or endings of PEFT's module names), or a regular expression "
    "over these names"
)


def _check_common(targets: str, layers: range | None) -> None:
    choice("targets", targets, LINEAR, f" ({MEANT})")
    _check_layers(layers)


def _check_layers(layers: range | None) -> None:
    if layers is not None and (not isinstance(layers, range) or len(layers) == 0 or layers.step != 1 or layers.start < 0):
        raise wrong("layers", layers, "a non-empty range with step 1, e.g. range(5, 20), or None for all")


# Fields of LoRA that are said where they are used: words and states of before they were there stay as they are.
LATER = {
    "rank_pattern": (),
    "alpha_pattern": (),
    "rslora": False,
    "keep_a": False,
    "rate_pattern": (),
    "b_rate": 1.0,
    "also": (),
    "dora": False,
}


@dataclass(frozen=True)
class LoRA:
    """A rank-``rank`` adapter on each targeted linear: y = W x + alpha / rank B A x (Hu et al. 2021, eq. 3).

    ``alpha`` None: twice the rank, so that the scale is 2 at every rank; the field then holds that number. A starts uniform in
    +-1/sqrt(in) as PEFT's does, the same for every stream; B starts at zero.

    ``targets``: all, attn or mlp; a list of linears (q, k, v, o, gate, up, down; qkv where they are one, as in GPT-2, GPT-NeoX and Phi-3,
    where gate_up is one, too; delta_qkv, delta_z, delta_b, delta_a, delta_o of the gated delta rule; head, which makes the logits, tied or not; embed, the token embedding, of which a tied head stays
    as it is; or endings of PEFT's module names, such as q_proj); or a regular expression that a whole module name of PEFT's matches. ``rank_pattern``, ``alpha_pattern``:
    the rank and alpha of some of them, {linear or PEFT's pattern: number}, of which the first that fits counts, as in PEFT; others
    have ``rank`` and ``alpha``. ``rslora``: the scale is alpha / sqrt(rank) (Kalajdzievski 2023, arXiv 2312.03732).

    ``keep_a``: a reset takes B back to zero and leaves A as it has learned, so that the adapter adds nothing again and the next text
    starts with the directions that earlier ones have found. The optimizer's state starts anew for both.

    On the embedding a token t gets E[t] + scale B A[:, t], with PEFT's start: A [rank, V] is zero there and B [H, rank] normal with
    deviation 1, the same for every stream. It is A that goes back to zero, and B that ``keep_a`` leaves. ``layers`` concerns neither it nor
    the head.

    ``rate_pattern``: factors of the stream's learning rate for some linears, {linear or PEFT's pattern: number of at least 0}, found as in
    ``rank_pattern``; others have 1. At 0 the adapter is there and does not learn, though its gradient still counts in the norm that
    ``clip`` looks at. ``b_rate``: the factor of B's rate over A's (LoRA+, Hayou et al. 2024, arXiv 2402.12354, eq. 6: 16 there). Both scale
    an optimizer's weight decay with the rate, and not its ``decay`` to the prior, which has no rate in it.

    ``also``: "norms", "biases", or both in a list: those of the model that ``Full(targets="norms")`` and ``"biases"`` name learn beside the
    adapters, at the rate of A. Streams then go through the layers one after the other.

    ``dora``: each output row of an adapted weight also has a length m that learns at the rate of A, and begins as W's (Liu et al. 2024,
    arXiv 2402.09353): y = m / n (W x + scale B A x), n = ||W + scale B A|| of each row, through which no gradient goes (section 4.3), as in
    PEFT. For linears of the layers.

    Raises:
        ValueError: naming the argument; what a model lacks is refused by the engine of that model.
    """

    rank: int = 16
    alpha: float | None = None
    targets: str | tuple[str, ...] = "all"
    layers: range | None = None
    rank_pattern: tuple[tuple[str, int], ...] = ()
    alpha_pattern: tuple[tuple[str, float], ...] = ()
    rslora: bool = False
    keep_a: bool = False
    rate_pattern: tuple[tuple[str, float], ...] = ()
    b_rate: float = 1.0
    also: tuple[str, ...] = ()
    dora: bool = False

    def __post_init__(self):
        _check_layers(self.layers)
        keep(self, also=_also(self.also), dora=flag("dora", self.dora))
        keep(self, rank=integer("rank", self.rank), targets=_targets(self.targets))
        keep(self, rslora=flag("rslora", self.rslora), keep_a=flag("keep_a", self.keep_a))
        keep(self, alpha=alpha_of(self.rank, self.alpha))
        ranks, alphas = (_pattern(name, getattr(self, name)) for name in ("rank_pattern", "alpha_pattern"))
        keep(self, rank_pattern=tuple((key, integer(f"rank_pattern[{key!r}]", value)) for key, value in ranks))
        positive = lambda key, value: number(f"alpha_pattern[{key!r}]", value, "a positive number", lambda x: x > 0)  # noqa: E731
        keep(self, alpha_pattern=tuple((key, positive(key, value)) for key, value in alphas))
        factor = lambda key, value: float(number(f"rate_pattern[{key!r}]", value, "a finite number >= 0"))  # noqa: E731
        keep(self, rate_pattern=tuple((key, factor(key, value)) for key, value in _pattern("rate_pattern", self.rate_pattern)))
        keep(self, b_rate=float(number("b_rate", self.b_rate, "a positive number (1: B learns at the rate of A)", lambda x: x > 0)))

    def __repr__(self) -> str:
        said = ((f.name, getattr(self, f.name)) for f in fields(self))
        return f"LoRA({', '.join(f'{name}={value!r}' for name, value in said if name not in LATER or value != LATER[name])})"

    @property
    def scale(self) -> float:
        """Of linears whose rank and alpha no pattern gives."""
        return scale_of(self, self.rank, alpha_of(self.rank, self.alpha))


def _targets(given) -> str | tuple[str, ...]:
    """A word, a regular expression, or names."""
    if isinstance(given, str) and given in LINEAR:
        return given
    if isinstance(given, str) and given not in (*PARTS, HEAD, EMBED):
        if not given or given.isidentifier():  # a plain word matches no whole module name
            raise wrong("targets", given, EXPECTED)
        _check_expression("targets", given, EXPECTED)
        return given
    names = tuple([given] if isinstance(given, str) else sequence("targets", given, EXPECTED))
    if not names or not all(isinstance(name, str) and name for name in names):
        raise wrong("targets", given, EXPECTED)
    return names


def _also(given) -> tuple[str, ...]:
    words = (given,) if isinstance(given, str) else given
    if not isinstance(words, (list, tuple)) or not all(word in BESIDE for word in words):
        raise wrong("also", given, f"some of {' and '.join(BESIDE)} in a list, or none")
    return tuple(word for word in BESIDE if word in words)


def _pattern(name: str, given) -> list[tuple[str, object]]:
    expected = f"{{linear ({', '.join((*PARTS, HEAD, EMBED))}) or PEFT's pattern of module names: number}}"
    pairs = list(given.items()) if isinstance(given, Mapping) else list(given) if isinstance(given, (list, tuple)) else None
    if pairs is None or not all(isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs):
        raise wrong(name, given, expected)
    for key, _ in pairs:
        _check_expression(name, key, expected)
    return [(key, value) for key, value in pairs]


def _check_expression(name: str, expression: str, expected: str) -> None:
    try:
        re.compile(expression)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{name} has {expression!r}, which is no regular expression ({error}): expected {expected}") from None


@dataclass(frozen=True)
class RowSparse:
    """A fraction ``density`` of each targeted weight's output rows learns; only their gradients are computed.

    select="gradient": every ``every`` updates the rows with the largest estimated gradient norm
    (ops.weight_gradient.row_scores) are chosen anew, and their optimizer state starts from zero. With RMS they are chosen once, on the statistics text.
    select="contrast": likewise, by that norm over its mean on a reference text (ops.weight_gradient.contrast), whose segments
    ``Engine.gather_statistics`` must have seen: rows that this text moves more than texts in general do.
    select="fixed": evenly spaced rows, chosen once. Rows given up keep the values they reached.
    """

    density: float = 0.1
    select: str = "gradient"
    every: int = 16
    targets: str = "all"
    layers: range | None = None

    def __post_init__(self):
        _check_common(self.targets, self.layers)
        choice("select", self.select, ("gradient", "contrast", "fixed"))
        keep(
            self,
            density=number("density", self.density, "a number, 0 < density <= 1", lambda x: 0 < x <= 1),
            every=integer("every", self.every),
        )


@dataclass(frozen=True)
class Full:
    """Every element of the targeted weight matrices learns.

    targets="model": so do biases, norms, embedding, learned positions and head, as in ordinary training; with any other
    targets these stay. An optimizer's weight decay then reaches all of them: nothing is exempt.

    targets="norms", "biases", or both in a list: these learn and no weight of a linear does, whose gradients are not computed. Norms are
    all that the model has, of heads too, with their biases (Zhao et al. 2023, arXiv 2312.11420); biases are those of linears and of norms
    (BitFit, Ben Zaken et al. 2022, arXiv 2106.10199). With ``layers`` the final norm stays.

    Raises:
        ValueError: naming the argument; what a model lacks is refused by the engine of that model.
    """

    targets: str | tuple[str, ...] = "all"
    layers: range | None = None

    def __post_init__(self):
        if isinstance(self.targets, (list, tuple)):
            keep(self, targets=_beside(self.targets))
        else:
            choice("targets", self.targets, (*TARGETS, *BESIDE), f" ({MEANT}), or a list of {' and '.join(BESIDE)}")
        _check_layers(self.layers)
        if self.targets == "model" and self.layers is not None:
            raise ValueError(f"layers={self.layers!r} with targets='model': every layer learns; expected None")


def alpha_of(rank: int, alpha: float | None) -> float:
    """The alpha that is used: the one given, or twice the rank."""
    if alpha is None:
        return 2.0 * rank
    return float(number("alpha", alpha, "a positive number, or None for twice the rank", lambda x: x > 0))


def scale_of(adapt: LoRA, rank: int, alpha: float) -> float:
    """Of a linear with this rank and alpha."""
    return alpha / (math.sqrt(rank) if adapt.rslora else rank)


def _beside(given) -> str | tuple[str, ...]:
    """Words of BESIDE in their order; of one the word."""
    if not given or not all(word in BESIDE for word in given):
        raise wrong("targets", given, f"one of {', '.join((*TARGETS, *BESIDE))}, or a list of {' and '.join(BESIDE)}")
    words = tuple(word for word in BESIDE if word in given)
    return words[0] if len(words) == 1 else words


def rates_differ(adapt) -> bool:
    """Whether some factor of the learning rate is not 1."""
    return isinstance(adapt, LoRA) and (adapt.b_rate != 1 or any(factor != 1 for _, factor in adapt.rate_pattern))


def learns_beside(adapt) -> tuple[str, ...]:
    """Which of BESIDE learn while the linear weights stay."""
    if not isinstance(adapt, Full):
        return ()
    return adapt.targets if isinstance(adapt.targets, tuple) else tuple(word for word in BESIDE if word == adapt.targets)


def has_lengths(adapt) -> bool:
    """Whether adapters are DoRA's."""
    return isinstance(adapt, LoRA) and adapt.dora


def words_beside(adapt) -> tuple[str, ...]:
    """Which of BESIDE learn, alone or beside adapters."""
    return adapt.also if isinstance(adapt, LoRA) else learns_beside(adapt)


def whole_model(adapt) -> bool:
    """Whether every parameter learns."""
    return isinstance(adapt, Full) and adapt.targets == "model"
