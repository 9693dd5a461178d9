"""Claims 3b, 4 and 5 of "Revisiting Dynamic Evaluation" (arXiv 2403.01518) on long streams, and the gain along them.

    dynadapt corpus build --out corpus
    python benchmarks/long_streams.py corpus --out runs/long       # hours; stopped and started again it goes on

Eight texts of 65,536 scored tokens (memory of 512 with LoRA and without: of 131,072), one stream each, no reset: six domains of the corpus, the code of model families in transformers 5 that are
younger than the model, and a log that a generator here makes. The corpus' other three domains are of authors and projects whose
texts served to choose defaults; they choose the learning rates here and are not judged.

Rules, fixed before the runs. The unit is the text: a difference is the mean over texts of the difference of mean NLLs on the same tokens, with
Student's 95% interval; "below x" and "above x" mean that the whole interval lies there. MARGIN = 0.01 nats a token is what counts as a difference where
a claim is "as good as". Beside each: the least true difference that the rule finds with a probability of 80% (`power.seen`).

- Rates: LoRA and full adaptation each take the best of four on a grid of steps of two, its default the second highest, by the mean NLL of the three other domains'
  first 8,192 scored tokens; with memory and without it apart. A best rate at the end of its grid is said.
- Claim 5, "a short context with online adaptation matches or beats a longer one without": online less static below MARGIN, above it refuted;
  for three pairs, by stream length (the first 4,096, 16,384 and 65,536 tokens), each pair and length with its own verdict.
- Claim 4, "LoRA scores worse than full adaptation": LoRA less full above 0, below 0 refuted; with memory and without, at 32,768 and 65,536 tokens.
- Claim 3b, "the front of online adaptation lies below that of longer static context": for each online arm, its NLL less that of the best static arm, text by
  text, whose FLOPs are no more than its own; below 0, above 0 refuted. Attention's FLOPs are counted as causal, on both sides. Of all
  arms together: confirmed where every online arm is, refuted where every one is. (Static memories of 6,144 and 7,676, which cost no more than learning with
  memory does, were added when the others had been run, as it could only make the claim harder to confirm.)
- The gain along a stream, "it grows": gain (static less online) over the last 16,384 tokens less that over the first 16,384, above 0. Beside it, added after the
  runs and judging nothing: the last less the second 16,384.
- "It is kept" along 131,072 tokens: gain over the second half less that over the first, above -MARGIN, below it refuted. (Added, with these two arms' longer
  streams, before any token behind 65,536 was scored.)

Where two arms that are compared differ in length, the tokens that both scored count.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT)]

from flops.evidence import Scored, masked_per_token, read_scored  # noqa: E402

from benchmarks.script import (
    OPEN,
    TUNED,
    cell,
    corpus_facts,
    corpus_parser_of,
    domains_of,
    going_on,
    judged,
    made_once,
    power_shown,
    shown,
    text_once,
    write_results,
)  # noqa: E402
from dynadapt.experiments.config import EvalConfig  # noqa: E402
from dynadapt.experiments.corpus_read import read_documents  # noqa: E402

TOKENS, LONGER, TUNING = 65537, 131073, 8193  # of a text; the first is not scored
LENGTHS = (4096, 16384, 65536)
MARGIN, BLOCK, END = 0.01, 8192, 16384
AFTER = "apertus dots1 ernie4_5 gemma3n gemma4 glm5_next gpt_oss lfm2 lfm3 ministral3 olmo3 qwen3_5 qwen3_next smollm3".split()
RATES = {"lora": (5e-4, 1e-3, 2e-3, 4e-3), "full": (2.5e-5, 5e-5, 1e-4, 2e-4)}


@dataclass(frozen=True)
class Arm:
    """One way of reading; online ones take the rate that was best with or without memory."""

    name: str
    title: str
    adapt: str = "none"
    segment: int = 512
    memory: int = 0
    longer: bool = False  # reads LONGER in place of TOKENS

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


# ---- texts


def of_domain(corpus: Path, domain: str) -> str:
    """Its held-out documents, then those to train on: nothing here has learned from either."""
    parts = (text.strip("\n") for part in ("heldout", "train") for _, text in read_documents(corpus / domain / f"{part}.jsonl"))
    return "\n\n".join(parts) + "\n"


def after_the_model() -> str:
    """Model code of transformers for families published after SmolLM2 (November 2024)."""
    import transformers

    root = Path(transformers.__file__).parent / "models"
    files = [path for family in AFTER for path in sorted((root / family).glob("*.py")) if path.name != "__init__.py"]
    return "\n\n".join(path.read_text("utf-8") for path in files)


def generated_log(lines: int = 6000, seed: int = 0) -> str:
    """A log of a service that does not exist: names, rates and places drift, so that there is something to learn."""
    rng = random.Random(seed)
    part = lambda: "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.randint(2, 3)))  # noqa: E731
    units, hosts = [part() for _ in range(14)], [f"{part()}-{rng.randint(1, 40):02d}" for _ in range(12)]
    said = {
        "INFO": ["opened session {n} for {u}", "{u} caught up with {h} in {ms} ms", "wrote {n} records to {u}/{x}", "lease of {u} renewed, {ms} ms left"],
        "WARN": ["{u} answered after {ms} ms", "retry {n} of {u} on {h}", "queue of {u} holds {n} items"],
        "ERROR": ["{h} refused {u}: code {x}", "checksum {x} of {u} differs, block {n}"],
    }  # fmt: skip
    found, second = [], 8 * 3600.0
    for i in range(lines):
        if i % 400 == 399:  # a deployment: some names go, others come
            units[rng.randrange(len(units))], hosts[rng.randrange(len(hosts))] = part(), f"{part()}-{rng.randint(1, 40):02d}"
        second += rng.expovariate(0.7)
        level = rng.choices(list(said), (80, 15, 5))[0]
        text = rng.choice(said[level]).format(
            n=rng.randint(1, 9999),
            u=rng.choice(units),
            h=rng.choice(hosts),
            ms=int(rng.lognormvariate(3, 1)),
            x=f"{rng.getrandbits(32):08x}",
        )
        clock = f"{int(second // 3600):02d}:{int(second // 60 % 60):02d}:{second % 60:06.3f}"
        found.append(f"{clock} {level:5} {rng.choice(hosts)} [{rng.choice(units)}] {text}")
    return "\n".join(found) + "\n"


def texts_of(corpus: Path, out: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """({name: file} of the texts that are judged, and of those that choose the rates)."""
    files = {
        name: text_once(out / "texts" / f"{name}.txt", of_domain(corpus, name), corpus / name) for name in domains_of(corpus, list(TUNED))
    }
    for name, make in {"code after the model": after_the_model, "generated log": generated_log}.items():
        files[name] = made_once(out / "texts" / f"{name.replace(' ', '-')}.txt", lambda whole, make=make: whole.write_text(make(), "utf-8"))
    return {n: f for n, f in files.items() if n not in TUNED}, {n: f for n, f in files.items() if n in TUNED}


# ---- runs


class Runner:
    """Runs cells with one loaded model; finished ones are read from their directories."""

    def __init__(self, given, model):
        self.given, self.model = given, model

    def cell(self, file: Path, arm: Arm, tokens: int, rate: float | None, name: str) -> Scored:
        config = EvalConfig(
            model=self.given.model, text=(str(file),), tokens=tokens, adapt=arm.adapt, segment=arm.segment, memory=arm.memory, lr=rate,
            dtype=self.given.dtype,
        )  # fmt: skip
        folder = self.given.out / "cells" / file.stem / name
        return read_scored(folder, cell(folder, config, self.model))

    def rates(self, files: dict[str, Path]) -> dict[str, dict]:
        """{"lora", "lora, memory", "full", "full, memory": {"rate", "nll" by rate, "end": whether it is at the end of the grid}}."""
        found = {}
        for adapt, grid in RATES.items():
            for memory in (0, 512):
                arm = Arm("", "", adapt, memory=memory)
                name = lambda rate: f"rate-{adapt}-{memory}-{rate:g}"  # noqa: B023, E731
                nll = {
                    rate: float(np.mean([self.cell(f, arm, self.given.tuning, rate, name(rate)).mean for f in files.values()]))
                    for rate in grid
                }
                best = min(nll, key=nll.get)
                found[kind(arm)] = {
                    "rate": best,
                    "nll": {f"{rate:g}": value for rate, value in nll.items()},
                    "end": best in (grid[0], grid[-1]),
                }
        return found


def kind(arm: Arm) -> str:
    return arm.adapt + (", memory" if arm.memory else "")


def in_common(cells: dict[str, dict[str, Scored]], arms: tuple[str, ...] = ()) -> dict[str, dict[str, Scored]]:
    """Of each text the arms (all that it has), cut to the tokens that all of these scored; costs are those of the whole."""
    chosen = {text: {arm: found[arm] for arm in arms or found} for text, found in cells.items()}
    ends = {text: min((len(scored.nll) for scored in found.values()), default=0) for text, found in chosen.items()}
    return {text: {arm: replace(s, nll=s.nll[: ends[text]]) for arm, s in found.items()} for text, found in chosen.items()}


# ---- verdicts


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
    whole = {row["verdict"] for row in found["3b"]}
    return {**found, "3b_of_all": whole.pop() if len(whole) == 1 else OPEN}


def page(results: dict) -> str:
    """results.json as markdown."""
    d = lambda r: f"{shown(r)} | {power_shown(r)} | {r['verdict']}"  # noqa: E731
    v, rates = results["verdicts"], results["rates"]
    lines = ["| " + " | ".join(["NLL", "GFLOP per token", *results["texts"]]) + " |", "|---" * (2 + len(results["texts"])) + "|"]
    lines += [
        f"| {row['title']} | {row['flops_per_token'] / 1e9:.3f} | "
        + " | ".join("" if n is None else f"{n:.3f}" for n in row["nll"].values())
        + " |"
        for row in results["arms"]
    ]
    tables = (
        ("5", "online less static | tokens | FLOPs of online over static", lambda r: f"{r['online']} less {r['static']} | {r['tokens']:,} | {r['flops_ratio']:.2f}"),
        ("4", "LoRA less full | tokens", lambda r: f"{r['lora']} less {r['full']} | {r['tokens']:,}"),
        ("3b", "online arm | GFLOP per token", lambda r: f"{r['online']} | {r['flops_per_token'] / 1e9:.3f}"),
        ("growth", "gain, last less first 16,384 tokens | of tokens", lambda r: f"{r['online']} over {r['static']} | {r['tokens']:,}"),
        ("behind", "gain, last less second 16,384 tokens | of tokens", lambda r: f"{r['online']} over {r['static']} | {r['tokens']:,}"),
        ("kept", "gain, second less first half | of tokens", lambda r: f"{r['online']} over {r['static']} | {r['tokens']:,}"),
    )  # fmt: skip
    v = {**v, "behind": [{**r, **r["behind_the_first"]} for r in v["growth"] if r.get("behind_the_first")]}
    for key, heading, first in tables:
        if not v[key]:
            continue
        heads = f"| {heading} | nats per token | seen with 80% | verdict |"
        lines += ["", f"**{key}**", "", heads, "|---" * (heads.count("|") - 1) + "|", *(f"| {first(r)} | {d(r)} |" for r in v[key])]
    lines += [
        "",
        "Rates: " + "; ".join(f"{name} {r['rate']:g}{' (the end of the grid)' if r['end'] else ''}" for name, r in rates.items()) + ".",
    ]
    return "\n".join(lines) + "\n"


def drawable(results: dict) -> list[dict]:
    """Of the gains along streams those of at least a block."""
    return [row for row in results["verdicts"]["growth"] if row["tokens"] >= BLOCK]


def draw(results: dict, path: Path) -> None:
    """The gain of each learning arm over the static one of its context, along the stream: mean over texts, and each text's."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    from dynadapt.experiments.plot import STYLE

    rows = drawable(results)
    columns = min(len(rows), 3)
    lines = -(-len(rows) // columns)
    width = max(8.0, 3.2 * columns + 0.6)
    titles = {arm.name: arm.title for arm in ARMS}
    with pyplot.rc_context({**STYLE, "font.size": 9}):
        size = (width, 2.7 * lines + 1.1)
        figure, axes = pyplot.subplots(lines, columns, figsize=size, sharey=True, layout="constrained", dpi=100, squeeze=False)
        for axis in axes.ravel()[len(rows) :]:
            axis.set_visible(False)
        for axis, row in zip(axes.ravel(), rows):
            blocks = np.array(list(row["gain_by_block"].values()))
            x = (np.arange(blocks.shape[1]) + 1) * BLOCK
            for text, line in zip(row["gain_by_block"], blocks):
                axis.plot(x, line, linewidth=0.8, alpha=0.7, label=text)
            axis.plot(x, blocks.mean(0), color="black", linewidth=2, label="mean")
            axis.axhline(0, color="#374151", linewidth=0.8)
            axis.set(title=titles[row["online"]], xlabel="tokens read")
            axis.xaxis.set_major_locator(ticker.MultipleLocator(16384 if x[-1] <= 65536 else 32768))
            axis.xaxis.set_major_formatter(lambda v, _: f"{v / 1024:.0f}k")
        figure.supylabel(f"gain over no learning (nats per token, blocks of {BLOCK:,})", fontsize=9)
        figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=int(width / 2), frameon=False)
        figure.savefig(path)


