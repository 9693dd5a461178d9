"""Every kernel compiles for every architecture and keeps its budget; no GPU is needed. And the checker can fail."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

PLANTED = """
import triton
import triton.language as tl
from dynadapt.kernels.common import Variant, dot


@triton.jit
def dynadapt_planted(a, b, c, K, BM: tl.constexpr, BK: tl.constexpr, CORE: tl.constexpr):
    m, k = tl.arange(0, BM), tl.arange(0, BK)
    acc = tl.zeros((BM, BM), tl.float32)
    for start in range(0, K, BK):
        x = tl.load(a + m[:, None] * K + start + k[None, :])
        y = tl.load(b + m[:, None] * K + start + k[None, :])
        if CORE:
            acc = dot(x, y.trans(), acc)
        else:
            acc += tl.sum(x.to(tl.float32) * y.to(tl.float32), 1)[:, None]
    tl.store(c + m[:, None] * BM + m[None, :], acc)


def variant(name, size, core=True, **more):
    types = {"a": "*bf16", "b": "*bf16", "c": "*fp32", "K": "i32"}
    return Variant(name, dynadapt_planted, types, {"BM": size, "BK": 32, "CORE": core}, num_stages=3, tensor_core=True,
                   aligned=("a", "b", "c", "K"), **more)


@triton.jit
def dynadapt_narrow(a, c, n, BM: tl.constexpr):
    m = tl.arange(0, BM)
    column = tl.min(n + m, 0) + m  # of whose first nothing is known
    tl.store(c + m[:, None] * BM + m[None, :], tl.load(a + m[:, None] * BM + column[None, :]).to(tl.float32))


VARIANTS = [variant("good", 64), variant("spills", 256), variant("no core", 64, core=False),
            variant("crowded", 64, registers=32, shared=1024),
            Variant("narrow", dynadapt_narrow, {"a": "*bf16", "c": "*fp32", "n": "i32"}, {"BM": 64}, aligned=("a", "c", "n"))]
