"""What the outcomes of `benchmarks/odyssey.py` say of three claims and of the advice: its rules, which stand in its docstring, with what each sees."""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy.stats import beta, binom, binomtest, rankdata

from benchmarks.script import CONFIRMED, OPEN, REFUTED, TUNED
from dynadapt.experiments.diagnose.advise import ADAPT, LEAVE, outcome_interval, size_factor
from dynadapt.experiments.diagnose.verdict import DIVERGED

CHANCE, LEVEL = 0.025, 0.05  # of an interval wholly above 0 where nothing changed; of a verdict
RARE = 0.05  # the share of domains that may at most get worse where claim 10 is refuted
VOCABULARY = 49152  # of SmolLM2: a perplexity above it is worse than a uniform guess
SHOWN = 0.9  # a true rank correlation whose power is given


def spearman(x, y, draws: int = 2000) -> dict:
    """Rank correlation over domains with a percentile interval from drawing domains, and a two-sided permutation p-value."""
    x, y, random = np.asarray(x, float), np.asarray(y, float), np.random.default_rng(0)
    drawn = []
    if len(set(x)) < 3 or len(set(y)) < 3:
        return {"rho": 0.0, "interval": [-1.0, 1.0], "p": 1.0, "domains": len(x)}  # all alike: no order that could go with another
    value = float(_rank_correlation(x[None], y[None])[0])
    while len(drawn) < draws:
        chosen = random.integers(0, len(x), len(x))
        if len(set(x[chosen])) > 2 and len(set(y[chosen])) > 2:
            drawn.append(chosen)
    permuted = np.stack([random.permutation(len(x)) for _ in range(draws)])
    by_chance = abs(_rank_correlation(x[None], y[permuted])) >= abs(value) - 1e-12
    found = _rank_correlation(x[drawn], y[drawn])
    return {"rho": value, "interval": np.quantile(found, [0.025, 0.975]).tolist(), "p": float(by_chance.mean()), "domains": len(x)}


def _rank_correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[draws] Spearman's correlation of each row of x [draws or 1, n] with that of y [draws, n]."""
    a, b = (rankdata(values, axis=1) for values in (x, y))
    a, b = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (a, b))
    return (a * b).sum(axis=1) / np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))


def claims(rows: list[dict]) -> dict:
    """What the domains of one condition say about claims 10 to 12 and about the advice."""
    change = [row["change"] for row in rows]
    whole = [row for row in rows if not diverged(row)]  # adaptation that broke the model says nothing of the domain
    hurt = [row for row in whole if row["verdict"].startswith("hurts")]
    expected = [row["expected"] for row in rows]
    apart = np.array(change) - np.array(expected)
    decided = [row for row in rows if row["advice"] in (ADAPT, LEAVE, DIVERGED)]
    right = [row for row in decided if (row["change"] < 0) == (row["advice"] == ADAPT)]
    nearness, sizes = nearness_of(whole), (len(whole), len(untuned(whole)))
    return {
        "10": {
            "domains": len(rows),
            "worse": [row["domain"] for row in hurt],
            "share_at_most": share_at_most(len(hurt), len(whole)),
            "share_at_most, untuned": share_at_most(len(untuned(hurt)), len(untuned(whole))),
            "share seen with 80%": seen_share(*sizes),
            "diverged": [row["domain"] for row in rows if row not in whole],
        },
        "11": nearness,
        "11, untuned": nearness_of(untuned(whole)),
        "12": {
            row["domain"]: {
                "verdict": row["verdict"],
                "held_out_share_of_10": row["top10"]["held_out"],
                "tokens": row["top10"]["tokens"],
                "largest": row["largest"],
            }
            for row in hurt
        },
        "12, share_at_most": {
            name: share_at_most(few_of(found), len(found)) for name, found in (("all", hurt), ("untuned", untuned(hurt)))
        },
        "advice": {
            "decided": len(decided),
            "right": len(right),
            "always_adapting_right": sum(row["change"] < 0 for row in decided),
            "never_adapting_right": sum(row["change"] >= 0 for row in decided),
            "mean_error": float(apart.mean()),
            "mean_absolute_error": float(abs(apart).mean()),
            "covered": sum(row["expected_interval"][0] <= row["change"] <= row["expected_interval"][1] for row in rows),
            "rank_correlation": len(rows) > 3 and spearman(expected, change),
            "calibrated": calibrated(rows),
        },
        "verdicts": {
            "10": alike(verdict_10(whole, hurt), verdict_10(untuned(whole), untuned(hurt))),
            "11": alike(verdict_11(nearness), verdict_11(nearness_of(untuned(whole)))),
            "12": alike(verdict_12(hurt), verdict_12(untuned(hurt))),
            "advice": verdict_advice(decided),
            "rank correlation seen with 80%": seen_correlation(*sizes) if nearness else None,
            f"power at a rank correlation of {SHOWN:g}": correlation_power(*sizes, SHOWN) if sizes[1] > 3 else None,
        },
    }


