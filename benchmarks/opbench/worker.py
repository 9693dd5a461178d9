"""One provider's process for harness.py: makes the cases from the same seeds, checks its results, times calls on demand.

{"do": "make", "index": i} makes and checks the calls of a case, {"do": "time", "call": name, "runs": k} times one of them; the rest is
dynadapt/bench/worker.py's. Providers: "dynadapt" and "torch"; another revision of dynadapt is a "dynadapt" whose packages come from
that revision's tree.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]


def _of_this_tree(name: str, path: str):
    """A module of this file's own tree, on top of whichever dynadapt PYTHONPATH names: every provider gets the same cases."""
    folder = [str((ROOT / path).parent)] if path.endswith("__init__.py") else None
    spec = importlib.util.spec_from_file_location(name, ROOT / path, submodule_search_locations=folder)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


cases = _of_this_tree("opbench_cases", "dynadapt/bench/cases/__init__.py")
base = _of_this_tree("bench_worker", "dynadapt/bench/worker.py")
peers = _of_this_tree("opbench_peers", "benchmarks/opbench/peers.py")
OpCase = cases.OpCase

FLUSH = 1 << 26  # bytes, more than two cores' share of a last-level cache
TIMED = (
    "linear_forward",
    "linear_backward",
    "lora_gradient",
    "weight_gradient",
    "cross_entropy",
    "norm_forward",
    "norm_backward",
    "activation_forward",
    "activation_backward",
    "attention_forward",
    "attention_backward",
    "update",
    "embedding_forward",
)
LIMIT = {torch.bfloat16: 0.03, torch.float32: 2e-4}  # relative 2-norm from float64
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def sizes(options: dict, seed: int = 0):
    from dynadapt.model import ModelConfig

    return cases.Sizes(ModelConfig(**options["config"]), 1, options["rows"], "cpu", DTYPES[options["dtype"]], seed)


def all_cases(options: dict) -> list[tuple[str, int]]:
    """(op, which of its cases) in a fixed order, so that an index means the same in every process."""
    z = sizes(options)
    return [(op, i) for op in TIMED if options["only"] in op for i in range(_count(op, z))]


def _count(op: str, z) -> int:
    if op in ("linear_forward", "linear_backward", "lora_gradient"):
        return len(z.groups)
    return {"weight_gradient": 2, "cross_entropy": 2, "attention_forward": 2}.get(op, 1)


def make_case(op: str, index: int, options: dict) -> OpCase:
    return cases.OPS[op](sizes(options, 1000 + index), options["memory"])[index]


def our_calls(case: OpCase) -> dict:
    from dynadapt.ops import resolve

    values = cases.materialise(case, "cpu")
    function = resolve(case.op, "cpu", case.dtype).function
    outputs = {name: t for name, t in cases.written(case, values).items() if t.is_floating_point()}

    def call():
        function(*values)
        return outputs

    return {"dynadapt": lambda: call}


def torch_calls(case: OpCase) -> dict:
    make = peers.PEERS.get(case.op)
    return make(case) if make else {}


def error_of(found: dict, exact: dict[str, torch.Tensor]) -> float | None:
    """Largest relative 2-norm distance of what a call returned from float64; None when it returned nothing to compare."""
    worst = None
    for key, value in found.items():
        if key == "mean":
            want = exact["nll"].mean()
        elif key == "dv":
            width = value.shape[1]
            want = exact["dqkv"][:, -width:]
        else:
            want = exact[key]
        size = want.norm().item() or 1.0
        distance = (value.double().reshape(want.shape) - want).norm().item() / size
        worst = distance if worst is None else max(worst, distance)
    return worst


class Provider(base.Worker):
    COMMANDS = (*base.Worker.COMMANDS, "make")

    def __init__(self, options: dict):
        super().__init__(options, native=options["provider"] == "dynadapt")
        self.cases = all_cases(options)
        self.calls: dict = {}
        self.make_calls = our_calls if self.native else torch_calls
        self.flush = self._flush()

    def begin(self) -> dict:
        return {"cases": self.cases}

    def _flush(self):
        """A call that pushes a buffer through the caches with the provider's own threads, so that they are as awake as in a step."""
        if self.native:
            from dynadapt.ops import resolve

            h, y = torch.zeros(FLUSH // 16384, 4096), torch.zeros(FLUSH // 16384, 2048)
            activation = resolve("activation_forward", "cpu", torch.float32).function
            return lambda: activation(h, "swiglu", y)
        buffer = torch.zeros(FLUSH // 4)
        return lambda: buffer.add_(1)

    def make(self, index: int) -> dict:
        op, which = self.cases[index]
        case = make_case(op, which, self.options)
        exact = cases.run(case, "reference", torch.float64)
        self.calls, answers = {}, {}
        for name, build in self.make_calls(case).items():
            try:
                call = build()
                error = error_of(call(), exact)
            except Exception as failure:  # a peer that can't run here is a row that says so
                answers[name] = {"absent": f"{type(failure).__name__}: {' '.join(str(failure).split())[:160]}"}
                if self.native:
                    answers[name]["fatal"] = True
                continue
            if error is not None and not error <= LIMIT[case.dtype]:
                answers[name] = {"absent": f"its result is off by {error:.3g} (2-norm, relative to float64)", "fatal": self.native}
                continue
            self.calls[name] = call
            answers[name] = {"error": error}
        return {"op": op, "label": case.label, "bytes": case.bytes, "flops": case.flops, "note": peers.NOTES.get(op, ""), "calls": answers}

    def time(self, call: str, runs: int) -> dict:
        """Wall seconds of ``runs`` calls, each after another buffer has gone through the caches."""
        return {"seconds": base.timed(self.calls[call], runs, self.flush)}

    def ceiling(self) -> dict:
        from dynadapt.bench.plan.ceilings import copy_bandwidth

        return {**super().ceiling(), "gb_per_s": 1e-9 * copy_bandwidth(0.5)}


if __name__ == "__main__":
    base.serve(Provider)
