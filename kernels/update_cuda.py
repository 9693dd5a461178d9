"""The optimizer step in CUDA C++ (csrc/cuda/update.cu): two launches for all parameters of all streams.

The first sums the squares of the gradients in float64, the second does everything else in one pass, 16 bytes a thread at
a time. Bytes per parameter with Adam, decay and a bfloat16 copy: 20 read, 18 written (prior and prior_rate once for all
streams). It serves where libdynadapt_cuda.so was built and finds a GPU; kernels/update.py, in Triton, serves elsewhere.
"""

from __future__ import annotations

import torch

from dynadapt.ops.dispatch import native_module

from .common import scratch


def update(
    kind,
    master,
    grad,
    first,
    second,
    prior,
    stat,
    working,
    slots,
    lr,
    step,
    decay,
    clip,
    beta1,
    beta2,
    eps,
    weight_decay,
    momentum,
    norms,
    skipped,
    prior_rate=None,
) -> None:
    """See ``dynadapt.ops.update``. An entry of slots that is neither -1 nor a slot is reported (skipped 1, norm NaN).

    Raises:
        ValueError: for an argument that does not fit, by name; nothing was launched then.
    """
    native = native_module()
    elements = native.update_workspace(slots.shape[0], master.shape[1])
    workspace = scratch(master.device, "update_cuda", elements, dtype=torch.float64)
    native.update(
        kind,
        master,
        grad,
        first,
        second,
        prior,
        stat,
        working,
        slots,
        lr,
        step,
        decay,
        clip,
        beta1,
        beta2,
        eps,
        weight_decay,
        momentum,
        norms,
        skipped,
        prior_rate,
        workspace,
        torch.cuda.current_stream(master.device).cuda_stream,
    )
