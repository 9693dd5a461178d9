"""Claim 6a of "Revisiting Dynamic Evaluation" (arXiv 2403.01518) inside languages: does the gain grow with the distance of a text from the model?

    dynadapt corpus build --out corpus
    python benchmarks/shift.py corpus --out runs/shift       # stopped and started again it goes on

Nine domains, one text each, could not decide it (flops-vs-loss.md), and compared languages with each other. Here: up to 48 documents of each of six domains,
the first 1,536 scored tokens of each, every document from the prior, segments of 256 without memory; static, and LoRA at its defaults. The corpus'
other three domains are of authors and projects whose texts served to choose defaults.

Rules, fixed before the runs. Distance is the static model's bits per byte, the gain is that less LoRA's bits per byte, of the same document.
- Confirmed: Spearman's correlation of their ranks inside domains (each domain's ranks scaled to mean 0 and length 1, all domains' products averaged by
  their documents) is above 0 with p < 0.05, two-sided, by permutation inside domains; refuted: below 0 with p < 0.05.
- Beside it: each domain's own correlation; and the power, the probability that the rule calls a true rank correlation of 0.2 and of 0.4 (simulated, bivariate normal).
- Static bits per byte are on both axes, so that noise in them alone makes the correlation positive: the same with the distance measured on the first
  half of a document and the gain on the second is the verdict; with both on the whole it is shown only.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from scipy.stats import rankdata  # noqa: E402

from benchmarks.printed import print_page  # noqa: E402
from benchmarks.script import cell, corpus_facts, corpus_parser_of, documents_file, judged_domains, measuring, refuse_below, write_results  # noqa: E402
from dynadapt.experiments.config import EvalConfig  # noqa: E402

DOCUMENTS, TOKENS, SEGMENT = 48, 1537, 256
DRAWS, LEVEL = 9999, 0.05
LEAST = 3  # documents of a domain, to be ranked


def scores_of(folder: Path, config: EvalConfig, model) -> list[dict]:
    """[documents] of {"whole", "first", "second": (nats, bytes) of all scored tokens and of each half}."""
    cell(folder, config, model, checkpoint=0)
    rows = np.load(folder / "scores.npy")
    found = []
    texts = [json.loads(line)["text"] for line in Path(config.text[0]).read_text("utf-8").splitlines()]
    for number, text in enumerate(texts):
        own = rows[rows["document"] == number]
        own = own[np.argsort(own["position"], kind="stable")]
        _, spans = model.tokenizer.encode_offsets(text)
        ends = [len(text[:end].encode()) for _, end in spans]
        half = len(own) // 2
        nats = own["nll"].astype(np.float64)
        first, last = len(spans) - len(own), len(spans)  # the tokens that were scored
        begin = 0 if first == 0 else ends[first - 1]
        middle = ends[first + half - 1]
        found.append(
            {
                "whole": (nats.sum(), ends[last - 1] - begin),
                "first": (nats[:half].sum(), middle - begin),
                "second": (nats[half:].sum(), ends[last - 1] - middle),
            }
        )
    return found


def bits(part: tuple[float, int]) -> float:
    """Bits per byte."""
    return float(part[0]) / math.log(2) / part[1]


def standard(values) -> np.ndarray:
    """Ranks, with mean 0 and length 1."""
    ranks = rankdata(values)
    ranks = ranks - ranks.mean()
    return ranks / np.linalg.norm(ranks)


def stratified(pairs: list[tuple[np.ndarray, np.ndarray]], draws: int = DRAWS, seed: int = 0) -> tuple[float, float]:
    """(mean rank correlation inside strata, weighted by their sizes; two-sided p by permutation inside them)."""
    rng, total = np.random.default_rng(seed), sum(len(x) for x, _ in pairs)
    rho, chance = 0.0, np.zeros(draws)
    for x, y in pairs:
        a, b = standard(x), standard(y)
        rho += len(x) / total * float(a @ b)
        chance += len(x) / total * (rng.permuted(np.tile(b, (draws, 1)), axis=1) @ a)
    return rho, float((1 + (abs(chance) >= abs(rho) - 1e-12).sum()) / (1 + draws))


def power(sizes: list[int], rho: float, runs: int = 400, draws: int = 999) -> float:
    """Share of runs in which `stratified` has p < LEVEL where the true rank correlation inside each stratum is `rho` (bivariate normal)."""
    rng, r = np.random.default_rng(1), 2 * math.sin(math.pi * rho / 6)
    called = 0
    for i in range(runs):
        pairs = []
        for n in sizes:
            x = rng.standard_normal(n)
            pairs.append((x, r * x + math.sqrt(1 - r * r) * rng.standard_normal(n)))
        called += stratified(pairs, draws, seed=i)[1] < LEVEL
    return called / runs


def verdict(rho: float, p: float) -> str:
    return "not decided" if p >= LEVEL else "confirmed" if rho > 0 else "refuted"


def judged(found: dict[str, dict]) -> dict:
    """By the rules above; found: {domain: {"static", "lora": scores_of}}."""

    def pairs(distance: str, gain: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        return {
            name: (
                np.array([bits(s[distance]) for s in d["static"]]),
                np.array([bits(s[gain]) - bits(o[gain]) for s, o in zip(d["static"], d["lora"])]),
            )
            for name, d in found.items()
        }  # fmt: skip

    sizes = [len(d["static"]) for d in found.values()]
    results = {}
    for name, parts in (("apart", ("first", "second")), ("whole", ("whole", "whole"))):
        own = pairs(*parts)
        rho, p = stratified(list(own.values()))
        results[name] = {"rho": rho, "p": p, "by_domain": {n: dict(zip(("rho", "p"), stratified([xy]))) for n, xy in own.items()}}
    results["verdict"] = verdict(results["apart"]["rho"], results["apart"]["p"])
    results["power"] = {f"{rho:g}": power(sizes, rho) for rho in (0.1, 0.2, 0.4)}
    return results


def page(results: dict) -> str:
    v = results["verdict"]
    lines = [f"6a inside domains: {v['verdict']}. Rank correlation {v['apart']['rho']:+.2f} (p = {v['apart']['p']:.4f}), distance and gain on different halves; "
             f"{v['whole']['rho']:+.2f} on the whole. Power at a true correlation of " + ", ".join(f"{rho}: {p:.0%}" for rho, p in v["power"].items()) + ".",
             "", "| domain | documents | static bits per byte | gain, bits per byte | correlation, halves apart | p |", "|---|---|---|---|---|---|"]  # fmt: skip
    for name, d in results["domains"].items():
        own = v["apart"]["by_domain"][name]
        lines.append(f"| {name} | {d['documents']} | {d['static']:.3f} | {d['gain']:+.4f} | {own['rho']:+.2f} | {own['p']:.3f} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = corpus_parser_of(__doc__, "runs/shift")
    parser.add_argument("--documents", type=int, default=DOCUMENTS, help="of each domain (default: %(default)s)")
    given = parser.parse_args()
    refuse_below(parser, given, LEAST, "documents")
    with measuring("shift", given, "documents"):
        results = measure(given)
        write_results(given.out, results, page(results))
    print_page(page(results))
    return 0


def measure(given) -> dict:
    import dynadapt

    domains, model = judged_domains(given.corpus), dynadapt.load(given.model)
    texts = {
        domain: documents_file(given.corpus, domain, model.tokenizer, given.out / "texts" / f"{domain}.jsonl", given.documents, TOKENS)
        for domain in domains
    }
    for domain, file in texts.items():
        there = len(file.read_text("utf-8").splitlines())
        if there < LEAST:
            raise SystemExit(f"{given.corpus}: {domain} has {there} documents of {TOKENS} tokens; {LEAST} are needed")
    found: dict[str, dict] = {}
    for domain, file in texts.items():
        found[domain] = {}
        for arm, adapt in (("static", "none"), ("lora", "lora")):
            config = EvalConfig(model=given.model, text=(str(file),), adapt=adapt, segment=SEGMENT, memory=0, reset="document", streams=4)
            found[domain][arm] = scores_of(given.out / "cells" / domain / arm, config, model)
        row = of_domain(found[domain])
        both = f"static {row['static']:.4f}  LoRA {row['static'] - row['gain']:.4f} bits per byte"
        print(f"{domain:20} {row['documents']} documents  {both}", flush=True)
    return {
        "settings": {"model": given.model, "tokens": TOKENS - 1, "segment": SEGMENT},
        "corpus": corpus_facts(given.corpus),
        "domains": {name: of_domain(own) for name, own in found.items()},
        "verdict": judged(found),
    }


def of_domain(own: dict[str, list[dict]]) -> dict:
    """Its documents, their mean bits per byte under the static model, and their mean gain."""
    return {
        "documents": len(own["static"]),
        "static": float(np.mean([bits(s["whole"]) for s in own["static"]])),
        "gain": float(np.mean([bits(s["whole"]) - bits(o["whole"]) for s, o in zip(own["static"], own["lora"])])),
    }


if __name__ == "__main__":
    sys.exit(main())