def nearness_of(rows: list[dict]) -> dict | bool:
    """Rank correlations of both stand-ins for nearness to the pretraining text with the change; False for fewer than four domains."""
    change = [row["change"] for row in rows]
    return len(rows) > 3 and {
        "nearness by bits per byte": spearman([-row["bits_per_byte"] for row in rows], change),
        "nearness by divergence": spearman([-row["divergence"] for row in rows], change),
    }


def share_at_most(count: int, of: int) -> float:
    """The largest share of domains that could be so where `count` of `of` were, with 95% (Clopper and Pearson)."""
    return float(beta.ppf(1 - LEVEL, count + 1, of - count)) if count < of else 1.0


@cache
def seen_share(domains: int, untuned: int) -> float | None:
    """The least share of such domains that get worse, in steps of 1%, at which verdict 10's rule says confirmed with a probability of 80%: enough of all domains, and
    of the untuned among them; None where none is."""
    enough = lambda n: next((k for k in range(1, n + 1) if binom.sf(k - 1, n, CHANCE) < LEVEL), n + 1)  # noqa: E731
    of_all, of_untuned = enough(domains), enough(untuned)
    for percent in range(1, 101):
        chance = lambda k, n: binom.pmf(k, n, percent / 100)  # noqa: B023, E731
        called = sum(
            chance(k, untuned) * binom.sf(of_all - k - 1, domains - untuned, percent / 100) for k in range(of_untuned, untuned + 1)
        )
        if called >= 0.8:
            return percent / 100
    return None


def untuned(rows: list[dict]) -> list[dict]:
    """Without domains whose texts chose defaults."""
    return [row for row in rows if row["domain"] not in TUNED]


def alike(verdict: str, of_untuned: str) -> str:
    return verdict if verdict == of_untuned else OPEN


def verdict_10(whole: list[dict], hurt: list[dict]) -> str:
    """Of the domains that did not diverge, and of those among them that got worse; by the rules above, as the others."""
    worse = [row for row in hurt if row["interval"][0] is not None and row["interval"][0] > 0]
    if whole and binom.sf(len(worse) - 1, len(whole), CHANCE) < LEVEL:
        return CONFIRMED
    helps = [row for row in whole if row["interval"][1] is not None and row["interval"][1] < 0]
    return REFUTED if len(helps) == len(whole) and share_at_most(0, len(whole)) <= RARE else OPEN


def verdict_11(nearness) -> str:
    if not nearness:
        return OPEN
    seen = [rho["rho"] for rho in nearness.values() if rho["p"] < LEVEL / 2]
    above, below = any(rho > 0 for rho in seen), any(rho < 0 for rho in seen)
    return OPEN if above == below else CONFIRMED if above else REFUTED


def few_of(hurt: list[dict]) -> int:
    """How many of the domains that got worse did so by a handful of types."""
    return sum(row["verdict"] == "hurts on few types" for row in hurt)


def verdict_12(hurt: list[dict]) -> str:
    few = few_of(hurt)
    refuted = hurt and not few and share_at_most(0, len(hurt)) <= 0.5  # five
    return CONFIRMED if hurt and 2 * few > len(hurt) else REFUTED if refuted else OPEN


def verdict_advice(decided: list[dict]) -> str:
    """Whether the advice tells more than the better of one answer for all domains."""
    helped = [row["change"] < 0 for row in decided]
    same = 2 * sum(helped) >= len(helped)  # the better of "always" and "never"
    advised = [row["advice"] == ADAPT for row in decided]
    apart = [(advice == help, same == help) for advice, help in zip(advised, helped) if advice != same]
    wins = sum(advice and not other for advice, other in apart)
    if not apart or binomtest(wins, len(apart), 0.5).pvalue >= LEVEL:
        return OPEN
    return CONFIRMED if 2 * wins > len(apart) else REFUTED


