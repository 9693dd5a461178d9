"""The rules by which benchmarks/icl.py judges four claims about models trained on mixtures of function classes (Yadlowsky et
al., arXiv 2311.00871, in the setting of Garg et al., arXiv 2208.01066). Fixed before any model of the study was trained.

Two families. On linear functions "mixture" is trained on dense and sparse ones, half of each, "dense" and "sparse" on one class
alone. On functions of one number "waves" is trained on lines and sinusoids, "line" and "wave" on one alone. A mixture takes twice the
steps, so that it sees as many prompts of each class as its specialists. The verdict is that of the arm in which every class has unit
variance; the linear family in the classes' own scales, where dense functions have most of the loss, is judged by the same rules
beside it.

Numbers. Squared errors divided by the class's variance, so that predicting zero has error 1; "mean" is that over all numbers of
examples of a prompt. The unit is the seed: claims are about what training makes, and a seed has its own initial weights, training
prompts and test prompts, so that the spread over seeds holds the chance of all three; intervals over prompts would treat one training
as the only one. Intervals are Student's t over the seeds' numbers. All predictors of a seed see the same test prompts and differences
are taken on them.

Strength. What has to hold everywhere (to confirm) is tested at 5% one-sided in each place. What is enough in one place (to refute) is
tested at 5% one-sided divided by the number of places. Beside a verdict stands the power: the chance that the rule confirms where the
true difference is 0, and refutes where it is twice the margin, with the spread that was measured, the least of all places; beside 16, what combinations and extremes have
to be for it to be confirmed with a probability of 80% (said since the runs, judging nothing).

Demands, the same of every model of a family; where one is not met the claim is "not tested" there.
  - SEEDS seeds are finished.
  - Converged: in the last fifth of training the error on validation prompts of what a model is trained on falls by less than PLATEAU
    in the mean.
  - Learned (specialists, for 13 and 15): at most MARGIN above the exact posterior of the own class, in the mean.

  13. A mixture does as well on each class as that class's specialist. The mean error of the mixture less the specialist's. Confirmed:
      upper end at most MARGIN on both classes. Refuted: lower end above MARGIN on one. Not tested where the specialists are within
      MARGIN of each other on both classes: nothing is selected there.
  14. It tracks the best baseline of each class along the whole curve: least squares on dense functions and lines, Lasso on sparse
      ones, least squares on sine and cosine on sinusoids. Judged are the numbers of examples after which the exact posterior of the
      mixture, the best that can be done without being told the class, is itself within MARGIN of the baseline. Of these the one where
      the mixture is farthest above, by the first half of the prompts, is measured on the second half. Confirmed: upper end at most
      MARGIN on both classes. Refuted: lower end above MARGIN on one where the specialist is not above it. Beside it, judged by
      nothing: the distance to the exact posterior of the mixture itself, at every number of examples.
  15. Between the classes it predicts in between; at the ends it matches the specialists. By number of non-zeros, mean errors.
      Confirmed: at both ends the upper end of the mixture less the specialist is at most MARGIN, and everywhere in between the upper
      end above the worse specialist is at most SLACK and the lower end below the better one at least -SLACK. Refuted: an end's lower
      end is above MARGIN, or in between a lower end above the worse specialist is above SLACK or an upper end below the better one
      under -SLACK. Not tested where the specialists differ by less than SLACK at every number in between.
  16. Outside the mixture it fails: half a line and half a sinusoid is not predicted, extremes of seen classes degrade. Errors after
      the last example. Combinations fail when the lower end is above FAILS and above three times the upper ends on lines and on
      sinusoids, and work when the upper end is at most the larger upper end of these two plus MARGIN. An extreme (y and x three times
      as large for "dense", errors divided by nine; waves of twice the frequency for "waves") degrades when the lower end above its
      best baseline is above MARGIN, and holds when the upper end is at most MARGIN. Confirmed: combinations fail and an extreme
      degrades. Refuted: combinations work and every extreme holds. Not tested where "waves" has an error above LEARNED after the last
      example on one of its own classes.

13 and 14 are refuted when one family refutes them and confirmed when every family in which they were tested does.

Asked twice. The scale "longer" asks again what the scale "small" had been asked. What that had decided nothing of, 13 on functions of one number and 14, is judged at
the level divided by two (since the runs; it took 13 on functions of one number from refuted to not decided, before three runs of seed 0 were made again, and changed no other verdict). What it had not tested, for
a demand that was not met, is asked for the first time, and what it had confirmed, 16, is confirmed twice. The intervals that are shown are those at the undivided level.
Another scale would be a third look.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2, norm
from scipy.stats import t as student

from dynadapt.experiments.reweight.power import seen

MARGIN, SLACK, PLATEAU, FAILS, LEARNED, SEEDS, LEVEL = 0.05, 0.02, 0.01, 0.1, 0.1, 3, 0.05
CONFIRMED, REFUTED, OPEN, UNTESTED = "confirmed", "refuted", "not decided", "not tested"
CLAIMS = {
    "13": "a mixture does as well as the right specialist",
    "14": "it tracks the best baseline along the whole curve",
    "15": "between the classes it predicts in between",
    "16": "outside the mixture it fails",
}


@dataclass(frozen=True)
class Specialist:
    """The model trained on one class alone, the baseline that claim 14 names for the class, and its exact posterior."""

    name: str
    baseline: str
    best: str


@dataclass(frozen=True)
class Family:
    name: str
    mixture: str
    specialists: tuple[Specialist, Specialist]  # a class is called as its specialist is

    @property
    def models(self) -> list[str]:
        return [self.mixture, *(specialist.name for specialist in self.specialists)]


LINEAR = Family("linear", "mixture", (Specialist("dense", "least_squares", "least_squares"), Specialist("sparse", "lasso", "sparse_bayes")))
# After one example least squares on sine and cosine is the posterior mean too (line_wave.py), after more both are exact.
NUMBER = Family(
    "number",
    "waves",
    (Specialist("line", "least_squares", "least_squares"), Specialist("wave", "basis_least_squares", "basis_least_squares")),
)
POWERS = ("power_to_confirm", "power_to_refute")
PLACES = 4  # of claims 13 and 14: two classes of two families
AGAIN = "icl-claims-longer"  # the preset of the runs by which some claims are asked for the second time
LOOKS = {("13", "number"): 2, ("14", "linear"): 2, ("14", "number"): 2}  # how often, then


# ------------------------------------------------------------------------------------------------------------ numbers


def bounds(values: Sequence[float], places: int = 1, distance: float = MARGIN, looks: int = 1) -> dict:
    """Student's intervals of the mean of one number a seed: low and high at LEVEL one-sided, confirm_low and confirm_high at LEVEL / looks, which
    confirm, refute_low and refute_high at LEVEL / looks / places, which refute; and the power to say that the mean is on the right side of a limit
    that lies `distance` away, at the second level (to confirm) and the third (to refute)."""
    values = np.asarray(values, dtype=np.float64)
    count, mean = len(values), float(np.mean(values))
    spread = float(np.std(values, ddof=1))
    plain, near, far = (float(student.ppf(1 - LEVEL / share, count - 1)) for share in (1, looks, looks * places))
    half, judging, wide = (quantile * spread / math.sqrt(count) for quantile in (plain, near, far))
    return {
        "mean": mean,
        "low": mean - half,
        "high": mean + half,
        "confirm_low": mean - judging,
        "confirm_high": mean + judging,
        "refute_low": mean - wide,
        "refute_high": mean + wide,
        "sd": spread,
        "seeds": count,
        "power_to_confirm": power(spread, count, near, distance),
        "power_to_refute": power(spread, count, far, distance),
    }


def power(spread: float, count: int, quantile: float, distance: float) -> float:
    """The chance that a mean of `count` normal numbers is more than `quantile` standard errors, estimated from them, on the right
    side of a limit `distance` away. By quantiles of the chi-square law of the estimate."""
    if spread == 0:
        return 1.0
    estimates = np.sqrt(chi2.ppf((np.arange(4000) + 0.5) / 4000, count - 1) / (count - 1))
    return float(norm.cdf(distance * math.sqrt(count) / spread - quantile * estimates).mean())


def seen_above(found: dict, places: int = 1) -> float:
    """How far above a limit a true mean has to lie to be called so with a probability of 80%, one-sided at LEVEL / places; found: of `bounds`."""
    return seen(found["sd"] / math.sqrt(found["seeds"]), found["seeds"] - 1, 2 * LEVEL / places)


def curve(seed: dict, test: str, predictor: str, half: str | None = None) -> np.ndarray:
    """Errors by number of examples, of one half of the prompts or of all."""
    found = seed["tests"][test][predictor]
    return np.asarray(found[half]) if half else (np.asarray(found["first"]) + np.asarray(found["second"])) / 2


def apart(seeds: list[dict], test: str, predictor: str, other: str) -> list[float]:
    """Of each seed the mean over the prompt of one predictor's error less another's."""
    return [float((curve(seed, test, predictor) - curve(seed, test, other)).mean()) for seed in seeds]


# ------------------------------------------------------------------------------------------------------------ demands


def unmet(family: Family, seeds: list[dict], learned: bool) -> str | None:
    """The first demand that is not met, in words. learned: the specialists' own is among them."""
    if len(seeds) < SEEDS:
        return f"{len(seeds)} of {SEEDS} seeds are finished"
    for model in family.models:
        gained = float(np.mean([seed["improved"][model] for seed in seeds]))
        if not gained < PLATEAU:
            return f'"{model}" has not converged: the last fifth of its training took {gained:.4f} from its error, the limit is {PLATEAU}'
    for specialist in family.specialists if learned else ():
        above = float(np.mean(apart(seeds, specialist.name, specialist.name, specialist.best)))
        if not above <= MARGIN:
            return f'"{specialist.name}" has not learned its class: {above:+.3f} from the exact posterior, the limit is {MARGIN}'
    return None


