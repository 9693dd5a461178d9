"""FLOPs against loss: the grid behind claims 1 to 7 of "Revisiting Dynamic Evaluation" (arXiv 2403.01518), and one report.

    dynadapt corpus build --out corpus
    python benchmarks/flops_vs_loss.py corpus --small --out runs/flops     # about 20 minutes on two cores
    python benchmarks/flops_vs_loss.py corpus --full --device cuda --out runs/flops-full

Static and online; windows of 256 to 4,096; memory against overlap; an update every 1, 2, 4, 8 segments, from one of them or from all; LoRA ranks, densities
of rows, full; before and after fine-tuning on the domain's training text; on the six domains whose texts chose no default, and static against LoRA on all
of them. Stopped and started again it goes on. --out gets results.json, report.md and claim-*.png, a run directory a cell under cells/.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from flops.cells import SHIFT, Cell, main_cells  # noqa: E402
from flops.claims import all_claims  # noqa: E402
from flops.evidence import Scored, masked_per_token, read_scored  # noqa: E402
from flops.figures import draw_all  # noqa: E402
from flops.report import markdown  # noqa: E402

from benchmarks.script import corpus_facts, domains_of, going_on, parser_of, text_once, write_results  # noqa: E402
from dynadapt.experiments.config import EvalConfig  # noqa: E402
from dynadapt.experiments.corpus_read import read_documents  # noqa: E402
from dynadapt.experiments.diagnose.models import learned_engine  # noqa: E402
from dynadapt.experiments.dyneval import RunOptions, build_engine, run  # noqa: E402
from dynadapt.runs.progress import Lines  # noqa: E402

MAIN = ("cpp-headers", "debian-handbook", "man-english", "man-french", "man-german", "man-japanese")


@dataclass(frozen=True)
class Grid:
    """tokens: read of each text, the first one unscored. tune_tokens: learned from the domain's training text before the tuned cells."""

    tokens: int
    tune_tokens: int
    cells: tuple[Cell, ...]


GRIDS = {
    "small": Grid(4097, 8193, main_cells()),
    "full": Grid(65537, 131073, main_cells(ranks=(1, 4, 64, 256), densities=(0.005, 0.02, 0.1, 0.5))),
}


def joined(path: Path, out: Path) -> Path:
    """The documents of a corpus file one after the other, as one text."""
    return text_once(out, "\n\n".join(text.strip("\n") for _, text in read_documents(path)) + "\n", path)


class Runner:
    """Runs cells in this process, with one loaded model; finished ones are read from their directories."""

    def __init__(self, arguments, grid: Grid, model):
        self.arguments, self.grid, self.model = arguments, grid, model
        self.base = {"model": arguments.model, "device": arguments.device, "dtype": arguments.dtype, "memory": 0}
        self.done, self.total = 0, 0

    def text(self, domain: str, part: str) -> Path:
        return joined(self.arguments.corpus / domain / f"{part}.jsonl", self.arguments.out / "texts" / f"{domain}-{part}.txt")

    def cell(self, domain: str, cell: Cell) -> Scored:
        self.done += 1
        print(f"[{self.done}/{self.total}] {domain}: {cell.title}", flush=True)
        config = EvalConfig(text=(str(self.text(domain, "heldout")),), tokens=self.grid.tokens, **{**self.base, **cell.settings})
        make = self._tuned(domain, config) if cell.tuned else None
        folder = self.arguments.out / "cells" / domain / cell.name
        summary = run(config, folder, RunOptions(resume=True, scores=True, checkpoint=0), model=self.model, make_engine=make)
        scored = read_scored(folder, summary)
        return replace(scored, masked=masked_per_token(self.model.config, len(scored.nll), cell.settings))

    def _tuned(self, domain: str, config: EvalConfig):
        """Makes an engine that has learned from the domain's training text, and learns on, or (static cells) only scores."""
        learning = EvalConfig(text=(str(self.text(domain, "train")),), tokens=self.grid.tune_tokens, adapt="lora", **self.base)
        folder = self.arguments.out / "cells" / domain / "tuning"
        run(learning, folder, RunOptions(resume=True), model=self.model, progress=Lines(sys.stdout, every=20))
        frozen = learned_engine(learning, folder)

        def learning_on(model, config):
            engine = build_engine(model, config)
            engine.restore(max((folder / "checkpoint").iterdir(), key=lambda entry: entry.name) / "engine")
            return engine

        return frozen if config.adapt == "none" else learning_on


