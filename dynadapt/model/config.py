"""What a decoder is: its sizes and the few choices in which the supported families differ."""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, field, fields, replace

from .delta_layers import DeltaLayers
from .errors import ModelError
from .family import FAMILIES
from .reading import BAND_RANGE, FACTOR_RANGE, SCALE_RANGE, THETA_RANGE, check_choice, check_number, check_size

NORMS = ("rms", "layer")
ACTIVATIONS = ("swiglu", "geglu_tanh", "gelu_tanh", "gelu")
NORM_PLACES = ("before", "both", "after")
NORM_SPANS = ("head", "all")
ROPE_TYPES = ("linear", "dynamic", "yarn", "longrope", "llama3", "factors")
MAX_LAYERS = 10_000  # a larger number can only be a damaged file


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and choices of a decoder-only transformer.

    `rope_theta` is None for learned positions (gpt2). `rope_scaling` is None or one of
    `{"rope_type": "linear", "factor"}`, `{"rope_type": "dynamic", "factor"}`, `{"rope_type": "yarn", "factor", "attention_factor",
    "beta_fast", "beta_slow", "original_max_position_embeddings", "truncate"}`, `{"rope_type": "longrope", "short_factor",
    "long_factor" (rotated_dims/2 numbers each), "attention_factor", "original_max_position_embeddings"}`, `{"rope_type": "llama3",
    "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}`, `{"rope_type": "factors", "factors":
    (rotated_dims/2 numbers)}`, the last being the frequency divisors that GGUF files carry; `dynadapt.model.rope` says what each does.
    `max_positions` is the context the model was made for, in tokens.

    `norm_place`: norms stand before attention and feed-forward, on both sides of them ("both": their output is normalised before it
    is added), or behind them alone ("after"). `qk_norm_span`: where queries and keys are normalised (`qk_norm`), each "head" by
    itself, or "all" query heads as one and all key heads. `embedding_scale` multiplies the token embeddings once they are looked up,
    `attention_scale` the scores (None: head_dim^-0.5), `residual_scale` what attention and feed-forward add; logits are divided by
    `logits_scaling`. `windows`: of each layer, how many tokens a token attends to, itself included, or None for all; () where no layer
    has a window. `window_rope_theta`: the base of the rotations of the layers with a window, which are not
    scaled then (None: theirs are the same as all others'). `rotated`: of each layer, whether its queries and keys are rotated; () where
    all are. `rotary_dim`: how many dimensions of a head are rotated (None: all). `parallel_residual`: attention and feed-forward read the
    same residual, and both are added to it. `attention_gate`: what attention gives is multiplied with the sigmoid of a gate, which is as
    wide and projected with the queries. `delta`: which layers have the gated delta rule in attention's place, and their sizes; None where
    none has. `attention_softcap`, `logits_softcap`: scores, logits x are c tanh(x / c) of it (None: as they are).
    A value that does not fit raises ModelError naming the field.
    """

    family: str
    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_size: int
    norm: str
    norm_eps: float
    activation: str
    rope_theta: float | None
    rope_scaling: dict | None = field(hash=False)
    max_positions: int
    tied_head: bool
    attention_bias: bool
    mlp_bias: bool
    qk_norm: bool
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    norm_place: str = "before"
    embedding_scale: float = 1.0
    attention_scale: float | None = None
    windows: tuple[int | None, ...] = ()
    window_rope_theta: float | None = None
    rotated: tuple[bool, ...] = ()
    qk_norm_span: str = "head"
    residual_scale: float = 1.0
    logits_scaling: float = 1.0
    rotary_dim: int | None = None
    parallel_residual: bool = False
    attention_gate: bool = False
    delta: DeltaLayers | None = None
    attention_softcap: float | None = None
    logits_softcap: float | None = None

    def __post_init__(self):
        check_choice("family", self.family, FAMILIES)
        check_choice("norm", self.norm, NORMS)
        check_choice("activation", self.activation, ACTIVATIONS)
        check_choice("norm_place", self.norm_place, NORM_PLACES)
        check_choice("qk_norm_span", self.qk_norm_span, NORM_SPANS)
        for name in ("vocab_size", "hidden_size", "layers", "heads", "kv_heads", "head_dim", "ffn_size", "max_positions"):
            check_size(name, getattr(self, name))
        check_size("layers", self.layers, high=MAX_LAYERS)
        check_number("norm_eps", self.norm_eps, low=0.0, high=1.0)
        if self.heads % self.kv_heads:
            raise ModelError(f"kv_heads = {self.kv_heads} does not divide heads = {self.heads}")
        if FAMILIES[self.family].equal_heads:
            self._check_equal_heads()
        if FAMILIES[self.family].learned_positions:
            if self.rope_theta is not None or self.rope_scaling is not None:
                raise ModelError(f"family {self.family} has learned positions: rope_theta and rope_scaling must be None")
            self._check_rotary_dim()
        else:
            self._check_rotary()
        self._check_scales()
        self._check_windows()
        if self.parallel_residual and self.norm_place != "before":
            raise ModelError(f"parallel_residual with norm_place = {self.norm_place!r} is not supported; accepted: before")
        self._check_mixers()

    @property
    def rotated_dims(self) -> int:
        """How many dimensions of a head are rotated."""
        return self.head_dim if self.rotary_dim is None else self.rotary_dim

    @property
    def scores_scale(self) -> float:
        """What the products of queries and keys are multiplied with."""
        return self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale

    @property
    def stream_scale(self) -> float:
        """What token embeddings are multiplied with where the residual is kept in units of `residual_scale`: then attention and
        feed-forward add what they give as it is, and norms, which do not see the units, take `stream_eps`."""
        return self.embedding_scale / self.residual_scale

    @property
    def stream_eps(self) -> float:
        """`norm_eps` of norms of the residual, in the units of `stream_scale`."""
        return self.norm_eps / (self.residual_scale * self.residual_scale)

    def is_delta(self, layer: int) -> bool:
        """Whether a layer has the gated delta rule in attention's place."""
        return self.delta is not None and self.delta.layers[layer]

    @property
    def attention_layers(self) -> list[int]:
        """The layers that have attention."""
        return [i for i in range(self.layers) if not self.is_delta(i)]

    @property
    def delta_layers(self) -> list[int]:
        """The layers that have the gated delta rule."""
        return [i for i in range(self.layers) if self.is_delta(i)]

    def window(self, layer: int) -> int | None:
        """How many tokens a token of `layer` attends to, itself included; None: all before it."""
        return self.windows[layer] if self.windows else None

    @property
    def normed_widths(self) -> tuple[int, int]:
        """Elements of the weights that queries and keys are normalised with."""
        return (self.head_dim,) * 2 if self.qk_norm_span == "head" else (self.heads * self.head_dim, self.kv_heads * self.head_dim)

    def rotates(self, layer: int) -> bool:
        """Whether queries and keys of `layer` are rotated."""
        return self.rope_theta is not None and (not self.rotated or self.rotated[layer])

    def _check_scales(self):
        for name in ("embedding_scale", "residual_scale", "logits_scaling"):
            check_number(name, getattr(self, name), *SCALE_RANGE)
        if self.attention_scale is not None:
            check_number("attention_scale", self.attention_scale, *SCALE_RANGE)
        for name in ("attention_softcap", "logits_softcap"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), *SCALE_RANGE)
        for name in ("embedding_scale", "residual_scale"):
            if getattr(self, name) != 1.0 and FAMILIES[self.family].learned_positions:
                raise ModelError(f"{name} = {getattr(self, name)} with learned positions is not supported; accepted: 1.0")
        if self.residual_scale != 1.0 and self.norm_place != "before":
            raise ModelError(
                f"residual_scale = {self.residual_scale} with norm_place = {self.norm_place!r} is not supported; accepted: 1.0"
            )

    def _check_mixers(self):
        gated = FAMILIES[self.family].delta_groups is not None
        if (self.delta is not None or self.attention_gate) and not gated:
            raise ModelError(f"delta and attention_gate in family {self.family} are not supported; accepted: None and False")
        if self.delta is not None and len(self.delta.layers) != self.layers:
            raise ModelError(f"delta.layers has {len(self.delta.layers)} entries, accepted is one for each of layers = {self.layers}")

    def _check_windows(self):
        if self.windows and len(self.windows) != self.layers:
            raise ModelError(f"windows has {len(self.windows)} entries, accepted is () or one for each of layers = {self.layers}")
        for window in self.windows:
            if window is not None and check_size("windows", window) < 2:
                raise ModelError("windows has 1, accepted is None or at least 2: a token that attends to itself alone is not supported")
        if self.window_rope_theta is not None:
            check_number("window_rope_theta", self.window_rope_theta, *THETA_RANGE)
        if self.rotated and (len(self.rotated) != self.layers or self.rope_theta is None or all(self.rotated)):
            raise ModelError(f"rotated = {self.rotated}: accepted is (), or one for each of layers = {self.layers}, some of them False")

    def _check_equal_heads(self):
        if self.heads * self.head_dim != self.hidden_size or self.kv_heads != self.heads:
            raise ModelError(
                f"family {self.family} needs heads * head_dim = hidden_size and kv_heads = heads, got "
                f"{self.heads} * {self.head_dim}, hidden_size {self.hidden_size}, kv_heads {self.kv_heads}"
            )

    def _check_rotary(self):
        check_number("rope_theta", self.rope_theta, *THETA_RANGE)
        if self.head_dim % 2:
            raise ModelError(f"head_dim = {self.head_dim} is odd: rotary positions need an even one")
        self._check_rotary_dim()
        check_rope_scaling(self.rope_scaling, self.rotated_dims)
        if self.rope_theta == 1.0 and self.rope_scaling is not None and self.rope_scaling["rope_type"] == "yarn":
            raise ModelError("rope_theta = 1.0 with rope_scaling of type yarn is not supported: all pairs turn alike")

    def _check_rotary_dim(self):
        if self.rotary_dim is None:
            return
        even = check_size("rotary_dim", self.rotary_dim) % 2 == 0
        if not even or self.rotary_dim >= self.head_dim or not FAMILIES[self.family].partial_rotary:
            raise ModelError(
                f"rotary_dim = {self.rotary_dim} with head_dim = {self.head_dim} in family {self.family} is not supported; accepted: None, "
                f"or an even number below head_dim in {', '.join(_partial())}"
            )

    def told(self) -> dict:
        """The fields that say something: those with a default are left out where they have it, so that a config reads the same as
        before such a field was there."""
        always = {f.name for f in fields(self) if f.default is MISSING or f.name in ("bos_token_id", "eos_token_id")}
        default = {f.name: f.default for f in fields(self)}
        return {name: value for name, value in asdict(self).items() if name in always or value != default[name]}


