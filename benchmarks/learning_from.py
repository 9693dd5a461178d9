"""Learning from a part of what is scored, beside learning from all of it and from every second segment; and rates that move themselves.

    dynadapt corpus build --out corpus
    python benchmarks/learning_from.py corpus --out runs/learning-from        # stopped, the same command goes on with the next run

SmolLM2-135M, LoRA and Adam at their defaults, segments of SEGMENT and memory of 512, one text a domain: the first TOKENS scored tokens of what the domain
holds out, read as one document. Domains are those of benchmarks/resets.py: none whose texts served to choose defaults.

Arms: static; all; every2 (`every=2`); and by `learn_from`: skip (below the 30% quantile or above the mean by 4 standard deviations), more (the same with a
65% quantile, which leaves out about half of the segments, the first eight being always learned from), tokens (between the 20% and the 95% quantile of the
segment's own), both (skip and tokens).

Rules, fixed before the runs. A gain is a text's loss under static less that under the arm, in nats a token.
- kept: an arm keeps at least KEPT of what all gains. Over texts, d = gain - KEPT x gain of all; confirmed where Student's 95% interval of the mean of d
  lies above 0, refuted where it lies below, else open.
- few: backward passes, of all texts together, are at most PASSES of those of all. Counted, so confirmed or refuted.
- passes: an arm passes where both are confirmed, fails where one is refuted, else it is open.
- beside every2: mean over texts of (the arm's loss - every2's), with its interval: better below 0, worse above, else no difference seen. It is at equal FLOPs
  only where the arm's FLOPs (forward, backward, update and recompute, those of left-out segments' scores and head gradients included) are within SAME of
  every2's; the ratio is given for each.

An arm of another question, added before it was run: hypergradient (`Hypergradient()` on all). It passes where its loss is at least BETTER below that of all on at
least MOST of six texts (the recipe's 7 of 9) at under MORE more FLOPs; both are counted. Its time is not measured.
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from scipy.stats import t as student  # noqa: E402

from benchmarks.guard import held_out  # noqa: E402
from benchmarks.printed import print_page  # noqa: E402
from benchmarks.script import by_text_and_arm, corpus_parser_of, ids_digest, judged_domains, mean_error, measuring  # noqa: E402
from dynadapt import Engine, Hypergradient, LoRA, SegmentMemory, Selection, load  # noqa: E402

SEGMENT, TOKENS = 128, 6144
KEPT, PASSES, SAME = 0.9, 0.5, 0.05
BETTER, MOST, MORE = 0.01, 5, 0.01
ARMS: dict[str, dict] = {
    "static": {"adapt": None},
    "all": {},
    "every2": {"every": 2},
    "skip": {"learn_from": Selection(below=0.3, above=4)},
    "more": {"learn_from": Selection(below=0.65, above=4)},
    "tokens": {"learn_from": Selection(tokens=(0.2, 0.95))},
    "both": {"learn_from": Selection(below=0.3, above=4, tokens=(0.2, 0.95))},
    "hypergradient": {"hypergradient": Hypergradient()},
}


def texts(corpus: Path, domains: list[str], tokenizer) -> dict[str, list[int]]:
    """domain -> ids."""
    found = {domain: tokenizer.encode(held_out(corpus, domain)) for domain in domains}
    for domain, ids in found.items():
        if len(ids) <= TOKENS:
            raise SystemExit(f"{corpus}: {domain} holds out {len(ids)} tokens; {TOKENS + 1} are needed")
    return {domain: ids[: TOKENS + 1] for domain, ids in found.items()}


def score(model, arm: str, ids: list[int], **more) -> dict:
    """One arm's loss on one text, and what it learned from."""
    engine = Engine(model, **{"adapt": LoRA(), "memory": SegmentMemory(512), "segment": SEGMENT, **ARMS[arm], **more})
    total, passes, learned, start = 0.0, 0, 0, time.perf_counter()
    for begin in range(0, len(ids) - 1, SEGMENT):
        scores = engine.step(torch.tensor([ids[begin : begin + SEGMENT + 1]]))
        total += scores.double().sum().item()
        passes += engine.last.updated[0]
        kept = engine.last.learned_tokens[0]
        learned += kept if kept is not None else engine.last.updated[0] * scores.shape[1]
    facts = {"nll": total / (len(ids) - 1), "passes": passes, "learned_tokens": learned, "flops": engine.flops}
    return {**facts, "seconds": round(time.perf_counter() - start, 1)}


def _interval(values: list[float]) -> dict:
    """Mean and Student's 95% interval."""
    mean, error = mean_error(values)
    reach = float(student.ppf(0.975, len(values) - 1)) * error if len(values) > 1 else math.inf
    return {"mean": mean, "low": mean - reach, "high": mean + reach}


