"""Three levels of memory, with and without each: keys and values, a fast adapter of each document, slow weights of all documents.

    dynadapt corpus build --out corpus
    python benchmarks/levels.py corpus --out runs/levels       # stopped and started again it goes on

Of each of six domains one stream of DOCUMENTS documents, the first TOKENS scored tokens of each, one after the other, segments of SEGMENT tokens. The corpus'
other three domains are of authors and projects whose texts served to choose defaults; they choose the two learning rates here and are not judged.

- memory: keys and values of 512 tokens and 4 sinks, of the document; without it a segment sees itself.
- fast: LoRA at its defaults but for the rate, an update after every segment, new at each document.
- slow: SGD with momentum 0.9 on the linear weights, once every EVERY scored tokens, never reset. The published interval is 32,768 tokens: a stream of
  the length here would have no such update, and a stream with as many as here would take a day of this script. What is said holds for EVERY tokens and as
  many updates (eight, of which the last helps nothing that is scored). Sizes were twice as large when rates began to be compared, and made smaller for time
  before a judged text was scored.

Rules, fixed before the runs. The unit is the domain: a difference is the mean over domains of the difference of mean NLLs on the same tokens, with
Student's 95% interval; beside it the least true difference that the rule finds with a probability of 80% (`power.seen`).

- Rates: the best of a grid of each level alone beside memory, by the mean NLL of the three other domains' streams. A best rate at the end of
  its grid is said.
- All three: the best pair is the one with the lowest mean NLL over the domains. Its NLL less that of all three is above MARGIN: confirmed, where all three also
  take at most COST times its FLOPs, all phases of the ledger; below MARGIN, or dearer: refuted. NLL and FLOPs have a verdict each beside it. The best pair is chosen from the
  same numbers, which makes it look better than it is, if anything: it is harder to confirm, not easier.
- A slow update runs the tokens since the last one again, forward and backward through the whole weights. By the ledger's arithmetic that is more than COST of any
  pair without it; where the best pair has the slow level, the FLOPs may pass.
- Beside these, without a verdict: what each level is worth alone, beside each other one, and beside both.
"""

from __future__ import annotations

import hashlib
import itertools
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.printed import print_page  # noqa: E402
from benchmarks.script import (  # noqa: E402
    CONFIRMED,
    OPEN,
    REFUTED,
    TUNED,
    cell,
    corpus_facts,
    corpus_parser_of,
    documents_file,
    domains_of,
    judged,
    judged_domains,
    measuring,
    power_shown,
    shown,
    write_results,
)
from dynadapt.experiments.config import EvalConfig  # noqa: E402

DOCUMENTS, TOKENS, SEGMENT, EVERY = 4, 1025, 128, 512  # of TOKENS the first is not scored
MARGIN, COST = 0.01, 1.15
LEVELS = ("memory", "fast", "slow")
ARMS = tuple(frozenset(levels) for n in range(4) for levels in itertools.combinations(LEVELS, n))
RATES = {"fast": (5e-4, 1e-3, 2e-3), "slow": (1e-3, 4e-3, 1.6e-2)}


def name(levels) -> str:
    """Of an arm: its levels in order, or "none"."""
    return ", ".join(level for level in LEVELS if level in levels) or "none"


def config_of(file: Path, levels, rates: dict[str, float], model: str) -> EvalConfig:
    fast, slow = "fast" in levels, "slow" in levels
    return EvalConfig(
        model=model, text=(str(file),), segment=SEGMENT, memory=512 if "memory" in levels else 0, adapt="lora" if fast else "none",
        **({"lr": rates["fast"], "reset": "document"} if fast else {}),
        **({"levels": "fast,slow" if fast else "slow", "slow_every": EVERY, "slow_lr": rates["slow"]} if slow else {}),
    )  # fmt: skip


def kept(summary: dict) -> dict:
    """What is compared: mean NLL of the stream and of each document, FLOPs a token, updates of the slow level."""
    return {
        "nll": summary["nll"],
        "by_document": [document["nll"] for document in summary["documents"]],
        "flops_per_token": sum(summary["flops"].values()) / summary["tokens"],
        "tokens": summary["tokens"],
        "slow_updates": summary.get("slow_updates", 0),
    }


def chosen_rates(files: dict[str, Path], run) -> dict[str, dict]:
    """{level: {"rate", "nll" by rate, "end": whether it is at the end of the grid}}; run(file, levels, rates, name) -> ``kept``."""
    found = {}
    for level, grid in RATES.items():
        nll = {
            rate: float(np.mean([run(f, {"memory", level}, {level: rate}, f"rate-{level}-{rate:g}")["nll"] for f in files.values()]))
            for rate in grid
        }
        best = min(nll, key=nll.get)
        found[level] = {"rate": best, "nll": {f"{rate:g}": value for rate, value in nll.items()}, "end": best in (grid[0], grid[-1])}
    return found


