"""One score from several: experts' probabilities of each token, mixed by fixed share (Herbster & Warmuth 1998).

K experts give the t-th token of a text the losses l_1t .. l_Kt = -ln p_it, in nats. The mixture gives it

    p_t = sum_i w_it p_it ,    w_i1 = 1/K ,

and each weight follows from tokens before its own: the loss update v_i = w_it p_it / p_t, then the share update, by which every
expert gives the share a of its weight to the others in equal parts,

    w_j,t+1 = (1 - a) v_j + sum over i != j of a/(K-1) v_i .

**The bound.** Over n tokens, and against any sequence of experts i_1 .. i_n that changes m times,

    sum_t -ln p_t  <=  sum_t l_(i_t) t  +  ln K  +  m ln((K-1)/a)  +  (n-1-m) ln(1/(1-a)) ,

whatever the losses are. So the mixture of two is above the better of them by at most ln 2 + (n-1) ln(1/(1-a)), which is ``regret``.

*Proof.* Multiply the unnormalised weights out: p_1 ... p_n = sum over all sequences (i_1 .. i_n) of prior x likelihood, where the
likelihood of a sequence is the product of its experts' p_(i_t) t, and its prior (1/K) times a factor for each step from i_t to i_t+1:
1 - a where it stays, a/(K-1) where it changes. All terms are >= 0, so the sum is at least the one term of the sequence that is
compared with, whose prior is (1/K) (a/(K-1))^m (1-a)^(n-1-m). Take -ln of both sides. (Herbster & Warmuth, "Tracking the best
expert", Machine Learning 32, 1998: their fixed share for the logarithmic loss, c = eta = 1, where the prediction is the weighted mean.
With a = 0 it is Bayes' mixture.)

**Losses that are no numbers.** An expert whose loss of a token is NaN or infinite has p = 0 there: its weight is zero for that token,
its loss counts as infinite in the bound, and later it has what the others share with it. Where no expert has a finite loss, neither
has the mixture, and the weights stay.

**Arithmetic.** Unnormalised weights before token t are P_t-1 w with P_t = M_t ... M_1, M_t = (share matrix) x diag(p_t), products of K x K
matrices in the logarithm: all prefixes of a segment in ceil(log2 T) rounds (Hillis & Steele 1986), where the t-th uses the first t tokens
and nothing else, so that the weights of a token have the same bits whatever follows. The smallest loss of a token is
subtracted first and added to its score.

**Rounding** (``rounding``). With u = 2^-53 and B the largest |logarithm| met, one entry of one product is K sums of two logarithms (u B each),
their differences from the largest (2 u B), exponentials, their sum and its logarithm ((K + 4) u), and the largest added (u B):
off by at most (4 B + K + 4) u, and as ln sum exp moves by no more than the largest move of its terms, errors of products add up: a
prefix of t tokens is t - 1 products. A segment's score telescopes, so its sum is off by no more than its prefixes are, twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

__all__ = ["Mixture", "fixed_share", "regret", "rounding"]


def regret(tokens: int, experts: int, share: float, switches: int = 0) -> float:
    """By how many nats the mixture of ``tokens`` tokens may be above a sequence of experts that changes ``switches`` times: the bound."""
    if tokens <= 0 or experts == 1:
        return 0.0
    switches = min(switches, tokens - 1)
    change = math.log((experts - 1) / share) if switches else 0.0
    return math.log(experts) + switches * change - (tokens - 1 - switches) * math.log1p(-share)


def rounding(tokens: int, experts: int, largest: float) -> float:
    """Nats that rounding in ``fixed_share`` may add to one segment's sum; ``largest``: of the logarithms, at most the sum over its
    tokens of ln((K-1)/share) and the spread of the finite losses."""
    return 2 * tokens * (4 * largest + experts + 4) * 2.0**-53


def fixed_share(log_weights: torch.Tensor, losses: torch.Tensor, counted: torch.Tensor, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The mixture's losses of a segment, and the weights behind it.

    Args:
        log_weights: float64 [R, K], before the segment's first token; exp of each row sums to 1.
        losses: float64 [R, T, K], of each token by each expert, in nats. counted: bool [R, T], which tokens there are:
            the first ones of each row.
        share: the a above, 0 < a < 1.

    Returns:
        losses float64 [R, T], 0 where no token is, and log_weights [R, K] before the token that comes next.
    """
    count = losses.shape[2]
    finite = torch.isfinite(losses)
    least = torch.where(finite, losses, math.inf).amin(2)  # [R, T]
    known = counted & torch.isfinite(least)
    least = torch.where(known, least, 0.0)
    given = torch.where(finite, least[..., None] - losses, -math.inf)  # ln p, the best expert's being 0
    given = torch.where(known[..., None], given, 0.0)
    shares = torch.full((count, count), math.log(share / (count - 1)) if count > 1 else -math.inf, dtype=losses.dtype, device=losses.device)
    shares.fill_diagonal_(math.log1p(-share) if count > 1 else 0.0)
    stay = torch.full_like(shares, -math.inf).fill_diagonal_(0.0)
    steps = torch.where(known[..., None, None], shares + given[:, :, None, :], stay)  # [R, T, K, K]: from the last index to the one before
    prefixes = _prefixes(steps)
    weights = torch.cat([log_weights[:, None], _log_sum(prefixes + log_weights[:, None, None, :], 3)], 1)  # [R, T + 1, K]
    weights = weights - _log_sum(weights, 2)[..., None]
    mixed = least - _log_sum(weights[:, :-1] + given, 2)
    unknown = losses.abs().amax(2)  # NaN or infinite where no expert's is finite
    behind = weights.gather(1, counted.sum(1)[:, None, None].expand(-1, 1, count))[:, 0]  # its last token, not the padding
    after = torch.where(known.any(1, keepdim=True), behind, log_weights)  # a row that rests keeps its bits
    return torch.where(known, mixed, torch.where(counted, unknown, 0.0)), after


