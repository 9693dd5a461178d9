"""Does the gain of learning grow with what was read before, or is later text other text? The same text in four orders.

    dynadapt corpus build --out corpus
    python benchmarks/long_orders.py corpus --out runs/long-orders       # an hour; stopped and started again it goes on with the next text

The eight texts of long_streams.py, the first 65,536 tokens of each, in four quarters of 16,384. They are read in four orders, each begun with another quarter
and going round (1234, 2341, 3412, 4123), as four streams of one engine: so each quarter is read once in each place, and behind the same quarter unless it comes first. LoRA at its
default rate, segments of 512, no memory, no reset. Without memory a segment's static score doesn't depend on what came before; what an order changes is
what was learned. Every order scores the same tokens, each from the same tokens of its segment.

The gain in a place is the static NLL less LoRA's, of the four quarters that are read there in the four orders, so that what a quarter holds is the same in every place.

Rules, fixed before the runs. The unit is the text: Student's 95% interval of the mean over texts, beside it what is seen with 80% (`power.seen`), and a verdict
stands where both comparisons are counted together (Holm):
- "the gain grows with what was read before": gain in the last place less that in the first, above 0; below 0 refuted.
- "it goes on growing behind the first quarter": gain in the last place less that in the second, above 0; below 0 refuted.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT)]

import torch  # noqa: E402

from benchmarks.long_streams import texts_of  # noqa: E402
from benchmarks.long_streams_rules import counted_together  # noqa: E402
from benchmarks.printed import print_page  # noqa: E402
from benchmarks.script import (  # noqa: E402
    by_text_and_arm,
    corpus_parser_of,
    ids_digest,
    judged,
    measuring,
    power_shown,
    said_by_itself,
    shown,
    usual_rate,
)
from dynadapt import Adam, Engine, LoRA, load  # noqa: E402
from dynadapt.runs.progress import say  # noqa: E402

SEGMENT, QUARTER, PLACES, EVERY = 512, 16384, 4, 60.0  # tokens; seconds between lines of progress
COMPARISONS = (("grows", 3, 0), ("goes on growing", 3, 1))  # a place's gain less another's


def order(begin: int) -> list[int]:
    """The quarters in the order that begins with this one."""
    return [(begin + place) % PLACES for place in range(PLACES)]


def static(model, ids: list[int], quarter: int) -> list[float]:
    """The NLL of each quarter [PLACES]: of the text's own next tokens, segment by segment."""
    engine, total = Engine(model, streams=PLACES, segment=SEGMENT, memory=None), torch.zeros(PLACES, dtype=torch.float64)
    for begin in range(0, quarter, SEGMENT):
        total += engine.step(rows(ids, [q * quarter + begin for q in range(PLACES)])).double().sum(1)
    return (total / quarter).tolist()


def learned(model, ids: list[int], quarter: int, told: str = "") -> list[list[float]]:
    """The same [PLACES of quarters][PLACES] of LoRA, of each quarter in each place."""
    engine = Engine(model, streams=PLACES, segment=SEGMENT, memory=None, adapt=LoRA(), optimizer=Adam(lr=usual_rate(model.config)))
    found, before = [[0.0] * PLACES for _ in range(PLACES)], time.monotonic()
    for place in range(PLACES):
        quarters, total = [order(stream)[place] for stream in range(PLACES)], torch.zeros(PLACES, dtype=torch.float64)
        for begin in range(0, quarter, SEGMENT):
            total += engine.step(rows(ids, [q * quarter + begin for q in quarters])).double().sum(1)
            if time.monotonic() - before >= EVERY:
                before = time.monotonic()
                say(f"  {told}: {(place * quarter + begin + SEGMENT) / (PLACES * quarter):.0%}")
        for stream, q in enumerate(quarters):
            found[q][place] = total[stream].item() / quarter
    return found


