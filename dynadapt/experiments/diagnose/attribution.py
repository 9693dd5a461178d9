"""Which token types a change of the mean NLL comes from.

With d_i = after_i - before_i and f_v the share of tokens that are of type v,

    mean d = sum over v of f_v * mean(d | v),

exactly: f_v * mean(d | v) is type v's contribution. Classes of types add up the same way. Tokens of one document are not
independent, so intervals are Student's over whole documents (or blocks of text), which are few more often than not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from .classes import CLASSES
from .scored import Scored

TOPS = (1, 5, 10, 50)
LEVEL = 0.95
DOCUMENTS = 4  # with fewer documents, the units of an interval are blocks of text
BLOCK = 256  # tokens of such a block


@dataclass(frozen=True)
class Types:
    """The token types of a text. All arrays are [types]; contributions add up to the mean change."""

    ids: np.ndarray
    of: np.ndarray  # [N] which type each token is
    counts: np.ndarray
    before: np.ndarray  # mean NLL
    after: np.ndarray
    contribution: np.ndarray  # f_v * mean(d | v), nats per token of the text

    @property
    def change(self) -> np.ndarray:
        return self.after - self.before


def by_type(scored: Scored) -> Types:
    ids, of, counts = np.unique(scored.tokens, return_inverse=True, return_counts=True)
    total = lambda values: np.bincount(of, values, len(ids))  # noqa: E731
    return Types(ids, of, counts, total(scored.before) / counts, total(scored.after) / counts, total(scored.change) / len(of))


def identity_error(scored: Scored, types: Types) -> float:
    """|mean d - sum of contributions|: floating-point noise, or something is wrong."""
    return abs(float(scored.change.mean()) - float(types.contribution.sum()))


# -------------------------------------------------------------------------------------------------------------- intervals


@dataclass(frozen=True)
class Units:
    """What an interval is over: [N] the unit of each token, how many there are, and their name."""

    of: np.ndarray
    count: int
    name: str


def units(scored: Scored) -> Units:
    """Documents, or contiguous blocks of BLOCK tokens where there are fewer than DOCUMENTS documents."""
    documents, of = np.unique(scored.document, return_inverse=True)
    if len(documents) >= DOCUMENTS:
        return Units(of, len(documents), "document")
    key = scored.document * (int(scored.position.max()) + BLOCK) + (scored.position - 1) // BLOCK
    blocks, of = np.unique(key, return_inverse=True)
    return Units(of, len(blocks), f"block of {BLOCK} tokens")


def ratio_interval(sums: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Student's interval (low, high) of the ratio of the totals of sums [U] or [U, K] to that of counts [U], over U units.

    The error is the jackknife's (a unit left out at a time), the degrees of freedom are those of Kish's effective number of
    units, (sum n)^2 / sum n^2: a text of one long document and three short ones has hardly more than one. Of one unit there is
    no interval: (-inf, inf).
    """
    if len(counts) < 2:
        return np.full(sums.shape[1:], -np.inf), np.full(sums.shape[1:], np.inf)
    units, total = len(counts), counts.sum()
    each = counts.reshape(-1, *[1] * (sums.ndim - 1))
    mean = sums.sum(axis=0) / total
    apart = (sums - each * mean) / (total - each)  # [U] or [U, K] how far the ratio moves without the unit
    error = np.sqrt((units - 1) / units * (apart**2).sum(axis=0))
    freedom = max(1.0, total**2 / (counts**2).sum() - 1)
    reach = student.ppf((1 + LEVEL) / 2, freedom) * error
    return mean - reach, mean + reach


def mean_interval(values: np.ndarray, drawn: Units) -> tuple[float, float]:
    """Interval of the mean of one value a token."""
    counts = np.bincount(drawn.of, minlength=drawn.count).astype(np.float64)
    low, high = ratio_interval(np.bincount(drawn.of, values, drawn.count), counts)
    return float(low), float(high)


# ---------------------------------------------------------------------------------------------------------- concentration


def concentration(scored: Scored, types: Types, drawn: Units, seed: int = 0) -> list[dict]:
    """For the top 1, 5, 10 and 50 types, the share of the change that they explain:

    net       of the mean change, types ranked by |contribution| (more than 1 where others offset them);
    rise      of all positive contributions (of all negative ones when the mean falls), ranked by contribution;
    held_out  of the mean change, types ranked on one half of the units and measured on the other, and back:
              what chance put at the top does not count;
    tokens    the share of tokens that the types of `held_out` are.
    """
    mean = float(types.contribution.sum())
    sign = 1.0 if mean >= 0 else -1.0
    strong = types.contribution[np.argsort(-np.abs(types.contribution), kind="stable")]
    along = np.sort(np.maximum(sign * types.contribution, 0))[::-1]
    held_out = _held_out(scored, types, drawn, sign, seed)
    return [
        {"types": k, "net": ratio(float(strong[:k].sum()), mean), "rise": ratio(float(along[:k].sum()), float(along.sum())), **held_out[k]}
        for k in TOPS
    ]