@cache
def _critical(domains: int) -> float:
    """What a rank correlation by chance is at most, but for verdict 11's level."""
    random, draws = np.random.default_rng(0), 8000
    base = np.arange(domains, dtype=float)
    by_chance = _rank_correlation(base[None], np.stack([random.permutation(domains) for _ in range(draws)]).astype(float))
    return float(np.quantile(np.abs(by_chance), 1 - LEVEL / 2)) + 1e-9


@cache
def correlation_power(domains: int, untuned: int, rho: float, runs: int = 4000) -> float:
    """The probability that verdict 11's rule calls a true rank correlation rho (bivariate normal) by one stand-in: beyond chance over all domains, and
    over the untuned among them too."""
    random = np.random.default_rng(1)
    pearson = 2 * np.sin(np.pi * rho / 6)  # of a bivariate normal with this rank correlation
    x, noise = random.standard_normal((runs, domains)), random.standard_normal((runs, domains))
    y = pearson * x + np.sqrt(1 - pearson**2) * noise
    of_all, of_untuned = _rank_correlation(x, y), _rank_correlation(x[:, :untuned], y[:, :untuned])
    return float(((of_all > _critical(domains)) & (of_untuned > _critical(untuned))).mean())


def seen_correlation(domains: int, untuned: int) -> float | None:
    """The least true rank correlation, in steps of 0.05, that the rule calls with a probability of 80%; None where none below 1 is."""
    if untuned < 4:
        return None  # of so few verdict 11 is never called
    return next(
        (round(float(rho), 2) for rho in np.arange(0.05, 1.0, 0.05) if correlation_power(domains, untuned, round(float(rho), 2)) >= 0.8),
        None,
    )


def diverged(row: dict) -> bool:
    """By its verdict, or, in rows from before there was one, by a perplexity above the size of SmolLM2's vocabulary."""
    return row["verdict"] == DIVERGED or "ceiling" not in row and row["perplexity"]["after"] > VOCABULARY


def over_all(conditions: dict[str, list[dict]]) -> dict:
    """The advice of all conditions together, whose rows are not independent: how often its sign was right, and for foreseen gains and rises the factor to the outcome
    (advise.py has them) with how many outcomes would have been held by the factor of the other domains."""
    rows = [row for found in conditions.values() for row in found]
    decided = [row for row in rows if row["advice"] in (ADAPT, LEAVE, DIVERGED)]
    found: dict = {
        "rows": len(rows),
        "covered": sum(row["expected_interval"][0] <= row["change"] <= row["expected_interval"][1] for row in rows),
        "decided": len(decided),
        "right": sum((row["change"] < 0) == (row["advice"] == ADAPT) for row in decided),
    }
    for name, there in (("gain", [row for row in rows if row["expected"] < 0]), ("rise", [row for row in rows if row["expected"] > 0])):
        ratios = _ratios(there)
        held = sum(_held(row, _of_others(row, there, ratios)) for row in there)
        factor = size_factor(ratios[ratios > 0]) if (ratios > 0).any() else None
        found[name] = {"of": len(there), "factor": factor, "held": held, "other_sign": int((ratios <= 0).sum())}
    return found


def _ratios(rows: list[dict]) -> np.ndarray:
    """Of measured to foreseen changes; -1 where nothing was foreseen."""
    return np.array([row["change"] / row["expected"] if row["expected"] else -1.0 for row in rows])


def _of_others(row: dict, rows: list[dict], ratios: np.ndarray) -> np.ndarray:
    """The ratios of the other domains, as far as their changes have the sign that was foreseen."""
    return ratios[np.array([other["domain"] != row["domain"] for other in rows]) & (ratios > 0)]


def _held(row: dict, ratios: np.ndarray) -> bool:
    """Whether the interval that these ratios give holds the outcome; without any there is none."""
    if not len(ratios):
        return False
    low, high = outcome_interval(row["expected"], row["expected_interval"], size_factor(ratios))
    return low <= row["change"] <= high


def calibrated(rows: list[dict]) -> dict:
    """The factor between foreseen and measured changes, and how many outcomes it would have held: each domain's interval is made
    with the factor of the others. Domains whose change has the other sign than foreseen have no factor, and count as not held."""
    ratios = _ratios(rows)
    others = [_of_others(row, rows, ratios) for row in rows]
    factor = held = None
    if rows and min(map(len, others)) >= 2:
        factor, held = size_factor(ratios[ratios > 0]), sum(map(_held, rows, others))
    found = {"factor": factor, "held": held, "of": len(rows)}
    return found if factor is None else {**found, "other_sign": int((ratios <= 0).sum())}
