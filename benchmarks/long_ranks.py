"""Ranks 4 and 64 of LoRA on long streams, each at a rate of its own, beside rank 16 and full adaptation.

    dynadapt corpus build --out corpus
    python benchmarks/long_ranks.py corpus --out runs/long-ranks       # an hour; stopped and started again it goes on

The eight texts of long_streams.py, 65,536 scored tokens of each, one stream, segments and memory of 512, no reset; alpha is twice the rank. Rank 16 and full
adaptation are those of an earlier run of long_streams.py (--beside), whose texts must be the same; on the first text rank 16 is run again, and by how much it differs
is said.

Rules, fixed before the runs, as long_streams.py has them: differences of mean NLLs on the same tokens, the unit is the text, Student's 95% interval, and a verdict stands
where all comparisons are counted together (Holm).

- Rates: each rank takes the best of the grid that rank 16 had, which goes on where the best is at its end, by the same three texts.
- "A higher rank scores better": rank 64 less rank 16, and rank 16 less rank 4, below 0; above 0 refuted.
- "LoRA scores worse than full adaptation" (claim 4 of arXiv 2403.01518) at these ranks: rank 4 less full, and rank 64 less full, above 0; below 0 refuted.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT)]

from benchmarks import long_streams  # noqa: E402
from benchmarks.long_streams_page import rates_line  # noqa: E402
from benchmarks.long_streams_rules import TOKENS, Arm, counted_together  # noqa: E402
from benchmarks.printed import print_page  # noqa: E402
from benchmarks.script import (  # noqa: E402
    corpus_facts,
    corpus_parser_of,
    judged,
    measuring,
    power_shown,
    refuse_below,
    said_by_itself,
    shown,
    write_results,
)
from dynadapt.runs.whole_files import read_json  # noqa: E402

ARMS = tuple(Arm(f"rank-{rank}", f"LoRA, rank {rank}", "lora", memory=512, rank=rank) for rank in (4, 64))
AGAIN = Arm("rank-16", "LoRA, rank 16", "lora", memory=512)
BESIDE = {"rank-16": "lora-memory-512", "full": "full-memory-512"}  # arms of long_streams.py
COMPARISONS = (
    ("rank-64", "rank-16", True),
    ("rank-16", "rank-4", True),
    ("rank-4", "full", False),
    ("rank-64", "full", False),
)  # less, below 0


def verdicts(means: dict[str, dict[str, float]]) -> list[dict]:
    """By the rules above; means: {arm: {text: NLL}}, a comparison for each two that are there."""
    there = [(a, b, below) for a, b, below in COMPARISONS if a in means and b in means]
    rows = [{"arm": a, "less": b, **judged([means[a][t] - means[b][t] for t in means[a]], below=below)} for a, b, below in there]
    return counted_together(rows, len(COMPARISONS))


def beside(file: Path, given: argparse.Namespace, texts: dict[str, str]) -> tuple[dict[str, dict[str, float]], float]:
    """({"rank-16", "full": {text: NLL}}, the rate of rank 16) of an earlier run; texts: {name: its digest}.

    Raises:
        SystemExit: it is of another model, length or texts, naming what differs.
    """
    if not file.exists():
        raise SystemExit(f"--beside {file}: no such file; long_streams.py makes it")
    found = read_json(file)
    if not isinstance(found, dict) or not {"arms", "texts", "rates", "settings"} <= found.keys():
        raise SystemExit(f"--beside {file}: no results of long_streams.py")
    arms = {arm["name"]: arm for arm in found["arms"]}
    for name in BESIDE.values():
        if name not in arms:
            raise SystemExit(f"--beside {file}: has no arm {name!r}")
        if arms[name]["tokens"] != given.tokens - 1:
            raise SystemExit(f"--beside {file}: {name} has {arms[name]['tokens']:,} tokens of a text, not {given.tokens - 1:,}")
    if found["settings"]["model"] != given.model:
        raise SystemExit(f"--beside {file}: is of {found['settings']['model']}, not of {given.model}")
    for text, digest in texts.items():
        if found["texts"].get(text) != digest:
            raise SystemExit(f"--beside {file}: its text {text!r} is another than the corpus holds now")
    return {arm: {text: arms[name]["nll"][text] for text in texts} for arm, name in BESIDE.items()}, found["rates"]["lora, memory"]["rate"]


def page(results: dict) -> str:
    """results.json as markdown."""
    lines = ["| NLL | " + " | ".join(results["texts"]) + " |", "|---" * (1 + len(results["texts"])) + "|"]
    lines += [f"| {arm} | " + " | ".join(f"{nll:.3f}" for nll in by_text.values()) + " |" for arm, by_text in results["nll"].items()]
    lines += ["", "| | nats per token | seen with 80% | verdict |", "|---|---|---|---|"]
    lines += [
        f"| {row['arm']} less {row['less']} | {shown(row)} | {power_shown(row)} | {said_by_itself(row)} |" for row in results["verdicts"]
    ]
    lines += ["", rates_line(results["rates"])]
    if again := results["again"]:
        lines += ["", f"Rank 16 run again on {again['text']}: {again['here']:.4f}, and {again['there']:.4f} in the earlier run."]
    return "\n".join(lines) + "\n"


def measure(given: argparse.Namespace) -> None:
    import dynadapt

    texts, tuning = long_streams.texts_of(given.corpus, given.out)
    digests = long_streams.digests(texts)
    earlier, usual = beside(given.beside, given, digests)
    runner = long_streams.Runner(given, dynadapt.load(given.model))
    found = {
        "settings": {name: getattr(given, name) for name in ("model", "dtype", "tokens", "tuning")},
        "corpus": corpus_facts(given.corpus), "texts": digests, "rates": {}, "again": {}, "nll": dict(earlier), "verdicts": [],
    }  # fmt: skip
    for arm in ARMS:
        found["rates"][arm.name] = runner.rate(tuning, arm)
        rate = found["rates"][arm.name]["rate"]
        found["nll"][arm.name] = {name: runner.cell(file, arm, given.tokens, rate, arm.name).mean for name, file in texts.items()}
        found["verdicts"] = verdicts(found["nll"])
        write_results(given.out, found, page(found))
    first, file = next(iter(texts.items()))
    here = runner.cell(file, AGAIN, given.tokens, usual, AGAIN.name).mean
    found["again"] = {"text": first, "here": here, "there": earlier["rank-16"][first]}
    write_results(given.out, found, page(found))


def main() -> int:
    parser = corpus_parser_of(__doc__, "runs/long-ranks")
    parser.add_argument("--beside", type=Path, default=ROOT / "benchmarks" / "results" / "long-streams.json", help="what long_streams.py found (default: the repository's)")  # fmt: skip
    parser.add_argument("--dtype", choices=("auto", "bf16", "fp32"), default="auto", help="(default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of each text (default: %(default)s)")
    parser.add_argument("--tuning", type=int, default=long_streams.TUNING, help="of each text that chooses rates (default: %(default)s)")
    given = parser.parse_args()
    refuse_below(parser, given, 2 * 512, "tokens", "tuning")
    with measuring("long_ranks", given, "dtype", "tokens", "tuning"):
        measure(given)
    print_page((given.out / "results.md").read_text("utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
