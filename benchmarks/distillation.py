"""Two pulls while learning: towards the model that remembers, and towards the model as it was.

    dynadapt corpus build --out corpus
    python benchmarks/distillation.py corpus --out runs/distillation     # stopped, the same command goes on with the next arm

SmolLM2-135M in bf16, LoRA at its defaults, segments of SEGMENT, one update each; of each domain none of whose texts served to choose defaults, the first TEXT tokens
of what it holds out as one document. Arms:

    none              no memory
    memory            memory of MEMORY tokens
    distilled         no memory; 0.7 cross-entropy + 0.3 KL from the same weights with memory of MEMORY, by its 64 likeliest tokens (distil_memory)
    distilled, 4th    the same, the teacher asked at every 4th segment
    keep              as none, with KeepPrior(weight=0.1, tokens=64) on reference tokens: OTHER from each of the other domains
    none, 4x; keep, 4x: none and keep at four times the default rate

Behind its last update each of none and keep scores OTHER other tokens of each of the other domains: what their loss is above the model's as it was, is what was forgotten.

Rules, fixed before the runs; means are over texts, intervals Student's 95%:
- memory into weights: with gains against none, (the arm's gain - half of memory's gain) is above 0. Confirmed or refuted where its interval is on one side of 0, else open; where
  memory's own gain is not above 0 by its interval, there is nothing to keep, and it is open.
- keeping the prior: (what keep forgot - half of what none forgot) is below 0, and keep's loss on the text is at most 0.005 nats above none's. Confirmed where both intervals
  say so, refuted where one interval is on the other side, else open.

Added after the first five arms had run, and before the last two: where what none forgot is not above 0 by its interval, there is nothing to halve, and it is open. At the default rate the five other
domains came out better on average behind a text, so that the rule as it was fixed confirmed keep by numbers below 0 on both sides. The arms at four times the rate are there to forget something.
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
from benchmarks.script import corpus_facts, corpus_parser_of, judged_domains, measuring, rows_before  # noqa: E402
from dynadapt import Adam, Engine, KeepPrior, LoRA, SegmentMemory, load  # noqa: E402
from dynadapt.common.environment import environment  # noqa: E402
from dynadapt.experiments.memory_distillation import distil_memory  # noqa: E402
from dynadapt.runs.whole_files import write_json  # noqa: E402

SEGMENT, TEXT, MEMORY, OTHER, COST = 256, 3072, 2048, 512, 0.005
ARMS = ("none", "memory", "distilled", "distilled, 4th", "keep", "none, 4x", "keep, 4x")


def texts(corpus: Path, domains: list[str], tokenizer) -> dict[str, dict]:
    """domain -> ids of its text, of the reference and of what is scored behind it."""
    ids = {domain: tokenizer.encode(held_out(corpus, domain)) for domain in domains}
    needed = TEXT + 2 * OTHER + 2
    for domain in domains:
        if len(ids[domain]) < needed:
            raise SystemExit(f"{corpus}: {domain} holds out {len(ids[domain])} tokens; {needed} are needed")
    reference = {domain: ids[domain][-OTHER:] for domain in domains}
    scored = {domain: ids[domain][-2 * OTHER - 1 : -OTHER] for domain in domains}
    others = lambda parts, own: [parts[domain] for domain in domains if domain != own]  # noqa: E731
    return {
        domain: {
            "ids": torch.tensor(ids[domain][: TEXT + 1]),
            "reference": torch.tensor([token for part in others(reference, domain) for token in part]),
            "others": torch.tensor(others(scored, domain)),
        }
        for domain in domains
    }


def run(model, arm: str, text: dict) -> dict:
    """One arm's loss on one text, and where it is asked what it forgot."""
    keep = KeepPrior(text["reference"], weight=0.1, tokens=64) if arm.startswith("keep") else None
    memory = SegmentMemory(MEMORY) if arm in ("memory", "distilled", "distilled, 4th") else None
    optimizer = Adam(lr=4 * Adam().lr) if arm.endswith("4x") else Adam()
    engine = Engine(
        model, LoRA(), optimizer=optimizer, memory=memory, segment=SEGMENT, dtype="bf16", backend="cpu", device="cpu", keep=keep
    )
    windows = [row[None, at : at + SEGMENT + 1] for row in text["others"] for at in range(0, OTHER, SEGMENT)]
    of_others = lambda: float(torch.cat([engine.score(window)[0] for window in windows]).double().mean())  # noqa: E731
    before, made, start, found = of_others() if memory is None else 0.0, engine.flops, time.perf_counter(), {}
    if arm.startswith("distilled"):
        nll = distil_memory(engine, text["ids"], every=4 if arm.endswith("4th") else 1).nll
    else:
        rows = [text["ids"][None, at : at + SEGMENT + 1] for at in range(0, TEXT, SEGMENT)]
        nll = torch.cat([engine.step(row)[0] for row in rows])
    found = {"nll": float(nll.double().mean()), "seconds": round(time.perf_counter() - start, 1)}
    found["tflop"] = (sum(engine.flops.values()) - sum(made.values())) / 1e12
    if memory is None:
        found |= {"forgotten": of_others() - before, "others_before": before}
    if keep is not None:
        found["divergence_at_the_end"] = engine.keeping.divergence[0]
    return found


