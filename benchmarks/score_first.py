"""The Parameter Golf contest's loop and segment memory: the same model, adapters, rule and documents, bits per byte and FLOPs.

    dynadapt corpus build --out corpus
    python benchmarks/score_first.py corpus --out runs/score-first     # stopped, the same command goes on with the next document

The contest's adapting entries (openai/parameter-golf, records/2026-04-27) take a document in chunks of 48 tokens: the whole window, up to then,
is run again, the chunk is scored, and the document's LoRA learns from it with gradients through all of the window. "window again" is that
loop, written from its description: ``Overlap``, which runs the head on the chunk alone, as a lean form of it would. "memory" runs the chunk
alone; what came before are keys and values as they were then, through which no gradient goes. Both reach back equally far, and both are
``score_first``'s recipe (rank 80, AdamW at 1e-4 and decay 0.5) without its slow level, at its rate and at ten times it; each document starts
with a new engine, so that documents are independent. Each is also run without learning, to tell what reading differently and learning differently do.

It is smaller than the contest: bytes as tokens, a llama of 4 layers and width 128 trained here on the corpus' training parts, a window of 1,024,
and of each domain two held-out documents, of which the first 2,048 bytes are scored. FLOPs are the ledger's, all phases.

Rules, fixed before the runs; differences are memory's bits per byte less window again's, paired by document, with Student's 95% interval:
- confirmed at a rate: the interval's upper end is at most 0.0005, and window again takes at least 10 times the FLOPs;
- refuted: the interval's lower end is above 0.0005, or the FLOPs are less than 10 times;
- open: else. The verdict is that of the recipe's rate; the other rate's stands beside it.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.script import corpus_facts, domains_of, parser_of  # noqa: E402
from dynadapt import Adam, AdamW, Engine, Full, Overlap, SegmentMemory  # noqa: E402
from dynadapt.common.environment import environment  # noqa: E402
from dynadapt.engine.presets import score_first  # noqa: E402
from dynadapt.experiments.reweight.compare import paired  # noqa: E402
from dynadapt.experiments.reweight.export import learned  # noqa: E402
from dynadapt.model import random_model, tiny_config  # noqa: E402
from dynadapt.model.base import from_state  # noqa: E402
from dynadapt.runs.rundir import read_json, write_json  # noqa: E402

WINDOW, CHUNK, BYTES, EACH = 1024, 48, 2048, 2
RATE, RATES = 1e-4, (1e-4, 1e-3)
ROWS, UPDATES, TRAIN_RATE, WARM = 4, 400, 3e-3, 20
NEAR, FEWER = 0.0005, 10
SIZES = dict(
    vocab_size=256, hidden_size=128, layers=4, heads=4, kv_heads=4, head_dim=32, ffn_size=384, max_positions=WINDOW, tied_head=True
)
READS = {"window again": Overlap(WINDOW - CHUNK), "memory": SegmentMemory(WINDOW - CHUNK, sinks=0)}
PLACE = {"backend": "cpu", "dtype": "fp32", "device": "cpu"}


def lines(corpus: Path, domain: str, part: str) -> list[bytes]:
    return [json.loads(line)["text"].encode() for line in (corpus / domain / f"{part}.jsonl").read_text("utf-8").splitlines()]


def documents(corpus: Path, domains: list[str]) -> list[tuple[str, torch.Tensor]]:
    """(name, ids [BYTES + 1]): of each domain the first EACH held-out documents that are long enough, one domain after the other."""
    found = {domain: [text for text in lines(corpus, domain, "heldout") if len(text) > BYTES][:EACH] for domain in domains}
    for domain, texts in found.items():
        if len(texts) < EACH:
            raise SystemExit(f"{corpus}: {domain} holds out {len(texts)} documents of more than {BYTES} bytes; {EACH} are needed")
    return [(f"{domain}, {i}", torch.tensor(list(found[domain][i][: BYTES + 1]))) for i in range(EACH) for domain in domains]


def trained(corpus: Path, domains: list[str], out: Path):
    """(model, what it is) after UPDATES updates on windows drawn evenly from the domains' training parts; kept in ``out``."""
    model = random_model(tiny_config("llama", **SIZES), seed=0)
    rule = Adam(lr=TRAIN_RATE, betas=(0.9, 0.95))
    engine = Engine(model, Full(targets="model"), optimizer=rule, streams=ROWS, segment=WINDOW, shared=True, **PLACE)
    if not (out / "facts.json").exists():
        texts = [torch.frombuffer(bytearray(b"\n\n".join(lines(corpus, domain, "train"))), dtype=torch.uint8) for domain in domains]
        rng, curve = torch.Generator().manual_seed(0), []
        draw = lambda n: int(torch.randint(n, (), generator=rng))  # noqa: E731
        for update in range(UPDATES):
            rows = []
            for _ in range(ROWS):
                text = texts[draw(len(texts))]
                start = draw(len(text) - WINDOW)
                rows.append(text[start : start + WINDOW + 1].long())
            rate = TRAIN_RATE * min((update + 1) / WARM, (UPDATES - update) / (UPDATES - WARM))
            for row in range(ROWS):
                engine.enter(row, rate)
            curve.append(engine.step(torch.stack(rows)).mean().item() / math.log(2))
            if update % 20 == 19:
                print(f"update {update + 1} of {UPDATES}: {sum(curve[-20:]) / 20:.4f} bits per byte", flush=True)
        engine.save(out / "state")
        facts = {
            "parameters": engine.learned_parameters,
            "bytes": UPDATES * ROWS * WINDOW,
            "bits_per_byte_of_the_last_20": sum(curve[-20:]) / 20,
        }
        write_json(out / "facts.json", facts)
    engine.restore(out / "state")
    weights = {name: value.clone() for name, value in learned(model, engine).items()}
    return from_state(model.config, weights, None, name="score-first"), read_json(out / "facts.json")


