"""Matrix products of the adapt step, ours against torch's: GFLOP/s per shape and op.

    python benchmarks/gemm.py [--dtype bf16] [--threads 1] [--rows 512] [--seconds 20] [--only forward] [--json out.json]

Every result is checked against float64 before anything is timed; providers and shapes take turns; the table
shows the median and the 10% and 90% quantiles. Shapes are SmolLM2-135M's unless --hidden and --ffn say otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time

# For torch's OpenMP threads alone (ours have a pool of their own): idle ones sleep, but not before they have looked for
# work for about 0.1 ms, because waking one costs as much.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import numpy as np
import torch
import torch.nn.functional as F

from dynadapt import _C
from dynadapt.ceiling import gemm_ceiling

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def cases(args, dtype):
    """(op, shape text, flops, ours, torch's, ours' output, truth) for every case."""
    H, kv, ffn, rank, N = args.hidden, args.hidden // 3, args.ffn, args.rank, args.rows
    groups = {"qkv": ([H, kv, kv], H), "o": ([H], H), "mlp_in": ([ffn, ffn], H), "down": ([H], ffn)}
    for name, (parts, K) in groups.items():
        for low in ([0, rank] if rank else [0]):
            yield from linear_cases(f"{name} {sum(parts)}x{K}" + (f" r{low}" if low else ""), parts, K, N, low, dtype)
    yield from head_cases(args.vocabulary, H, N, dtype)


def linear_cases(name, parts, K, N, rank, dtype):
    O, P = sum(parts), len(parts)
    x, dy = torch.randn(N, K).to(dtype), torch.randn(N, O).to(dtype)
    weight = (torch.randn(O, K) / K**0.5).to(dtype)
    packed = [_C.PackedMatrix(w.contiguous()) for w in weight.split(parts)]
    A = Bt = slots = u = dU = None
    if rank:
        A, Bt = (torch.randn(1, P * rank, K) / K**0.5).to(dtype), torch.randn(1, rank, O).to(dtype)
        slots = torch.zeros(1, dtype=torch.int32)
        u, dU = (torch.empty(N, P * rank, dtype=dtype) for _ in "ud")
    y, dx = torch.empty(N, O, dtype=dtype), torch.empty(N, K, dtype=dtype)
    B = torch.zeros(P * rank, O, dtype=dtype)  # block diagonal: what torch multiplies with
    column = 0
    for p, size in enumerate(parts):
        if rank:
            B[p * rank : (p + 1) * rank, column : column + size] = Bt[0, :, column : column + size]
        column += size

    def torch_forward():
        out = F.linear(x, weight)
        return out + (x @ A[0].t()) @ B if rank else out

    def torch_backward():
        out = dy @ weight
        return out + (dy @ B.t()) @ A[0] if rank else out

    def truth(value, first, second, low):
        out = value.double() @ first.double()
        return out + (value.double() @ low[0].double()) @ low[1].double() if rank else out

    flops = 2 * N * (K * O + (K * P * rank + rank * O))
    yield ("forward", name, flops, lambda: _C.linear_forward(x, packed, None, A, Bt, slots, 1.0, u, y), torch_forward, y,
           truth(x, weight.t(), None, (A[0].t(), B) if rank else None))
    yield ("backward", name, flops, lambda: _C.linear_backward(dy, packed, A, Bt, slots, 1.0, dU, dx), torch_backward, dx,
           truth(dy, weight, None, (B.t(), A[0]) if rank else None))
    if rank:
        dA, dBt = torch.empty(1, P * rank, K), torch.empty(1, rank, O)
        u.normal_(), dU.normal_()
        yield ("lora_gradient", name, 2 * N * (K * P * rank + rank * O),
               lambda: _C.lora_gradient(dy, x, u, dU, parts, 1.0, slots, dA, dBt, False),
               lambda: (dU.t() @ x, [u[:, p * rank : (p + 1) * rank].t() @ d for p, d in enumerate(dy.split(parts, 1))]), dA,
               (dU.double().t() @ x.double())[None])
    else:
        dW = torch.empty(O, K)
        yield ("weight_gradient", name, 2 * N * K * O, lambda: _C.weight_gradient(dy, x, None, dW, False),
               lambda: dy.t() @ x, dW, dy.double().t() @ x.double())


def head_cases(V, H, N, dtype):
    h, head = torch.randn(N, H).to(dtype), torch.randn(V, H).div_(H**0.5).to(dtype)
    packed, targets = _C.PackedMatrix(head), torch.randint(0, V, (N,))
    nll, lse, dh, dW = torch.empty(N), torch.empty(N), torch.empty_like(h), torch.empty(V, H)
    logits = h.double() @ head.double().t()
    exact = F.cross_entropy(logits, targets, reduction="none")
    p = torch.softmax(logits, 1)
    p[torch.arange(N), targets] -= 1

    def torch_gradient():
        leaf = h.clone().requires_grad_()
        F.cross_entropy((leaf @ head.t()).float(), targets, reduction="sum").backward()
        return leaf.grad

    shape, flops = f"{V}x{H}", 2 * N * H * V
    yield ("score", shape, flops, lambda: _C.cross_entropy(h, packed, targets, None, nll, lse, None),
           lambda: F.cross_entropy((h @ head.t()).float(), targets, reduction="none"), nll, exact)
    yield ("score+gradient", shape, 2 * flops, lambda: _C.cross_entropy(h, packed, targets, None, nll, lse, dh),
           torch_gradient, dh, p @ head.double())
    _C.cross_entropy(h, packed, targets, None, nll, lse, None)
    yield ("head gradient", shape, 2 * flops,
           lambda: _C.cross_entropy_weight_gradient(h, packed, targets, None, lse, dW, False), None, dW, p.t() @ h.double())


def check(op, name, call, output, truth, dtype):
    output.fill_(float("nan"))
    call()
    error = (output.double() - truth).norm() / truth.norm()
    limit = 1e-5 if dtype == torch.float32 else 1e-2
    if not error < limit:
        raise SystemExit(f"{op} {name}: relative error {error:.3g} is above {limit}: nothing is timed")
    return float(error)


def measure(rows, seconds, threads):
    """Fill each row's "times": all calls take turns until ``seconds`` are over (at least 5 rounds).

    One thread is timed by its processor time, which other processes on the machine disturb less."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < 6 or time.perf_counter() < end:
        for row in rows:
            for provider, call in row["calls"].items():
                start = clock()
                call()
                if rounds:  # the first round warms up
                    row["times"].setdefault(provider, []).append(clock() - start)
        rounds += 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--ffn", type=int, default=1536)
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--only", default="", help="ops whose name contains this")
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--json")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    _C.set_num_threads(args.threads)
    dtype = DTYPES[args.dtype]

    rows = []
    for op, name, flops, ours, theirs, output, truth in cases(args, dtype):
        if args.only not in op:
            continue
        calls = {"dynadapt": ours}
        if theirs and not args.no_torch:
            calls["torch"] = theirs
        rows.append({"op": op, "shape": name, "flops": flops, "error": check(op, name, ours, output, truth, dtype),
                     "calls": calls, "times": {}})
    ceiling = gemm_ceiling(dtype, args.threads)
    _C.set_num_threads(args.threads)
    torch.set_num_threads(args.threads)
    measure(rows, args.seconds, args.threads)

    print(f"isa {_C.isa()}, {args.dtype}, {args.threads} thread(s), {args.rows} rows, torch {torch.__version__}, "
          f"OMP_WAIT_POLICY={os.environ['OMP_WAIT_POLICY']} GOMP_SPINCOUNT={os.environ['GOMP_SPINCOUNT']}")
    print(f"ceiling {ceiling['gflops']:.0f} GFLOP/s ({ceiling['provider']}, {ceiling['shape']})")
    print(f"{'op':16} {'shape':20} {'provider':9} {'GFLOP/s':>8} {'10%':>7} {'90%':>7} {'ceiling':>8} {'ms':>8}")
    for row in rows:
        row.pop("calls")
        row["results"] = {}
        for provider, times in row.pop("times").items():
            low, median, high = (row["flops"] / t * 1e-9 for t in np.quantile(times, [0.9, 0.5, 0.1]))
            row["results"][provider] = {"gflops": median, "gflops_10": low, "gflops_90": high, "runs": len(times),
                                        "share_of_ceiling": median / ceiling["gflops"], "seconds": row["flops"] / median * 1e-9}
            print(f"{row['op']:16} {row['shape']:20} {provider:9} {median:8.0f} {low:7.0f} {high:7.0f} "
                  f"{median / ceiling['gflops']:8.0%} {row['flops'] / median * 1e-6:8.3f}")
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"arguments": vars(args), "isa": _C.isa(), "environment": {k: v for k, v in os.environ.items() if k.startswith(("OMP_", "GOMP_", "DYNADAPT_"))}, "torch": torch.__version__, "ceiling": ceiling, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    sys.exit(main())
