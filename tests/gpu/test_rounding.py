"""Kernels that promise each other's bits round alike on a GPU too: as many contracted products an element in what the compiler makes of them.

In the interpreter every product rounds on its own, so that no comparison of numbers there sees what a compiler contracts. Each of these pairs is compiled
for sm_90, which needs no GPU, and the float32 operations of its PTX are counted."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("triton")

STREAMS, TOKENS, WIDTH, RANK = 1, 512, 2048, {"bf16": 64, "fp32": 32}  # one part, whose tiles of dA and dBt have the same shape
RULES = {
    "plain": dict(RMS=False, MOMENTUM=False, DECAY=False, RATE=False, WORKING=True),
    "decay": dict(RMS=False, MOMENTUM=False, DECAY=True, RATE=False, WORKING=True),
}


def counted(variant, elements: int) -> dict[str, float]:
    """Operations of each kind for each of a thread's ``elements``."""
    from dynadapt.kernels import compile

    ptx = compile.build(variant, 90).asm["ptx"]
    kinds = Counter(re.findall(r"^\s+(?:@!?%p\d+\s+)?(fma|mul|add|sub|div)\.(?:rn\.|full\.)?f32\s", ptx, re.MULTILINE))
    return {kind: kinds[kind] / elements for kind in ("fma", "mul", "add", "sub", "div")}


def updates() -> dict:
    """What whole and split fused updates do, by rule."""
    import torch

    from dynadapt.kernels import epilogue
    from dynadapt.kernels import lora_gradient_update as kernels
    from dynadapt.kernels.common import variant
    from dynadapt.kernels.lora_gradient_plan import SUM_BLOCK, TYPES, plan

    p = plan(torch.bfloat16, STREAMS, TOKENS, WIDTH, (WIDTH,), RANK["bf16"])
    found, threads = {}, 32 * p.options["num_warps"]
    for rule, flags in (RULES | epilogue.RULES).items():
        fixed = {**p.constexprs, **flags, "ELEMENTS": epilogue.elements(p.options["num_warps"])}
        sums = dict(BLOCK=SUM_BLOCK, ELEMENTS=SUM_BLOCK, EQUAL=True)
        found[rule] = {
            "whole": counted(
                variant(rule, kernels.dynadapt_lora_gradient_update, TYPES, fixed, **p.options), fixed["BC"] * fixed["BRA"] // threads
            ),
            "split": counted(variant(rule, kernels.dynadapt_lora_gradient_update_sum, TYPES, sums | flags), SUM_BLOCK // 128),
        }
    return found


def gradients() -> dict:
    """What gradients cost that are scaled and added to what is there: less the fused products of the same kernel that only sums."""
    import torch

    from dynadapt.kernels import lora_gradient_together as together
    from dynadapt.kernels import lora_gradient_walk as walk
    from dynadapt.kernels.common import variant
    from dynadapt.kernels.lora_gradient_plan import SUM_BLOCK, TYPES, plan

    found = {}
    for short, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        p = plan(dtype, STREAMS, TOKENS, WIDTH, (WIDTH,), RANK[short])
        constexprs, options = together.constants(dtype, RANK[short])
        tile = lambda c, rows, o: c["BC"] * c[rows] // (32 * o["num_warps"])  # noqa: E731
        forms = {
            "whole": (walk.dynadapt_lora_gradient, TYPES, p.constexprs | {"SPLIT": False}, p.options, tile(p.constexprs, "BRA", p.options)),
            "split": (walk.dynadapt_lora_gradient_sum, TYPES, dict(BLOCK=SUM_BLOCK, EQUAL=True), {}, SUM_BLOCK // 128),
            "together": (together.dynadapt_lora_gradient_together, together._TYPES, constexprs, options, tile(constexprs, "BR", options)),
        }
        for form, (kernel, types, fixed, launched, elements) in forms.items():
            made = [
                counted(variant(form, kernel, types, fixed | {"ACCUMULATE": adds}, dtype=short, **launched), elements)
                for adds in (False, True)
            ]
            found.setdefault(short, {})[form] = {"fma": made[1]["fma"] - made[0]["fma"], "mul": made[1]["mul"]}
    return found


def layer_norm() -> dict:
    """Differences of an element and the mean."""
    from dynadapt.kernels import norm

    H = 768
    elements = norm.next_power_of_2(H) // (32 * norm._warps(H))
    absent = {"forward": ("delta", "res"), "backward": ("dres", "dweight", "dbias")}
    kernels = {"forward": norm.dynadapt_norm_forward, "backward": norm.dynadapt_norm_backward}
    return {name: counted(norm._variant(name, kernel, absent[name], H, True), elements)["sub"] for name, kernel in kernels.items()}


@pytest.fixture(scope="module")
def compiled() -> dict:
    """In a process without the interpreter."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": str(Path(__file__).parents[2])}
    said = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    return json.loads(said.stdout)


def test_updates_of_whole_and_split_sums(compiled):
    assert set(compiled["updates"]) == {"plain", "decay", "momentum", "rms"}
    for rule, forms in compiled["updates"].items():
        assert forms["whole"] == forms["split"] and forms["whole"]["add"], rule


def test_gradients_that_accumulate(compiled):
    """Whole, split and of several linears together: scale total + old is one fused product."""
    for dtype, forms in compiled["gradients"].items():
        assert forms == dict.fromkeys(("whole", "split", "together"), {"fma": 1, "mul": 0}), dtype


def test_layer_norm_subtracts_the_same_mean_both_ways(compiled):
    assert compiled["layer_norm"] == {"forward": 1, "backward": 1}


if __name__ == "__main__":
    print(json.dumps({"updates": updates(), "gradients": gradients(), "layer_norm": layer_norm()}))
