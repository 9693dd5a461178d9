"""What learns: LoRA adapters, chosen output rows, or whole weights.

``targets`` names the linear groups of each layer: ``attn`` (q, k, v, o), ``mlp`` (gate, up, down) or ``all``; with ``Full``
also ``model``: every parameter there is. ``layers`` is a ``range`` of layers, None for every one.
"""

from __future__ import annotations

from dataclasses import dataclass

from dynadapt.common.checks import choice, integer, keep, number, wrong

GROUPS = ("qkv", "o", "mlp_in", "down")  # in the order of the forward pass
LINEAR = {"all": GROUPS, "attn": ("qkv", "o"), "mlp": ("mlp_in", "down")}
TARGETS = {**LINEAR, "model": GROUPS}


def _check_common(targets: str, layers: range | None, known=LINEAR) -> None:
    choice("targets", targets, known, " (attn: q, k, v and o; mlp: gate, up and down)")
    if layers is not None and (not isinstance(layers, range) or len(layers) == 0 or layers.step != 1 or layers.start < 0):
        raise wrong("layers", layers, "a non-empty range with step 1, e.g. range(5, 20), or None for all")


@dataclass(frozen=True)
class LoRA:
    """A rank-``rank`` adapter on each targeted linear: y = W x + alpha / rank B A x (Hu et al. 2021, eq. 3).

    ``alpha`` None: twice the rank, so that the scale is 2 at every rank; the field then holds that number. A starts uniform in
    +-1/sqrt(in) as PEFT's does, the same for every stream; B starts at zero.
    """

    rank: int = 16
    alpha: float | None = None
    targets: str = "all"
    layers: range | None = None

    def __post_init__(self):
        _check_common(self.targets, self.layers)
        keep(self, rank=integer("rank", self.rank))
        keep(self, alpha=alpha_of(self.rank, self.alpha))

    @property
    def scale(self) -> float:
        return alpha_of(self.rank, self.alpha) / self.rank


@dataclass(frozen=True)
class RowSparse:
    """A fraction ``density`` of each targeted weight's output rows learns; only their gradients are computed.

    select="gradient": every ``every`` updates the rows with the largest estimated gradient norm
    (ops.weight_gradient.row_scores) are chosen anew, and their optimizer state starts from zero. With RMS they are chosen once, on the statistics text.
    select="fixed": evenly spaced rows, chosen once. Rows given up keep the values they reached.
    """

    density: float = 0.1
    select: str = "gradient"
    every: int = 16
    targets: str = "all"
    layers: range | None = None

    def __post_init__(self):
        _check_common(self.targets, self.layers)
        choice("select", self.select, ("gradient", "fixed"))
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
    """

    targets: str = "all"
    layers: range | None = None

    def __post_init__(self):
        _check_common(self.targets, self.layers, TARGETS)
        if self.targets == "model" and self.layers is not None:
            raise ValueError(f"layers={self.layers!r} with targets='model': every layer learns; expected None")


def alpha_of(rank: int, alpha: float | None) -> float:
    """The alpha that is used: the one given, or twice the rank."""
    if alpha is None:
        return 2.0 * rank
    return float(number("alpha", alpha, "a positive number, or None for twice the rank", lambda x: x > 0))


def whole_model(adapt) -> bool:
    """Whether every parameter learns."""
    return isinstance(adapt, Full) and adapt.targets == "model"


def targeted(adapt, layers: int) -> list[tuple[int, str]]:
    """(layer, group) pairs that learn, in forward order.

    Raises:
        ValueError: when ``adapt.layers`` leaves the model's 0..layers-1.
    """
    if adapt is None:
        return []
    span = adapt.layers if adapt.layers is not None else range(layers)
    if span.stop > layers:
        raise ValueError(f"layers={span.start}:{span.stop}: the model has layers 0:{layers}")
    return [(i, group) for i in span for group in GROUPS if group in TARGETS[adapt.targets]]
