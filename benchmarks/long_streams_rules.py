"""The arms of benchmarks/long_streams.py, and its claims decided by the rules of that file."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT)]

from flops.evidence import Scored  # noqa: E402

from benchmarks.script import OPEN, judged  # noqa: E402
from dynadapt.experiments.reweight.compare import holm, paired  # noqa: E402

TOKENS = 65537  # of a text; the first is not scored
LENGTHS = (4096, 16384, 65536)
MARGIN, LEVEL, BLOCK, END = 0.01, 0.05, 8192, 16384


@dataclass(frozen=True)
class Arm:
    """One way of reading; online ones take the rate that was best with or without memory."""

    name: str
    title: str
    adapt: str = "none"
    segment: int = 512
    memory: int = 0
    longer: bool = False  # reads LONGER in place of TOKENS
    rank: int = 16

    @property
    def online(self) -> bool:
        return self.adapt != "none"


ARMS = (  # what decides most first: a run that is stopped has whole claims
    Arm("static-512", "static, 512"),
    Arm("lora-512", "LoRA, 512", "lora"),
    Arm("static-2048", "static, 2,048", segment=2048),
    Arm("static-memory-512", "static, memory 512", memory=512, longer=True),
    Arm("static-memory-1536", "static, memory 1,536", memory=1536),
    Arm("lora-memory-512", "LoRA, memory 512", "lora", memory=512, longer=True),
    Arm("full-512", "full, 512", "full"),
    Arm("full-memory-512", "full, memory 512", "full", memory=512),
    Arm("lora-memory-1536", "LoRA, memory 1,536", "lora", memory=1536),
    Arm("static-memory-3584", "static, memory 3,584", memory=3584),
    Arm("static-4096", "static, 4,096", segment=4096),
    Arm("static-8192", "static, 8,192", segment=8192),
    Arm("static-memory-6144", "static, memory 6,144", memory=6144),
    Arm("static-memory-7676", "static, memory 7,676", memory=7676),  # with the sinks and a segment all of SmolLM2's positions
    Arm("lora-memory-3584", "LoRA, memory 3,584", "lora", memory=3584),
)
CLAIM5 = (("lora-512", "static-2048"), ("lora-512", "static-memory-1536"), ("lora-memory-512", "static-memory-1536"))
CLAIM4 = (("lora-512", "full-512"), ("lora-memory-512", "full-memory-512"))
LEARNING = (("lora-512", "static-512"), ("full-512", "static-512"), ("lora-memory-512", "static-memory-512"),
            ("full-memory-512", "static-memory-512"), ("lora-memory-1536", "static-memory-1536"), ("lora-memory-3584", "static-memory-3584"))  # fmt: skip
COMPARISONS = {  # how many a claim has
    "5": len(CLAIM5) * len(LENGTHS),
    "4": len(CLAIM4) * 2,
    "3b": sum(arm.online for arm in ARMS),
    "growth": len(LEARNING),
}


def in_common(cells: dict[str, dict[str, Scored]], arms: tuple[str, ...] = ()) -> dict[str, dict[str, Scored]]:
    """Of each text the arms (all that it has), cut to the tokens that all of these scored; costs are those of the whole."""
    chosen = {text: {arm: found[arm] for arm in arms or found} for text, found in cells.items()}
    ends = {text: min((len(scored.nll) for scored in found.values()), default=0) for text, found in chosen.items()}
    return {text: {arm: replace(s, nll=s.nll[: ends[text]]) for arm, s in found.items()} for text, found in chosen.items()}


def verdicts(cells: dict[str, dict[str, Scored]], flops: dict[str, float]) -> dict:
    """By the rules above, of the arms that all texts have; cells: {text: {arm: scores}}."""
    there = [arm for arm in ARMS if all(arm.name in found for found in cells.values())]
    names = [arm.name for arm in there]
    longer, cells = cells, in_common(cells)
    ends = lambda n: min(n, min(len(s.nll) for found in cells.values() for s in found.values()))  # noqa: E731
    mean = lambda text, arm, a, b: float(cells[text][arm].nll[a:b].mean())  # noqa: E731
    less = lambda a, b, n: [mean(t, a, 0, n) - mean(t, b, 0, n) for t in cells]  # noqa: E731
    found: dict = {"5": [], "4": [], "3b": [], "growth": [], "kept": []}
    for a, b in CLAIM5:
        for n in dict.fromkeys(map(ends, LENGTHS)) if {a, b} <= set(names) else ():
            found["5"].append({"online": a, "static": b, "tokens": n, **judged(less(a, b, n), MARGIN), "flops_ratio": flops[a] / flops[b]})
    for a, b in CLAIM4:
        for n in dict.fromkeys(map(ends, (32768, 65536))) if {a, b} <= set(names) else ():
            found["4"].append({"lora": a, "full": b, "tokens": n, **judged(less(a, b, n), 0.0, below=False)})
    static = [arm.name for arm in there if not arm.online]
    for arm in there if "static-8192" in names else ():
        cheaper = [name for name in static if arm.online and flops[name] <= flops[arm.name] * (1 + 1e-9)]
        if cheaper:
            best = [min(cells[t][name].mean for name in cheaper) for t in cells]
            rows = [cells[t][arm.name].mean - b for t, b in zip(cells, best)]
            found["3b"].append({"online": arm.name, "flops_per_token": flops[arm.name], "against": cheaper, **judged(rows)})
    for a, b in LEARNING:
        if {a, b} <= set(names):
            gains = {text: pair[b].nll - pair[a].nll for text, pair in in_common(longer, (a, b)).items()}  # [N] each
            last = min(len(gain) for gain in gains.values())
            mean_of = lambda gain, begin, end: float(gain[begin:end].mean())  # noqa: E731
            rows = [mean_of(gain, max(0, last - END), last) - mean_of(gain, 0, min(END, last)) for gain in gains.values()]
            blocks = {text: [mean_of(gain, i, i + BLOCK) for i in range(0, last - BLOCK + 1, BLOCK)] for text, gain in gains.items()}
            later = [mean_of(gain, last - END, last) - mean_of(gain, END, 2 * END) for gain in gains.values()] if last >= 3 * END else None
            found["growth"].append(
                {
                    "online": a,
                    "static": b,
                    "tokens": last,
                    **judged(rows, below=False),
                    "gain_by_block": blocks,
                    "behind_the_first": later and judged(later, below=False),
                }
            )
            if last > TOKENS:
                halves = [mean_of(gain, last // 2, last) - mean_of(gain, 0, last // 2) for gain in gains.values()]
                found["kept"].append({"online": a, "static": b, "tokens": last, **judged(halves, -MARGIN, below=False)})
    for claim, comparisons in COMPARISONS.items():
        found[claim] = counted_together(found[claim], comparisons)
    whole = {row["verdict"] for row in found["3b"]}
    means = {arm.name: {text: cells[text][arm.name].mean for text in cells} for arm in there}
    return {**found, "3b_of_all": whole.pop() if len(whole) == 1 else OPEN, "together": together(means)}


def counted_together(rows: list[dict], comparisons: int) -> list[dict]:
    """The comparisons of one claim, of which a verdict stands where it does with all ``comparisons`` counted (Holm), those that were not run among them;
    "by_itself" is what it is without."""
    adjusted = holm([*(row["p"] for row in rows), *[1.0] * (comparisons - len(rows))])
    stands = lambda p: p is not None and p < LEVEL  # noqa: E731
    return [
        {**row, "verdict": row["verdict"] if stands(p) else OPEN, "by_itself": row["verdict"], "p_together": p}
        for row, p in zip(rows, adjusted)
    ]


def together(means: dict[str, dict[str, float]]) -> list[dict]:
    """Of LoRA and of full: the gain of learning and memory of 512 together as a share of the sum of what each gains alone, the mean over texts with Student's
    interval. Judges nothing: it was looked at when all had been run. means: {arm: {text: NLL}}."""
    rows = []
    for kind in ("lora", "full"):
        names = ("static-512", f"{kind}-512", "static-memory-512", f"{kind}-memory-512")
        if set(names) <= means.keys():
            by_text = [
                (neither - both) / (2 * neither - weights - activations)
                for neither, weights, activations, both in zip(*(means[name].values() for name in names))
            ]
            found = paired(by_text)
            low, high = found["interval"] or (None, None)
            rows.append({"learns": kind, "mean": found["mean"], "low": low, "high": high, "by_text": by_text})
    return rows
