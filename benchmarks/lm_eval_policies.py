"""The harness' bits per byte under each reset policy, on documents cut from real texts.

    python benchmarks/texts.py texts/
    python benchmarks/lm_eval_policies.py texts/ --out benchmarks/results/lm-eval.json

Four consecutive pieces of each text are the documents of one local task of output type loglikelihood_rolling; SmolLM2-135M, LoRA.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
from importlib.metadata import version
from pathlib import Path

TASK = """task: local_{name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ''
doc_to_target: '{{{{text}}}}'
metric_list:
  - metric: bits_per_byte
"""


def write_task(folder: Path, text: Path, start: int, size: int, count: int) -> dict:
    """A task over ``count`` pieces of ``size`` characters, from character ``start`` on; returns what identifies its text."""
    content = text.read_text("utf-8")
    pieces = [content[start + i * size : start + (i + 1) * size] for i in range(count)]
    if len(pieces[-1]) < size:
        raise SystemExit(f"{text} has {len(content)} characters; {start + count * size} are needed")
    data = folder / f"{text.stem}.jsonl"
    data.write_text("".join(json.dumps({"text": piece}) + "\n" for piece in pieces))
    (folder / f"{text.stem}.yaml").write_text(TASK.format(name=text.stem, data=data))
    read = "".join(pieces).encode()
    return {"text": text.name, "documents": count, "bytes": len(read), "sha256": hashlib.sha256(read).hexdigest()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path, help="folder with .txt files; each becomes a task")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--segment", type=int, default=256)
    parser.add_argument("--start", type=int, default=20_000, help="first character read of each text")
    parser.add_argument("--size", type=int, default=4_000, help="characters of a document")
    parser.add_argument("--count", type=int, default=4, help="documents of a text")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_DATASETS_CACHE"] = str(Path(folder) / "cache")
        texts = sorted(given.texts.glob("*.txt"))
        facts = [write_task(Path(folder), text, given.start, given.size, given.count) for text in texts]
        policies = evaluate(Path(folder), given, [text.stem for text in texts])
    from dynadapt.common.environment import environment

    report = {"environment": environment(), "harness": version("lm-eval"), "texts": facts, "policies": policies}
    given.out.write_text(json.dumps(report, indent=2) + "\n")


def evaluate(folder: Path, given, names: list[str]) -> dict:
    import lm_eval
    from lm_eval.tasks import TaskManager

    from dynadapt.interop.lm_eval import POLICIES, DynadaptLM

    tasks, found = TaskManager(include_path=str(folder), include_defaults=False), {}
    for reset in POLICIES:
        lm = DynadaptLM(given.model, reset=reset, segment=given.segment, dtype="bf16")
        results = lm_eval.simple_evaluate(
            model=lm, tasks=[f"local_{name}" for name in names], task_manager=tasks, bootstrap_iters=0, verbosity="ERROR"
        )
        scores = {name: results["results"][f"local_{name}"]["bits_per_byte,none"] for name in names}
        found[reset] = {**lm.get_model_info(), "bits_per_byte": scores}
        print(reset, scores)
    return found


if __name__ == "__main__":
    main()
