"""The rules by which benchmarks/icl.py judges four claims about models trained on mixtures of function classes (Yadlowsky et
al., arXiv 2311.00871, in the setting of Garg et al., arXiv 2208.01066).

There are two families. On linear functions, "mixture" is trained on dense ones and sparse ones, half of each, "dense" and
"sparse" on one class alone. On functions of one number, "waves" is trained on lines and sinusoids, half of each, "line" and
"wave" on one class alone. Errors are squared errors divided by the class's variance. Differences are paired: all predictors
see the same prompts. Bands hold 90% of the bootstrap means over prompts. MARGIN is 0.05, SLACK 0.02.

  13. The mixture does as well on each class as the model trained on that class alone. The mean error over the prompt of the
      mixture less the specialist's. Confirmed when the upper end of its band is at most MARGIN on both classes, refuted when
      the lower end is above MARGIN on either.
  14. The mixture tracks the best baseline of each class along the whole curve: least squares on dense functions and lines,
      Lasso on sparse functions, least squares on sine and cosine on sinusoids. Confirmed when after every number of examples
      the upper end of the mixture less the baseline is at most MARGIN, on both classes; refuted when a lower end is above
      MARGIN after a number of examples where the specialist is not: where it is, too little training is as good a reason as
      the mixture.
  15. Between the classes it predicts in between; at the ends it matches the specialists. Mean errors over the prompt, by
      number of non-zeros. An end matches when the upper end of "mixture" less the specialist is at most MARGIN. In between it
      is outside the specialists when the band of its difference to the worse one lies above SLACK, or to the better one below
      -SLACK. Confirmed when both ends match and no number in between is outside; refuted when one is outside or the lower end
      of the difference at an end is above MARGIN. Not decided when the specialists differ by less than SLACK at every number
      in between.
  16. Outside the mixture it fails: combinations of a line and a sinusoid are not predicted, extremes of seen classes degrade.
      Error after the last example. Combinations fail when at weight 0.5 the lower end is above 0.1 and above three times the
      upper ends at weights 0 and 1, and work when the upper end at 0.5 is at most the larger upper end at 0 and 1, plus
      MARGIN. Extremes: y and x three times as large for "dense" (errors divided by nine), waves of twice the frequency for
      "waves"; one degrades when the lower end of the model less the best baseline is above MARGIN. Confirmed when
      combinations fail and an extreme degrades, refuted when combinations work and none does.

A specialist that has not learned its own class is no standard: 13 (in its family) and 15 are not decided unless each
specialist's mean error over the prompt is within MARGIN of the best predictor of its class (upper end), nor 16 unless "waves"
has a mean error of at most 0.1 after the last example on both of its own classes. Nor are 13 where the specialists are within
MARGIN of each other on both classes: then there is nothing to select. 13 and 14 are refuted when one family refutes them, and
confirmed when one confirms them and none refutes them.

These rules were written before the runs, but for what 14 says of the specialist, the sentence about nothing to select and the
second family: these were added when the models of the first were half trained and had been looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

MARGIN, SLACK, FAILS, LEARNED = 0.05, 0.02, 0.1, 0.1
CONFIRMED, REFUTED, OPEN = "confirmed", "refuted", "not decided"
CLAIMS = {
    "13": "a mixture does as well as the right specialist",
    "14": "it tracks the best baseline along the whole curve",
    "15": "between the classes it predicts in between",
    "16": "outside the mixture it fails",
}


@dataclass(frozen=True)
class Specialist:
    """The model trained on one class alone, the baseline that claim 14 names for it, and the best predictor there is."""

    name: str
    baseline: str
    best: str


@dataclass(frozen=True)
class Family:
    mixture: str
    specialists: dict[str, Specialist]  # by the name of the class

    def cases(self, results: dict) -> list[tuple[str, Specialist, Specialist, dict]]:
        """(class, its specialist, the other one, excess of each model over each predictor) of the classes of the mixture."""
        found = []
        for case, entry in results["classes"].items():
            own = self.specialists[entry["class"]["name"]]
            other = next(specialist for specialist in self.specialists.values() if specialist is not own)
            found.append((case, own, other, entry["excess"]))
        return found


LINEAR = Family(
    "mixture",
    {"linear": Specialist("dense", "least_squares", "least_squares"), "sparse_linear": Specialist("sparse", "lasso", "sparse_bayes")},
)
NUMBER = Family(
    "waves",
    {
        "linear": Specialist("line", "least_squares", "least_squares"),
        "sinusoid": Specialist("wave", "basis_least_squares", "basis_least_squares"),
    },
)


def judge(linear: dict, waves: dict, faster: dict) -> dict[str, dict]:
    """The verdict, a sentence and the numbers of each claim. linear, waves: results of the two families; faster: the case of
    waves of twice the frequency."""
    families = ((LINEAR, linear), (NUMBER, waves))
    both = [together([claim(*family) for family in families]) for claim in (claim_13, claim_14)]
    return {"13": both[0], "14": both[1], "15": claim_15(linear), "16": claim_16(linear, waves, faster)}


def together(found: list[dict]) -> dict:
    """One verdict of two families."""
    verdicts = [part["verdict"] for part in found]
    verdict = REFUTED if REFUTED in verdicts else CONFIRMED if CONFIRMED in verdicts else OPEN
    said = "; ".join(f"{family}: {part['verdict']}, {part['sentence']}" for family, part in zip(("linear", "waves"), found))
    return judged(verdict, said, {family: part["numbers"] for family, part in zip(("linear", "waves"), found)})


def claim_13(family: Family, results: dict) -> dict:
    numbers, wrong = {}, {}
    for case, specialist, other, excess in family.cases(results):
        numbers[case] = whole(excess[family.mixture][specialist.name])
        wrong[case] = whole(excess[other.name][specialist.name])
    found = {"mixture": numbers, "other specialist": wrong}
    if untrained := not_learned(family, results):
        return judged(OPEN, untrained, found)
    said = " and ".join(f"{n['mean']:+.3f} on {case} (the other specialist: {wrong[case]['mean']:+.3f})" for case, n in numbers.items())
    if all(n["high"] <= MARGIN for n in wrong.values()):
        return judged(OPEN, f"the specialists do as well on each other's class, nothing is selected: {said}", found)
    if all(n["high"] <= MARGIN for n in numbers.values()):
        verdict = CONFIRMED
    else:
        verdict = REFUTED if any(n["low"] > MARGIN for n in numbers.values()) else OPEN
    return judged(verdict, f"mean error of the mixture less the specialist's {said}", found)


def claim_14(family: Family, results: dict) -> dict:
    numbers, said, off = {}, [], False
    for case, specialist, _, excess in family.cases(results):
        curve, alone = (excess[model][specialist.baseline] for model in (family.mixture, specialist.name))
        numbers[case] = {**{key: curve[key] for key in ("mean", "low", "high")}, "specialist": alone["mean"]}
        k = max(range(len(curve["mean"])), key=lambda k: curve["mean"][k])
        said.append(f"{curve['mean'][k]:+.3f} on {case} after {k} examples (the specialist there: {alone['mean'][k]:+.3f})")
        off = off or any(low > MARGIN >= other for low, other in zip(curve["low"], alone["mean"]))
    tracks = all(max(n["high"]) <= MARGIN for n in numbers.values())
    verdict = CONFIRMED if tracks else REFUTED if off else OPEN
    return judged(verdict, f"farthest above the baseline {' and '.join(said)}", numbers)


def claim_15(linear: dict) -> dict:
    counts = [int(count) for count in linear["nonzeros"]]
    trained = next(entry["class"]["nonzeros"] for entry in linear["classes"].values() if "nonzeros" in entry["class"])
    entry = lambda count: linear["nonzeros"][str(count)]["excess"]  # noqa: E731
    ends = {trained: whole(entry(trained)["mixture"]["sparse"]), counts[-1]: whole(entry(counts[-1])["mixture"]["dense"])}
    between = {count: in_between(entry(count)) for count in counts if trained < count < counts[-1]}
    numbers = {"ends": ends, "between": between}
    if untrained := not_learned(LINEAR, linear):
        return judged(OPEN, untrained, numbers)
    outside = [count for count, found in between.items() if found["outside"]]
    if all(abs(found["specialists apart"]["mean"]) < SLACK for found in between.values()):
        verdict, said = OPEN, "the specialists do not differ in between"
    elif outside or any(n["low"] > MARGIN for n in ends.values()):
        verdict, said = REFUTED, f"outside the specialists at {', '.join(map(str, outside)) or 'no number of'} non-zeros"
    else:
        verdict = CONFIRMED if all(n["high"] <= MARGIN for n in ends.values()) else OPEN
        said = f"between the specialists at {', '.join(map(str, between))} non-zeros"
    ended = ", ".join(f"{n['mean']:+.3f} at {count}" for count, n in ends.items())
    return judged(verdict, f"{said}; less the specialist at the ends: {ended}", numbers)


def in_between(excess: dict) -> dict:
    apart = whole(excess["sparse"]["dense"])
    worse, better = ("sparse", "dense") if apart["mean"] > 0 else ("dense", "sparse")
    above, below = (whole(excess["mixture"][name]) for name in (worse, better))
    return {
        "specialists apart": apart,
        "worse": worse,
        "to the worse": above,
        "to the better": below,
        "outside": above["low"] > SLACK or below["high"] < -SLACK,
    }


def claim_16(linear: dict, waves: dict, faster: dict) -> dict:
    mixed = {entry["weight"]: last(entry["curves"]["waves"]) for entry in waves["combinations"][0]["weights"]}
    extremes = {}
    for what, name in (("dense, y three times as large", "scale_y=3"), ("dense, x three times as large", "scale_x=3")):
        extremes[what] = {key: value / 9 for key, value in last(linear["ood"][name]["excess"]["dense"]["least_squares"]).items()}
    extremes["waves of twice the frequency"] = last(faster["excess"]["waves"]["basis_least_squares"])
    numbers = {"combinations": mixed, "extremes": extremes}
    ends, middle = [mixed[0.0], mixed[1.0]], mixed[0.5]
    if any(end["mean"] > LEARNED for end in ends):
        errors = ", ".join(f"{end['mean']:.3f}" for end in ends)
        return judged(OPEN, f"the model has not learned its own classes: error {errors} after the last example", numbers)
    fails = middle["low"] > max(FAILS, 3 * max(end["high"] for end in ends))
    works = middle["high"] <= max(end["high"] for end in ends) + MARGIN
    degraded = [name for name, n in extremes.items() if n["low"] > MARGIN]
    verdict = CONFIRMED if fails and degraded else REFUTED if works and not degraded else OPEN
    said = ", ".join(f"{n['mean']:.3f} at weight {weight:g}" for weight, n in mixed.items())
    worse = ", ".join(f"{name} {n['mean']:+.3f}" for name, n in extremes.items())
    return judged(verdict, f"error of waves after the last example: {said}; above the best baseline: {worse}", numbers)


def not_learned(family: Family, results: dict) -> str | None:
    """What is wrong with a specialist that is no standard."""
    for case, specialist, _, excess in family.cases(results):
        best = whole(excess[specialist.name][specialist.best])
        if best["high"] > MARGIN:
            return f"the model trained on {case} alone has not learned its class: {best['mean']:+.3f} from the best in the mean"
    return None


def judged(verdict: str, sentence: str, numbers: dict) -> dict:
    return {"verdict": verdict, "sentence": sentence, "numbers": numbers}


def whole(curve: dict) -> dict:
    return {key: curve["overall"][key] for key in ("mean", "low", "high")}


def last(curve: dict) -> dict:
    return {key: curve[key][-1] for key in ("mean", "low", "high")}
