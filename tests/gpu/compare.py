"""What tests of Triton kernels share: the cases of ``op_cases`` on the GPU, or in Triton's interpreter on a machine without one.

There dot products are cast to float32 first (kernels/common.py), and stores round (interpreter.py). Tests marked ``gpu`` use real sizes.
"""

from functools import partial
from pathlib import Path

import op_cases
import pytest
import torch

from dynadapt.kernels.common import INTERPRET

DEVICE = "cpu" if INTERPRET else "cuda"
DTYPES = [torch.float32, torch.bfloat16]
if INTERPRET:
    from .interpreter import round_to_bfloat16

    if not round_to_bfloat16():
        DTYPES = [torch.float32]
skip_without_gpu = pytest.mark.skipif(INTERPRET, reason="the interpreter is on; GPU tests need TRITON_INTERPRET unset and a GPU")
run = partial(op_cases.run, backend="triton", device=DEVICE)
check = partial(op_cases.check, backend="triton", device=DEVICE)


def each(makes, sizes, dtypes=DTYPES):
    """As ``op_cases.each``; rows of more arguments lie in a wider buffer."""
    return op_cases.each(makes, sizes, dtypes, strided=True)


def real_sizes(makes, sizes, dtypes=(torch.bfloat16,)):
    """The same on a GPU alone."""
    return lambda test: pytest.mark.gpu(skip_without_gpu(each(makes, sizes, dtypes)(test)))


# Files of tests that launch no kernel of ours, launch all of them, or look at what others launch.
_OTHERS = (
    "test_bounds_at_real_sizes",
    "test_campaign",
    "test_checked",
    "test_choices",
    "test_compile",
    "test_emulator",
    "test_rounding",
    "test_sanitized",
)


def kernel_tests(but: tuple[str, ...] = ()) -> list[str]:
    """Names of the files here whose tests launch kernels, without those in ``but``."""
    return sorted(path.name for path in Path(__file__).parent.glob("test_*.py") if not path.stem.startswith((*_OTHERS, *but)))
