"""Learning that keeps what the model says of a reference text: each update also pulls towards the prior there.

To the gradient of what is learned comes that of

    weight mean_n KL(p_n || q_n),    p_n, q_n: the next token's probabilities by the model as it was loaded and as it is

over the tokens n of a piece of a reference text. The direction is the prior's own, sum p (log p - log q), as in learning without forgetting
(Li and Hoiem 2016, arXiv 1606.09282): what the prior thought likely must stay so. All V tokens count, not a teacher's likeliest K.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dynadapt.common.checks import integer, keep, number, token_ids, wrong

if TYPE_CHECKING:
    import torch

MOST = 1 << 18  # reference tokens, each of which keeps two hidden states


@dataclass(frozen=True, eq=False)
class KeepPrior:
    """A pull towards the prior on a reference text, in each update (engine/keeping.py says how).

    Args:
        reference: token ids [n] of that text, n > ``tokens``; it is cut into pieces of ``tokens``, each with the token behind it.
        weight: what the mean divergence counts beside the loss.
        tokens: of the piece that one update reads. It sees nothing before itself.
        seed: of the order of the pieces, each of which comes once before one comes again. A stream's k-th update since a reset
            reads the k-th, so that it learns the same alone and beside others.
    """

    reference: torch.Tensor = field(repr=False)
    weight: float = 0.1
    tokens: int = 64
    seed: int = 0

    def __post_init__(self):
        ids = token_ids("keep.reference", self.reference).cpu().clone()
        tokens = integer("keep.tokens", self.tokens)
        if ids.dim() != 1 or not tokens < len(ids) <= MOST:
            raise ValueError(
                f"keep.reference has shape {tuple(ids.shape)}: expected token ids [{tokens + 1}..{MOST}], more than tokens={tokens}"
            )
        keep(self, reference=ids, tokens=tokens, seed=integer("keep.seed", self.seed, 0))
        keep(self, weight=float(number("keep.weight", self.weight, "a positive number", lambda x: x > 0)))

    @property
    def pieces(self) -> torch.Tensor:
        """int64 [P, tokens + 1], in the order in which updates read them."""
        import torch

        count = (len(self.reference) - 1) // self.tokens
        order = torch.randperm(count, generator=torch.Generator().manual_seed(self.seed))
        return self.reference.unfold(0, self.tokens + 1, self.tokens)[order].contiguous()

    def describe(self) -> dict:
        """As plain data; of the text its digest."""
        digest = hashlib.sha256(self.reference.numpy().tobytes()).hexdigest()
        return {"weight": self.weight, "tokens": self.tokens, "seed": self.seed, "reference": digest}


def as_keep(value) -> KeepPrior | None:
    """A ``KeepPrior`` or None."""
    if value is None or isinstance(value, KeepPrior):
        return value
    raise wrong("keep", value, "KeepPrior(reference, weight, tokens, seed), or None")