def main() -> None:
    parser = parser_of(__doc__, "runs/flops")
    parser.add_argument("corpus", type=Path, help="directory that `dynadapt corpus build` made")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--small", dest="size", action="store_const", const="small", default="small", help="4,096 tokens a text (default)")
    size.add_argument("--full", dest="size", action="store_const", const="full", help="65,536 tokens a text, more ranks and densities")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--texts", nargs="+", default=list(MAIN), help=f"domains that get every cell (default: {' '.join(MAIN)})")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="bf16", choices=("bf16", "fp32"))
    parser.add_argument("--tokens", type=int, help="of each text, in place of the grid's")
    arguments = parser.parse_args()
    domains = domains_of(arguments.corpus, arguments.texts)
    grid = GRIDS[arguments.size]
    if arguments.tokens is not None:
        if arguments.tokens < 2:
            raise SystemExit(f"--tokens {arguments.tokens}: give at least 2 (the first token is not scored)")
        grid = Grid(arguments.tokens, grid.tune_tokens, grid.cells)
    with going_on(arguments.out):
        texts, others, tokens = run_grid(arguments, grid, domains)
    write_report(arguments, grid, texts, others, tokens)


def run_grid(arguments, grid: Grid, domains: list[str]) -> tuple[dict, dict, dict]:
    """({text: {cell: Scored}} of every cell, the same of SHIFT for the other domains, {text: token ids})."""
    import dynadapt

    model = dynadapt.load(arguments.model)
    runner = Runner(arguments, grid, model)
    others = [name for name in domains if name not in arguments.texts]
    runner.total = len(arguments.texts) * len(grid.cells) + len(others) * len(SHIFT)
    texts = {name: {cell.name: runner.cell(name, cell) for cell in grid.cells} for name in arguments.texts}
    more = {name: {cell.name: runner.cell(name, cell) for cell in SHIFT} for name in others}
    tokens = {name: np.array(model.tokenizer.encode(runner.text(name, "heldout").read_text("utf-8"))[: grid.tokens]) for name in texts}
    return texts, more, tokens


def write_report(arguments, grid: Grid, texts: dict, others: dict, tokens: dict) -> None:
    known = {cell.name: cell for cell in (*grid.cells, *SHIFT)}
    cells = [
        {
            "text": text,
            "name": name,
            "title": known[name].title,
            "online": known[name].online,
            "tuned": known[name].tuned,
            "settings": known[name].settings,
            "nll": s.mean,
            "bits_per_byte": s.bits_per_byte,
            "flops_per_token": s.cost,  # attention's as causal
            "flops": s.flops,  # by phase, over the whole rectangle, as the ledger counts
            "learned_parameters": s.learned_parameters,
            "tokens": len(s.nll),
        }
        for text, found in {**texts, **others}.items()
        for name, s in found.items()
    ]
    settings = {
        "model": arguments.model,
        "dtype": arguments.dtype,
        "tokens": grid.tokens,
        "tune_tokens": grid.tune_tokens,
        "texts": list(texts),
        "domains": sorted({**texts, **others}),
        "command": f"python benchmarks/flops_vs_loss.py corpus --{arguments.size}",
    }
    results = {
        "settings": settings,
        "corpus": corpus_facts(arguments.corpus),
        "claims": all_claims(texts, {**texts, **others}, tokens),
        "cells": cells,
    }
    draw_all(results, arguments.out)
    write_results(arguments.out, results, markdown(results, "."), "report.md")
    for number, found in results["claims"].items():
        print(f"{number:3} {found['verdict']:12} {found['claim'].split(': ')[0]}")
    print(arguments.out / "report.md")


if __name__ == "__main__":
    main()