# ------------------------------------------------------------------------------------------------------------ claims


def judge(linear: list[dict], number: list[dict], looks: Mapping[tuple[str, str], int] | None = None) -> dict[str, dict]:
    """Verdict, sentence, numbers and what would change it, of each claim. linear, number: of each seed {"tests": {test: {predictor:
    {"first", "second": errors by number of examples on each half of the prompts}}}, "improved": {model: error that the last fifth of
    training took}}. looks: how often a claim is asked of a family, where more than once."""
    families = ((LINEAR, linear), (NUMBER, number))
    return {
        **{claim: together([by_family(claim, *family, looks) for family in families]) for claim in ("13", "14")},
        "15": claim_15(linear),
        "16": claim_16(linear, number),
    }


def verdicts_of(found: dict) -> dict:
    """{"claims", "own scales": those of the linear family there}; found: {"linear", "number", "own": seeds, as `judge` takes them; "configs": of runs
    by name}."""
    looks = LOOKS if any(config["preset"] == AGAIN for config in found["configs"].values()) else {}
    own = {**{claim: by_family(claim, LINEAR, found["own"], looks) for claim in ("13", "14")}, "15": claim_15(found["own"])}
    return {"claims": judge(found["linear"], found["number"], looks), "own scales": own if found["own"] else {}}