def arm(model, reads: str, rate: float | None, ids: torch.Tensor) -> dict:
    """Bits per byte and FLOPs of one document; ``rate`` None: without learning."""
    given = score_first(model, segment=CHUNK, streams=1, memory=READS[reads], slow=None)
    rule = None if rate is None else AdamW(lr=rate, betas=(0.0, 0.99), weight_decay=0.5)
    engine = Engine(model, **{**given, "optimizer": rule, **({} if rule else {"adapt": None, "reset": "never"})}, **PLACE)
    nats = sum(engine.step(ids[None, start : start + CHUNK + 1]).double().sum().item() for start in range(0, BYTES, CHUNK))
    return {"bits_per_byte": nats / math.log(2) / BYTES, "flops": sum(engine.flops.values())}


def compared(rows: list[dict], rate: float | None) -> dict:
    """By the rules above; ``rate`` None: without learning, which has no verdict."""
    again, memory = ([row["arms"][name(reads, rate)] for row in rows] for reads in ("window again", "memory"))
    differences = [m["bits_per_byte"] - a["bits_per_byte"] for m, a in zip(memory, again)]
    found = paired(differences)
    mean = lambda runs: sum(run["bits_per_byte"] for run in runs) / len(runs)  # noqa: E731
    ratio = sum(run["flops"] for run in again) / sum(run["flops"] for run in memory)
    record = {
        "documents": found.pop("seeds"),
        "window_again": mean(again),
        "memory": mean(memory),
        "memory_less_window_again": found,
        "flops_ratio": ratio,
    }
    if rate is None:
        return record
    low, high = found["interval"] or (-math.inf, math.inf)
    verdict = "refuted" if low > NEAR or ratio < FEWER else "confirmed" if high <= NEAR else "open"
    return {**record, "verdict": verdict}


def name(reads: str, rate: float | None) -> str:
    return f"{reads}, static" if rate is None else f"{reads}, {rate:g}"


def main() -> int:
    parser = parser_of(__doc__, "runs/score-first")
    parser.add_argument("corpus", type=Path, help="what `dynadapt corpus build` made")
    given = parser.parse_args()
    domains = domains_of(given.corpus, [])
    texts = documents(given.corpus, domains)
    given.out.mkdir(parents=True, exist_ok=True)
    model, facts = trained(given.corpus, domains, given.out)
    file = given.out / "results.json"
    rows = read_json(file)["rows"] if file.exists() else []
    setup = {
        "corpus": corpus_facts(given.corpus),
        "model": {**SIZES, **facts},
        "window": WINDOW,
        "chunk": CHUNK,
        "bytes": BYTES,
        "rate": RATE,
    }
    for text, ids in texts:
        if text not in {row["text"] for row in rows}:
            rows.append({"text": text, "arms": {name(r, rate): arm(model, r, rate, ids) for rate in (None, *RATES) for r in READS}})
            results = {name("both", rate).removeprefix("both, "): compared(rows, rate) for rate in (None, *RATES)}
            write_json(file, {"environment": environment(), **setup, "planned_documents": len(texts), "rows": rows, "results": results})
            print(text, {arm: round(run["bits_per_byte"], 4) for arm, run in rows[-1]["arms"].items()}, flush=True)
    print(json.dumps(read_json(file)["results"], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
