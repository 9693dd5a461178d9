"""NVIDIA GPUs with bfloat16, as their vendor's datasheets and architecture papers give them.

Dense rates: without sparsity, bf16 products on tensor cores with float32 sums (of GeForce cards half of what float16 sums reach), fp32
on the ordinary cores. Memory as sold, in 10^9 bytes.
"""

from __future__ import annotations

import difflib
import re

#                   name                           bf16    fp32   GB/s   GB
CARDS = {
    "b200": ("NVIDIA B200 SXM", 2250.0, 75.0, 7700.0, 180.0),
    "h200": ("NVIDIA H200 SXM", 989.0, 67.0, 4800.0, 141.0),
    "h200-nvl": ("NVIDIA H200 NVL", 835.0, 60.0, 4800.0, 141.0),
    "h100": ("NVIDIA H100 SXM", 989.0, 67.0, 3350.0, 80.0),
    "h100-nvl": ("NVIDIA H100 NVL", 835.0, 60.0, 3900.0, 94.0),
    "h100-pcie": ("NVIDIA H100 PCIe", 756.0, 51.0, 2000.0, 80.0),
    "a100": ("NVIDIA A100 SXM 80GB", 312.0, 19.5, 2039.0, 80.0),
    "a100-pcie": ("NVIDIA A100 PCIe 80GB", 312.0, 19.5, 1935.0, 80.0),
    "a100-40gb": ("NVIDIA A100 SXM 40GB", 312.0, 19.5, 1555.0, 40.0),
    "a100-pcie-40gb": ("NVIDIA A100 PCIe 40GB", 312.0, 19.5, 1555.0, 40.0),
    "l40s": ("NVIDIA L40S", 362.0, 91.6, 864.0, 48.0),
    "l4": ("NVIDIA L4", 121.0, 30.3, 300.0, 24.0),
    "a40": ("NVIDIA A40", 149.7, 37.4, 696.0, 48.0),
    "a10": ("NVIDIA A10", 125.0, 31.2, 600.0, 24.0),
    "rtx-6000-ada": ("NVIDIA RTX 6000 Ada", 364.2, 91.1, 960.0, 48.0),
    "rtx-a6000": ("NVIDIA RTX A6000", 154.8, 38.7, 768.0, 48.0),
    "rtx-5090": ("NVIDIA GeForce RTX 5090", 209.5, 104.8, 1792.0, 32.0),
    "rtx-4090": ("NVIDIA GeForce RTX 4090", 165.2, 82.6, 1008.0, 24.0),
    "rtx-3090": ("NVIDIA GeForce RTX 3090", 71.0, 35.6, 936.0, 24.0),
}
GPUS = tuple(CARDS)
_SAYS_NOTHING = {
    "nvidia",
    "geforce",
    "rtx",
    "tesla",
    "sxm",
    "sxm4",
    "sxm5",
    "sxm6",
    "hbm2e",
    "hbm3",
    "hbm3e",
    "generation",
    "gpu",
    "tensor",
    "core",
}


def _words(name: str) -> set[str]:
    words = re.findall(r"[a-z0-9]+", re.sub(r"\brtx(?=\w)", "rtx ", re.sub(r"(\d+)\s*gb\b", r" \1gb ", name.lower())))
    return set(words) - _SAYS_NOTHING


def card(name: str) -> str:
    """The key in CARDS of a card by its usual names: "h100", "NVIDIA H100 80GB HBM3", "A100-SXM4-40GB", "4090".

    Raises:
        ValueError: for a card that is not known, naming those that are and the nearest.
    """
    wanted = _words(name)
    for key, (_, _, _, _, memory) in CARDS.items():
        if wanted == _words(key) or wanted - {f"{memory:.0f}gb"} == _words(key) - {f"{memory:.0f}gb"} and f"{memory:.0f}gb" in wanted:
            return key
    near = difflib.get_close_matches(name.lower().removeprefix("nvidia").strip(" -"), GPUS, 1, 0.6)
    raise ValueError(
        f"gpu={name!r}: " + (f"did you mean {near[0]}? " if near else "") + f"expected one of {', '.join(GPUS)}, or give measured ceilings"
    )
