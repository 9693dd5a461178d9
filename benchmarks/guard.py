"""What a guard costs and saves: 24 texts, static, adapted at four rates, guarded, and three rates mixed without choosing one.

    dynadapt corpus build --out corpus
    python benchmarks/guard.py corpus --out runs/guard          # stopped, the same command goes on with the next text

SmolLM2-135M, or with --model gemma3-270m the other one; LoRA at its defaults but for the rate, segments and memory of 512. The default rate is the family's
(docs/defaults.md: 2e-3, for Gemma 3 an eighth of it); rates that are mixed are a quarter of it, the rate and four times it. Texts: the first, the middle and the last TOKENS tokens of what
each of six domains holds out, three splices of four of them, random words, random characters, one sentence again and again. The corpus' other
three domains are of authors and projects whose texts served to choose defaults (docs/defaults.md), and are not read.

Rules, fixed before the runs:
- never worse: guarded at the default rate, and at ten times it, no text's loss is more than 0.001 nats above the static one's;
- no rate to guess: the mean over texts of (rates mixed and guarded) - (the better of static and the best rate of that text) is at most 0.005 nats; the
  whole of Student's 95% interval over texts (as fixed it was the mean alone: made stricter after the runs);
- the bound: no mixture is above the best of what it mixes by more than the bound that it states.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import dynadapt  # noqa: E402
from benchmarks.printed import print_page  # noqa: E402
from benchmarks.script import corpus_parser_of, judged, judged_domains, measuring, rows_before, shown, usual_rate  # noqa: E402
from dynadapt.common.environment import environment  # noqa: E402
from dynadapt.experiments.corpus_read import read_documents  # noqa: E402
from dynadapt.runs.rundir import write_json  # noqa: E402

TOKENS, SPLICED = 4097, 4  # of a text; domains in a splice
WORSE, BEHIND = 0.001, 0.005


def held_out(corpus: Path, domain: str) -> str:
    return "\n\n".join(text for _, text in read_documents(corpus / domain / "heldout.jsonl"))


def texts(corpus: Path, domains: list[str], tokenizer) -> dict[str, str]:
    """name -> text of TOKENS tokens or a little more, which is cut when it is read."""
    found, rng = {}, random.Random(0)
    ids = {domain: tokenizer.encode(held_out(corpus, domain)) for domain in domains}
    for domain in domains:
        if len(ids[domain]) < 4 * TOKENS:
            raise SystemExit(f"{corpus}: {domain} holds out {len(ids[domain])} tokens; {4 * TOKENS} are needed")
        middle = len(ids[domain]) // 2
        for part, begin in (("first", 0), ("middle", middle), ("last", len(ids[domain]) - TOKENS)):
            found[f"{domain}, {part}"] = tokenizer.decode(ids[domain][begin : begin + TOKENS])
    for _ in range(3):
        chosen = rng.sample(domains, SPLICED)
        middle = [ids[domain][3 * len(ids[domain]) // 4 :][: TOKENS // SPLICED + 1] for domain in chosen]
        found[f"splice of {', '.join(chosen)}"] = tokenizer.decode([token for part in middle for token in part])
    words = sorted({word for domain in domains for word in found[f"{domain}, first"].split()})
    found["random words"] = " ".join(rng.choice(words) for _ in range(2 * TOKENS))
    found["random characters"] = "".join(chr(rng.randrange(32, 127)) for _ in range(4 * TOKENS))
    found["one sentence"] = "The quick brown fox jumps over the lazy dog near the bank of the river. " * TOKENS
    return found


def rates_of(config) -> tuple[float, list[float]]:
    """(the default rate, those that are mixed) of a model of this ModelConfig."""
    rate = usual_rate(config)
    return rate, [rate / 4, rate, 4 * rate]


def measure(model, text: str, rate: float, rates: list[float]) -> dict:
    settings = {"string": text, "tokens": TOKENS, "memory": 512, "dtype": "auto"}
    keep = lambda s: {name: s[name] for name in ("nll", "nll_static", "nll_adapted", "guard_bound", "tokens", "flops")}  # noqa: E731
    run = lambda **more: keep(dynadapt.evaluate(model, **settings, **more).summary)  # noqa: E731
    return {
        "guarded": run(lr=rate, guard="exact"),
        "guarded, ten times the rate": run(lr=10 * rate, guard="exact"),
        "rates": run(rates=rates, guard="exact"),
    }


def behind_the_best(row: dict) -> float:
    """Loss of the rates mixed and guarded, less that of the best of static and each rate on the same text."""
    learned = [nll for nll in row["rates"]["nll_adapted"].values() if nll is not None]
    return row["rates"]["nll"] - min([row["rates"]["nll_static"], *learned])


def verdicts(rows: list[dict]) -> dict:
    """By the rules above."""
    found = {}
    for arm in ("guarded", "guarded, ten times the rate"):
        excess = {row["text"]: row[arm]["nll"] - row[arm]["nll_static"] for row in rows}
        worst = max(excess, key=lambda name: excess[name])
        verdict = "confirmed" if excess[worst] <= WORSE else "refuted"
        found[f"never worse, {arm}"] = {"verdict": verdict, "texts": len(rows), "largest_excess": excess[worst], "text": worst}
    found["no rate to guess"] = judged([behind_the_best(row) for row in rows], BEHIND)
    over = []
    for row in rows:
        for arm in ("guarded", "guarded, ten times the rate", "rates"):
            r = row[arm]
            adapted = list(r["nll_adapted"].values()) if isinstance(r["nll_adapted"], dict) else [r["nll_adapted"]]
            best = min([r["nll_static"], *(nll for nll in adapted if nll is not None)])
            over.append(r["nll"] - best - r["guard_bound"])
    found["the bound"] = {
        "verdict": "confirmed" if max(over) <= 1e-9 else "refuted",
        "runs": len(over),
        "largest_over_the_bound": max(over),
    }
    return found


def page(found: dict) -> str:
    """The verdicts as a table."""
    lines = ["| claim | found | of | verdict |", "|---|---|---|---|"]
    for claim, v in found.items():
        if claim == "the bound":
            said, of = f"at most {v['largest_over_the_bound']:+.4f} nats over it", f"{v['runs']} runs"
        elif claim == "no rate to guess":
            said, of = f"{shown(v, 4)} nats behind the best", f"{v['texts']} texts"
        else:
            said, of = f"at most {v['largest_excess']:+.4f} nats over static ({v['text']})", f"{v['texts']} texts"
        lines.append(f"| {claim} | {said} | {of} | {v['verdict']} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    given = corpus_parser_of(__doc__, "runs/guard").parse_args()
    with measuring("guard", given):
        rows = measure_all(given)
    print_page(page(verdicts(rows)))
    return 0


def measure_all(given) -> list[dict]:
    domains, file = judged_domains(given.corpus, SPLICED), given.out / "results.json"
    model = dynadapt.load(given.model)
    rate, rates = rates_of(model.config)
    facts = {"model": given.model, "tokens": TOKENS, "rate": rate, "rates": rates}
    rows, found = rows_before(file, facts), texts(given.corpus, domains, model.tokenizer)
    done = {row["text"] for row in rows}
    for number, (name, text) in enumerate(found.items(), 1):
        if name not in done:
            print(f"{name} (text {number} of {len(found)})", flush=True)
            row = {"text": name, **measure(model, text, rate, rates)}
            rows.append(row)
            write_json(file, {**facts, "environment": environment(), "rows": rows, "verdicts": verdicts(rows)})
            nll = (row["guarded"]["nll_static"], row["guarded"]["nll"], row["rates"]["nll"])
            print("  static {:.4f}  guarded {:.4f}  rates {:.4f}".format(*nll), flush=True)
    return rows


if __name__ == "__main__":
    sys.exit(main())