def by_family(claim: str, family: Family, seeds: list[dict], looks: Mapping[tuple[str, str], int] | None = None) -> dict:
    """13 or 14 of one family, at the level divided by how often it is asked of it."""
    return {"13": claim_13, "14": claim_14}[claim](family, seeds, (looks or {}).get((claim, family.name), 1))


def together(found: list[dict]) -> dict:
    """One verdict of two families."""
    tested = [part["verdict"] for part in found if part["verdict"] != UNTESTED]
    verdict = (UNTESTED if not tested else REFUTED if REFUTED in tested else CONFIRMED if set(tested) == {CONFIRMED} else OPEN)  # fmt: skip
    names = (LINEAR.name, NUMBER.name)
    said = "; ".join(f"{name}: {part['verdict']}, {part['sentence']}" for name, part in zip(names, found))
    changes = "; ".join(f"{name}: {part['changes']}" for name, part in zip(names, found) if part["changes"])
    return judged(verdict, said, {name: part["numbers"] for name, part in zip(names, found)}, changes)


def claim_13(family: Family, seeds: list[dict], looks: int = 1) -> dict:
    if missing := unmet(family, seeds, learned=True):
        return untested(missing)
    numbers, wrong = {}, {}
    for own, other in zip(family.specialists, reversed(family.specialists)):
        numbers[own.name] = bounds(apart(seeds, own.name, family.mixture, own.name), PLACES, looks=looks)
        wrong[own.name] = bounds(apart(seeds, own.name, other.name, own.name))
    found = {"mixture": numbers, "other specialist": wrong}
    if all(n["high"] <= MARGIN for n in wrong.values()):
        return untested("the specialists do as well on each other's class, nothing is selected", found)
    said = " and ".join(f"{shown(n)} on {case} (the other specialist {wrong[case]['mean']:+.3f})" for case, n in numbers.items())
    return judged(_within(numbers), f"mean error of the mixture less the specialist's {said}", found, _needs(numbers, looks))


