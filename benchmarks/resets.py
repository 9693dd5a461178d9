"""Where an alarm should lead: spliced texts under nine ways to go back and a lower rate without, and false alarms on texts that stay one.

    dynadapt corpus build --out corpus
    python benchmarks/resets.py corpus --out runs/resets        # stopped, the same command goes on with the next text

SmolLM2-135M, LoRA at its defaults, segments of SEGMENT and memory of 512, a stream of its own for each text. What is compared is the adapted
score (the mixture's is never much above the prior's, and would hide what a reset does). Domains are those of benchmarks/guard.py: none whose
texts served to choose defaults.

- Spliced: PARTS texts of PART tokens of different domains, one behind the other without a mark, the stream's memory going on: SPLICES of them.
- Stationary: RUN tokens of each domain, read as one document, of three KINDS: the end of its text that is held out; paragraphs of all that it holds
  out in random order, so that no stretch differs from another but by chance; words drawn one by one as often as they are in it.

Arms: static; never; oracle (`Engine.reset` at each splice, before its first segment); auto (the CUSUM of its own score); with a guard
full (`reset="auto"`), half (`Alarm(back=0.5)`), ring (`Alarm(ring=4)`), slower (`Alarm(slower=0.5)`), and recipe (`Alarm(nats=2, back=0.5)`).
Lower is the control of slower: half the rate from the first token on, and no reset.

Rules, fixed before the runs:
- spliced: an arm passes where its mean over spliced texts of (its loss - the oracle's) is at most 0.005 nats a token. Of the mean, the
  standard error is given; confirmed or refuted needs 0.005 outside of Student's 95% interval of the mean over texts, else it is open. (As fixed it was two
  standard errors, which four texts do not bear out: made stricter after the runs, by which one arm that was confirmed and two that were refuted are open.)
- gain: mean of (its loss - that of never resetting), below 0 by the same interval: it helps. The oracle itself is not judged.
- the alarm's part: mean of (slower's loss - lower's). Wholly below 0: the alarm is worth more than the lower rate alone, confirmed; wholly above: refuted.
- false alarms: on stationary text of each kind, alarms over segments, scaled to 256 segments, is under 2%. With no alarm in n segments the rate of alarms is
  under 3/n with 95% (Hanley and Lippman-Hand 1983): refuted where there is an alarm and the lower bound (exact Poisson, 95%) is above it,
  confirmed where the upper bound is below it, else open. Half, ring and slower raise the alarms of full up to the first, and are not run.

Earlier results had four splices, one kind of 2,048 tokens and no lower. All of this takes about 25
minutes on two quiet cores.
"""

from __future__ import annotations

import json
import math
import random
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from scipy.stats import t as student  # noqa: E402

from benchmarks.guard import held_out  # noqa: E402
from benchmarks.script import TUNED, by_text_and_arm, corpus_parser_of, domains_of, mean_error, usual_rate  # noqa: E402
from dynadapt import Adam, Alarm, Engine, LoRA, SegmentMemory, load  # noqa: E402

SEGMENT, PART, PARTS, SPLICES, RUN = 128, 1536, 3, 8, 4096
KINDS = ("held out", "shuffled", "words")
BEHIND, FALSE, SEGMENTS = 0.005, 0.02, 256
ARMS: dict[str, dict] = {
    "static": {"adapt": None, "optimizer": None},
    "never": {},
    "lower": {},
    "oracle": {},
    "auto": {"reset": "auto"},
    "full": {"guard": "exact", "reset": "auto"},
    "half": {"guard": "exact", "reset": Alarm(back=0.5)},
    "ring": {"guard": "exact", "reset": Alarm(ring=4)},
    "slower": {"guard": "exact", "reset": Alarm(slower=0.5)},
    "recipe": {"guard": "exact", "reset": Alarm(nats=2, back=0.5)},
}
DETECTING = ["auto", "full", "recipe"]  # half, ring and slower have full's first alarm


