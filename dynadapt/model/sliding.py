"""Sliding windows of a config.json, decided as transformers' modelling code of each family decides them.

A window that no token within the model's context would notice is none. csrc/engine/config.cpp decides the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .errors import ModelError
from .reading import check_size, read_flag

if TYPE_CHECKING:
    from .config import ModelConfig

FULL, SLIDING = ("full_attention", "attention"), "sliding_attention"


def layer_kinds(raw: Mapping, layers: int) -> list[str] | None:
    """`layer_types`, one of FULL or SLIDING for each layer, or None where the file has none."""
    kinds = raw.get("layer_types")
    if kinds is not None and (not isinstance(kinds, list) or len(kinds) != layers or any(kind not in (*FULL, SLIDING) for kind in kinds)):
        raise ModelError(
            f"layer_types = {str(kinds)[:80]} must be a list of num_hidden_layers = {layers}, each of full_attention, sliding_attention"
        )
    return kinds


def read_window(raw: Mapping, absent: int | None) -> int | None:
    """`sliding_window`: None for null, `absent` where there is no such key."""
    value = raw.get("sliding_window", absent)
    return None if value is None else check_size("sliding_window", value)


def read_windows(raw: Mapping, window: int | None, slides: Sequence[bool], max_positions: int) -> tuple[int | None, ...]:
    """`ModelConfig.windows` of a model whose sliding layers see `window` tokens: those that `layer_types` says, where the file has
    it, else those that `slides` says of each layer."""
    if (kinds := layer_kinds(raw, len(slides))) is not None:
        slides = [kind == SLIDING for kind in kinds]
    if not any(slides):
        return ()
    _check_there(window)
    return slid(window, slides) if window < max_positions else ()


def windows_by_kind(raw: Mapping, window: int | None, slides: Sequence[bool], family: str) -> tuple[int | None, ...]:
    """As `read_windows`, of a family whose layers with a window have rotations of their own: a window is one, however long it is."""
    if (kinds := layer_kinds(raw, len(slides))) is not None:
        if FULL[1] in kinds:
            raise ModelError(f"layer_types = {str(kinds)[:80]} is not supported for {family}; accepted: {FULL[0]}, {SLIDING}")
        slides = [kind == SLIDING for kind in kinds]
    if not any(slides):
        return ()
    if window is None:
        raise ModelError(f"sliding_window = None with {SLIDING} in layer_types is not supported; accepted: at least 2 tokens")
    return slid(window, slides)


def slid(window: int, slides: Sequence[bool]) -> tuple[int | None, ...]:
    """A window of so many tokens in the layers that slide, none in the others."""
    if window < 2:
        raise ModelError(f"sliding_window = {window} is not supported; accepted: null, or at least 2 tokens")
    return tuple(window if layer else None for layer in slides)


def _check_there(window):
    if window is None:
        raise ModelError(
            f"layer_types has {SLIDING} and there is no sliding_window (use_sliding_window false, or null): accepted: "
            f"full_attention in every layer"
        )


def refuse_sliding(raw: Mapping, window: int | None, layers: int, max_positions: int) -> None:
    """Refuse a window below `max_positions` of a model whose own attention does not slide, but the cache that transformers gives it."""
    if SLIDING in (layer_kinds(raw, layers) or ()):
        _check_there(window)
    if window is not None and window < max_positions:
        raise ModelError(
            f"sliding-window attention (sliding_window = {window}, context {max_positions}) is not "
            f"supported; accepted: full attention in every layer"
        )


def read_qwen_windows(raw: Mapping, layers: int, max_positions: int) -> tuple[int | None, ...]:
    """Qwen: without `use_sliding_window` there is no window; with it, layers from `max_window_layers` on slide unless
    `layer_types` says which do."""
    window = read_window(raw, 4096)
    if not read_flag(raw, "use_sliding_window", False):
        window = None
    first = raw.get("max_window_layers", 28)
    if isinstance(first, bool) or not isinstance(first, int):
        raise ModelError(f"max_window_layers = {first!r} must be a whole number")
    return read_windows(raw, window, [window is not None and i >= first for i in range(layers)], max_positions)


def windows_to_hf(config: ModelConfig, absent: int | None = None) -> dict:
    """`sliding_window`, or `absent` where no layer has one, and `layer_types`. ModelError for layers with several windows."""
    sizes = {config.window(i) for i in range(config.layers)} - {None}
    if len(sizes) > 1:
        raise ModelError(f"windows of {sorted(sizes)} tokens have no Hugging Face form; accepted: one number in all layers that have one")
    kinds = [FULL[0] if config.window(i) is None else SLIDING for i in range(config.layers)]
    return {"sliding_window": min(sizes, default=absent), "layer_types": kinds}


def qwen_windows_to_hf(config: ModelConfig) -> dict:
    """What Qwen's files say of windows: nothing where there are none."""
    return windows_to_hf(config) | {"use_sliding_window": True} if config.windows else {}
