"""`dynadapt tune`: which setting to score a text with, found out on windows of it within some minutes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dynadapt.adapt.optimizers import IN_WORDS, WITH_STATISTICS
from dynadapt.experiments import guarded
from dynadapt.experiments.config import ConfigError, EvalConfig
from dynadapt.experiments.defaults import begin_of, family_rates, settle, settle_bos
from dynadapt.runs.text import TextError, TokenReader, expand, streaming_tokenizer

from . import plan as planning
from .checks import check_minutes, free_directory
from .estimate import late_mean
from .measure import Bench, Scored
from .plan import Candidate, Cost, Plan
from .windows import Text, Window, draw, read_text

KINDS = ("none", "lora", "rows", "full")
WRITING = 4.0  # seconds kept back for the picture and the files
SAFETY = 0.85  # of the time is planned for; the rest is for a machine that is slower than when it was timed
LEAST_JUDGED = 4


@dataclass
class Tried:
    """A candidate as far as it came: on how many windows for choosing, and what it scored there."""

    candidate: Candidate
    scored: Scored
    round: int = 0  # the last one it took part in, from 1
    score: float = float("nan")  # gain over the best static one on the same windows, as it was chosen by


class Budget:
    """The clock. Called after every step; tells `progress` of the stage and of the share of the time that is gone."""

    def __init__(self, minutes: float, progress, started: float | None):
        self.seconds, self.started = 60.0 * minutes, time.monotonic() if started is None else started
        self.progress, self.stage = progress or (lambda event: None), ""

    @property
    def left(self) -> float:
        return self.started + self.seconds - time.monotonic() - min(WRITING, 0.2 * self.seconds)

    def __call__(self, stage: str | None = None) -> None:
        self.stage = stage or self.stage
        gone = time.monotonic() - self.started
        self.progress({"stage": self.stage, "seconds": gone, "fraction": min(1.0, gone / self.seconds), "new": stage is not None})

    def too_small(self, more: float) -> ConfigError:
        """The refusal that names the minutes that would do, if `more` seconds are needed from here on."""
        need = time.monotonic() - self.started + more / SAFETY + WRITING
        need = max(need, more / SAFETY / 0.8)
        return ConfigError(
            f"minutes {self.seconds / 60:g}: too few for this model and text on this machine; "
            f"give at least {np.ceil(need / 60 * 1.15 * 20) / 20:g}"
        )


def tune(
    config: EvalConfig,
    minutes: float = 5.0,
    out: str | Path | None = None,
    progress: Callable[[dict], None] | None = None,
    model=None,
    started: float | None = None,
):
    """Finds out how to score config.text, within `minutes` of wall time, and returns a `Recommendation`, written to `out` if given.

    1. Check the texts, load the model, time a segment of every kind of learning, plan.
    2. Choose: successive halving over windows of the text.
    3. Judge: the best one that learns against the best static one on other windows, which gives the expected gain.
    4. Write the rest of the text, the picture and recommendation.json, all of it or nothing.

    Of `config` it takes all that it does not try out itself: adapt, memory, and lr (which, where given, is the middle of the rates for
    config.adapt) or rates (which are compared for config.adapt, in place of three around the default). A guard is on all that learns, and in the command. started: time.monotonic() at which the minutes began, if before the call. Raises TextError, ConfigError, RunError.
    """
    from .recommendation import recommend, write  # with what draws: what is missing shows before the minutes are spent

    _check(config, minutes)
    out = free_directory(out)
    budget = Budget(minutes, progress, started)
    budget("reading the text and loading the model")
    with tempfile.TemporaryDirectory(prefix="dynadapt-tune-") as folder:
        for source in expand(config.text, config.field):
            source.check()  # a pipe says nothing yet
        model = _model(config, model)
        config = settle_bos(settle(config, model.config, memory=0), model.tokenizer)
        tokenizer = streaming_tokenizer(model.tokenizer)
        text = read_text(config.text, tokenizer, Path(folder), config.field)
        _check_length(text, config.segment)
        width = {"lora": len(planning.rates(config, "lora"))}
        bench = Bench(model, config.with_(text=(), context=0, lr=None, rates=None), budget, width)
        found = _search(text, tokenizer, bench, budget, config)
        result = recommend(config, minutes, text, bench, out, **found)
        budget("writing")
        if out is not None:
            result = write(result, out, text, found["apart"])
    return result


def _check(config: EvalConfig, minutes: float) -> None:
    check_minutes(minutes)
    for name, accepted in (("tokens", None), ("streams", 1), ("split", False), ("context", 0)):
        if getattr(config, name) != accepted:
            raise ConfigError(
                f"{name} {getattr(config, name)!r}: tune reads the whole text as one stream with memory; leave it at {accepted}"
            )
    guarded.refuse(config, "in tune, which compares settings of one level", ("guard", "rates"))
    if config.rates and config.adapt == "none":
        raise ConfigError(f"rates {config.rates!r} with adapt 'none': say what learns at them, lora, rows or full")
    if config.optimizer in WITH_STATISTICS:
        raise ConfigError(f"optimizer {config.optimizer!r}: tune has no statistics text; give {IN_WORDS}")
    if config.select != "gradient":
        raise ConfigError(f"select {config.select!r}: tune tries rows by their gradient; leave it at 'gradient'")


def _model(config: EvalConfig, model):
    from dynadapt.experiments.eval_model import checked, load

    return checked(config, load(config.model) if model is None else model)


def _check_length(text: Text, segment: int) -> None:
    need = planning.least_segments() * segment
    if text.tokens < need:
        raise TextError(
            f"text: {text.tokens:,} tokens in all; tune needs at least {need:,} to set windows apart and leave as much; "
            f"give more text, or a --segment of at most {max(1, text.tokens // planning.least_segments())} tokens"
        )


def _search(text: Text, tokenizer, bench: Bench, budget: Budget, config: EvalConfig) -> dict:
    """Everything from the timing to the judgement, as the arguments of `recommend`."""
    memories, notes = fitting_memories(bench.model.config, config)
    family = family_rates(config.optimizer, bench.model.config)
    costs = _time_kinds(text, tokenizer, bench, budget, config, memories, notes, family)
    kinds = [kind for kind in KINDS if any(each.adapt == kind for each in costs)]
    segments = text.tokens // config.segment
    chosen = planning.make_plan(kinds, memories, config, costs, budget.left * SAFETY, segments, family)
    if chosen is None:
        raise budget.too_small(planning.least_seconds(kinds, memories, config, costs, family))
    if chosen.left_out:
        with_time = planning.make_plan(kinds, memories, config, costs, 1e12, segments, family)
        notes.append(f"not tried, for want of {'text' if with_time.left_out == chosen.left_out else 'time'}: {chosen.left_out}")
    begin = begin_of(bench.model.tokenizer, config.bos)
    windows = draw(text, tokenizer, chosen.windows + chosen.judging, chosen.segments * config.segment, config.segment, config.seed, begin)
    choosing, judging = windows[: chosen.windows], windows[chosen.windows :]
    tried = _choose(chosen, choosing, bench, budget, costs, text)
    best, static = _best(tried)
    judged = _judge(best, static, judging, bench, budget, tried, chosen)
    used = len(judged[best].nll)
    if budget.left < 0:
        notes.append(f"it took {-budget.left / 60:.1f} minutes more than it was given: the machine became slower than when it was timed")
    return {
        "plan": chosen,
        "tried": tried,
        "best": best,
        "static": static,
        "judged": judged,
        "notes": notes,
        "choosing": choosing,
        "judging": judging[:used],
        "apart": choosing + judging[:used],
        "seconds": time.monotonic() - budget.started,
    }


def fitting_memories(model_config, config: EvalConfig) -> tuple[tuple[int, ...], list[str]]:
    """Memory sizes that the model's positions allow, and notes on the others."""
    fit, notes = [0], []
    for memory in planning.MEMORIES[1:]:
        window = config.segment + memory + config.sinks
        if model_config.rope_theta is None:
            notes.append(
                f"memory {memory:,} is left out: {model_config.family} has learned absolute positions, which can't count in a moving window"
            )
        elif window > model_config.max_positions:
            notes.append(
                f"memory {memory:,} is left out: with a segment of {config.segment} it makes {window:,} positions, the model has "
                f"{model_config.max_positions:,}"
            )
        else:
            fit.append(memory)
    return tuple(fit), notes