def claim_14(family: Family, seeds: list[dict], looks: int = 1) -> dict:
    if missing := unmet(family, seeds, learned=False):
        return untested(missing)
    numbers, posterior, specialist = {}, {}, {}
    for own in family.specialists:
        mean = lambda predictor, other, half=None: np.mean(  # noqa: E731
            [curve(seed, own.name, predictor, half) - curve(seed, own.name, other, half) for seed in seeds], axis=0
        )
        judged_after = np.flatnonzero(mean("mixture_bayes", own.baseline) <= MARGIN)
        if not len(judged_after):
            return untested(f"on {own.name} the exact posterior of the mixture itself is never within {MARGIN} of the baseline")
        k = int(judged_after[mean(family.mixture, own.baseline, "first")[judged_after].argmax()])
        at = lambda seed, predictor, other: float(  # noqa: E731
            curve(seed, own.name, predictor, "second")[k] - curve(seed, own.name, other, "second")[k]
        )
        numbers[own.name] = {
            "examples": k,
            "judged after": judged_after.tolist(),
            **bounds([at(seed, family.mixture, own.baseline) for seed in seeds], PLACES, looks=looks),
        }
        specialist[own.name] = float(np.mean([at(seed, own.name, own.baseline) for seed in seeds]))
        posterior[own.name] = mean(family.mixture, "mixture_bayes").tolist()
    found = {"mixture": numbers, "specialist there": specialist, "above the posterior of the mixture": posterior}
    verdict = _within(numbers, {case: n for case, n in numbers.items() if specialist[case] <= MARGIN})
    said = " and ".join(
        f"{shown(n)} on {case} after {n['examples']} examples (the specialist there {specialist[case]:+.3f})" for case, n in numbers.items()
    )
    return judged(verdict, f"farthest above the baseline {said}", found, _needs(numbers, looks))


def claim_15(linear: list[dict]) -> dict:
    if missing := unmet(LINEAR, linear, learned=True):
        return untested(missing)
    counts = sorted(int(test.partition(" ")[2]) for test in linear[0]["tests"] if test.startswith("nonzeros "))
    trained, dims = linear[0]["nonzeros"], counts[-1]
    inside = [count for count in counts if trained < count < dims]
    places = 2 + 2 * len(inside)
    ends = {
        count: bounds(apart(linear, f"nonzeros {count}", "mixture", name), places) for count, name in ((trained, "sparse"), (dims, "dense"))
    }
    between = {}
    for count in inside:
        test = f"nonzeros {count}"
        specialists = bounds(apart(linear, test, "sparse", "dense"))
        worse, better = ("sparse", "dense") if specialists["mean"] > 0 else ("dense", "sparse")
        between[count] = {
            "specialists apart": specialists,
            "worse": worse,
            "to the worse": bounds(apart(linear, test, "mixture", worse), places, SLACK),
            "to the better": bounds(apart(linear, test, "mixture", better), places, SLACK),
        }
    found = {"ends": ends, "between": between}
    if all(abs(n["specialists apart"]["mean"]) < SLACK for n in between.values()):
        return untested("the specialists do not differ in between", found)
    outside = [
        count for count, n in between.items() if n["to the worse"]["refute_low"] > SLACK or n["to the better"]["refute_high"] < -SLACK
    ]  # fmt: skip
    fits = all(n["to the worse"]["high"] <= SLACK and n["to the better"]["low"] >= -SLACK for n in between.values())
    ended = ", ".join(f"{shown(n)} at {count}" for count, n in ends.items())
    middle = ", ".join(
        f"{shown(n['to the worse'])} above the worse and {shown(n['to the better'])} above the better specialist at {count}"
        for count, n in between.items()
    )
    if outside or any(n["refute_low"] > MARGIN for n in ends.values()):
        verdict = REFUTED
    else:
        verdict = CONFIRMED if fits and all(n["high"] <= MARGIN for n in ends.values()) else OPEN
    least = [min(n[to][key] for n in between.values() for to in ("to the worse", "to the better")) for key in POWERS]
    changes = (
        f"in between, confirmed needs upper ends of at most {SLACK} above the worse and lower ends of at least -{SLACK} above the better; power there to confirm a difference of 0 "
        f"{least[0]:.2f}, to refute one of {2 * SLACK:g} {least[1]:.2f}"
    )
    return judged(verdict, f"less the specialist at the ends: {ended}; in between: {middle}", found, f"{_needs(ends)}; {changes}")


