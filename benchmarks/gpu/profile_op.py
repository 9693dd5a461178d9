"""``python -m benchmarks.gpu.profile_op OP``: one op at Llama-3.2-1B's sizes, 8 streams of 512, for ncu (stage profiles)."""

import sys

import torch

from .cases import BF16, OPS, Sizes, materialise


def main(op: str) -> None:
    from dynadapt.ops import resolve

    function = resolve(op, "triton", BF16).function
    calls = [materialise(case) for case in OPS[op](Sizes("llama-3.2-1b", 8, 512, "cuda"), 512)[:2]]
    for arguments in calls:
        function(*arguments)  # compiles
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    for arguments in calls:
        function(*arguments)
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


if __name__ == "__main__":
    main(sys.argv[1])