def _log_sum(logarithms: torch.Tensor, dim: int) -> torch.Tensor:
    """ln of the sum of exp over one dimension, added up in its order: the same bits in any batch."""
    largest = logarithms.amax(dim, keepdim=True)
    largest = largest.masked_fill(largest == -math.inf, 0.0)
    return sum((logarithms - largest).exp().unbind(dim)).log() + largest.squeeze(dim)


def _prefixes(steps: torch.Tensor) -> torch.Tensor:
    """[R, T, K, K]: ln of the products of the first 1, 2, ... T matrices, the later ones to the left."""
    reach = 1
    while reach < steps.shape[1]:
        later, earlier = steps[:, reach:], steps[:, :-reach]
        both = _log_sum(later[..., :, :, None] + earlier[..., None, :, :], 3)
        steps = torch.cat([steps[:, :reach], both], 1)
        reach *= 2
    return steps


class Mixture:
    """Where the mixtures of S streams stand: their weights on the streams' device, and for the host the tokens that each has mixed.

    Args:
        experts: K, in the order of the losses. share: of fixed share, 0 < share < 1.
    """

    def __init__(self, streams: int, experts: int, share: float, device="cpu"):
        self.experts, self.share, self.device = experts, share, torch.device(device)
        self.log_weights = torch.full((streams, experts), -math.log(experts), dtype=torch.float64, device=device)
        self.tokens = [0] * streams

    def mix(
        self, streams: Sequence[int], losses: Sequence[torch.Tensor], lengths: Sequence[int], asleep: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One segment of R streams, which moves their weights.

        Args:
            streams: R different numbers. losses: [R, T] of each expert awake. lengths: how many of each row's tokens count.
            asleep: the first experts, which give no loss here. The others are mixed by what they count among themselves and share
                with each other alone. It is as if those asleep gave each token what the mixture gives it, whereby their
                weights stay (Freund et al. 1997): the bound is theirs over the tokens that they were awake for.

        Returns:
            the mixture's losses [R, T] in the dtype of ``losses``, 0 beyond ``lengths``; and bool [R, T], which tokens these are.
        """
        width = losses[0].shape[1]
        rows = self._there(list(streams))
        counted = torch.arange(width, device=self.device) < self._there(list(lengths))[:, None]
        old = self.log_weights[rows]
        awake = _log_sum(old[:, asleep:], 1)[:, None] if asleep else 0.0  # ln of what they count together
        mixed, weights = fixed_share(old[:, asleep:] - awake, torch.stack([each.double() for each in losses], 2), counted, self.share)
        weights = torch.cat([old[:, :asleep], weights + awake], 1)
        self.log_weights.index_copy_(0, rows, torch.where(counted.any(1, keepdim=True), weights, old))
        if len(losses) > 1 or not asleep:  # one that alone is awake is the mixture, and nothing is lost against it
            for stream, n in zip(streams, lengths):
                self.tokens[stream] += n
        return mixed.to(losses[0].dtype), counted

    def _there(self, numbers: list[int]) -> torch.Tensor:
        """int64 on the device, which the host does not wait for."""
        there = torch.tensor(numbers, dtype=torch.int64)
        return there if self.device.type == "cpu" else there.pin_memory().to(self.device, non_blocking=True)

    def weights(self, stream: int) -> torch.Tensor:
        """float64 [K]: what each expert counts in the stream's next token."""
        return self.log_weights[stream].exp()

    def bound(self, stream: int, switches: int = 0) -> float:
        """Nats by which the stream's mixture may be above its best expert, or a sequence of them, since its document entered."""
        return regret(self.tokens[stream], self.experts, self.share, switches)

    def enter(self, stream: int) -> None:
        """A new document: all experts count the same again."""
        self.log_weights[stream] = -math.log(self.experts)
        self.tokens[stream] = 0

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything that resuming exactly needs."""
        return {"log_weights": self.log_weights, "tokens": torch.tensor(self.tokens, dtype=torch.int64)}

    def load(self, saved: dict[str, torch.Tensor]) -> None:
        self.log_weights.copy_(saved["log_weights"])
        self.tokens = saved["tokens"].tolist()

    def slot_copy(self, stream: int) -> dict[str, torch.Tensor]:
        """Where one stream is."""
        return {"log_weights": self.log_weights[stream].clone(), "tokens": torch.tensor(self.tokens[stream])}

    def slot_load(self, stream: int, saved: dict[str, torch.Tensor]) -> None:
        """One stream is where ``slot_copy`` was taken."""
        self.log_weights[stream] = saved["log_weights"]
        self.tokens[stream] = int(saved["tokens"])