def verdicts(cells: dict[str, dict[str, dict]]) -> dict:
    """By the rules above; cells: {domain: {arm: kept}}."""
    mean = lambda arm, key: float(np.mean([arms[name(arm)][key] for arms in cells.values()]))  # noqa: E731
    less = lambda a, b: [arms[name(a)]["nll"] - arms[name(b)]["nll"] for arms in cells.values()]  # noqa: E731
    whole = frozenset(LEVELS)
    pair = min((arm for arm in ARMS if len(arm) == 2), key=lambda arm: mean(arm, "nll"))
    nats = judged(less(pair, whole), MARGIN, below=False)
    ratio = mean(whole, "flops_per_token") / mean(pair, "flops_per_token")
    cheap = CONFIRMED if ratio <= COST else REFUTED
    both = {nats["verdict"], cheap}
    worth = [
        {"level": level, "beside": name(arm), **{k: v for k, v in judged(less(arm, arm | {level})).items() if k != "verdict"}}
        for level in LEVELS
        for arm in ARMS
        if level not in arm
    ]
    return {
        "verdict": REFUTED if REFUTED in both else CONFIRMED if both == {CONFIRMED} else OPEN,
        "best_pair": name(pair),
        "nats": nats,
        "flops": {"ratio": ratio, "verdict": cheap},
        "worth": worth,
    }


def page(results: dict) -> str:
    """The tables of docs/adaptation.md."""
    v, domains = results["verdicts"], list(results["cells"])
    lines = ["| levels | GFLOP per token | mean NLL | " + " | ".join(domains) + " |", "|---" * (3 + len(domains)) + "|"]
    for arm in map(name, ARMS):
        rows = [results["cells"][domain][arm] for domain in domains]
        flops, nll = (float(np.mean([row[key] for row in rows])) for key in ("flops_per_token", "nll"))
        lines.append(f"| {arm} | {flops / 1e9:.3f} | {nll:.3f} | " + " | ".join(f"{row['nll']:.3f}" for row in rows) + " |")
    lines += ["", "| what | beside | is worth, nats per token | seen with 80% |", "|---|---|---|---|"]
    for row in v["worth"]:
        span = shown(row)
        lines.append(f"| {row['level']} | {row['beside']} | {span} | {power_shown(row)} |")
    n = v["nats"]
    span = "no interval" if n["low"] is None else f"95% interval {n['low']:+.4f} to {n['high']:+.4f}"
    lines += [
        "",
        f"All three beside the best pair ({v['best_pair']}): better by {n['mean']:+.4f} nats a token, {span} "
        f"(seen with 80%: {power_shown(n, 4)}): by {MARGIN} {n['verdict']}. FLOPs {v['flops']['ratio']:.2f} times the pair's, at "
        f"most {COST}: {v['flops']['verdict']}. Together: {v['verdict']}.",
        "",
        "Rates: " + "; ".join(f"{level} {r['rate']:g}{' (the end of the grid)' if r['end'] else ''}" for level, r in results["rates"].items()) + ".",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> int:
    given = corpus_parser_of(__doc__, "runs/levels").parse_args()
    with measuring("levels", given):
        measure(given)
    print_page((given.out / "results.md").read_text("utf-8"))
    return 0


def measure(given) -> None:
    import dynadapt

    judged_domains(given.corpus)
    domains, model = domains_of(given.corpus, list(TUNED)), dynadapt.load(given.model)
    files = {
        domain: documents_file(given.corpus, domain, model.tokenizer, given.out / "texts" / f"{domain}.jsonl", DOCUMENTS, TOKENS)
        for domain in domains
    }
    for domain, file in files.items():
        there = len(file.read_text("utf-8").splitlines())
        if there < DOCUMENTS:
            raise SystemExit(f"{given.corpus}: {domain} has {there} documents of {TOKENS} tokens; {DOCUMENTS} are needed")
    run = lambda file, levels, rates, what: kept(  # noqa: E731
        cell(
            given.out / "cells" / file.stem / what, config_of(file, levels, rates, given.model), model, checkpoint=0
        )  # a slow level's is large
    )
    rates = chosen_rates({domain: files[domain] for domain in TUNED}, run)
    best = {level: found["rate"] for level, found in rates.items()}
    texts = {domain: file for domain, file in files.items() if domain not in TUNED}
    cells = {domain: {name(arm): run(file, arm, best, name(arm).replace(", ", "-")) for arm in ARMS} for domain, file in texts.items()}
    results = {
        "settings": {"model": given.model, "documents": DOCUMENTS, "tokens": TOKENS, "segment": SEGMENT, "slow_every": EVERY},
        "corpus": corpus_facts(given.corpus),
        "texts": {domain: hashlib.sha256(file.read_bytes()).hexdigest() for domain, file in texts.items()},
        "rates": rates,
        "cells": cells,
        "verdicts": verdicts(cells),
    }
    write_results(given.out, results, page(results))


if __name__ == "__main__":
    sys.exit(main())
