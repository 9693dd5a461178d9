"""The ten ways of reading a text that the demo compares, which of them matter most, and what each costs."""

from __future__ import annotations

from collections.abc import Mapping

from dynadapt.experiments.config import EvalConfig

TOKENS = 12289  # 24 segments of 512 scored tokens and the first token, which is not scored
SEGMENT = 512
TEXT = "builtin:python-reference"

# name -> (title, settings, cost), in the order of the table. The cost is seconds a token, in those of "static" for what does not learn
# and of "lora" for what does (tokens_per_second in benchmarks/results/demo.json). Which dtype and instruction set matters little: both
# are all products.
_ALL = {
    "static": ("static", {"adapt": "none"}, 1.0),
    "static-long": ("static, 4x windows", {"adapt": "none", "segment": 4 * SEGMENT}, 1.3),
    "static-overlap": ("static, overlap", {"adapt": "none", "context": SEGMENT}, 2.0),
    "static-memory": ("static, memory", {"adapt": "none", "memory": SEGMENT}, 1.2),
    "lora": ("LoRA", {"adapt": "lora"}, 1.0),
    "lora-memory": ("LoRA, memory", {"adapt": "lora", "memory": SEGMENT}, 1.2),
    "rows": ("10% of rows", {"adapt": "rows"}, 1.1),
    "rows-memory": ("10% of rows, memory", {"adapt": "rows", "memory": SEGMENT}, 1.2),
    "full": ("full", {"adapt": "full"}, 1.5),
    "full-memory": ("full, memory", {"adapt": "full", "memory": SEGMENT}, 1.8),
}
VARIANTS = {name: (title, settings) for name, (title, settings, _) in _ALL.items()}
TITLES = {name: title for name, (title, _, _) in _ALL.items()}
COST = {name: cost for name, (_, _, cost) in _ALL.items()}
COMPARED = ("static-memory", "lora-memory")  # the page at the end holds the second against the first
# In the order in which they run, so that what is left out for want of time is what matters least. The first four are never left out.
ALWAYS = ("static", "static-memory", "lora-memory", "lora")
CORE = len(ALWAYS)
BY_WEIGHT = (*ALWAYS, "static-long", "static-overlap", "rows-memory", "full-memory", "rows", "full")


def demo_cells(names, tokens: int, segment: int, rates: Mapping[str, float] | None = None, **base) -> list:
    """The cells of these variants; sizes given in segments of 512 go with `segment`. What is not in `base` is the default; `rates`: by what learns, where
    they are other than the usual ones."""
    from dynadapt.experiments.sweep import Cell

    cells = []
    for name in names:
        settings = VARIANTS[name][1]
        sizes = {key: settings[key] // SEGMENT * segment for key in ("segment", "memory", "context") if key in settings}
        config = EvalConfig(**{"text": (TEXT,), "tokens": tokens, "segment": segment, "memory": 0, **base, **settings, **sizes})
        rate = (rates or {}).get(config.adapt)
        cells.append(Cell(name, config if rate is None else config.with_(lr=rate)))
    return cells