def _time_kinds(
    text: Text, tokenizer, bench: Bench, budget: Budget, config: EvalConfig, memories, notes: list[str], family: dict[str, float]
) -> dict[Candidate, Cost]:
    """Cost of every candidate there may be, by timing a segment of each kind with the largest memory; kinds for which there is no time are left out."""
    ids = np.concatenate([TokenReader(text.sources[0], tokenizer).read(bench.config.segment + 1)[0], [0, 0]])
    costs: dict[Candidate, Cost] = {}
    timed = 0.0  # seconds that the last kind took; the next takes about as many
    for kind in KINDS:
        if len(costs) > len(memories):
            least = planning.least_seconds(KINDS[:2], memories, config, costs, family)
            if (budget.left - 1.5 * timed) * SAFETY < 1.2 * least:
                notes.append(f"{kind} is left out: no time to try it")
                continue
        begun = time.monotonic()
        budget(f"timing a segment of {Candidate(kind, memories[-1]).label}")
        rates: tuple = planning.rates(config, kind, family) if kind != "none" else (None,)
        cost = bench.time(Candidate(kind, memories[-1], planning.middle_of(rates)[0]), ids, 0.03 * budget.seconds)
        timed = time.monotonic() - begun
        costs.update({Candidate(kind, memory, rate): cost for memory in memories for rate in rates})
    return costs


