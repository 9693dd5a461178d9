"""Recipes in the words of a run: what `--preset NAME` gives where a command line says nothing else."""

from __future__ import annotations

from typing import Any

WINDOW, SEGMENT = 2048, 48

# engine/presets.py has the same recipe for an engine, and its source. Its 64 documents at once are left to --streams: on a CPU they take
# the memory of 64 adapters of rank 80 and their moments.
PRESETS: dict[str, dict[str, Any]] = {
    "score-first": {
        "adapt": "lora",
        "rank": 80,
        "alpha": 144.0,
        "targets": "q,k,v,o,gate,up,down,head",
        "keep_a": True,
        "reset": "document",
        "optimizer": "adamw",
        "lr": 1e-4,
        "betas": "0,0.99",
        "weight_decay": 0.5,
        "segment": SEGMENT,
        "memory": WINDOW - SEGMENT,
        "sinks": 0,
        "levels": "fast,slow",
    }
}


def filled(name: str | None, given: dict[str, Any]) -> dict[str, Any]:
    """The settings of preset ``name`` (None: of none) below those that were given. A context that is given takes the place of its memory,
    and rates that of its one learning rate."""
    recipe = dict(PRESETS[name]) if name else {}
    for other, left in (("context", ("memory", "sinks")), ("rates", ("lr",))):
        if given.get(other):
            for setting in left:
                recipe.pop(setting, None)
    return {**recipe, **given}
