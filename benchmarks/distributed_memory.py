"""The most memory that the first of several processes takes (docs/distributed.md): alone, one of two, and one of two with --shard.

    python benchmarks/distributed_memory.py --out runs/distributed-memory.json     # a few minutes on two cores; no times

SmolLM2-135M, every parameter, Adam, bf16, two steps of 4 rows of 64 tokens. What a step holds does not depend on its text, so the text is this
repository's documents. Peaks are `peak_memory_bytes` of summary.json, the largest resident size of the process that writes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from dynadapt.common.environment import environment

ROOT = Path(__file__).resolve().parents[1]
CASES = {"alone": (1, ()), "two processes": (2, ()), "two processes, --shard": (2, ("--shard",))}


def peak(folder: Path, text: Path, processes: int, options: tuple[str, ...], arguments) -> int:
    """Bytes, of one run."""
    command = (
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        if processes > 1
        else [sys.executable]
    )
    command += [
        "-m",
        "dynadapt",
        "reweight",
        "train",
        "--model",
        arguments.model,
        "--domains",
        f"documents={text}",
        "--adapt",
        "full",
        "--targets",
    ]
    command += ["model", "--optimizer", "adam", "--dtype", "bf16", "--rows", "4", "--segment", "64", "--steps", "2", "--evaluate", "2"]
    command += ["--heldout-rows", "4", "--policy", "repeat", "--out", str(folder), *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads((folder / "summary.json").read_text())["peak_memory_bytes"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as work:
        text = Path(work) / "text.jsonl"
        text.write_text("".join(json.dumps({"text": path.read_text("utf-8")}) + "\n" for path in sorted((ROOT / "docs").glob("*.md"))))
        for name, (processes, options) in CASES.items():
            rows.append({"case": name, "peak_bytes": peak(Path(work) / name.replace(" ", "-"), text, processes, options, given)})
            print(f"{name}: {rows[-1]['peak_bytes'] / 1e9:.1f} GB", flush=True)
    step = {"adapt": "full", "dtype": "bf16", "rows": 4, "segment": 64, "steps": 2}
    given.out.write_text(
        json.dumps({"environment": environment(), "model": given.model, "step": step, "rows": rows}, indent=2) + "\n", "utf-8"
    )


if __name__ == "__main__":
    main()