def verdicts(rows: list[dict]) -> dict:
    """By the rules above, of the texts that every arm has read."""
    whole = [row for row in rows if set(ARMS) <= row["arms"].keys()]
    if len(whole) < 2:
        return {}
    nll = lambda row, arm: row["arms"][arm]["nll"]  # noqa: E731
    gain = lambda row, arm: nll(row, "static") - nll(row, arm)  # noqa: E731
    sums = lambda arm, of: sum(of(row["arms"][arm]) for row in whole)  # noqa: E731
    flops, found = lambda run: sum(run["flops"].values()), {}
    for arm in ARMS:
        beside = _interval([nll(row, arm) - nll(row, "every2") for row in whole])
        verdict = {
            "texts": len(whole),
            "nll": math.fsum(nll(row, arm) for row in whole) / len(whole),
            "gain": _interval([gain(row, arm) for row in whole]),
            "beside_every2": {**beside, "says": "better" if beside["high"] < 0 else "worse" if beside["low"] > 0 else "no difference seen"},
            "passes": sums(arm, lambda run: run["passes"]) / sums("all", lambda run: run["passes"]),
            "learned_tokens": sums(arm, lambda run: run["learned_tokens"]) / sums("all", lambda run: run["learned_tokens"]),
            "flops_of_all": sums(arm, flops) / sums("all", flops),
            "flops_of_every2": sums(arm, flops) / sums("every2", flops),
        }
        verdict["equal_flops"] = abs(verdict["flops_of_every2"] - 1) <= SAME
        if arm == "hypergradient":
            differences = {row["text"]: nll(row, arm) - nll(row, "all") for row in whole}
            better = sum(difference <= -BETTER for difference in differences.values())
            passed = better >= MOST and verdict["flops_of_all"] < 1 + MORE
            beside_all = {**_interval(list(differences.values())), "texts": differences, "better": better}
            verdict |= {"beside_all": beside_all, "verdict": "confirmed" if passed else "refuted"}
        elif arm not in ("static", "all"):
            kept = _interval([gain(row, arm) - KEPT * gain(row, "all") for row in whole])
            share = math.fsum(gain(row, arm) for row in whole) / math.fsum(gain(row, "all") for row in whole)
            says = "confirmed" if kept["low"] > 0 else "refuted" if kept["high"] < 0 else "open"
            few = "confirmed" if verdict["passes"] <= PASSES else "refuted"
            both = "refuted" if "refuted" in (says, few) else "confirmed" if says == few else "open"
            verdict |= {"kept": {**kept, "share": share, "says": says}, "few": few, "verdict": both}
        found[arm] = verdict
    return found


def page(results: dict) -> str:
    """The table of docs/adaptation.md."""
    heads = [
        "arm",
        "nats/token",
        "gain over static",
        "of all's gain",
        "backward passes",
        "tokens",
        "FLOPs",
        "beside every2",
        "90% kept",
        "passes",
    ]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for arm, v in results["verdicts"].items():
        spread = lambda of: f"{of['mean']:+.4f} ({of['low']:+.4f} to {of['high']:+.4f})"  # noqa: E731
        kept = v.get("kept")
        cells = [
            arm,
            f"{v['nll']:.4f}",
            spread(v["gain"]),
            f"{kept['share']:.0%}" if kept else "-",
            f"{v['passes']:.0%}",
            f"{v['learned_tokens']:.0%}",
            f"{v['flops_of_all']:.0%}",
            spread(v["beside_every2"]),
            kept["says"] if kept else "-",
            v.get("verdict", "-"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    given = corpus_parser_of(__doc__, "runs/learning-from").parse_args()
    with measuring("learning_from", given):
        results = measure(given)
        (given.out / "results.md").write_text(page(results))
    print_page(page(results))
    return 0


def measure(given) -> dict:
    domains, model = judged_domains(given.corpus, 2), load(given.model)
    found = texts(given.corpus, domains, model.tokenizer)
    return by_text_and_arm(
        given.out,
        {"model": given.model, "segment": SEGMENT},
        [
            {"text": text, "tokens": len(ids) - 1, "segments": -(-(len(ids) - 1) // SEGMENT), "ids": ids_digest(ids)}
            for text, ids in found.items()
        ],
        lambda row: ARMS,
        lambda text, arm: score(model, arm, found[text]),
        verdicts,
        lambda row, arm: (
            f"{arm:13} {row['arms'][arm]['nll']:.4f}  {row['arms'][arm]['passes']} of {row['segments']} segments  {row['arms'][arm]['seconds']} s"
        ),
    )


if __name__ == "__main__":
    sys.exit(main())
