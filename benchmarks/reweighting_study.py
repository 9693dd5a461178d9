"""The runs of `benchmarks/reweighting.py`: its methods, what each needs made first, and what all of that costs.

A method that searches for its weights (`search`) has them from dynadapt/experiments/reweight/search.py, under seed-N/searches/METHOD:
  op-mix    from scratch, its run goes through a fifth of its steps with equal weights and stops; probes are learned on what it is by then, and it goes
            on with what they found. On a model that is loaded the probes come first. Equal initial weights, as its authors have them.
  proxies   small runs come first; their mixtures, and the penalty, are around the data's proportions, as Olmix has them.
A domain whose law foresees no better than a mean is held at it; a search in which all are is refused, and the method has no run of that seed.

`match_flops` is the second judgement: stratified sampling goes on for as long as the FLOPs of each method last, with all that it needed counted, and is judged
at those steps.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.reweighting_data import judged, tokens_per_byte
from dynadapt.engine.ledger import PHASES
from dynadapt.experiments.dyneval import Interrupted
from dynadapt.experiments.reweight import ReweightConfig, ReweightOptions, SearchConfig, fit_run, run, search_mixture
from dynadapt.experiments.reweight.compare import WANTS_LARGE_BATCHES
from dynadapt.experiments.reweight.compare_flops import stratified_steps
from dynadapt.experiments.reweight.export import export_model
from dynadapt.experiments.reweight.mixture_law import LawError
from dynadapt.experiments.reweight.setup import NEED_TARGET, trained_engine
from dynadapt.experiments.scaling_fit import ScalingError
from dynadapt.runs.checkpoints import newest_whole
from dynadapt.runs.rundir import read_json, write_json
from dynadapt.runs.stopping import StopRun

PREFIX = 0.2  # of a run from scratch, before its probes
CHECKPOINT = 100


@dataclass(frozen=True)
class Method:
    """mixer and settings of one row of the table; average: the method whose mean weights it trains on; known: targets are what
    the proportional run ended with, whatever the fit says; search: how its weights are found; least_steps: that its rule needs to do
    anything."""

    mixer: str
    settings: tuple[tuple[str, object], ...] = ()
    average: str | None = None
    known: bool = False
    search: str | None = None
    least_steps: int = 1

    @property
    def needs(self) -> tuple[str, ...]:
        """Methods that have to be run first, in this order; `sample` is not in the table."""
        if self.average:
            return (self.average,)
        if self.known:
            return ("proportional",)
        return {
            "velocitune": ("sample", "proportional"),
            "dynamic-batch-loading": ("sample", "proportional"),
            "doremi": ("proportional",),
        }.get(self.mixer, ())


METHODS = {
    "stratified": Method("stratified"),
    "proportional": Method("proportional"),
    "velocitune": Method("velocitune", (("flat", "zero"),)),  # a domain with nothing to learn: the paper leaves it open
    "velocitune-average": Method("replay", average="velocitune"),
    "velocitune-known": Method("velocitune", (("flat", "zero"),), known=True),
    "dynamic-batch-loading": Method("dynamic-batch-loading"),
    "doremi": Method("doremi"),
    "doremi-average": Method("replay", average="doremi"),
    "doremi-sampling": Method("doremi", (("acts", "sampling"),)),
    "odm": Method("odm"),
    "odm-exponential": Method("odm", (("rule", "exponential"),)),
    "skill-it": Method("skill-it"),
    "ado": Method("ado", least_steps=200),
    "op-mix": Method("fixed", search="op-mix"),
    "proxies": Method("fixed", search="proxies"),
}
READS_HELDOUT = (*NEED_TARGET, "skill-it")
FIT, PROPORTIONAL = "fit", "proportional run"  # where targets are from


@dataclass(frozen=True)
class Case:
    """One column of the study. share: of the corpus's training text; updates: evaluations at which the mixers that read held-out
    losses move; sample: share of the steps after which targets are fitted, and evaluations until then; test_rows: judged of each
    domain; vocabulary: of a tokenizer made for the case. mixtures: measured by a search, at least what its laws need; probe, proxy: length of each
    as a share of the steps; proxy_size: of the small models, from scratch."""

    config: ReweightConfig
    share: float
    updates: int
    sample: float
    sample_evaluations: int
    test_rows: int
    vocabulary: int | None = None
    mixtures: int = 24
    probe: float = 0.1
    proxy: float = 0.2
    proxy_size: str | None = None

    def search(self, method: str) -> SearchConfig:
        """How a method looks for its mixture."""
        proxies = method == "proxies"
        return SearchConfig(
            method=method,
            mixtures=self.mixtures,
            part=self.proxy if proxies else self.probe,
            unforeseen="hold",
            proxy=self.proxy_size if proxies and self.config.scratch else None,
        )


def spent_by(name: str, flops: Mapping[str, float]) -> float:
    """All that a method needed. Held-out losses of a run that does not read them are for the tables, and count on neither side."""
    return sum(value for what, value in flops.items() if what != "heldout" or METHODS[name].mixer in READS_HELDOUT)


class Study:
    """The runs of one case and one seed under out/CASE/seed-N/METHOD, each with judged.json beside its own files."""

    def __init__(self, case: Case, folder: Path, seed: int):
        self.case, self.folder, self.seed = case, folder, seed
        self.base = replace(case.config, seed=seed)

    def left_out(self, name: str) -> str | None:
        """Why this method has no run here, if it has none."""
        method = METHODS[name]
        if self.base.steps < method.least_steps:
            return f"its rule needs {method.least_steps} steps"
        if name in WANTS_LARGE_BATCHES and self.base.rows < len(self.base.domains):
            return f"its batches would have {self.base.rows} rows for {len(self.base.domains)} domains; give --rows"
        if method.known and (self.folder / "sample" / "refused.txt").exists():
            return f"{method.mixer} has those targets already, because the fit refused"
        if (refused := self.folder / "searches" / name / "refused.json").exists():
            return read_json(refused)["refused"]
        return None

    def finish(self, name: str) -> None:
        """Makes this method's run, and those it needs, unless they were made."""
        method = METHODS[name]
        if not (self.folder / name / "judged.json").exists():
            for needed in method.needs:
                self._sample() if needed == "sample" else self.finish(needed)
            try:
                self._run(name, method)
            except LawError as error:
                (self.folder / "searches" / name).mkdir(parents=True, exist_ok=True)
                write_json(self.folder / "searches" / name / "refused.json", {"refused": str(error)})
                print(f"    {name}: left out; {error}", flush=True)

    def _run(self, name: str, method: Method) -> None:
        config = self._config(method)
        began = time.process_time()
        change = None
        if method.search and config.scratch and method.search == "op-mix":
            change = self._probed(name, config)
        elif method.search:
            config = replace(config, weights=self._search(name, self._before(config, method.search))["weights"])
        summary = run(config, self.folder / name, ReweightOptions(resume=True, checkpoint=CHECKPOINT, change=change))
        engine = trained_engine(self.folder / name)
        test = judged(config, engine, self.case.test_rows)
        kept = {
            "method": name,
            "seed": self.seed,
            "test": test,
            "mean": sum(test.values()) / len(test),
            "tokens_per_byte": tokens_per_byte(config, engine.model),
            "heldout": summary["heldout"],
            "tokens": summary["tokens"],
            "epochs": summary["epochs"],
            "average_weights": summary["static_weights"],
            "weights": self._weights(name),
            "targets_from": self._targets(method)[1] if method.mixer in NEED_TARGET else None,
            "cpu_seconds": time.process_time() - began,
        }
        write_json(self.folder / name / "judged.json", kept)
        if name != "proportional":  # the reference of DoReMi
            shutil.rmtree(self.folder / name / "checkpoint", ignore_errors=True)
        print(f"    seed {self.seed}  {name:22s} mean {kept['mean']:.4f}  {kept['cpu_seconds']:.0f} s", flush=True)

    def _config(self, method: Method) -> ReweightConfig:
        """Held-out losses are scored often only for the mixers that read them; at the start and the end for all."""
        settings = dict(method.settings)
        if method.average:
            settings["run"] = str(self.folder / method.average)
        if method.mixer == "ado":  # its published thousand steps, scaled to the run's length
            steps = self.base.steps
            settings = {"ignore": steps // 20, "start": steps // 5, "refit": steps // 20, "window": 2 * (steps // 40) + 1}
        evaluate = max(1, self.base.steps // self.case.updates) if method.mixer in READS_HELDOUT else self.base.steps
        config = replace(self.base, mixer=method.mixer, settings=settings, evaluate=evaluate)
        if method.search:
            config = replace(config, weights="uniform")
        if method.mixer in NEED_TARGET:
            config = replace(config, target=self._targets(method)[0])
        if method.mixer == "doremi":
            config = replace(config, reference=str(self.folder / "proportional"))
        return config

    def _before(self, config: ReweightConfig, search: str) -> ReweightConfig:
        """The run that a mixture is looked for, with the initial weights of the recipe."""
        return replace(config, mixer="stratified", weights="proportional" if search == "proxies" else "uniform")

    def _probed(self, name: str, config: ReweightConfig) -> dict[str, float]:
        """Weights from probes of the run itself, which is brought to its first fifth before, and stands there until they are known."""
        folder = self.folder / name
        self._bring(config, folder, max(1, round(PREFIX * config.steps)))
        begun = self.folder / "searches" / f"{name}-model"
        if not (self.folder / "searches" / name / "summary.json").exists() and not begun.exists():
            export_model(folder, begun)
        found = self._search(name, replace(self._before(config, "op-mix"), model=str(begun), scratch=None))
        shutil.rmtree(begun, ignore_errors=True)
        return found["weights"]

    def _search(self, name: str, config: ReweightConfig) -> dict:
        """The finished search of a method, gone on with where it was stopped."""
        folder, method = self.folder / "searches" / name, METHODS[name].search
        if (folder / "summary.json").exists():
            return read_json(folder / "summary.json")
        found = search_mixture(config, self.case.search(method), folder, resume=True, checkpoint=CHECKPOINT)
        shutil.rmtree(folder / "checkpoint", ignore_errors=True)
        for proxy in (folder / "proxies").glob("*/checkpoint"):
            shutil.rmtree(proxy)
        return found

    def _sample(self) -> dict:
        """Summary of the run that targets are fitted to."""
        steps = max(1, int(self.case.sample * self.base.steps))
        config = replace(self.base, mixer="proportional", steps=steps, evaluate=max(1, steps // self.case.sample_evaluations))
        return run(config, self.folder / "sample", ReweightOptions(resume=True, checkpoint=CHECKPOINT))

    def _targets(self, method: Method) -> tuple[dict[str, float], str]:
        """(nats by domain, where they are from)."""
        tokens = self.base.steps * self.base.rows * self.base.segment
        refused, known = self.folder / "sample" / "refused.txt", self.folder / "sample" / "targets.json"
        if method.known or refused.exists():
            return read_json(self.folder / "proportional" / "summary.json")["heldout"], PROPORTIONAL
        try:
            found = read_json(known) if known.exists() else fit_run(self.folder / "sample", tokens)
            return found["target"], FIT
        except ScalingError as error:
            refused.write_text(f"{error}\n")
            return self._targets(method)

    def flops(self, name: str) -> dict[str, int]:
        """FLOPs of the run (training, held-out losses, DoReMi's excess) and of the runs that had to be made first."""
        spent = read_json(self.folder / name / "summary.json")["flops"]
        return {
            "training": sum(spent[phase] for phase in PHASES),
            "heldout": spent["heldout"],
            "excess": spent["excess"],
            "made_first": sum(self._whole(needed) for needed in self._made_first(name)) + self._searched(name),
        }

    def _searched(self, name: str) -> int:
        """FLOPs of a method's probes or proxies, their held-out losses, the merging and the fits."""
        found = self.folder / "searches" / name / "summary.json"
        return sum(read_json(found)["flops"].values()) if name in METHODS and METHODS[name].search else 0

    def _made_first(self, name: str) -> tuple[str, ...]:
        """Runs this one could not have been made without: `proportional` gives targets only where the fit refused."""
        method = METHODS[name]
        if method.mixer in NEED_TARGET and read_json(self.folder / name / "judged.json")["targets_from"] == FIT:
            return ("sample",)
        return method.needs

    def _whole(self, name: str) -> int:
        first = self._made_first(name) if name in METHODS else ()
        return sum(read_json(self.folder / name / "summary.json")["flops"].values()) + sum(map(self._whole, first)) + self._searched(name)

    # ------------------------------------------------------------------------------------------------- equal FLOPs

    def match_flops(self) -> None:
        """Brings stratified sampling to the step at which it has spent what each finished method has, and judges it there."""
        self.stratified_at({self._matching(name) for name in self._finished()} - {0})

    def stratified_at(self, steps: set[int]) -> None:
        """One stratified run of this seed, judged at these steps; points.json keeps {step: {"steps", "tokens", "test", "mean"}}."""
        wanted = sorted(steps)
        known = self.folder / "equal-flops" / "points.json"
        points = read_json(known) if known.exists() else {}
        missing = [step for step in wanted if str(step) not in points]
        if not missing:
            return
        config = replace(self.base, mixer="stratified", steps=missing[-1], evaluate=missing[-1])
        if config.schedule != "constant":
            raise SystemExit(f"schedule {config.schedule!r}: runs of other lengths have other rates; equal FLOPs need a constant one")
        folder = self.folder / "equal-flops" / f"{missing[-1]}-steps"
        if (folder / "summary.json").exists() or self._reached(folder) > missing[0]:
            shutil.rmtree(folder)  # steps that it has gone past are asked for: it begins anew
        for step in missing:
            self._bring(config, folder, step)
            test = judged(config, trained_engine(folder), self.case.test_rows)
            tokens = step * config.rows * config.segment
            points[str(step)] = {"steps": step, "tokens": tokens, "test": test, "mean": sum(test.values()) / len(test)}
            write_json(known, points)
            print(f"    seed {self.seed}  stratified at step {step}: mean {points[str(step)]['mean']:.4f}", flush=True)
        shutil.rmtree(folder / "checkpoint", ignore_errors=True)

    @staticmethod
    def _reached(folder: Path) -> int:
        """Steps of a run's last state."""
        state = newest_whole(folder)[1] if folder.exists() else None
        return state["segments"] if state else 0

    def _bring(self, config: ReweightConfig, folder: Path, step: int) -> None:
        """A run to this very step, at which it is saved; no further."""

        def stop(line: dict) -> None:
            if line["kind"] == "step" and line["step"] >= step:
                raise StopRun

        if self._reached(folder) >= step:
            return
        try:
            run(config, folder, ReweightOptions(resume=True, checkpoint=CHECKPOINT), stop)
        except Interrupted:
            if self._reached(folder) < step:
                raise

    def equal_flops(self, name: str) -> dict | None:
        """Stratified sampling with this method's FLOPs, where it was judged."""
        known = self.folder / "equal-flops" / "points.json"
        return read_json(known).get(str(self._matching(name))) if known.exists() and name != "stratified" else None

    def _finished(self) -> list[str]:
        return sorted(path.parent.name for path in self.folder.glob("*/judged.json"))

    def _matching(self, name: str) -> int:
        """The step of a stratified run that has spent what this method needed; 0 where the one or the other is not there."""
        if name == "stratified" or not (self.folder / "stratified" / "judged.json").exists():
            return 0
        step = self.flops("stratified")["training"] / read_json(self.folder / "stratified" / "summary.json")["steps"]
        return stratified_steps(spent_by(name, self.flops(name)), step)

    def searches(self) -> dict[str, dict]:
        """By method: what its search found, or why it was refused."""
        found = {}
        for name in METHODS:
            folder = self.folder / "searches" / name
            if (folder / "summary.json").exists():
                kept = ("weights", "prior", "predicted", "predicted_of_prior", "error", "error_of_mean", "held", "flops")
                found[name] = {key: value for key, value in read_json(folder / "summary.json").items() if key in kept}
            elif (folder / "refused.json").exists():
                found[name] = read_json(folder / "refused.json")
        return found

    def _weights(self, name: str) -> dict[str, list]:
        """Weights over tokens, thinned to at most 50 points."""
        lines = [json.loads(line) for line in (self.folder / name / "metrics.jsonl").read_text().splitlines()]
        steps = [line for line in lines if line["kind"] == "step"]
        kept = steps[:: max(1, len(steps) // 50)]
        return {
            "tokens": [line["total_tokens"] for line in kept],
            **{domain: [round(line["weights"][domain], 5) for line in kept] for domain in kept[0]["weights"]},
        }