def _choose(chosen: Plan, windows: list[Window], bench: Bench, budget: Budget, costs: dict[Candidate, Cost], text: Text) -> list[Tried]:
    """Successive halving: all candidates, each as far as it came; the statics first."""
    reserve = min(planning.JUDGING_SHARE * budget.left, planning.judging_seconds(chosen.candidates, costs, chosen.judging, chosen.segments))
    tried, deadline = {}, time.monotonic() + budget.left - reserve
    for candidate in (each for each in chosen.candidates if each.adapt == "none"):
        budget(f"choosing: {candidate.label}, {len(windows)} windows")
        scored = bench.static(candidate, windows, deadline=deadline)
        windows = windows[: len(scored.nll)]
        tried[candidate] = Tried(candidate, scored, len(chosen.rounds))
    if len(windows) < planning.LEAST_FIRST:
        raise budget.too_small(budget.seconds)
    for each in tried.values():
        del each.scored.nll[len(windows) :]  # the same windows for all
    base = np.array(min((each.scored.nll for each in tried.values()), key=np.mean))
    for each in tried.values():
        each.score = late_mean(base - each.scored.nll, each.scored.tokens, text.tokens)
    going = [each for each in chosen.candidates if each.adapt != "none"]
    for number, planned in enumerate(chosen.rounds, 1):
        going = going[: planned.learners]
        for group in groups(going):
            what = group[0].label if len(group) == 1 else f"{Candidate(group[0].adapt, group[0].memory).label}, {len(group)} rates"
            budget(f"choosing, round {number} of {len(chosen.rounds)}: {what}, {planned.windows} windows")
            for candidate, scored in bench.learning(group, windows[: planned.windows], deadline).items():
                if len(scored.nll) >= planning.LEAST_FIRST and len(scored.nll) >= len(
                    tried.get(candidate, Tried(candidate, Scored())).scored.nll
                ):
                    score = late_mean(base[: len(scored.nll)] - scored.nll, scored.tokens, text.tokens)
                    tried[candidate] = Tried(candidate, scored, number, score)
        going = sorted((each for each in going if each in tried), key=lambda each: -tried[each].score)
        if not going:
            raise budget.too_small(budget.seconds)
    return list(tried.values())


def groups(candidates: list[Candidate]) -> list[list[Candidate]]:
    """Those that differ in the rate only, together."""
    found: dict[tuple, list[Candidate]] = {}
    for each in candidates:
        found.setdefault((each.adapt, each.memory), []).append(each)
    return list(found.values())


def _best(tried: list[Tried]) -> tuple[Candidate, Candidate]:
    """The best that learns, of those that came furthest, and the best static one."""
    learned = [each for each in tried if each.candidate.adapt != "none"]
    last = max(each.round for each in learned)
    best = max((each for each in learned if each.round == last), key=lambda each: each.score)
    static = min((each for each in tried if each.candidate.adapt == "none"), key=lambda each: np.mean(each.scored.nll))
    return best.candidate, static.candidate


def _judge(
    best: Candidate, static: Candidate, windows, bench: Bench, budget: Budget, tried: list[Tried], chosen: Plan
) -> dict[Candidate, Scored]:
    """Both, one stream each as a run will have, over as many windows as there is time for."""
    ran = {each.candidate: each.scored for each in tried}
    alone = max(bench.alone["none"] * chosen.segments, ran[static].seconds / len(ran[static].nll))
    learning = ran[best].seconds / len(ran[best].nll) * (bench.alone[best.adapt] / bench.faster[best.adapt])
    setup = ran[best].setup + ran[static].setup
    count = int((budget.left * SAFETY - setup) / (alone + learning))
    windows = windows[: max(LEAST_JUDGED, min(count, len(windows)))]
    budget(f"judging: {static.label}, {len(windows)} other windows")
    judged = {static: bench.static(static, windows, streams=1, deadline=time.monotonic() + budget.left / 2, least=LEAST_JUDGED)}
    windows = windows[: len(judged[static].nll)]
    budget(f"judging: {best.label}, {len(windows)} other windows")
    judged.update(bench.learning([best], windows, time.monotonic() + budget.left, LEAST_JUDGED))
    return judged