def texts(corpus: Path, tokenizer) -> dict[str, tuple[list[int], list[int]]]:
    """name -> (ids, where its domain changes). Where the tokenizer begins texts with a token of its own, it stands in place of a text's first."""
    begins = list(getattr(tokenizer, "begins", ()))
    domains = [domain for domain in domains_of(corpus, []) if domain not in TUNED]
    ids = {domain: tokenizer.encode(held_out(corpus, domain)) for domain in domains}
    needed = PART * SPLICES + RUN
    for domain in domains:
        if len(ids[domain]) < needed:
            raise SystemExit(f"{corpus}: {domain} holds out {len(ids[domain])} tokens; {needed} are needed")
    found, rng = {}, random.Random(0)
    for i in range(SPLICES):
        chosen = rng.sample(domains, PARTS)
        found[f"splice {i + 1}: {', '.join(chosen)}"] = (
            begins + [token for domain in chosen for token in ids[domain][i * PART : (i + 1) * PART]][len(begins) :],
            [PART * part for part in range(1, PARTS)],
        )
    for domain in domains:
        for kind in KINDS:
            found[f"stationary, {kind}: {domain}"] = (
                begins + stationary(kind, ids[domain], held_out(corpus, domain), tokenizer)[len(begins) :],
                [],
            )
    return found


def stationary(kind: str, ids: list[int], text: str, tokenizer) -> list[int]:
    """RUN ids of one kind, of a domain's held-out text and its ids."""
    if kind == "held out":
        return ids[-RUN:]
    rng = random.Random(0)
    if kind == "shuffled":
        parts = [part for part in text.split("\n\n") if part.strip()]
        mixed = "\n\n".join(rng.sample(parts, len(parts)))
    else:
        mixed = " ".join(rng.choices(text.split(), k=2 * RUN))
    found = tokenizer.encode(mixed[: 40 * RUN])[:RUN]
    if len(found) < RUN:
        raise SystemExit(f"{kind} text has {len(found)} tokens; {RUN} are needed")
    return found


