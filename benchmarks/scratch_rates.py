"""The learning rate of models from scratch (`dynadapt reweight train --scratch`), and how far held-out rows of a domain lie apart.

    dynadapt corpus build --out corpus
    python benchmarks/scratch_rates.py corpus --out runs/scratch-rates     # stopped and started again it goes on; a minute or two a rate

A 4x128 llama with a vocabulary of 4,096 made of the training text, 300 steps of 8 rows of 128 tokens, stratified over the corpus' domains, AdamW,
10 steps of warm-up: held-out loss at the end by rate, one seed. --rows, --steps, --warmup, --share and --seed make it another. Of each domain 64 held-out rows are scored, before training, ten times on the way and at the
end, and their standard deviations are what `dynadapt/experiments/reweight/heldout_power.py` computes with: of the rows' losses, which says how
exactly a domain's loss is known, and of the rows' falls over one tenth and over the whole, which says it of velocity.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from benchmarks.printed import print_page  # noqa: E402
from benchmarks.reweighting_data import small_vocabulary, subset  # noqa: E402
from benchmarks.script import corpus_facts, measuring, parser_of, refuse_below, write_results  # noqa: E402
from dynadapt.experiments.reweight import ReweightConfig, ReweightOptions, run  # noqa: E402

RATES = (7e-4, 1e-3, 1.5e-3, 2e-3, 3e-3, 5e-3, 1e-2)
STEPS, ROWS, WARMUP, SHARE, EVALUATIONS, VOCABULARY = 300, 8, 10, 0.1, 10, 4096


def config_of(rate: float, domains: dict[str, str], model: str, steps: int, rows: int, warmup: int, seed: int) -> ReweightConfig:
    return ReweightConfig(
        model=model, scratch="4x128", domains=domains, policy="repeat", dtype="bf16", adapt="full", targets="model", rows=rows, segment=128,
        steps=steps, evaluate=max(1, steps // EVALUATIONS), lr=rate, warmup=min(warmup, steps), heldout_rows=64, seed=seed,
    )  # fmt: skip


def spreads(folder: Path) -> dict[str, dict]:
    """By domain: rows, and the standard deviations between them, in nats per token, of the last loss, the last tenth's fall and the whole fall."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [line["heldout_rows"] for line in lines if line["kind"] == "evaluation"]
    found = {}
    for name in rows[0]:
        first, before, last = (np.array(rows[at][name]) for at in (0, -2, -1))
        between = {"loss": last, "fall_of_last_tenth": before - last, "fall": first - last}
        found[name] = {"rows": len(last), **{what: float(values.std(ddof=1)) for what, values in between.items()}}
    return found


def page(results: dict) -> str:
    lines = ["| rate | held-out loss |", "|---|---|"] + [f"| {row['rate']:g} | {row['mean']:.3f} |" for row in results["rates"]]
    lines += ["", "| domain | rows | spread of losses | of the last tenth's falls | of all falls |", "|---|---|---|---|---|"]
    for name, row in results["spreads"].items():
        lines.append(f"| {name} | {row['rows']} | {row['loss']:.3f} | {row['fall_of_last_tenth']:.3f} | {row['fall']:.3f} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = parser_of(__doc__, "runs/scratch-rates")
    parser.add_argument("corpus", type=Path, help="what `dynadapt corpus build` made")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="learning rates, a run each (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=STEPS, help="of each run (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=ROWS, help="of a step, 128 tokens each (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=WARMUP, help="steps over which the rate rises (default: %(default)s)")
    parser.add_argument("--share", type=float, default=SHARE, help="of the corpus' training text (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of initial weights and drawn rows (default: %(default)s)")
    given = parser.parse_args()
    refuse_below(parser, given, 1, "steps", "rows")
    refuse_below(parser, given, 0, "warmup", "seed")
    for rate in given.rates:
        if not 0 < rate < math.inf:
            parser.error(f"--rates {rate:g}: give numbers above 0")
    if not 0 < given.share <= 1:
        parser.error(f"--share {given.share:g}: give a number above 0, up to 1")
    with measuring("scratch_rates", given, "steps", "rows", "warmup", "share", "seed"):
        results = measure(given)
        write_results(given.out, results, page(results))
    print_page(page(results))
    return 0


def measure(given) -> dict:
    print(f"texts and a vocabulary of {VOCABULARY:,} of {given.corpus}", flush=True)
    domains = subset(given.corpus, given.out / "texts", given.share)
    model = small_vocabulary(domains, given.out / "vocabulary", VOCABULARY)
    rows = []
    for rate in given.rates:
        config = config_of(rate, domains, model, given.steps, given.rows, given.warmup, given.seed)
        summary = run(config, given.out / f"rate-{rate:g}", ReweightOptions(resume=True, checkpoint=100))
        largest = {
            what: max(row[what] for row in spreads(given.out / f"rate-{rate:g}").values())
            for what in ("loss", "fall_of_last_tenth", "fall")
        }
        rows.append(
            {"rate": rate, "mean": summary["mean"], "heldout": summary["heldout"], "tokens": summary["tokens"], "largest_spreads": largest}
        )
        print(f"{rate:g}: {summary['mean']:.4f}", flush=True)
    best = min(rows, key=lambda row: row["mean"])["rate"]
    settings = {
        "steps": given.steps, "rows": given.rows, "warmup": given.warmup, "segment": 128, "scratch": "4x128", "seed": given.seed,
        "vocabulary": VOCABULARY, "share": given.share,
    }  # fmt: skip
    return {
        "settings": settings,
        "corpus": corpus_facts(given.corpus),
        "rates": rows,
        "best": best,
        "spreads": spreads(given.out / f"rate-{best:g}"),
    }


if __name__ == "__main__":
    sys.exit(main())