def main() -> int:
    parser = corpus_parser_of(__doc__, "runs/long")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of each text (default: %(default)s)")
    parser.add_argument("--longer", type=int, default=LONGER, help="of each text with memory of 512 (default: %(default)s)")
    parser.add_argument("--tuning", type=int, default=TUNING, help="of each text that chooses rates (default: %(default)s)")
    parser.add_argument("--texts", nargs="+", default=None, metavar="TEXT", help="of those that are judged only these (default: all)")
    parser.add_argument("--arms", nargs="+", default=[arm.name for arm in ARMS], metavar="ARM", help="of them only these (default: all)")
    given = parser.parse_args()
    unknown = set(given.arms) - {arm.name for arm in ARMS}
    if unknown or min(given.tokens, given.longer, given.tuning) < 2 * 512:
        raise SystemExit(
            f"--arms {sorted(unknown)}, --tokens, --longer or --tuning: arms are {', '.join(a.name for a in ARMS)}; a text has 1,024 tokens or more"
        )
    with going_on(given.out):
        measure(given)
    print(given.out / "results.md")
    return 0


def measure(given: argparse.Namespace) -> None:
    import dynadapt

    model = dynadapt.load(given.model)
    texts, tuning = texts_of(given.corpus, given.out)
    unknown = set(given.texts or ()) - set(texts)
    if unknown:
        raise SystemExit(f"--texts {sorted(unknown)}: there are {', '.join(texts)}")
    texts = {name: texts[name] for name in given.texts or texts}
    runner = Runner(given, model)
    rates = runner.rates(tuning)
    cells: dict[str, dict[str, Scored]] = {name: {} for name in texts}
    flops: dict[str, float] = {}
    for arm in (arm for arm in ARMS if arm.name in given.arms):
        rate = rates[kind(arm)]["rate"] if arm.online else None
        for name, file in texts.items():
            tokens = given.longer if arm.longer else given.tokens
            cells[name][arm.name] = runner.cell(
                file, arm, tokens, rate, arm.name if tokens == given.tokens else f"{arm.name}-of-{tokens - 1}"
            )
        scored = cells[name][arm.name]
        settings = {"segment": arm.segment, "adapt": arm.adapt, "memory": arm.memory}
        flops[arm.name] = replace(scored, masked=masked_per_token(model.config, len(scored.nll), settings)).cost
        put(given, texts, rates, cells, flops)


def put(given, texts, rates, cells, flops) -> None:
    """results.json, results.md and the picture of what there is."""
    short = in_common(cells)
    arms = [
        {
            "name": arm.name,
            "title": arm.title,
            "flops_per_token": flops[arm.name],
            "nll": {t: short[t][arm.name].mean for t in cells},
            "tokens": min(len(cells[t][arm.name].nll) for t in cells),
        }
        for arm in ARMS
        if arm.name in flops
    ]
    results = {
        "settings": {"model": given.model, "dtype": given.dtype, "tokens": given.tokens, "longer": given.longer, "tuning": given.tuning},
        "corpus": corpus_facts(given.corpus),
        "texts": {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in texts.items()},
        "rates": rates,
        "arms": arms,
        "verdicts": verdicts(cells, flops),
    }
    write_results(given.out, results, page(results))
    if drawable(results):
        draw(results, given.out / "gain.png")


if __name__ == "__main__":
    sys.exit(main())
