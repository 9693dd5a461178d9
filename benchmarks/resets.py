"""Where an alarm should lead: spliced texts under nine ways to go back and a lower rate without, and false alarms on texts that stay one.

    dynadapt corpus build --out corpus
    python benchmarks/resets.py corpus --out runs/resets        # stopped, the same command goes on with the next text
    python benchmarks/resets.py corpus --out runs/resets-long --design long

SmolLM2-135M, LoRA at its defaults, memory of 512, a stream of its own for each text. What is compared is the adapted
score (the mixture's is never much above the prior's, and would hide what a reset does). Domains are those of benchmarks/guard.py: none whose
texts served to choose defaults.

Two designs. "Short": segments of 128; the default rate, which was chosen with segments of 512, is too high for them. "Long": segments of 512.

- Spliced: pieces of different domains, one behind the other without a mark, the stream's memory going on. Short: eight texts of three pieces of 1,536
  tokens. Long: six texts of one piece of 8,192 tokens of every domain that still has one (text i has each domain's piece i), in random order.
- Stationary: 4,096 tokens of each domain (long: 8,192), read as one document, of three KINDS: the end of its text that is held out; paragraphs of all that it
  holds out in random order, so that no stretch differs from another but by chance; words drawn one by one as often as they are in it (long: the first only).

Arms: static; never; oracle (`Engine.reset` at each splice, before its first segment); auto (the CUSUM of its own score); with a guard
full (`reset="auto"`), half (`Alarm(back=0.5)`), ring (`Alarm(ring=4)`), slower (`Alarm(slower=0.5)`), and recipe (`Alarm(nats=2, back=0.5)`).
Lower is the control of slower: half the rate from the first token on, and no reset. Lower-oracle (long only) resets at each splice at that rate.

Rules, fixed before the runs:
- spliced: an arm passes where its mean over spliced texts of (its loss - the oracle's) is at most 0.005 nats a token. Of the mean, the
  standard error is given; confirmed or refuted needs 0.005 outside of Student's 95% interval of the mean over texts, else it is open. (As fixed it was two
  standard errors, which four texts do not bear out: made stricter after the runs, by which one arm that was confirmed and two that were refuted are open.)
  A verdict has to stand with those of all arms but the oracles counted together (Holm), else it is open, "by_itself" what it is without. (Since the runs of
  both designs: it made open what was confirmed of slower, short, and of lower and half, long.)
- gain: mean of (its loss - that of never resetting), below 0 in the same way: it helps. The oracles themselves are not judged.
- what a reset is worth at the lower rate: mean of (lower-oracle's loss - lower's). Wholly below 0: a reset helps there too, confirmed; wholly above: refuted.
- the alarm's part: mean of (slower's loss - lower's). Wholly below 0: the alarm is worth more than the lower rate alone, confirmed; wholly above: refuted.
- false alarms: on stationary text of each kind, alarms over segments, scaled to 256 segments, is under 2%. With no alarm in n segments the rate of alarms is
  under 3/n with 95% (Hanley and Lippman-Hand 1983): refuted where there is an alarm and the lower bound (exact Poisson, 95%) is above it,
  confirmed where the upper bound is below it, else open. Half, ring and slower raise the alarms of full up to the first, and are not run.

Earlier results of the short design had four splices, one kind of 2,048 tokens and no lower. Short takes about 25 minutes on two quiet cores with AVX512-BF16, long
two hours. The long design and its rule were fixed before its runs, and after those of the short one.
"""

from __future__ import annotations

import math
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.guard import held_out  # noqa: E402
from benchmarks.printed import print_page  # noqa: E402
from benchmarks.script import (  # noqa: E402
    by_text_and_arm,
    corpus_parser_of,
    ids_digest,
    judged_domains,
    mean_error,
    measuring,
    said_by_itself,
    usual_rate,
)
from dynadapt import Adam, Alarm, Engine, LoRA, SegmentMemory, load  # noqa: E402
from dynadapt.experiments.reweight.compare import holm, paired  # noqa: E402

KINDS = ("held out", "shuffled", "words")


@dataclass(frozen=True)
class Design:
    """Sizes in tokens. ``texts``: how many are spliced, of ``parts`` pieces each; parts None: of one of every domain that has one. ``run``: of a
    stationary text. ``without``: an arm that is not run."""

    segment: int
    part: int
    parts: int | None
    texts: int
    run: int
    kinds: tuple[str, ...]
    without: str = ""