def _partial() -> list[str]:
    return [name for name, family in FAMILIES.items() if family.partial_rotary]


def check_rope_scaling(scaling: dict | None, head_dim: int) -> None:
    """Raise ModelError unless `scaling` is None or one of the forms in ModelConfig's docstring; `head_dim`: as far as it is rotated."""
    if scaling is None:
        return
    kind = scaling.get("rope_type")
    check_choice("rope_scaling.rope_type", kind, ROPE_TYPES)
    number = lambda key, bounds: check_number(f"rope_scaling.{key}", scaling.get(key), *bounds)  # noqa: E731
    for key in {"factors": ("factors",), "longrope": ("short_factor", "long_factor")}.get(kind, ()):
        factors = scaling.get(key, ())
        if len(factors) != head_dim // 2:
            raise ModelError(f"rope_scaling.{key} has {len(factors)} numbers; {head_dim} rotated dimensions of a head need {head_dim // 2}")
        for factor in factors:
            check_number(f"rope_scaling.{key}", factor, *BAND_RANGE)
    if kind in ("linear", "dynamic", "yarn", "llama3"):
        number("factor", FACTOR_RANGE)
    if kind in ("yarn", "longrope"):
        number("attention_factor", SCALE_RANGE)
    if kind in ("yarn", "longrope", "llama3"):
        check_size("rope_scaling.original_max_position_embeddings", scaling.get("original_max_position_embeddings"))
    if kind == "dynamic" and head_dim == 2:
        raise ModelError("rope_scaling of type dynamic with head_dim = 2 is not supported; accepted: at least 4")
    if kind == "yarn":
        number("beta_fast", BAND_RANGE), number("beta_slow", BAND_RANGE)
        if not isinstance(scaling.get("truncate"), bool):
            raise ModelError(f"rope_scaling.truncate = {scaling.get('truncate')!r} must be true or false")
    if kind == "llama3":
        low, high = number("low_freq_factor", BAND_RANGE), number("high_freq_factor", BAND_RANGE)
        if high <= low:
            raise ModelError(f"rope_scaling.high_freq_factor = {high} must be above low_freq_factor = {low}")


def tiny_config(family: str, **changes) -> ModelConfig:
    """A small config of `family` with awkward sizes for tests (none a multiple of 32); `changes` replace fields. What is said of each
    layer is kept for the first ones, and more follow in their order."""
    check_choice("family", family, FAMILIES)
    tiny = ModelConfig(family=family, **FAMILIES[family].tiny)
    layers = changes.get("layers", tiny.layers)
    windows, rotated = ((of * layers)[:layers] for of in (tiny.windows, tiny.rotated))
    delta = tiny.delta and replace(tiny.delta, layers=(tiny.delta.layers * layers)[:layers])
    return replace(tiny, **{"windows": windows, "rotated": () if all(rotated) else rotated, "delta": delta, **changes})
