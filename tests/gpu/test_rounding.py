"""Kernels that promise each other's bits round alike on a GPU too: as many contracted products an element in what the compiler makes of them.

In the interpreter every product rounds on its own, so that no comparison of numbers there sees what a compiler contracts. Each of these pairs is compiled
for sm_90, which needs no GPU, and the float32 operations of its PTX are counted: with the Triton that is there, as what is contracted differs by version."""

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


def operations(ptx: str) -> list[tuple[str, ...]]:
    """(kind, operand, ...) of the float32 operations; without negations, which Triton 3.6 writes as 0 - x."""
    zeros = {"0f00000000", "0f80000000", *re.findall(r"^\s+mov\.[bf]32\s+(%\w+), 0f[08]0000000;", ptx, re.MULTILINE)}
    found = re.findall(r"^\s+(?:@!?%p\d+\s+)?(fma|mul|add|sub|div)\.(?:rn\.|full\.)?f32\s+%\w+, ([^;]+);", ptx, re.MULTILINE)
    every = [(kind, *operands.split(", ")) for kind, operands in found]
    return [one for one in every if one[0] != "sub" or one[1] not in zeros]


def compiled_operations(variant) -> list[tuple[str, ...]]:
    from dynadapt.kernels import compile

    return operations(compile.build(variant, 90).asm["ptx"])


def counted(variant, elements: int) -> dict[str, float]:
    """Operations of each kind for each of a thread's ``elements``."""
    kinds = Counter(kind for kind, *_ in compiled_operations(variant))
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
    """The number that is subtracted most often, by how many of a thread's elements it is subtracted from: the mean from all of them."""
    from dynadapt.kernels import norm

    H = 768
    elements = norm.next_power_of_2(H) // (32 * norm._warps(H))
    absent = {"forward": ("delta", "res"), "backward": ("dres", "dweight", "dbias")}
    kernels = {"forward": norm.dynadapt_norm_forward, "backward": norm.dynadapt_norm_backward}
    found = {}
    for name, kernel in kernels.items():
        made = compiled_operations(norm._variant(name, kernel, absent[name], H, True))
        found[name] = max(Counter(operands[1] for kind, *operands in made if kind == "sub").values(), default=0) / elements
    return found


def activations() -> dict:
    """Contracted products and differences a value of h's gate, of a launch of its own and of one joined to a product."""
    from dynadapt.kernels import activation, linear_activation
    from dynadapt.kernels.common import variant

    tile, found = linear_activation.BF16[90][-1], {}
    for kind in ("swiglu", "geglu_tanh"):
        alone = dict(F=1536, KIND=activation.KINDS.index(kind), ROWS=activation.ROWS, COLUMNS=activation.COLUMNS)
        for way, absent in (("forward", {"bias": None}), ("backward", {})):
            own = counted(
                variant(kind, getattr(activation, f"dynadapt_activation_{way}"), activation._TYPES, alone),
                alone["ROWS"] * alone["COLUMNS"] // 128,
            )
            kernel = getattr(linear_activation, f"dynadapt_linear_activation_{way}")
            fixed = linear_activation._constexprs(kernel, tile, 576, 1536, 16, 2, kind) | absent
            values = tile.rows * tile.columns // (32 * tile.warps) // (2 if way == "forward" else 1)  # a tile has gate and up forward
            joined = counted(variant(kind, kernel, linear_activation._TYPES, fixed, **tile.options), values)
            found[f"{kind} {way}"] = {form: [made[name] for name in ("fma", "sub")] for form, made in (("own", own), ("joined", joined))}
    return found


def keys_by_head() -> dict:
    """Of the gradient of keys and values, whole and split over the heads of a group: all but the sums of heads, which are additions alone."""
    import torch

    from dynadapt.kernels import attention_backward as kernels
    from dynadapt.kernels.attention_parts import variant_of

    made = lambda dtype, split: counted(variant_of("dkv", kernels.dynadapt_attention_dkv, 64, dtype, False, 90, split=split), 1)  # noqa: E731
    return {
        str(dtype): {form: {**made(dtype, form == "split"), "add": None} for form in ("whole", "split")}
        for dtype in (torch.bfloat16, torch.float32)
    }


@pytest.fixture(scope="module")
def compiled() -> dict:
    """In a process without the interpreter."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": path}
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


def test_activations_joined_to_a_product_and_alone(compiled):
    for case, forms in compiled["activations"].items():
        assert forms["own"] == forms["joined"] and (sum(forms["own"]) or case == "swiglu forward"), case


def test_keys_of_whole_and_split_groups(compiled):
    for dtype, forms in compiled["keys_by_head"].items():
        assert forms["whole"] == forms["split"] and forms["whole"]["fma"], dtype


def test_operations_are_read():
    """A negation is none, a difference from a number that is not 0 is one."""
    ptx = """
    mov.b32 \t%r1, 0f00000000;
    mov.b32 \t%r2, 0f3F800000;
    sub.f32 \t%r3, %r1, %r9;
    sub.f32 \t%r4, %r2, %r9;
    @%p1 fma.rn.f32 \t%r5, %r3, %r4, 0f40000000;
    div.full.f32 \t%r6, %r5, %r4;
    add.s32 \t%r7, %r6, %r6;
    """
    assert operations(ptx) == [("sub", "%r2", "%r9"), ("fma", "%r3", "%r4", "0f40000000"), ("div", "%r5", "%r4")]


if __name__ == "__main__":
    kinds = (updates, gradients, layer_norm, activations, keys_by_head)
    print(json.dumps({kind.__name__: kind() for kind in kinds}))
