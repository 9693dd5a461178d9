"""Triton's interpreter cuts float32 to bfloat16 where a GPU rounds to nearest. Here it rounds too, so that bfloat16 cases mean something."""

import numpy as np
import torch
import triton.language as tl
import triton.runtime.interpreter as interpreter


def round_to_bfloat16() -> bool:
    """Patch this process's interpreter; False where this Triton converts some other way."""
    convert = getattr(interpreter, "_convert_float", None)
    if convert is None:
        return False

    def rounding(data, source, target, mode):
        if source != tl.float32 or target != tl.bfloat16:
            return convert(data, source, target, mode)
        exact = torch.from_numpy(np.ascontiguousarray(data).view(np.float32).copy())
        return exact.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16).reshape(data.shape)

    interpreter._convert_float = rounding
    return True