def score(model, arm: str, ids: list[int], splices: list[int], **more) -> dict:
    """One arm's loss and resets on one text."""
    rate = usual_rate(model.config) / (2 if arm == "lower" else 1)
    given = {"adapt": LoRA(), "optimizer": Adam(lr=rate), "memory": SegmentMemory(512), "segment": SEGMENT, **ARMS[arm], **more}
    engine, total, resets, start = Engine(model, **given), 0.0, [], time.perf_counter()
    for begin in range(0, len(ids) - 1, SEGMENT):
        if arm == "oracle" and begin in splices:
            engine.reset(0)
        scores = engine.step(torch.tensor([ids[begin : begin + SEGMENT + 1]]))
        adapted = scores if engine.last.nll_adapted is None else engine.last.nll_adapted
        total += adapted.double().sum().item()
        if engine.last.was_reset[0]:
            resets.append({"segment": begin // SEGMENT, "to": engine.last.went_back.get(0, "prior")})
    seconds = round(time.perf_counter() - start, 1)
    return {"nll": total / (len(ids) - 1), "resets": resets, "flops": sum(engine.flops.values()), "seconds": seconds}


def poisson(count: int, upper: bool) -> float:
    """The exact 95% bound (one-sided 97.5%) of a Poisson mean, by bisection."""
    tail = lambda mean, k: math.fsum(math.exp(-mean + j * math.log(mean) - math.lgamma(j + 1)) for j in range(k + 1))  # noqa: E731
    if not upper and not count:
        return 0.0
    low, high = 1e-9, 10.0 * count + 20
    for _ in range(100):
        middle = (low + high) / 2
        below = tail(middle, count) > 0.025 if upper else 1 - tail(middle, count - 1) < 0.025
        low, high = (middle, high) if below else (low, middle)
    return low


def verdicts(rows: list[dict]) -> dict:
    """By the rules above."""
    spliced = [row for row in rows if row["splices"] and {"oracle", "never"} <= row["arms"].keys()]
    there = [arm for arm in ARMS if all(arm in row["arms"] for row in spliced)]
    still = [row for row in rows if not row["splices"]]
    found: dict = {"spliced": {}, "stationary": {}}
    reach = float(student.ppf(0.975, len(spliced) - 1)) if len(spliced) > 1 else math.inf  # standard errors
    for arm in there if len(spliced) > 1 else ():
        behind, error = mean_error([row["arms"][arm]["nll"] - row["arms"]["oracle"]["nll"] for row in spliced])
        gain, gain_error = mean_error([row["arms"][arm]["nll"] - row["arms"]["never"]["nll"] for row in spliced])
        verdict = "open" if abs(behind - BEHIND) < reach * error else "confirmed" if behind < BEHIND else "refuted"
        found["spliced"][arm] = {
            "verdict": "-" if arm == "oracle" else verdict,
            "behind_oracle": behind,
            "error": error,
            "beside_never": gain,
            "beside_never_error": gain_error,
            "helps": gain < -reach * gain_error,
            "nll": mean_error([row["arms"][arm]["nll"] for row in spliced])[0],
            "resets": sum(len(row["arms"][arm]["resets"]) for row in spliced),
            "splices": sum(len(row["splices"]) for row in spliced),
            "texts": len(spliced),
        }
    if {"slower", "lower"} <= set(there) and len(spliced) > 1:
        parted, error = mean_error([row["arms"]["slower"]["nll"] - row["arms"]["lower"]["nll"] for row in spliced])
        verdict = "open" if abs(parted) <= reach * error else "confirmed" if parted < 0 else "refuted"
        found["the alarm's part"] = {"verdict": verdict, "slower_less_lower": parted, "error": error, "texts": len(spliced)}
    for kind in KINDS:
        of_kind = [row for row in still if row["kind"] == kind]
        alarms = {arm: _alarms([row for row in of_kind if arm in row["arms"]], arm) for arm in DETECTING}
        if counted := {arm: n for arm, n in alarms.items() if n}:
            found["stationary"][kind] = counted
    return found


def _alarms(rows: list[dict], arm: str) -> dict | None:
    """False alarms of one arm on texts of one kind, by the rules above; None of no text."""
    if not rows:
        return None
    count, segments = sum(len(row["arms"][arm]["resets"]) for row in rows), sum(row["segments"] for row in rows)
    low, high = (poisson(count, upper) * SEGMENTS / segments for upper in (False, True))
    verdict = "confirmed" if high < FALSE else "refuted" if low > FALSE else "open"
    return {"verdict": verdict, "alarms": count, "segments": segments, "rate": count * SEGMENTS / segments, "bounds": [low, high]}


def page(results: dict) -> str:
    """The tables of docs/adaptation.md."""
    of = results["verdicts"]
    lines = ["| arm | nats/token | behind the oracle | beside never | resets | within 0.005 of the oracle |", "|---|---|---|---|---|---|"]
    for arm, v in of["spliced"].items():
        pair = lambda mean, error: f"{mean:+.4f} ± {error:.4f}"  # noqa: E731
        beside = [pair(v["behind_oracle"], v["error"]), pair(v["beside_never"], v["beside_never_error"])]
        lines.append(f"| {arm} | {v['nll']:.4f} | {beside[0]} | {beside[1]} | {v['resets']} | {v['verdict']} |")
    if v := of.get("the alarm's part"):
        lines += ["", f"Slower less lower: {v['slower_less_lower']:+.4f} ± {v['error']:.4f} over {v['texts']} texts: {v['verdict']}."]
    lines += ["", "| text | arm | alarms | segments | per 256 segments (95%) | under 2% |", "|---|---|---|---|---|---|"]
    for kind, arms in of["stationary"].items():
        for arm, v in arms.items():
            low, high = v["bounds"]
            lines.append(
                f"| {kind} | {arm} | {v['alarms']} | {v['segments']} | {v['rate']:.1f} ({low:.1f} to {high:.1f}) | {v['verdict']} |"
            )
    return "\n".join(lines) + "\n"


def main() -> int:
    given = corpus_parser_of(__doc__, "runs/resets").parse_args()
    model = load(given.model)
    found = texts(given.corpus, model.tokenizer)
    heads = [
        {
            "text": name,
            "kind": None if splices else name.split(":")[0].removeprefix("stationary, "),
            "tokens": len(ids) - 1,
            "segments": -(-(len(ids) - 1) // SEGMENT),
            "splices": splices,
        }
        for name, (ids, splices) in found.items()
    ]
    results = by_text_and_arm(
        given.out,
        {"model": given.model, "segment": SEGMENT, "part": PART, "parts": PARTS, "run": RUN},
        heads,
        lambda row: ARMS if row["splices"] else DETECTING,
        lambda text, arm: score(model, arm, *found[text]),
        verdicts,
        lambda row, arm: f"{row['text']:60} {arm:8} {row['arms'][arm]['nll']:.4f}  {len(row['arms'][arm]['resets'])} resets",
    )
    (given.out / "results.md").write_text(page(results))
    print(json.dumps(results["verdicts"], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
