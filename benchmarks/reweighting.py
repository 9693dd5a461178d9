"""Every mixer at equal tokens, several seeds: does any beat stratified sampling, and does moving weights beat their average?

    dynadapt corpus build --out corpus
    python benchmarks/reweighting.py --corpus corpus --out runs/reweighting      # goes on where it was stopped

Two cases: "continual" trains adapters on SmolLM2-135M; "scratch" trains all of a small llama with a tokenizer of its own, made
from the training text. It tests two claims of Velocitune (arXiv 2411.14318):
  8. weights that follow learning velocity beat static proportions and distance-based reweighting;
  9. what a static run with Velocitune's average weights does (the control).

What is compared is the mean over domains of the loss on test rows: documents that no mixer reads, the same for all mixers and
seeds. For each mixer, the difference to `stratified` and to its control is taken seed by seed (equal seeds share the random
numbers that draw rows, and the initial weights), and gets Student's interval over seeds. The rule for a verdict stands in
dynadapt/experiments/reweight/compare.py.

A mixer that needs something made first gets it from runs of the same seed, and their FLOPs are counted as its own:
  targets    of velocitune and dynamic-batch-loading: a run at the data's proportions over a part of the tokens (`sample`),
             fitted and extrapolated to all of them. Where the fit refuses, targets are what the `proportional` run ends with:
             what the fit is to predict, known for once. Results say which methods had such targets; `velocitune-known` always
             has.
  reference  of DoReMi: the `proportional` run.
Controls (`X-average`) train on the average weights of run X; DoReMi's is what its paper trains the final model on.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from dynadapt.experiments.dyneval import PHASES
from dynadapt.experiments.reweight import ReweightConfig, ReweightOptions, fit_run, run
from dynadapt.experiments.reweight.compare import WANTS_LARGE_BATCHES, draw_comparison, markdown, report
from dynadapt.experiments.reweight.compare import judged as verdicts
from dynadapt.experiments.reweight.setup import NEED_TARGET, trained_engine
from dynadapt.experiments.scaling_fit import ScalingError
from dynadapt.runs.rundir import read_json, write_json

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.reweighting_data import judged, small_vocabulary, subset  # noqa: E402
from benchmarks.script import corpus_facts, going_on, parser_of, write_results  # noqa: E402


@dataclass(frozen=True)
class Method:
    """mixer and settings of one row of the table; average: the method whose mean weights it trains on; known: targets are what
    the proportional run ended with, whatever the fit says; least_steps: that its rule needs to do anything."""

    mixer: str
    settings: tuple[tuple[str, object], ...] = ()
    average: str | None = None
    known: bool = False
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
}
READS_HELDOUT = (*NEED_TARGET, "skill-it")
FIT, PROPORTIONAL = "fit", "proportional run"  # where targets are from


@dataclass(frozen=True)
class Case:
    """One column of the study. share: of the corpus's training text; updates: evaluations at which the mixers that read held-out
    losses move; sample: share of the steps after which targets are fitted, and evaluations until then; test_rows: judged of each
    domain; vocabulary: of a tokenizer made for the case."""

    config: ReweightConfig
    share: float
    updates: int
    sample: float
    sample_evaluations: int
    test_rows: int
    vocabulary: int | None = None


def cases(steps: int | None) -> dict[str, Case]:
    """Their domains and models are put in by `prepared`."""
    shared = dict(domains={"to": "come"}, policy="repeat", dtype="bf16")
    scratch = ReweightConfig(
        **shared,
        scratch="4x128",
        adapt="full",
        targets="model",
        rows=8,
        segment=128,
        steps=steps or 300,
        lr=1.5e-3,
        warmup=10,
        heldout_rows=8,
    )
    continual = ReweightConfig(**shared, adapt="lora", rows=4, segment=128, steps=steps or 20, heldout_rows=2)
    return {
        "scratch": Case(scratch, share=0.1, updates=10, sample=0.5, sample_evaluations=10, test_rows=64, vocabulary=4096),
        "continual": Case(continual, share=0.1, updates=4, sample=0.5, sample_evaluations=6, test_rows=6),
    }


# ------------------------------------------------------------------------------------------------------------------- runs


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
        return None

    def finish(self, name: str) -> None:
        """Makes this method's run, and those it needs, unless they were made."""
        method = METHODS[name]
        if not (self.folder / name / "judged.json").exists():
            for needed in method.needs:
                self._sample() if needed == "sample" else self.finish(needed)
            self._run(name, method)

    def _run(self, name: str, method: Method) -> None:
        config = self._config(method)
        began = time.process_time()
        summary = run(config, self.folder / name, ReweightOptions(resume=True, checkpoint=100))
        test = judged(config, trained_engine(self.folder / name), self.case.test_rows)
        kept = {
            "method": name,
            "seed": self.seed,
            "test": test,
            "mean": sum(test.values()) / len(test),
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
        if method.mixer in NEED_TARGET:
            config = replace(config, target=self._targets(method)[0])
        if method.mixer == "doremi":
            config = replace(config, reference=str(self.folder / "proportional"))
        return config

    def _sample(self) -> dict:
        """Summary of the run that targets are fitted to."""
        steps = max(1, int(self.case.sample * self.base.steps))
        config = replace(self.base, mixer="proportional", steps=steps, evaluate=max(1, steps // self.case.sample_evaluations))
        return run(config, self.folder / "sample", ReweightOptions(resume=True, checkpoint=0))

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
            "made_first": sum(self._whole(needed) for needed in self._made_first(name)),
        }

    def _made_first(self, name: str) -> tuple[str, ...]:
        """Runs this one could not have been made without: `proportional` gives targets only where the fit refused."""
        method = METHODS[name]
        if method.mixer in NEED_TARGET and read_json(self.folder / name / "judged.json")["targets_from"] == FIT:
            return ("sample",)
        return method.needs

    def _whole(self, name: str) -> int:
        first = self._made_first(name) if name in METHODS else ()
        return sum(read_json(self.folder / name / "summary.json")["flops"].values()) + sum(map(self._whole, first))

    def _weights(self, name: str) -> dict[str, list]:
        """Weights over tokens, thinned to at most 50 points."""
        lines = [json.loads(line) for line in (self.folder / name / "metrics.jsonl").read_text().splitlines()]
        steps = [line for line in lines if line["kind"] == "step"]
        kept = steps[:: max(1, len(steps) // 50)]
        return {
            "tokens": [line["total_tokens"] for line in kept],
            **{domain: [round(line["weights"][domain], 5) for line in kept] for domain in kept[0]["weights"]},
        }


def main() -> None:
    parser = parser_of(__doc__, "runs/reweighting")
    parser.add_argument("--judge", type=Path, metavar="FILE", help="run nothing: judge the runs of a results file anew, in place")
    parser.add_argument("--rows", type=int, help="of a step (default: 8 from scratch, 4 continual)")
    parser.add_argument("--corpus", type=Path, help="directory that `dynadapt corpus build` made")
    parser.add_argument("--case", nargs="+", default=["scratch", "continual"], choices=("scratch", "continual"))
    parser.add_argument(
        "--mixers",
        nargs="+",
        default=list(METHODS),
        choices=list(METHODS),
        metavar="NAME",
        help=f"only these, and what they need (of {', '.join(METHODS)})",
    )
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to N-1 (default: 3)")
    parser.add_argument(
        "--first-seed",
        type=int,
        default=0,
        metavar="N",
        help="leave out the seeds before N; several processes may share the work, a seed or a case each",
    )
    parser.add_argument("--steps", type=int, help="of each run (default: 300 from scratch, 20 continual)")
    parser.add_argument("--share", type=float, help="of the corpus's training text that is used (default: 0.1)")
    parser.add_argument("--scratch", default="4x128", help="size of the model from scratch (default: 4x128)")
    parser.add_argument("--report", action="store_true", help="only write the report of the runs that are there")
    arguments = parser.parse_args()
    if arguments.judge:
        print(markdown(judge_again(arguments.judge)))
        return
    if arguments.corpus is None:
        parser.error("--corpus: give the directory that `dynadapt corpus build` made")
    if not 0 <= arguments.first_seed < arguments.seeds:
        raise SystemExit(f"first-seed {arguments.first_seed}: give one from 0 to {arguments.seeds - 1}, under --seeds {arguments.seeds}")
    torch.set_num_threads(min(torch.get_num_threads(), 2))
    with going_on(arguments.out):
        for name in arguments.case if not arguments.report else ():
            train(name, arguments)
    write_done(arguments)
    print((arguments.out / "results.md").read_text())


def prepared(name: str, arguments) -> Case:
    case = cases(arguments.steps)[name]
    domains = subset(arguments.corpus, arguments.out / "texts", arguments.share or case.share)
    model = small_vocabulary(domains, arguments.out / "vocabulary", case.vocabulary) if case.vocabulary else case.config.model
    changes = {"scratch": arguments.scratch} if case.config.scratch else {}
    changes |= {"rows": arguments.rows} if arguments.rows else {}
    return replace(case, config=replace(case.config, domains=domains, model=model, **changes))


def train(name: str, arguments) -> None:
    """Seed by seed, so that what is there at any time is whole seeds and the beginning of one."""
    case = prepared(name, arguments)
    for seed in range(arguments.first_seed, arguments.seeds):
        study = Study(case, arguments.out / name / f"seed-{seed}", seed)
        print(f"{name}, seed {seed}: {case.config.steps} steps of {case.config.rows * case.config.segment} tokens", flush=True)
        for method in arguments.mixers:
            if reason := study.left_out(method):
                print(f"    {method}: left out; {reason}", flush=True)
            else:
                study.finish(method)


def write_done(arguments) -> None:
    """results.json, results.md and results.png of what is done so far."""
    found = {}
    for folder in sorted(arguments.out.glob("*/seed-*")):
        study = Study(cases(None)[folder.parent.name], folder, int(folder.name.removeprefix("seed-")))
        for path in sorted(folder.glob("*/judged.json")):
            row = read_json(path)
            found.setdefault(folder.parent.name, []).append({**row, "flops": study.flops(row["method"])})
    if not found:
        raise SystemExit(f"{arguments.out}: no run is finished yet")
    settings = {name: _settings(arguments.out / name) for name in found}
    reports = {name: {**report(rows, settings[name]["rows"]), "fits": fits(arguments.out / name)} for name, rows in found.items()}
    results = {
        "corpus": corpus_facts(arguments.corpus),
        "settings": settings,
        "cases": reports,
        "runs": {name: [_short(row) for row in rows] for name, rows in found.items()},
    }
    write_results(arguments.out, rounded(results), markdown(results["cases"]))
    draw_comparison(results["cases"], arguments.out / "results.png")


def judge_again(path: Path) -> dict:
    """The cases of a results file, their comparisons and verdicts made anew from its runs and kept there."""
    results = read_json(path)
    for name, case in results["cases"].items():
        case.update(rounded(verdicts(results["runs"][name], results["settings"][name]["rows"])))
    write_json(path, results)
    return results["cases"]


def fits(folder: Path) -> dict:
    """How the fitted targets of a case compare with what the `proportional` runs ended with, over all seeds and domains."""
    errors, inside, refused = [], 0, 0
    for seed in sorted(folder.glob("seed-*")):
        whole, fitted = seed / "proportional" / "summary.json", seed / "sample" / "targets.json"
        refused += (seed / "sample" / "refused.txt").exists()
        if whole.exists() and fitted.exists():
            ended, found = read_json(whole)["heldout"], read_json(fitted)
            errors += [found["target"][domain] - loss for domain, loss in ended.items()]
            inside += sum(found["interval"][domain][0] <= loss <= found["interval"][domain][1] for domain, loss in ended.items())
    return {
        "predictions": len(errors),
        "inside": inside,
        "refused_seeds": refused,
        "mean_error": sum(errors) / len(errors) if errors else None,
        "mean_absolute_error": sum(map(abs, errors)) / len(errors) if errors else None,
    }


def _short(row: dict) -> dict:
    """What the results keep of a run."""
    return {name: row[name] for name in ("method", "seed", "mean", "tokens", "test", "targets_from")}


def rounded(content):
    """Floats to six decimals, wherever they are: nats and shares are not known better."""
    if isinstance(content, dict):
        return {key: rounded(value) for key, value in content.items()}
    if isinstance(content, list):
        return [rounded(value) for value in content]
    return round(content, 6) if isinstance(content, float) else content


def _settings(folder: Path) -> dict:
    """What all runs of a case share, without the paths of this machine."""
    first = read_json(sorted(folder.glob("seed-*/*/config.json"))[0])
    own = ("domains", "corpus", "model", "mixer", "settings", "target", "reference", "seed", "evaluate", "steps")
    return {key: value for key, value in first.items() if key not in own}


if __name__ == "__main__":
    main()
