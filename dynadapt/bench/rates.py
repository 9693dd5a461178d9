"""Rates of rows, as shares of what the machine reaches; what a table says below its rows."""

from __future__ import annotations


def put_rates(found: dict, tokens: int, masked: int) -> None:
    """Adds to the rows of what compare() found tokens per second and shares of the ceiling and of the instruction set's peak.

    masked: of the FLOPs of a step, those that the causal mask throws away: a kernel may skip them, so no share has them. A row whose
    arithmetic has no ceiling here (a file's own integers) has None.
    """
    flops = found["flops_per_step"]
    for row in found["providers"].values():
        row["tokens_per_second"] = tokens / row["seconds"]["median"]
        done, dtype = (1 - masked / flops) * row["gflops"], row["dtype"]
        row["share_of_ceiling"] = done / found["ceiling"][dtype]["gflops"] if dtype in found["ceiling"] else None
        row["share_of_peak"] = done / found["peak_gflops"][dtype] if dtype in found["peak_gflops"] else None


def percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


COLUMNS = {
    "tokens/s": lambda name, row: f"{row['tokens_per_second']:,.0f}",
    "of ceiling": lambda name, row: percent(row["share_of_ceiling"]),
    "of peak": lambda name, row: percent(row["share_of_peak"]),
}


def ceiling_lines(ceilings: dict[str, dict], peaks: dict[str, float]) -> list[str]:
    """What the shares are shares of, by dtype."""
    return [
        f"{dtype}: ceiling {c['gflops']:.0f} GFLOP/s, the best matrix product of this run ({c['provider']}, "
        f"{'x'.join(map(str, c['shape']))}); peak {peaks[dtype]:.0f}, the same instructions on registers alone"
        for dtype, c in ceilings.items()
    ]