def _held_out(scored: Scored, types: Types, drawn: Units, sign: float, seed: int) -> dict[int, dict]:
    if drawn.count < 2:
        return {k: {"held_out": None, "tokens": None} for k in TOPS}
    half = np.random.default_rng(seed).permutation(drawn.count) < drawn.count // 2  # [U]
    side, size = half[drawn.of].astype(np.int64), len(types.ids)  # [N]
    sums = np.bincount(types.of + side * size, sign * scored.change, 2 * size).reshape(2, size)
    counts = np.bincount(types.of + side * size, minlength=2 * size).reshape(2, size)
    order = np.argsort(-sums, axis=1, kind="stable")
    found = {}
    for k in TOPS:
        chosen = [order[s, :k][sums[s, order[s, :k]] > 0] for s in (0, 1)]  # rising types only
        explained = sum(float(sums[1 - s, chosen[s]].sum()) for s in (0, 1))
        covered = sum(int(counts[1 - s, chosen[s]].sum()) for s in (0, 1))
        found[k] = {"held_out": ratio(explained, float(sums.sum())), "tokens": covered / len(types.of)}
    return found


def ratio(part: float, whole: float) -> float | None:
    return part / whole if abs(whole) > 1e-12 else None


def leading_types(types: Types, k: int, against: bool = False) -> np.ndarray:
    """Indices of the at most k types that move the mean most in the direction in which it changes, or `against` it."""
    along = types.contribution if (types.contribution.sum() >= 0) != against else -types.contribution
    order = np.argsort(-along, kind="stable")[:k]
    return order[along[order] > 0]


# ---------------------------------------------------------------------------------------------------------------- classes


def by_class(scored: Scored, types: Types, classes: np.ndarray, drawn: Units) -> list[dict]:
    """One record a class that occurs: its part of the change, and perplexities of it alone and of all the rest."""
    token_class = classes[types.of]  # [N]
    member = token_class[:, None] == np.arange(len(CLASSES))  # [N, classes]
    per_unit = np.stack([np.bincount(drawn.of, scored.change * one, drawn.count) for one in member.T], axis=1)  # [U, classes]
    low, high = ratio_interval(per_unit, np.bincount(drawn.of, minlength=drawn.count).astype(np.float64))
    records = []
    for c, name in enumerate(CLASSES):
        inside = member[:, c]
        if not inside.any():
            continue
        records.append(
            {
                "class": name,
                "types": int((classes == c).sum()),
                "tokens": int(inside.sum()),
                "share_of_tokens": float(inside.mean()),
                "change": float(scored.change[inside].mean()),
                "contribution": float(scored.change[inside].sum() / len(inside)),
                "contribution_interval": [float(low[c]), float(high[c])],
                "share_of_change": ratio(float(scored.change[inside].sum()), float(scored.change.sum())),
                "perplexity": _perplexities(scored, inside),
                "perplexity_without": _perplexities(scored, ~inside),
            }
        )
    return records


def _perplexities(scored: Scored, chosen: np.ndarray) -> dict | None:
    if not chosen.any():
        return None
    return {"before": perplexity(float(scored.before[chosen].mean())), "after": perplexity(float(scored.after[chosen].mean()))}


def perplexity(nll: float) -> float:
    return float(np.exp(min(nll, 700.0)))


# --------------------------------------------------------------------------------------------------------------- position

PLACES = ((1, 1), (2, 8), (9, 32), (33, 128), (129, 512), (513, None))


def by_place(scored: Scored) -> list[dict]:
    """The change by how much of its window a token sees: a rise in the first places alone is one of packing, not of content."""
    place = (scored.position - 1) % scored.segment + 1  # tokens seen within the window
    records = []
    for first, last in PLACES:
        inside = (place >= first) & (place <= (last or place.max()))
        if inside.any():
            records.append(
                {
                    "first": first,
                    "last": last or int(place.max()),
                    "tokens": int(inside.sum()),
                    "change": float(scored.change[inside].mean()),
                    "contribution": float(scored.change[inside].sum() / len(inside)),
                }
            )
    return records
