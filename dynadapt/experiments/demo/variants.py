"""The ten ways of reading a text that the demo compares, which of them matter most, and what each costs."""

from __future__ import annotations

from dynadapt.experiments.config import EvalConfig

TOKENS = 12289  # 24 segments of 512 scored tokens and the first token, which is not scored
SEGMENT = 512
TEXT = "builtin:python-reference"

VARIANTS = {  # name -> (title, settings), in the order of the table
    "static": ("static", {"adapt": "none"}),
    "static-long": ("static, 4x windows", {"adapt": "none", "segment": 4 * SEGMENT}),
    "static-overlap": ("static, overlap", {"adapt": "none", "context": SEGMENT}),
    "static-memory": ("static, memory", {"adapt": "none", "memory": SEGMENT}),
    "lora": ("LoRA", {"adapt": "lora"}),
    "lora-memory": ("LoRA, memory", {"adapt": "lora", "memory": SEGMENT}),
    "rows": ("10% of rows", {"adapt": "rows"}),
    "rows-memory": ("10% of rows, memory", {"adapt": "rows", "memory": SEGMENT}),
    "full": ("full", {"adapt": "full"}),
    "full-memory": ("full, memory", {"adapt": "full", "memory": SEGMENT}),
}
TITLES = {name: title for name, (title, _) in VARIANTS.items()}
COMPARED = ("static-memory", "lora-memory")  # the page at the end holds the second against the first
# In the order in which they run, so that what is left out for want of time is what matters least. The first four are never left out.
BY_WEIGHT = (
    "static",
    "static-memory",
    "lora-memory",
    "lora",
    "static-long",
    "static-overlap",
    "rows-memory",
    "full-memory",
    "rows",
    "full",
)
CORE = 4
# Seconds a token, in those of "static" for what does not learn and of "lora" for what does (tokens_per_second in
# benchmarks/results/demo.json). Which dtype and instruction set matters little: both are all products.
COST = {
    "static": 1.0,
    "static-long": 1.3,
    "static-overlap": 2.0,
    "static-memory": 1.2,
    "lora": 1.0,
    "lora-memory": 1.2,
    "rows": 1.1,
    "rows-memory": 1.2,
    "full": 1.5,
    "full-memory": 1.8,
}


def demo_cells(names, tokens: int, segment: int, **base) -> list:
    """The cells of these variants; sizes given in segments of 512 go with `segment`. What is not in `base` is the default."""
    from dynadapt.experiments.sweep import Cell

    cells = []
    for name in names:
        settings = VARIANTS[name][1]
        sizes = {key: settings[key] // SEGMENT * segment for key in ("segment", "memory", "context") if key in settings}
        cells.append(
            Cell(name, EvalConfig(**{"text": (TEXT,), "tokens": tokens, "segment": segment, "memory": 0, **base, **settings, **sizes}))
        )
    return cells