"""


def compile_kernels(out: Path, *arguments: str, **variables: str):
    """(exit status, text, rows by variant and architecture) of the command line."""
    path = os.pathsep.join(p for p in (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")) if p)
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": path, **variables}
    command = [sys.executable, "-m", "dynadapt.kernels.compile", *arguments, "--json", str(out)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    rows = json.loads(out.read_text())["rows"] if out.exists() else []
    return result.returncode, result.stdout + result.stderr, rows


@pytest.mark.parametrize("options", [["--quick"], pytest.param([], marks=pytest.mark.slow)], ids=["quick", "all"])
def test_kernels_keep_their_budgets(tmp_path, options):
    """quick: every variant for sm_90, one of each kernel for the others."""
    status, text, rows = compile_kernels(tmp_path / "rows.json", *options)
    assert status == 0, text
    assert {r["arch"] for r in rows} == {80, 90, 100} and not [r for r in rows if r["faults"]], text


def test_checker_names_what_leaves_its_budget(tmp_path):
    (tmp_path / "planted.py").write_text(PLANTED)
    arguments = (str(tmp_path / "planted.py"), "--arch", "80", "90", "--jobs", "1")
    status, text, rows = compile_kernels(tmp_path / "rows.json", *arguments)
    assert status == 1
    faults = {(r["variant"], r["arch"]): " ".join(r["faults"]) for r in rows}
    for arch, core in ((80, "mma"), (90, "wgmma")):
        assert not faults["good", arch], text
        assert "spills" in faults["spills", arch]
        assert faults["no core", arch] == f"tensor core: none, expected {core}"
        assert "registers" in faults["crowded", arch] and "shared memory" in faults["crowded", arch]
        assert f"planted: dynadapt_planted [spills] sm_{arch}: spills" in text
    assert "accesses of 1 or 2 bytes: 32, budget 16" in faults["narrow", 90] and not faults["narrow", 80]
    good = next(r for r in rows if r["variant"] == "good" and r["arch"] == 90)
    assert 16 < good["registers"] < 256 and good["shared"] > 0 and good["tensor_core"] == "wgmma"


def test_products_that_wait_for_each_other_are_seen():
    """In the compiled code: what Triton 3.6 makes of a sum that is scaled and added to in one product, and of one that is added to apart."""
    from dynadapt.kernels import attention_backward, compile

    product = "        /*{:04x}*/  HGMMA.64x64x16.F32.BF16 R24, R88, gdesc[UR24], R24{} ;\n"
    code = lambda every: "".join(product.format(16 * i, ", gsb0" if (i + 1) % every == 0 else "") for i in range(12))  # noqa: E731
    assert compile.waits_one_by_one(code(1)) and not compile.waits_one_by_one(code(4)) and not compile.waits_one_by_one(code(1)[:400])
    d64, d256 = (
        next(v for v in attention_backward.VARIANTS if v.kernel is attention_backward.dynadapt_attention_dkv and f"d {d}, bf16" in v.name)
        for d in (64, 256)
    )
    for variant, faults in ((d64, 1), (d256, 0)):  # of the widest heads it is known
        row = compile.Row("attention_backward", "dynadapt_attention_dkv", variant.name, 90, tensor_core="wgmma", one_by_one=True)
        compile.check(row, variant, 0)
        assert len(row.faults) == faults, row.faults


def test_a_rounded_product_of_float32_is_a_fault():
    """Triton 3.6 makes one of an exact product for sm_100, where its right side was put together from others."""
    from dynadapt.kernels import compile, linear_activation

    variant = next(v for v in linear_activation.VARIANTS if v.name == "fp32" and 100 in v.archs)
    instruction = "@%p14 tcgen05.mma.cta_group::1.kind::tf32 [ %r1 + 0 ], [ %r2 + 0 ], %rd1, %r3, %p13;"
    for kernel, ptx, faults in (
        (variant.kernel.__name__, instruction, 1),
        (variant.kernel.__name__, "fma.rn.f32", 0),
        ("dynadapt_delta_rule_states", instruction, 0),
    ):
        row = compile.Row("linear_activation", kernel, variant.name, 100)
        compile.check(row, variant, 0, ptx)
        assert len(row.faults) == faults, row.faults


def test_kernels_without_variants_are_refused(tmp_path):
    (tmp_path / "planted.py").write_text(PLANTED.split("def variant")[0])
    status, text, _ = compile_kernels(tmp_path / "rows.json", str(tmp_path / "planted.py"))
    assert status == 1 and "exports no VARIANTS" in text


def test_wrong_argument_names_are_named(tmp_path):
    (tmp_path / "planted.py").write_text(PLANTED.replace('"K": "i32"', '"rows": "i32"'))
    status, text, _ = compile_kernels(tmp_path / "rows.json", str(tmp_path / "planted.py"), "--arch", "90", "--jobs", "1")
    assert status == 1 and "no such arguments: ['rows']" in text and "without a type or a value: ['K']" in text


def test_interpreter_is_refused(tmp_path):
    status, text, _ = compile_kernels(tmp_path / "rows.json", TRITON_INTERPRET="1")
    assert status == 2 and "TRITON_INTERPRET=1" in text


@pytest.mark.parametrize("older, spilled, fails", [(True, 36, False), (True, 37, True), (False, 24, False), (False, 36, True)])
def test_budgets_are_of_one_triton_and_an_older_one_may_spill_what_is_listed(older, spilled, fails, monkeypatch):
    from dynadapt.kernels import compile, lora_gradient_walk

    monkeypatch.setattr(compile, "older_triton", lambda: older)
    variant = next(
        v for v in lora_gradient_walk.VARIANTS if v.kernel is lora_gradient_walk.dynadapt_lora_gradient and 80 in v.archs and v.spills == 24
    )
    row = compile.Row("lora_gradient_walk", "dynadapt_lora_gradient", variant.name, 80, spills=spilled, tensor_core="mma")
    compile.check(row, variant, 0)
    assert bool(row.faults) == fails, row.faults


def test_every_kernel_waits_for_the_one_before_it():
    """What starts while the kernel before it still runs must not touch memory yet; and nothing else is launched than these."""
    import ast

    for path in sorted((Path(__file__).parents[2] / "kernels").glob("*.py")):
        for function in ast.parse(path.read_text()).body:
            if isinstance(function, ast.FunctionDef) and function.name.startswith("dynadapt_"):
                first = function.body[1 if ast.get_docstring(function) is not None else 0]
                assert ast.unparse(first) == "wait_for_previous()", f"{path.name}: {function.name} begins with {ast.unparse(first)}"


@pytest.mark.parametrize("asked", ["0", "1"])
def test_dependent_launches_only_where_they_were_asked_for(asked):
    program = (
        "from dynadapt.kernels import common, compile, reset\n"
        "made = compile.build(reset.VARIANTS[0], 90)\n"
        "print(made.asm['ptx'].count('griddepcontrol.wait'), made.metadata.launch_pdl, common.FUSION.get('launch_pdl'))"
    )
    path = os.pathsep.join(p for p in (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")) if p)
    environment = {**os.environ, "TRITON_INTERPRET": "0", "DYNADAPT_DEPENDENT_LAUNCH": asked, "PYTHONPATH": path}
    said = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert said.stdout.split() == (["1", "True", "True"] if asked == "1" else ["0", "False", "None"]), said.stderr


def test_dependent_launches_are_asked_for_by_number(monkeypatch):
    from dynadapt.kernels import common

    with pytest.raises(ValueError, match="DYNADAPT_DEPENDENT_LAUNCH='yes': accepted is 0 or 1"):
        common._dependent_launch("yes")
    monkeypatch.setattr(common, "INTERPRET", False)
    monkeypatch.setattr(common.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(common.torch.cuda, "get_device_name", lambda: "GPU A")
    monkeypatch.setattr(common.torch.cuda, "get_device_capability", lambda: (8, 0))
    with pytest.raises(ValueError, match="DYNADAPT_DEPENDENT_LAUNCH=1: GPU A has no dependent launches"):
        common._dependent_launch("1")


def test_what_is_launched_with_wide_adapters_and_long_rows_is_compiled():
    """Of slots' adapters also the products with A, whose parts are one; of attention heads of more than 128 in float32, with warps for their rows."""
    import torch

    from dynadapt.kernels import attention_forward, slot_adapters
    from dynadapt.kernels.attention_parts import block_sizes

    of_slots = {(v.kernel.__name__, v.constexprs["WHOLE"]) for v in slot_adapters.VARIANTS if "WHOLE" in v.constexprs}
    assert of_slots == {(f"dynadapt_slot_{name}", whole) for name in ("shrink", "expand") for whole in (False, True)}
    whole = {
        v.constexprs["BR"]
        for v in slot_adapters.VARIANTS
        if v.constexprs.get("WHOLE") and v.signature["x" if "x" in v.signature else "u"] == "*bf16"
    }
    assert whole == {64}  # 3 x 16 rows are padded to 64 already
    long = [v for v in attention_forward.VARIANTS if v.constexprs["D"] == 256 and v.signature["qkv"] == "*fp32"]
    assert {arch for v in long for arch in v.archs} == {80, 90, 100} and {v.num_warps for v in long} == {8}
    assert [block_sizes("forward", torch.float32, d, False, 90)[1]["num_warps"] for d in (128, 256)] == [4, 8]
    few, many = (block_sizes("forward", torch.bfloat16, 256, large, 90) for large in (False, True))
    assert few == many  # 64 rows over 4 warps would spill