def claim_16(linear: list[dict], number: list[dict]) -> dict:
    for family, seeds in ((LINEAR, linear), (NUMBER, number)):
        if missing := unmet(family, seeds, learned=False):
            return untested(f"{family.name}: {missing}")
    last = lambda seeds, test, predictor: [float(curve(seed, test, predictor)[-1]) for seed in seeds]  # noqa: E731
    above = lambda seeds, test, model, best: [  # noqa: E731
        a - b for a, b in zip(last(seeds, test, model), last(seeds, test, best))
    ]
    mixed = {test: bounds(last(number, test, "waves")) for test in ("line", "wave", "combined")}
    extremes = {
        "dense, y three times as large": bounds(above(linear, "y three times", "dense", "least_squares"), 3),
        "dense, x three times as large": bounds(above(linear, "x three times", "dense", "least_squares"), 3),
        "waves of twice the frequency": bounds(above(number, "faster", "waves", "basis_least_squares"), 3),
    }
    found = {"combinations": mixed, "extremes": extremes}
    ends, middle = [mixed["line"], mixed["wave"]], mixed["combined"]
    if any(end["mean"] > LEARNED for end in ends):
        errors = ", ".join(f"{end['mean']:.3f}" for end in ends)
        return untested(f"the mixture has not learned its own classes: error {errors} after the last example", found)
    limit = max(FAILS, 3 * max(end["high"] for end in ends))
    fails, works = middle["low"] > limit, middle["high"] <= max(end["high"] for end in ends) + MARGIN
    degrades = [name for name, n in extremes.items() if n["refute_low"] > MARGIN]
    holds = all(n["high"] <= MARGIN for n in extremes.values())
    verdict = CONFIRMED if fails and degrades else REFUTED if works and holds else OPEN
    said = ", ".join(f"{shown(n, sign='')} ({name})" for name, n in mixed.items())
    worse = ", ".join(f"{name} {shown(n)}" for name, n in extremes.items())
    needed = MARGIN + np.array([seen_above(n, len(extremes)) for n in extremes.values()])
    changes = (
        f"combinations fail with a lower end above {limit:.3f}, which an error of {limit + seen_above(middle):.3f} has with a probability of 80%, and one extreme has to be above "
        f"{MARGIN} at 5% divided by three, as have with 80% {', '.join(f'{least:.3f}' for least in needed)}"
    )
    return judged(verdict, f"error of waves after the last example: {said}; above the best baseline: {worse}", found, changes)


# ------------------------------------------------------------------------------------------------------------ words


def _within(numbers: dict[str, dict], refuting: dict[str, dict] | None = None) -> str:
    if all(n["confirm_high"] <= MARGIN for n in numbers.values()):
        return CONFIRMED
    refuting = numbers if refuting is None else refuting
    return REFUTED if any(n["refute_low"] > MARGIN for n in refuting.values()) else OPEN


def _needs(numbers: dict, looks: int = 1) -> str:
    """What the numbers would have to be, and the power of the rule."""
    upper, lower = (max(n[key] for n in numbers.values()) for key in ("confirm_high", "refute_low"))
    twice = f", each at the level divided by {looks}, as it is asked {looks} times" if looks > 1 else ""
    least = [min(n[key] for n in numbers.values()) for key in POWERS]
    return (
        f"confirmed needs every upper end at most {MARGIN} (the largest is {upper:.3f}), refuted one lower end above it (the largest is {lower:.3f}){twice}; "
        f"power to confirm a difference of 0 {least[0]:.2f}, to refute one of {2 * MARGIN:g} {least[1]:.2f}"
    )


def shown(n: dict, sign: str = "+") -> str:
    return f"{n['mean']:{sign}.3f} [{n['low']:{sign}.3f}, {n['high']:{sign}.3f}]"


def judged(verdict: str, sentence: str, numbers: dict, changes: str) -> dict:
    return {"verdict": verdict, "sentence": sentence, "numbers": numbers, "changes": changes}


def untested(why: str, numbers: dict | None = None) -> dict:
    return judged(UNTESTED, why, numbers or {}, f"tested where this is mended: {why}")
