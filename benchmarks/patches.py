"""How small a patch of what an update changed is (dynadapt.patches), and whether a receiver has every bit.

    dynadapt corpus build --out corpus
    python benchmarks/patches.py corpus --out runs/patches        # stopped, the same command goes on with the next arm

SmolLM2-135M in bf16, Adam, segments of SEGMENT tokens of the held-out text of DOMAIN, one update a segment and a patch behind each, UPDATES of
them. Arms: every linear weight of the layers (`Full`) at rates 1e-5 and 1e-6, and LoRA at its defaults (its patches beside the whole
adapter in bf16). Adam's first updates move each weight by about the rate whatever its gradient is.

Rules, fixed before the runs:
- every receiver that applies the patches one by one, and one that applies all of them at once, has every bit of what the engine has;
- `Full`: the weights in bf16 take at least 50 times the bytes of a patch, in the median over an arm's patches.
LoRA's is reported and not judged.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.guard import held_out  # noqa: E402
from benchmarks.printed import print_page  # noqa: E402
from benchmarks.script import corpus_facts, corpus_parser_of, domains_of, measuring, rows_before  # noqa: E402
from dynadapt import Adam, Engine, Full, LoRA, load  # noqa: E402
from dynadapt.common.environment import environment  # noqa: E402
from dynadapt.patches import PatchSender, apply_patch  # noqa: E402
from dynadapt.runs.whole_files import write_json  # noqa: E402

DOMAIN, SEGMENT, UPDATES, TIMES = "debian-handbook", 256, 8, 50
ARMS = {
    "full, 1e-5": {"adapt": Full(), "optimizer": Adam(lr=1e-5)},
    "full, 1e-6": {"adapt": Full(), "optimizer": Adam(lr=1e-6)},
    "lora": {"adapt": LoRA(), "optimizer": Adam()},
}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name].view(torch.int16), b[name].view(torch.int16)) for name in a)


def run(model, arm: str, ids: list[int]) -> dict:
    """One arm: a row a patch, and whether both receivers followed."""
    engine = Engine(model, segment=SEGMENT, dtype="bf16", device="cpu", backend="cpu", **ARMS[arm])
    sender = PatchSender(engine)
    first = {name: value.clone() for name, value in sender.sent.items()}
    held, rows, follows = {name: value.clone() for name, value in first.items()}, [], True
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / str(k) for k in range(UPDATES)]
        for k, path in enumerate(paths):
            engine.step(torch.tensor([ids[k * SEGMENT : (k + 1) * SEGMENT + 1]]))
            start = time.perf_counter()
            patch = sender.send(path)
            sent = time.perf_counter()
            apply_patch(held, path)
            applied = time.perf_counter()
            follows &= same(held, sender.sent)
            steps = [int((abs(patch.steps) == size).sum()) for size in (1, 2)]
            rows.append(
                {
                    "changed": patch.changed,
                    "steps_of_1_and_2": steps,
                    "bytes": patch.patch_bytes,
                    "send_s": round(sent - start, 2),
                    "apply_s": round(applied - sent, 2),
                }
            )
        apply_patch(first, paths)
    whole = patch.whole_bytes
    ratios = [whole / row["bytes"] for row in rows]
    found = {
        "weights": patch.elements,
        "whole_bytes": whole,
        "patches": rows,
        "times_fewer": {"median": median(ratios), "least": min(ratios), "most": max(ratios)},
        "changed_share": {"median": median(row["changed"] for row in rows) / patch.elements},
        "every_bit": follows and same(first, sender.sent),
    }
    if arm.startswith("full"):
        found["verdict"] = "confirmed" if found["every_bit"] and median(ratios) >= TIMES else "refuted"
    return found


def page(arms: dict[str, dict]) -> str:
    """A row an arm."""
    lines = ["| arm | times fewer bytes, median | least to most | every bit | verdict |", "|---|---|---|---|---|"]
    for arm, found in arms.items():
        times = found["times_fewer"]
        spread = f"{times['least']:.1f} to {times['most']:.1f}"
        lines.append(
            f"| {arm} | {times['median']:.1f} | {spread} | {'yes' if found['every_bit'] else 'no'} | {found.get('verdict', '-')} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    given = corpus_parser_of(__doc__, "runs/patches").parse_args()
    with measuring("patches", given):
        arms = measure(given)
    print_page(page(arms))


def measure(given) -> dict[str, dict]:
    domains_of(given.corpus, [DOMAIN])
    path, needed = given.out / "patches.json", SEGMENT * UPDATES + 1
    said = {"model": given.model, "domain": DOMAIN, "segment": SEGMENT, "updates": UPDATES, "corpus": corpus_facts(given.corpus)}
    arms = dict(rows_before(path, said, "arms"))
    model = load(given.model)
    ids = model.tokenizer.encode(held_out(given.corpus, DOMAIN))[:needed]
    if len(ids) < needed:
        raise SystemExit(f"{given.corpus}: {DOMAIN} holds out {len(ids)} tokens; {needed} are needed")
    for number, arm in enumerate(ARMS, 1):
        if arm not in arms:
            print(f"{arm} (arm {number} of {len(ARMS)}, {UPDATES} updates)", flush=True)
            arms[arm] = run(model, arm, ids)
            write_json(path, {"environment": environment(), **said, "arms": arms})
    return arms


if __name__ == "__main__":
    main()
