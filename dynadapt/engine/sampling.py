"""The next token, from its logits: the likeliest, or drawn.

temperature divides the logits (Ackley et al. 1985); ``top_k`` keeps the k largest (Fan et al. 2018, arXiv 1805.04833); ``top_p`` keeps
the fewest whose probabilities sum to at least p (Holtzman et al. 2019, arXiv 1904.09751). They apply in this order, and what is left
is normalised again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from dynadapt.common.checks import integer, keep, number, wrong


@dataclass(frozen=True)
class Sampler:
    """temperature 0: the likeliest token, for which top_k and top_p have no meaning. seed None: another draw each time."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    generator: torch.Generator = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        keep(
            self,
            temperature=number(
                "temperature", self.temperature, "0 for the likeliest token, or a number above 0", lambda x: x == 0 or x > 1e-6
            ),
        )
        if self.top_k is not None:
            keep(self, top_k=integer("top_k", self.top_k, expected="a number of tokens of at least 1, or None for all"))
        if self.top_p is not None:
            keep(self, top_p=number("top_p", self.top_p, "a share, 0 < top_p <= 1, or None for all", lambda x: 0 < x <= 1))
        if self.seed is not None:
            keep(self, seed=integer("seed", self.seed, 0, 2**63 - 1))
        for name in ("top_k", "top_p", "seed"):
            if not self.temperature and getattr(self, name) is not None:
                raise wrong(name, getattr(self, name), "None with temperature=0, which takes the likeliest token (temperature=1.0 samples)")
        generator = torch.Generator()
        generator.manual_seed(self.seed) if self.seed is not None else generator.seed()
        keep(self, generator=generator)

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """float64 [V] of logits [V], on the CPU."""
        logits = logits.detach().cpu().double() / self.temperature
        if self.top_k is not None and self.top_k < len(logits):
            logits = logits.masked_fill(logits < logits.topk(self.top_k).values[-1], -torch.inf)
        p = logits.softmax(0)
        if self.top_p is not None and self.top_p < 1:
            ordered, index = p.sort(descending=True, stable=True)
            before = ordered.cumsum(0) - ordered
            p = p.index_fill(0, index[before >= self.top_p], 0.0)
        return p / p.sum()

    def __call__(self, logits: torch.Tensor) -> int:
        """The next token's id."""
        if not self.temperature:
            return int(logits.argmax())
        return int(torch.multinomial(self.probabilities(logits), 1, generator=self.generator))