DESIGNS = {"short": Design(128, 1536, 3, 8, 4096, KINDS, without="lower-oracle"), "long": Design(512, 8192, None, 6, 8192, KINDS[:1])}
BEHIND, FALSE, SEGMENTS, LEVEL = 0.005, 0.02, 256, 0.05
ARMS: dict[str, dict] = {
    "static": {"adapt": None, "optimizer": None},
    "never": {},
    "lower": {},
    "lower-oracle": {},
    "oracle": {},
    "auto": {"reset": "auto"},
    "full": {"guard": "exact", "reset": "auto"},
    "half": {"guard": "exact", "reset": Alarm(back=0.5)},
    "ring": {"guard": "exact", "reset": Alarm(ring=4)},
    "slower": {"guard": "exact", "reset": Alarm(slower=0.5)},
    "recipe": {"guard": "exact", "reset": Alarm(nats=2, back=0.5)},
}
BESIDE_LOWER = {"the alarm's part": "slower", "a reset at the lower rate": "lower-oracle"}  # arms that are judged beside it
DETECTING = ["auto", "full", "recipe"]  # half, ring and slower have full's first alarm


def texts(corpus: Path, domains: list[str], tokenizer, design: Design) -> dict[str, tuple[list[int], list[int]]]:
    """name -> (ids, where its domain changes). Where the tokenizer begins texts with a token of its own, it stands in place of a text's first."""
    begins = list(getattr(tokenizer, "begins", ()))
    ids = {domain: tokenizer.encode(held_out(corpus, domain)) for domain in domains}
    found = {f"splice {i + 1}: {', '.join(pieces)}": spliced(pieces, begins) for i, pieces in enumerate(pieces_of(ids, design))}
    for domain in domains:
        for kind in design.kinds:
            run = stationary(kind, ids[domain], held_out(corpus, domain), tokenizer, design.run)
            found[f"stationary, {kind}: {domain}"] = begins + run[len(begins) :], []
    return found


