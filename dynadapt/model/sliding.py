"""Sliding windows of a config.json, decided as transformers' modelling code of each family decides them.

Only Gemma's are computed: elsewhere a window that some token within the model's context would notice is refused.
csrc/engine/config.cpp decides the same.
"""

from __future__ import annotations

from collections.abc import Mapping

from .errors import ModelError
from .reading import check_size, read_flag

FULL, SLIDING = ("full_attention", "attention"), "sliding_attention"


def layer_kinds(raw: Mapping, layers: int) -> list[str] | None:
    """`layer_types`, one of FULL or SLIDING for each layer, or None where the file has none."""
    kinds = raw.get("layer_types")
    if kinds is not None and (not isinstance(kinds, list) or len(kinds) != layers or any(kind not in (*FULL, SLIDING) for kind in kinds)):
        raise ModelError(
            f"layer_types = {str(kinds)[:80]} must be a list of num_hidden_layers = {layers}, each of full_attention, sliding_attention"
        )
    return kinds


def refuse_sliding(raw: Mapping, window: int | None, slides: bool, layers: int, max_positions: int) -> None:
    """Refuse a `window` below `max_positions` if any layer `slides`: as `layer_types` says, where it is given."""
    slides = slides or SLIDING in (layer_kinds(raw, layers) or ())
    if slides and window is None:
        raise ModelError(
            f"layer_types has {SLIDING} and there is no sliding_window (use_sliding_window false, or null): accepted: "
            f"full_attention in every layer"
        )
    if slides and window < max_positions:
        raise ModelError(
            f"sliding-window attention (sliding_window = {window}, context {max_positions}) is not "
            f"supported; accepted: full attention in every layer"
        )


def read_window(raw: Mapping, absent: int | None) -> int | None:
    """`sliding_window`: None for null, `absent` where there is no such key."""
    value = raw.get("sliding_window", absent)
    return None if value is None else check_size("sliding_window", value)


def refuse_qwen_sliding(raw: Mapping, layers: int, max_positions: int) -> None:
    """Qwen: without `use_sliding_window` there is no window; with it, layers from `max_window_layers` on slide unless
    `layer_types` says which do."""
    window = read_window(raw, 4096)
    if not read_flag(raw, "use_sliding_window", False):
        window = None
    first = raw.get("max_window_layers", 28)
    if isinstance(first, bool) or not isinstance(first, int):
        raise ModelError(f"max_window_layers = {first!r} must be a whole number")
    slides = window is not None and first < layers and raw.get("layer_types") is None
    refuse_sliding(raw, window, slides, layers, max_positions)
