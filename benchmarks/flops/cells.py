"""The grid: what is run on each text. Sizes are tokens; what learns uses the learning rate that docs/defaults.md explains."""

from __future__ import annotations

from dataclasses import dataclass, field

SEGMENT = 512
REACH = 2048  # the longest context that memory and overlap are compared at
WHOLE = 4096  # the longest of the grid: all of a text of the small one


@dataclass(frozen=True)
class Cell:
    """One run on one text. `tuned`: the model has first learned from training text of the same domain."""

    name: str
    title: str
    settings: dict = field(hash=False)
    tuned: bool = False

    @property
    def online(self) -> bool:
        return self.settings["adapt"] != "none"


def _cell(name: str, title: str, adapt: str = "none", tuned: bool = False, **settings) -> Cell:
    return Cell(name, title, {"segment": SEGMENT, "adapt": adapt, **settings}, tuned)


# Scored on every text, other domains included: how much online learning gains against how far the text is from the model.
SHIFT = (_cell("static-512", "static, 512"), _cell("lora-512", "LoRA r16, 512", "lora"))

# What the model learned from the domain's training text first, then the same two on the held-out text.
TUNED = (
    _cell("tuned-static-512", "fine-tuned, static, 512", tuned=True),
    _cell("tuned-lora-512", "fine-tuned, LoRA r16, 512", "lora", tuned=True),
)


def main_cells(ranks=(4, 64), densities=(0.02, 0.1, 0.5)) -> tuple[Cell, ...]:
    """Every cell of one text: context, memory and overlap, update frequency, what learns, and after fine-tuning."""
    static = [_cell(f"static-{t}", f"static, {t:,}", segment=t) for t in (256, 1024, REACH, WHOLE)]
    static += [_cell(f"static-memory-{m}", f"static, memory {m:,}", memory=m) for m in (SEGMENT, REACH - SEGMENT, WHOLE - SEGMENT)]
    static += [_cell(f"static-overlap-{m}", f"static, overlap {m:,}", context=m) for m in (SEGMENT, REACH - SEGMENT)]
    static += [_cell("static-short", "static, 128, memory 512", segment=128, memory=SEGMENT)]
    lora = [
        _cell("lora-256", "LoRA r16, 256", "lora", segment=256),
        _cell("lora-memory-512", "LoRA r16, memory 512", "lora", memory=SEGMENT),
        _cell("lora-memory-1536", "LoRA r16, memory 1,536", "lora", memory=REACH - SEGMENT),
        _cell("lora-overlap-512", "LoRA r16, overlap 512", "lora", context=SEGMENT),
    ]
    lora += [
        _cell(f"lora-every-{k}", f"LoRA r16, 128, memory 512, every {k}", "lora", segment=128, memory=SEGMENT, every=k)
        for k in (1, 2, 4, 8)
    ]
    lora += [
        _cell(
            f"lora-accumulate-{k}",
            f"LoRA r16, 128, memory 512, from all {k} at once",
            "lora",
            segment=128,
            memory=SEGMENT,
            every=k,
            accumulate=True,
        )
        for k in (2, 4, 8)
    ]
    kinds = [_cell(f"lora-rank-{r}", f"LoRA r{r}, 512", "lora", rank=r) for r in ranks]
    kinds += [_cell(f"rows-{d:g}", f"{d:.0%} of rows, 512", "rows", density=d) for d in densities]
    kinds += [
        _cell("rows-0.1-memory-512", "10% of rows, memory 512", "rows", density=0.1, memory=SEGMENT),
        _cell("full-512", "full, 512", "full"),
        _cell("full-memory-512", "full, memory 512", "full", memory=SEGMENT),
    ]
    return (*SHIFT, *static, *lora, *kinds, *TUNED)