def rows(ids: list[int], begins: list[int]) -> torch.Tensor:
    """[R, SEGMENT + 1]: a segment of the text from each of these, and the token behind it."""
    return torch.tensor([ids[begin : begin + SEGMENT + 1] for begin in begins])


def gains(row: dict) -> list[float]:
    """Of one text, by place [PLACES]."""
    still, moved = row["arms"]["static"]["nll"], row["arms"]["lora"]["nll"]
    return [sum(still[q] - moved[q][place] for q in range(PLACES)) / PLACES for place in range(PLACES)]


def measured(rows: list[dict]) -> list[dict]:
    """Those that have both arms."""
    return [row for row in rows if len(row["arms"]) == 2]


def verdicts(rows: list[dict]) -> list[dict]:
    """By the rules above, of the texts that both arms have."""
    by_text = [gains(row) for row in measured(rows)]
    found = [{"claim": claim, **judged([g[a] - g[b] for g in by_text], below=False)} for claim, a, b in COMPARISONS if by_text]
    return counted_together(found, len(COMPARISONS))


def page(results: dict) -> str:
    """results.json as markdown."""
    lines = [
        "| gain, nats per token, after | " + " | ".join(f"{i * results['quarter']:,}" for i in range(PLACES)) + " |",
        "|---" * (1 + PLACES) + "|",
    ]
    done = measured(results["rows"])
    lines += [f"| {row['text']} | " + " | ".join(f"{gain:.3f}" for gain in gains(row)) + " |" for row in done]
    means = [sum(gains(row)[place] for row in done) / len(done) for place in range(PLACES)]
    lines += ["| mean | " + " | ".join(f"{gain:.3f}" for gain in means) + " |", ""]
    lines += ["| the gain | nats per token | seen with 80% | verdict |", "|---|---|---|---|"]
    lines += [f"| {row['claim']} | {shown(row)} | {power_shown(row)} | {said_by_itself(row)} |" for row in results["verdicts"]]
    return "\n".join(lines) + "\n"


def measure(given: argparse.Namespace) -> dict:
    files, _ = texts_of(given.corpus, given.out)
    model = load(given.model)
    if getattr(model.tokenizer, "begins", ()):
        raise SystemExit(f"--model {given.model}: begins each segment with a token of its own, which these quarters have no room for")
    ids = {name: model.tokenizer.encode(file.read_text("utf-8"))[: PLACES * given.quarter + 1] for name, file in files.items()}
    for name, found in ids.items():
        if len(found) <= PLACES * given.quarter:
            raise SystemExit(f"{given.corpus}: {name} has {len(found):,} tokens; {PLACES * given.quarter + 1:,} are needed")

    def arm(text: str, name: str) -> dict:
        begin = time.perf_counter()
        nll = static(model, ids[text], given.quarter) if name == "static" else learned(model, ids[text], given.quarter, text)
        return {"nll": nll, "seconds": round(time.perf_counter() - begin, 1)}

    return by_text_and_arm(
        given.out,
        {"model": given.model, "quarter": given.quarter, "rate": usual_rate(model.config)},
        [{"text": name, "ids": ids_digest(found)} for name, found in ids.items()],
        lambda row: ["static", "lora"],
        arm,
        verdicts,
        lambda row, name: f"{name:8} " + (" ".join(f"{gain:+.4f}" for gain in gains(row)) if name == "lora" else ""),
    )


def main() -> int:
    parser = corpus_parser_of(__doc__, "runs/long-orders")
    parser.add_argument("--quarter", type=int, default=QUARTER, help="tokens of a quarter (default: %(default)s)")
    given = parser.parse_args()
    if given.quarter < SEGMENT or given.quarter % SEGMENT:
        parser.error(f"--quarter {given.quarter}: give a multiple of {SEGMENT}")
    with measuring("long_orders", given, "quarter"):
        results = measure(given)
        (given.out / "results.md").write_text(page(results))
    print_page(page(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
