"""Claims 3b, 4 and 5 of "Revisiting Dynamic Evaluation" (arXiv 2403.01518) on long streams, and the gain along them.

    dynadapt corpus build --out corpus
    python benchmarks/long_streams.py corpus --out runs/long       # hours; stopped and started again it goes on

Eight texts of 65,536 scored tokens (memory of 512 with LoRA and without: of 131,072), one stream each, no reset: six domains of the corpus, the code of model families in transformers 5 that are
younger than the model, and a log that a generator here makes. The corpus' other three domains are of authors and projects whose
texts served to choose defaults; they choose the learning rates here and are not judged.

Rules, fixed before the runs. The unit is the text: a difference is the mean over texts of the difference of mean NLLs on the same tokens, with
Student's 95% interval; "below x" and "above x" mean that the whole interval lies there, and that it stands where the comparisons of a claim are counted together
(Holm, those that were not run among them; since the runs: of two comparisons, by themselves confirmed in claim 4 and refuted in claim 5, it made nothing decided). MARGIN = 0.01 nats a token is what counts as a difference where
a claim is "as good as". Beside each: the least true difference that it finds by itself with a probability of 80% (`power.seen`).

- Rates: LoRA and full adaptation each take the best of four on a grid of steps of two, its default the second highest, by the mean NLL of the three other domains'
  first 8,192 scored tokens; with memory and without it apart. A best rate at the end of its grid is said. (Where a family's adapters take another rate by
  default, both grids are as many times lower or higher; and where the best is at the end of a grid, the grid goes on by a step until it isn't, two at most. Both
  fixed before a second model was run; of the first none was at an end.)
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
- What learning and memory gain together is in the results file, as a share of the sum of what each gains alone; it judges nothing (added after the runs).

Where two arms that are compared differ in length, the tokens that both scored count.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT)]

from flops.evidence import Scored, masked_per_token, read_scored  # noqa: E402

from benchmarks.long_streams_page import draw, drawable, page  # noqa: E402
from benchmarks.long_streams_rules import ARMS, BLOCK, TOKENS, Arm, in_common, verdicts  # noqa: E402, F401  (BLOCK: of tests)
from benchmarks.printed import print_page  # noqa: E402
from benchmarks.script import (  # noqa: E402
    TUNED,
    cell,
    corpus_facts,
    corpus_parser_of,
    domains_of,
    made_once,
    measuring,
    refuse_below,
    text_once,
    usual_rate,
    write_results,
)
from dynadapt.experiments.config import EvalConfig  # noqa: E402
from dynadapt.experiments.corpus_read import read_documents  # noqa: E402

LONGER, TUNING = 131073, 8193  # tokens of a text; the first is not scored
AFTER = "apertus dots1 ernie4_5 gemma3n gemma4 glm5_next gpt_oss lfm2 lfm3 ministral3 olmo3 qwen3_5 qwen3_next smollm3".split()
CODE, LOG = "code after the model", "generated log"  # texts beside those of the corpus
RATES = {"lora": (5e-4, 1e-3, 2e-3, 4e-3), "full": (2.5e-5, 5e-5, 1e-4, 2e-4)}  # of a family whose adapters take the rate of most
FURTHER = 2  # steps that a grid goes on by


# ---- texts


def of_domain(corpus: Path, domain: str) -> str:
    """Its held-out documents, then those to train on: nothing here has learned from either."""
    parts = (text.strip("\n") for part in ("heldout", "train") for _, text in read_documents(corpus / domain / f"{part}.jsonl"))
    return "\n\n".join(parts) + "\n"


def after_the_model() -> str:
    """Model code of transformers for families published after SmolLM2 (November 2024).

    Raises:
        SystemExit: transformers is not installed, or has none of them.
    """
    try:
        import transformers
    except ImportError:
        raise SystemExit(f"the text {CODE!r} needs transformers: pip install transformers (or leave it out by --texts)") from None

    root = Path(transformers.__file__).parent / "models"
    files = [path for family in AFTER for path in sorted((root / family).glob("*.py")) if path.name != "__init__.py"]
    if not files:
        raise SystemExit(f"the text {CODE!r} needs transformers 5; {transformers.__version__} has none of its families")
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


def texts_of(corpus: Path, out: Path, wanted: list[str] | None = None) -> tuple[dict[str, Path], dict[str, Path]]:
    """({name: file} of the texts that are judged, all or those ``wanted``, and of those that choose the rates).

    Raises:
        SystemExit: there is none of a name that is wanted.
    """
    domains, made = domains_of(corpus, list(TUNED)), {CODE: after_the_model, LOG: generated_log}
    there = [*(name for name in domains if name not in TUNED), *made]
    unknown = [name for name in wanted or () if name not in there]
    if unknown:
        raise SystemExit(f"--texts {unknown[0]!r}: there are {', '.join(there)}")
    chosen = {*(wanted or there), *TUNED}
    files = {name: text_once(out / "texts" / f"{name}.txt", of_domain(corpus, name), corpus / name) for name in domains if name in chosen}
    for name, make in ((name, make) for name, make in made.items() if name in chosen):
        files[name] = made_once(out / "texts" / f"{name.replace(' ', '-')}.txt", lambda whole, make=make: whole.write_text(make(), "utf-8"))
    return {n: files[n] for n in wanted or there}, {n: f for n, f in files.items() if n in TUNED}


def digests(texts: dict[str, Path]) -> dict[str, str]:
    """By which results of two runs are seen to be of the same texts."""
    return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in texts.items()}


# ---- runs


class Runner:
    """Runs cells with one loaded model; finished ones are read from their directories."""

    def __init__(self, given, model):
        self.given, self.model = given, model

    def cell(self, file: Path, arm: Arm, tokens: int, rate: float | None, name: str) -> Scored:
        config = EvalConfig(
            model=self.given.model, text=(str(file),), tokens=tokens, adapt=arm.adapt, segment=arm.segment, memory=arm.memory, lr=rate,
            rank=arm.rank, dtype=self.given.dtype,
        )  # fmt: skip
        folder = self.given.out / "cells" / file.stem / name
        return read_scored(folder, cell(folder, config, self.model))

    def rates(self, files: dict[str, Path]) -> dict[str, dict]:
        """{"lora", "lora, memory", "full", "full, memory": as of `rate`}; files: of the texts that choose rates."""
        return {kind(arm): self.rate(files, arm) for arm in (Arm("", "", adapt, memory=memory) for adapt in RATES for memory in (0, 512))}

    def static(self, files: dict[str, Path]) -> dict[str, float]:
        """{"none", "none, memory": the mean NLL over the texts that choose rates}, beside which rates can be seen."""
        return {kind(arm): self.tuned(files, arm) for arm in (Arm("", "", memory=memory) for memory in (0, 512))}

    def rate(self, files: dict[str, Path], arm: Arm) -> dict:
        """{"rate", "nll" by rate, "end": whether it is at the end of the grid} of what learns as this arm does."""
        factor = usual_rate(self.model.config) / RATES["lora"][-2]
        return best_rate([rate * factor for rate in RATES[arm.adapt]], lambda rate: self.tuned(files, arm, rate))

    def tuned(self, files: dict[str, Path], arm: Arm, rate: float | None = None) -> float:
        """The mean NLL over the texts that choose rates."""
        rank = "" if arm.rank == Arm.rank else f"-rank-{arm.rank}"
        name = f"rate-{arm.adapt}-{arm.memory}{'' if rate is None else f'-{rate:g}'}{rank}"
        return float(np.mean([self.cell(f, arm, self.given.tuning, rate, name).mean for f in files.values()]))


def best_rate(grid: list[float], score: Callable[[float], float]) -> dict:
    """{"rate", "nll" by rate, "end"} of a grid of steps of two, which goes on by up to `FURTHER` where the best is at its end; score: the NLL at a rate."""
    nll = {rate: score(rate) for rate in grid}
    for _ in range(FURTHER):
        best = min(nll, key=nll.get)
        if best not in (min(nll), max(nll)):
            break
        beyond = best / 2 if best == min(nll) else best * 2
        nll[beyond] = score(beyond)
    best = min(nll, key=nll.get)
    return {"rate": best, "nll": {f"{rate:g}": nll[rate] for rate in sorted(nll)}, "end": best in (min(nll), max(nll))}


def kind(arm: Arm) -> str:
    return arm.adapt + (", memory" if arm.memory else "")


def main() -> int:
    parser = corpus_parser_of(__doc__, "runs/long")
    parser.add_argument("--dtype", choices=("auto", "bf16", "fp32"), default="auto", help="(default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of each text (default: %(default)s)")
    parser.add_argument("--longer", type=int, default=LONGER, help="of each text with memory of 512 (default: %(default)s)")
    parser.add_argument("--tuning", type=int, default=TUNING, help="of each text that chooses rates (default: %(default)s)")
    parser.add_argument("--texts", nargs="+", default=None, metavar="TEXT", help="of those that are judged only these (default: all)")
    parser.add_argument("--arms", nargs="+", default=[arm.name for arm in ARMS], metavar="ARM", help="of them only these (default: all)")
    given = parser.parse_args()
    names = [arm.name for arm in ARMS]
    for name in given.arms:
        if name not in names:
            parser.error(f"--arms {name}: there are {', '.join(names)}")
    refuse_below(parser, given, 2 * 512, "tokens", "longer", "tuning")
    with measuring("long_streams", given, "dtype", "tokens", "tuning"):
        measure(given)
    print_page((given.out / "results.md").read_text("utf-8"))
    return 0


def measure(given: argparse.Namespace) -> None:
    import dynadapt

    texts, tuning = texts_of(given.corpus, given.out, given.texts)
    model = dynadapt.load(given.model)
    runner = Runner(given, model)
    rates, still = runner.rates(tuning), runner.static(tuning)
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
        put(given, texts, rates, cells, flops, still)


def put(given, texts, rates, cells, flops, still=None) -> None:
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
        "texts": digests(texts),
        "rates": rates,
        "static_where_rates_were_chosen": still,
        "arms": arms,
        "verdicts": verdicts(cells, flops),
    }
    write_results(given.out, results, page(results))
    if drawable(results):
        draw(results, given.out / "gain.png")


if __name__ == "__main__":
    sys.exit(main())
