"""How much memory adapting takes with the weights of a quantised GGUF file as they are in the file: python benchmarks/quants_memory.py

The file is made up: a public model's geometry, random integers. What a step holds does not depend on their values. Each way of keeping
the weights runs in a process of its own, whose largest resident size is what is reported; times are not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from dynadapt.common.environment import environment, peak_memory_bytes


def arguments(argv=None) -> argparse.Namespace:
    from dynadapt.ops.quants import BLOCK_FORMATS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--geometry", default="llama-3.2-1b", help="a name that `dynadapt plan` knows (default: %(default)s)")
    parser.add_argument("--format", default="q4_k", choices=tuple(BLOCK_FORMATS), help="of the linear weights (default: %(default)s)")
    parser.add_argument("--base", nargs="+", default=["quants"], choices=("quants", "same"), help="how frozen weights are kept")
    parser.add_argument("--dtype", default="bf16", choices=("bf16", "fp32"))
    parser.add_argument("--segment", type=int, default=512)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--file", type=Path, help="where the GGUF file is, or is to be made; default: a temporary one")
    parser.add_argument("--out", type=Path, help="results, as JSON")
    parser.add_argument("--one", choices=("quants", "same"), help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def adapt(options: argparse.Namespace) -> dict:
    """Steps of one engine in this process, and the largest size that it was."""
    import torch

    import dynadapt

    model = dynadapt.load(options.file)
    before = peak_memory_bytes()
    engine = dynadapt.Engine(
        model, dynadapt.LoRA(rank=options.rank), segment=options.segment, dtype=options.dtype, backend="cpu", base=options.one
    )
    made = peak_memory_bytes()
    generator = torch.Generator().manual_seed(0)
    scores = []
    for _ in range(options.steps):
        tokens = torch.randint(model.config.vocab_size, (1, options.segment + 1), generator=generator)
        scores.append(engine.step(tokens).double().mean().item())
    return {
        "base": options.one,
        "peak_bytes": peak_memory_bytes(),
        "peak_bytes_when_made": made,
        "peak_bytes_before_weights": before,
        "frozen_weights": engine.weights.kept or {options.dtype: "all"},
        "nll": scores,
        "updated": engine.last.updated,
    }


def main() -> None:
    options = arguments()
    if options.one:
        print(json.dumps(adapt(options)))
        return
    from dynadapt.bench.made_up_quants import write_made_up
    from dynadapt.model.geometries import geometry
    from dynadapt.ops.quants import HEAD_FORMATS

    config = geometry(options.geometry)
    with tempfile.TemporaryDirectory() as folder:
        path = options.file or Path(folder) / f"{options.geometry}-{options.format}.gguf"
        if not path.exists():
            write_made_up(config, path, options.format, HEAD_FORMATS.get(options.format, options.format))
        rows = [run(options, path, base) for base in options.base]
        size = path.stat().st_size
    results = {
        "environment": environment(),
        "command": " ".join(["python benchmarks/quants_memory.py", *sys.argv[1:]]),
        "geometry": options.geometry,
        "format": options.format,
        "embedding_and_head": HEAD_FORMATS.get(options.format, options.format),
        "file_bytes": size,
        "step": {"streams": 1, "segment": options.segment, "adapt": f"LoRA(rank={options.rank})", "dtype": options.dtype},
        "steps": options.steps,
        "rows": rows,
    }
    for row in rows:
        print(f"base {row['base']}: {row['peak_bytes'] / 1e9:.2f} GB at most, of a file of {size / 1e9:.2f} GB")
    if options.out:
        options.out.write_text(json.dumps(results, indent=2) + "\n", "utf-8")


def run(options: argparse.Namespace, path: Path, base: str) -> dict:
    command = [sys.executable, __file__, "--one", base, "--file", str(path), "--dtype", options.dtype]
    command += ["--segment", str(options.segment), "--rank", str(options.rank), "--steps", str(options.steps)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