def pieces_of(ids: dict[str, list[int]], design: Design) -> list[dict[str, list[int]]]:
    """For each spliced text its pieces by domain, in order. No two texts share a piece, nor has one what is in a stationary text that is held out.

    Raises:
        SystemExit: a domain has too few tokens, or too few domains have a text's piece.
    """
    count = {domain: (len(own) - design.run) // design.part for domain, own in ids.items()}
    needed = 1 if design.parts is None else design.texts
    for domain, pieces in count.items():
        if pieces < needed:
            raise SystemExit(f"{domain} holds out {len(ids[domain])} tokens; {needed * design.part + design.run} are needed")
    rng, found = random.Random(0), []
    for i in range(design.texts):
        there = [domain for domain in ids if i < count[domain]]
        if len(there) < max(2, design.parts or 0):
            raise SystemExit(
                f"{len(there)} domains hold out {(i + 1) * design.part + design.run} tokens; {max(2, design.parts or 0)} are needed"
            )
        chosen = rng.sample(there, design.parts or len(there))
        found.append({domain: ids[domain][i * design.part : (i + 1) * design.part] for domain in chosen})
    return found


def spliced(pieces: dict[str, list[int]], begins: list[int]) -> tuple[list[int], list[int]]:
    part = len(next(iter(pieces.values())))
    ids = [token for piece in pieces.values() for token in piece]
    return begins + ids[len(begins) :], [part * i for i in range(1, len(pieces))]


def stationary(kind: str, ids: list[int], text: str, tokenizer, run: int) -> list[int]:
    """``run`` ids of one kind, of a domain's held-out text and its ids."""
    if kind == "held out":
        return ids[-run:]
    rng = random.Random(0)
    if kind == "shuffled":
        parts = [part for part in text.split("\n\n") if part.strip()]
        mixed = "\n\n".join(rng.sample(parts, len(parts)))
    else:
        mixed = " ".join(rng.choices(text.split(), k=2 * run))
    found = tokenizer.encode(mixed[: 40 * run])[:run]
    if len(found) < run:
        raise SystemExit(f"{kind} text has {len(found)} tokens; {run} are needed")
    return found


def score(model, arm: str, ids: list[int], splices: list[int], segment: int, **more) -> dict:
    """One arm's loss and resets on one text."""
    rate = usual_rate(model.config) / (2 if arm.startswith("lower") else 1)
    given = {"adapt": LoRA(), "optimizer": Adam(lr=rate), "memory": SegmentMemory(512), "segment": segment, **ARMS[arm], **more}
    engine, total, resets, start = Engine(model, **given), 0.0, [], time.perf_counter()
    for begin in range(0, len(ids) - 1, segment):
        if arm.endswith("oracle") and begin in splices:
            engine.reset(0)
        scores = engine.step(torch.tensor([ids[begin : begin + segment + 1]]))
        adapted = scores if engine.last.nll_adapted is None else engine.last.nll_adapted
        total += adapted.double().sum().item()
        if engine.last.was_reset[0]:
            resets.append({"segment": begin // segment, "to": engine.last.went_back.get(0, "prior")})
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
    there = [arm for arm in ARMS if all(arm in row["arms"] for row in spliced)] if len(spliced) > 1 else []
    still = [row for row in rows if not row["splices"]]
    found: dict = {"spliced": of_arms(spliced, there), "stationary": {}}
    for what, arm in BESIDE_LOWER.items():
        if {arm, "lower"} <= set(there):
            parted, error, interval, p = apart(spliced, arm, "lower")
            of = {f"{arm}_less_lower": parted, "error": error, "interval": interval, "p": p}
            found[what] = {"verdict": says(parted, p), **of, "texts": len(spliced)}
    for kind in KINDS:
        of_kind = [row for row in still if row["kind"] == kind]
        alarms = {arm: _alarms([row for row in of_kind if arm in row["arms"]], arm) for arm in DETECTING}
        if counted := {arm: n for arm, n in alarms.items() if n}:
            found["stationary"][kind] = counted
    return found


def apart(rows: list[dict], arm: str, other: str, limit: float = 0.0) -> tuple[float, float, list[float], float]:
    """Of one arm's loss less another's over texts the mean, its standard error, Student's interval, and the p-value of a mean of ``limit``."""
    less = [row["arms"][arm]["nll"] - row["arms"][other]["nll"] for row in rows]
    return *mean_error(less), paired(less)["interval"], paired([value - limit for value in less])["p"]


def says(above: float, p: float) -> str:
    """Of a mean that lies so far above the limit that it is to be below."""
    return "open" if p >= LEVEL else "confirmed" if above < 0 else "refuted"


def of_arms(spliced: list[dict], arms: list[str]) -> dict[str, dict]:
    """How far each arm is behind the oracle and beside never; of all but the oracles with what stands where they are counted together."""
    found = {}
    for arm in arms:
        behind, error, interval, p = apart(spliced, arm, "oracle", BEHIND)
        gain, gain_error, gain_interval, p_never = apart(spliced, arm, "never")
        found[arm] = {
            "verdict": "-",
            "behind_oracle": behind,
            "error": error,
            "interval": interval,
            "p": p,
            "beside_never": gain,
            "beside_never_error": gain_error,
            "beside_never_interval": gain_interval,
            "p_never": None if arm == "never" else p_never,
            "nll": mean_error([row["arms"][arm]["nll"] for row in spliced])[0],
            "resets": sum(len(row["arms"][arm]["resets"]) for row in spliced),
            "splices": sum(len(row["splices"]) for row in spliced),
            "texts": len(spliced),
        }
    judged = [arm for arm in arms if not arm.endswith("oracle")]
    together = [holm([found[arm][key] for arm in judged]) for key in ("p", "p_never")]
    for arm, p, p_never in zip(judged, *together):
        of, above = found[arm], found[arm]["behind_oracle"] - BEHIND
        of |= {"verdict": says(above, p), "by_itself": says(above, of["p"]), "p_together": p, "p_never_together": p_never}
        of["helps"] = p_never is not None and says(of["beside_never"], p_never) == "confirmed"
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
        resets = f"{v['splices']}, given" if arm.endswith("oracle") else v["resets"]
        lines.append(f"| {arm} | {v['nll']:.4f} | {beside[0]} | {beside[1]} | {resets} | {said_by_itself(v)} |")
    for what, arm in BESIDE_LOWER.items():
        if v := of.get(what):
            lines += [
                "",
                f"{arm.capitalize()} less lower: {v[f'{arm}_less_lower']:+.4f} ± {v['error']:.4f} over {v['texts']} texts: {v['verdict']}.",
            ]
    lines += ["", "| text | arm | alarms | segments | per 256 segments (95%) | under 0.02 of them |", "|---|---|---|---|---|---|"]
    for kind, arms in of["stationary"].items():
        for arm, v in arms.items():
            low, high = v["bounds"]
            lines.append(
                f"| {kind} | {arm} | {v['alarms']} | {v['segments']} | {v['rate']:.1f} ({low:.3g} to {high:.3g}) | {v['verdict']} |"
            )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = corpus_parser_of(__doc__, "runs/resets")
    parser.add_argument("--design", choices=list(DESIGNS), default="short", help="(default: %(default)s)")
    given = parser.parse_args()
    with measuring("resets", given, "design"):
        results = measure(given)
        (given.out / "results.md").write_text(page(results))
    print_page(page(results))
    return 0


def measure(given) -> dict:
    design = DESIGNS[given.design]
    domains, model = judged_domains(given.corpus, design.parts or 2), load(given.model)
    found = texts(given.corpus, domains, model.tokenizer, design)
    heads = [
        {
            "text": name,
            "kind": None if splices else name.split(":")[0].removeprefix("stationary, "),
            "tokens": len(ids) - 1,
            "segments": -(-(len(ids) - 1) // design.segment),
            "splices": splices,
            "ids": ids_digest(ids),
        }
        for name, (ids, splices) in found.items()
    ]
    return by_text_and_arm(
        given.out,
        {"model": given.model, "segment": design.segment, "part": design.part, "parts": design.parts, "run": design.run},
        heads,
        lambda row: [arm for arm in ARMS if arm != design.without] if row["splices"] else DETECTING,
        lambda text, arm: score(model, arm, *found[text], design.segment),
        verdicts,
        lambda row, arm: f"{arm:12} {row['arms'][arm]['nll']:.4f}  {len(row['arms'][arm]['resets'])} resets",
    )


if __name__ == "__main__":
    sys.exit(main())