def interval(values: list[float]) -> dict:
    """Mean and Student's 95% interval."""
    n, mean = len(values), math.fsum(values) / len(values)
    error = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)
    reach = float(student.ppf(0.975, n - 1)) * error
    return {"mean": mean, "from": mean - reach, "to": mean + reach}


def verdicts(rows: dict[str, dict]) -> dict:
    """By the rules above, over texts of which all arms are there."""
    whole = [row for row in rows.values() if set(ARMS) <= row.keys()]
    if len(whole) < 2:
        return {}
    nll = lambda arm: [row[arm]["nll"] for row in whole]  # noqa: E731
    gains = lambda arm: [none - own for none, own in zip(nll("none"), nll(arm))]  # noqa: E731
    found: dict = {"texts": len(whole), "nll": {arm: math.fsum(nll(arm)) / len(whole) for arm in ARMS}}
    found["tflop"] = {arm: math.fsum(row[arm]["tflop"] for row in whole) / len(whole) for arm in ARMS}
    found["memory"] = {"gain": interval(gains("memory"))}
    for arm in ("distilled", "distilled, 4th"):
        beyond = interval([own - 0.5 * memory for own, memory in zip(gains(arm), gains("memory"))])
        verdict = "confirmed" if beyond["from"] > 0 else "refuted" if beyond["to"] < 0 else "open"
        found[arm] = {
            "verdict": verdict if found["memory"]["gain"]["from"] > 0 else "open",
            "gain": interval(gains(arm)),
            "beyond_half": beyond,
        }
    for end in ("", ", 4x"):
        found["keep" + end] = _kept(*([row[arm + end] for row in whole] for arm in ("none", "keep")))
    return found


def _kept(plain: list[dict], kept: list[dict]) -> dict:
    """What the pull to the prior saved, and cost, beside learning without."""
    of = lambda rows, name: [row[name] for row in rows]  # noqa: E731
    half = interval([own - 0.5 * none for own, none in zip(of(kept, "forgotten"), of(plain, "forgotten"))])
    cost = interval([own - none for own, none in zip(of(kept, "nll"), of(plain, "nll"))])
    forgot = interval(of(plain, "forgotten"))
    verdict = "confirmed" if half["to"] < 0 and cost["to"] <= COST else "refuted" if half["from"] > 0 or cost["from"] > COST else "open"
    if forgot["from"] <= 0:
        verdict = "open"
    return {"verdict": verdict, "beyond_half": half, "cost": cost, "none_forgot": forgot, "forgot": interval(of(kept, "forgotten"))}


def page(found: dict) -> str:
    """The verdicts as tables; of fewer than two texts there are none."""
    if not found:
        return "Nothing is judged of fewer than two texts.\n"
    spread = lambda of: f"{of['mean']:+.4f} [{of['from']:+.4f}, {of['to']:+.4f}]"  # noqa: E731
    lines = [f"Nats per token over {found['texts']} texts, with 95% intervals.", "", "| arm | NLL | TFLOP |", "|---|---|---|"]
    lines += [f"| {arm} | {found['nll'][arm]:.4f} | {found['tflop'][arm]:.2f} |" for arm in ARMS]
    lines += ["", "| arm | gain over none | gain less half of memory's | verdict |", "|---|---|---|---|"]
    lines.append(f"| memory | {spread(found['memory']['gain'])} | - | - |")
    for arm in ("distilled", "distilled, 4th"):
        v = found[arm]
        lines.append(f"| {arm} | {spread(v['gain'])} | {spread(v['beyond_half'])} | {v['verdict']} |")
    lines += ["", "| arm | none forgot | it forgot | less half of none's | cost on the text | verdict |", "|---|---|---|---|---|---|"]
    for arm in ("keep", "keep, 4x"):
        v = found[arm]
        cells = [spread(v[name]) for name in ("none_forgot", "forgot", "beyond_half", "cost")]
        lines.append(f"| {arm} | {' | '.join(cells)} | {v['verdict']} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    given = corpus_parser_of(__doc__, "runs/distillation").parse_args()
    with measuring("distillation", given):
        rows = measure(given)
    print_page(page(verdicts(rows)))


def measure(given) -> dict[str, dict]:
    domains, path = judged_domains(given.corpus, 2), given.out / "results.json"
    sizes = {"segment": SEGMENT, "text": TEXT, "memory": MEMORY, "other": OTHER}
    facts = {"model": given.model, "sizes": sizes, "corpus": corpus_facts(given.corpus)}
    rows = rows_before(path, facts) or {}
    model = load(given.model)
    for domain, text in texts(given.corpus, domains, model.tokenizer).items():
        for arm in ARMS:
            if arm in rows.setdefault(domain, {}):
                continue
            row = rows[domain][arm] = run(model, arm, text)
            write_json(path, {"environment": environment(), **facts, "rows": rows, "verdicts": verdicts(rows)})
            forgot = f"  forgot {row['forgotten']:+.4f}" if "forgotten" in row else ""
            print(f"{domain:20} {arm:14} {row['nll']:.4f}{forgot}  {row['seconds']} s", flush=True)
    return rows


if __name__ == "__main__":
    main()
