"""The main job on a text that needs no download: what learns, what remembers, what each gains and costs."""

from __future__ import annotations

import sys
from pathlib import Path

from dynadapt.experiments.config import EvalConfig

TOKENS = 12289                               # 24 segments of 512 scored tokens and the first token, which is not scored
SEGMENT = 512
TEXT = "builtin:python-reference"

VARIANTS = {                                 # name -> (title, settings)
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


def demo_cells(tokens: int, segment: int, **base) -> list:
    from dynadapt.experiments.sweep import Cell
    cells = []
    for name, (_, settings) in VARIANTS.items():
        sizes = {key: settings[key] // SEGMENT * segment for key in ("segment", "memory", "context") if key in settings}
        cells.append(Cell(name, EvalConfig(**{"text": (TEXT,), "tokens": tokens, "segment": segment, **base, **settings, **sizes})))
    return cells


def run_demo(out: str, tokens: int = TOKENS, segment: int = SEGMENT, **base) -> int:
    """Runs the variants (finished ones are kept), prints the table, writes results.json and loss_against_flops.png."""
    from rich.console import Console

    from dynadapt.experiments.plot import plot_cost
    from dynadapt.experiments.rundir import write_json
    from dynadapt.experiments.sweep import finished_runs, results_table, run_cells
    folder, cells = Path(out), demo_cells(tokens, segment, **base)
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"{cells[0].config.model} on {tokens:,} tokens of {cells[0].config.text[0]}, segments of {segment}; runs in {folder}/")
    try:
        failures = run_cells(cells, folder, extra=("--checkpoint", "0"), console=console)
    except KeyboardInterrupt:
        print("dynadapt: demo stopped; the same command goes on", file=sys.stderr)
        return 130
    runs = finished_runs(cells, folder)
    titles = {name: title for name, (title, _) in VARIANTS.items()}
    if runs:
        write_json(folder / "results.json", {"runs": [{"name": r.name, "title": titles[r.name], "config": r.config, "summary": r.summary} for r in runs]})
        picture = plot_cost(runs, folder / "loss_against_flops.png", titles)
        console.print(results_table(runs, titles))
        console.print(f"{folder / 'results.json'}\n{picture}", markup=False)
    return 1 if failures else 0
