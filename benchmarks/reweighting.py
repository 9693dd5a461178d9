"""Every mixer, and two searches for a mixture, over several seeds: does any beat stratified sampling, at equal tokens and at equal FLOPs?

    dynadapt corpus build --out corpus
    python benchmarks/reweighting.py --corpus corpus --out runs/reweighting                # goes on where it was stopped
    python benchmarks/reweighting.py --corpus corpus --out runs/1m --size 1m               # 1.3 million parameters, 10 tokens each
    python benchmarks/reweighting.py --corpus corpus --out runs/15m --size 15m             # 15.8 million parameters, 10 tokens each
    python benchmarks/reweighting.py --corpus corpus --out runs/15m --size 15m --report    # the tables of what is there

Two cases: "continual" trains adapters on SmolLM2-135M; "scratch" trains all of a small llama with a tokenizer of its own, made
from the training text. It tests two claims of Velocitune (arXiv 2411.14318):
  8. weights that follow learning velocity beat static proportions and distance-based reweighting;
  9. what a static run with Velocitune's average weights does (the control).
and puts beside it OP-Mix (arXiv 2605.15220) and regression over proxies (RegMix, Olmix), which look for a mixture beforehand.

What is compared is the mean over domains of the loss on test rows: documents that no mixer reads, the same for all mixers and
seeds. For each mixer, the difference to `stratified` and to its control is taken seed by seed (equal seeds share the random
numbers that draw rows, and the initial weights), and gets Student's interval over seeds. There are two judgements: at equal tokens
(the rule stands in dynadapt/experiments/reweight/compare.py), and at equal FLOPs, against stratified sampling that goes on for as long as
all that the method needed lasts (compare_flops.py; --tokens-only leaves it out).

A mixer that needs something made first gets it from runs of the same seed, and their FLOPs are counted as its own:
  targets    of velocitune and dynamic-batch-loading: a run at the data's proportions over a part of the tokens (`sample`),
             fitted and extrapolated to all of them. Where the fit refuses, targets are what the `proportional` run ends with:
             what the fit is to predict, known for once. Results say which methods had such targets; `velocitune-known` always
             has.
  reference  of DoReMi: the `proportional` run.
  weights    of op-mix and proxies: probes or small runs, their held-out losses, the merging and the fits (benchmarks/reweighting_study.py).
Controls (`X-average`) train on the average weights of run X; DoReMi's is what its paper trains the final model on.

The work is runs of a method and a seed, each in its own directory, finished ones kept: a command that was stopped, or killed, goes on with the
same command. Several processes may share it, a seed or a case each. docs/reweight.md says what a size takes.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from dynadapt.experiments.reweight import ReweightConfig, SearchConfig
from dynadapt.experiments.reweight.compare import draw_comparison, markdown, report
from dynadapt.experiments.reweight.compare import judged as verdicts
from dynadapt.experiments.reweight.compare_flops import bits_per_byte, flops_markdown, judged_by_flops, searches_markdown
from dynadapt.experiments.reweight.domains import read_domains
from dynadapt.experiments.reweight.setup import load_model
from dynadapt.runs.rundir import read_json, write_json

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.reweighting_apart import training_apart  # noqa: E402
from benchmarks.reweighting_begun import OWN, check_begun  # noqa: E402
from benchmarks.reweighting_data import check_judged, rounded, small_vocabulary, subset  # noqa: E402
from benchmarks.reweighting_fits import fits, fits_markdown  # noqa: E402
from benchmarks.reweighting_matched import match, put_in  # noqa: E402
from benchmarks.reweighting_study import METHODS, Case, Study  # noqa: E402
from benchmarks.reweighting_time import page as time_page  # noqa: E402
from benchmarks.reweighting_time import timed  # noqa: E402
from benchmarks.script import corpus_facts, going_on, parser_of, refuse_below, write_results  # noqa: E402

OF_A_SIZE = (  # what both claims and both searches need
    "stratified", "proportional", "velocitune", "velocitune-average", "dynamic-batch-loading", "odm", "op-mix", "proxies",
)  # fmt: skip


@dataclass(frozen=True)
class Size:
    """A comparison from scratch with 10 tokens a parameter; options that are given win. proxy: of the small models."""

    scratch: str
    proxy: str
    rows: int
    segment: int
    steps: int
    lr: float
    warmup: int


# docs/reweight.md has what each takes
SIZES = {
    "1m": Size("4x128", "2x64", rows=32, segment=128, steps=3200, lr=1.5e-3, warmup=50),
    "3m": Size("6x192", "2x64", rows=32, segment=128, steps=8400, lr=1.5e-3, warmup=100),
    "15m": Size("8x384", "4x128", rows=64, segment=256, steps=9600, lr=1e-3, warmup=200),
}


def cases(steps: int | None = None, size: str | None = None) -> dict[str, Case]:
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
    found = {
        "scratch": Case(
            scratch, share=0.1, updates=10, sample=0.5, sample_evaluations=10, test_rows=64, vocabulary=4096, proxy_size="2x64"
        ),
        "continual": Case(continual, share=0.1, updates=4, sample=0.5, sample_evaluations=6, test_rows=6),
    }
    if size:
        given, case = SIZES[size], found["scratch"]
        changes = {name: getattr(given, name) for name in ("scratch", "rows", "segment", "lr", "warmup")}
        config = replace(case.config, **changes, steps=steps or given.steps, heldout_rows=16)
        found = {"scratch": replace(case, config=config, share=1.0, updates=20, proxy_size=given.proxy)}
    return found


def main() -> None:
    parser = parser_of(__doc__, "runs/reweighting")
    parser.add_argument("--judge", type=Path, metavar="FILE", help="run nothing: judge the runs of a results file anew, in place")
    parser.add_argument("--rows", type=int, help="of a step (default: 8 from scratch, 4 continual)")
    parser.add_argument("--corpus", type=Path, help="directory that `dynadapt corpus build` made")
    parser.add_argument("--case", nargs="+", choices=("scratch", "continual"), help="(default: both; with --size from scratch)")
    parser.add_argument(
        "--size",
        choices=tuple(SIZES),
        help="from scratch with so many parameters and 10 tokens for each, on all of the corpus; docs/reweight.md says what it takes",
    )
    parser.add_argument(
        "--mixers",
        nargs="+",
        choices=list(METHODS),
        metavar="NAME",
        help=f"only these, and what they need (of {', '.join(METHODS)}; default: all, with --size {', '.join(OF_A_SIZE)})",
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
    parser.add_argument("--scratch", help="size of the model from scratch (default: 4x128)")
    parser.add_argument("--proxy", help="size of the small models of `proxies`, from scratch (default: 2x64)")
    parser.add_argument("--mixtures", type=int, help="measured by a search (default: 24, for up to 17 domains)")
    parser.add_argument("--tokens-only", action="store_true", help="leave out the longer stratified run that equal FLOPs need")
    parser.add_argument(
        "--equal-flops-of",
        type=Path,
        metavar="FILE",
        help="train only the longer stratified runs, for the methods of a results file whose runs are no longer here, and put the comparisons into it",
    )
    parser.add_argument(
        "--time",
        type=int,
        metavar="N",
        help="with --size: time N steps, say what a run and a seed take on this machine, and write OUT/time/results.json",
    )
    parser.add_argument("--report", action="store_true", help="only write the report of the runs that are there")
    arguments = parser.parse_args()
    if arguments.judge:
        with going_on(arguments.out):
            print(page(judge_again(arguments.judge)))
        return
    if arguments.corpus is None:
        parser.error("--corpus: give the directory that `dynadapt corpus build` made")
    refuse_below(parser, arguments, 1, "seeds", "steps", "rows", "mixtures")
    if not 0 <= arguments.first_seed < arguments.seeds:
        raise SystemExit(f"first-seed {arguments.first_seed}: give one from 0 to {arguments.seeds - 1}, under --seeds {arguments.seeds}")
    arguments.case = arguments.case or (["scratch"] if arguments.size else ["scratch", "continual"])
    arguments.mixers = arguments.mixers or list(OF_A_SIZE if arguments.size else METHODS)
    if arguments.size and "continual" in arguments.case:
        raise SystemExit(f"size {arguments.size!r} with case continual: a model that is loaded has its size; leave out one of the two")
    if arguments.time is not None and (arguments.time < 8 or not arguments.size):
        parser.error(f"--time {arguments.time}: give at least 8 steps, of which the first quarter is left out, and a --size")
    if arguments.time is not None and arguments.report:
        parser.error("--time and --report: one times steps, the other runs nothing; give one of them")
    torch.set_num_threads(min(torch.get_num_threads(), 2))
    with going_on(arguments.out):
        if arguments.time:
            print(time_page(timed(prepared("scratch", arguments), arguments.time, arguments.out)), end="")
            return
        if arguments.equal_flops_of:
            for name in arguments.case:
                if not arguments.report:
                    seeds = range(arguments.first_seed, arguments.seeds)
                    match(arguments.equal_flops_of, name, prepared(name, arguments), arguments.out, seeds)
                judged = put_in(arguments.equal_flops_of, name, arguments.out)
            print(page(judged))
            draw_comparison(judged, arguments.out / "results.png")
            return
        for name in arguments.case if not arguments.report else ():
            train(name, arguments)
        write_done(arguments)
    print((arguments.out / "results.md").read_text())


def prepared(name: str, arguments) -> Case:
    case = cases(arguments.steps, arguments.size)[name]
    domains = subset(arguments.corpus, arguments.out / "texts", case.share if arguments.share is None else arguments.share)
    model = small_vocabulary(domains, arguments.out / "vocabulary", case.vocabulary) if case.vocabulary else case.config.model
    changes = {"scratch": arguments.scratch} if case.config.scratch and arguments.scratch else {}
    changes |= {"rows": arguments.rows} if arguments.rows else {}
    own = {"proxy_size": arguments.proxy} if arguments.proxy and case.config.scratch else {}
    own |= {"mixtures": arguments.mixtures} if arguments.mixtures else {}
    return replace(case, config=replace(case.config, domains=domains, model=model, **changes), **own)


def train(name: str, arguments) -> None:
    """Seed by seed, so that what is there at any time is whole seeds and the beginning of one."""
    case = prepared(name, arguments)
    if any(METHODS[method].search for method in arguments.mixers):
        SearchConfig("proxies", mixtures=case.mixtures).check_for(case.config, len(case.config.domains))
    searches = {method: case.search(METHODS[method].search) for method in arguments.mixers if METHODS[method].search}
    check_begun(arguments.out / name, METHODS, case.config, searches)
    held = read_domains(case.config, load_model(case.config))  # while they are, no run of this process makes their tokens again
    for seed in range(arguments.first_seed, arguments.seeds):
        study = Study(case, arguments.out / name / f"seed-{seed}", seed)
        print(f"{name}, seed {seed}: {case.config.steps} steps of {case.config.rows * case.config.segment} tokens", flush=True)
        for method in arguments.mixers:
            if reason := study.left_out(method):
                print(f"    {method}: left out; {reason}", flush=True)
            else:
                study.finish(method)
        if not arguments.tokens_only:
            study.match_flops()
    del held


def write_done(arguments) -> None:
    """results.json, results.md and results.png of what is done so far."""
    found, searches = {}, {}
    check_judged(arguments.corpus, arguments.out / "texts")
    for folder in sorted(folder for case in cases() for folder in (arguments.out / case).glob("seed-*")):
        study = Study(cases()[folder.parent.name], folder, int(folder.name.removeprefix("seed-")))
        for path in sorted(folder.glob("*/judged.json")):
            row = read_json(path)
            more = {"flops": study.flops(row["method"]), "equal_flops": study.equal_flops(row["method"])}
            found.setdefault(folder.parent.name, []).append({**row, **more})
        for method, search in study.searches().items():
            searches.setdefault(folder.parent.name, {}).setdefault(method, []).append(search)
    if not found:
        raise SystemExit(f"{arguments.out}: no run is finished yet")
    settings = {name: _settings(arguments.out / name) for name in found}
    reports = {
        name: {
            **report(rows, settings[name]["rows"]),
            "fits": fits(arguments.out / name),
            "by_flops": judged_by_flops(rows, settings[name]["rows"]),
            "bits_per_byte": bits_per_byte(rows),
            "searches": searches.get(name, {}),
            "training_apart": training_apart(arguments.out / name),
        }
        for name, rows in found.items()
    }
    results = {
        "corpus": corpus_facts(arguments.corpus),
        "settings": settings,
        "cases": reports,
        "runs": {name: [_short(row) for row in rows] for name, rows in found.items()},
    }
    write_results(arguments.out, rounded(results), page(results["cases"]))
    draw_comparison(results["cases"], arguments.out / "results.png")


def page(cases: dict) -> str:
    """The tables of all cases: at equal tokens, at equal FLOPs, in bits per byte, and what the searches foresaw."""
    lines = []
    for name, found in cases.items():
        lines += [
            markdown({name: found}),
            *fits_markdown(found.get("fits")),
            *flops_markdown(found),
            *searches_markdown(found.get("searches", {})),
        ]
    return "\n".join(lines)


def judge_again(path: Path) -> dict:
    """The cases of a results file, their comparisons and verdicts made anew from its runs and kept there."""
    results = read_json(path)
    if not isinstance(results, dict) or not {"cases", "runs", "settings"} <= results.keys():
        raise SystemExit(f"--judge {path}: no results of this script")
    for name, case in results["cases"].items():
        rows, batch = results["runs"][name], results["settings"][name]["rows"]
        later = {"by_flops": judged_by_flops(rows, batch), "bits_per_byte": bits_per_byte(rows)}
        if not any(row.get("tokens_per_byte") for row in rows):  # of before there were these
            later = {}
        case.update(rounded({**verdicts(rows, batch), **later}))
    write_json(path, results)
    return results["cases"]


def _short(row: dict) -> dict:
    """What the results keep of a run."""
    kept = ("method", "seed", "mean", "tokens", "test", "targets_from", "epochs", "tokens_per_byte", "equal_flops")
    return {name: row[name] for name in kept if row.get(name) is not None or name == "targets_from"}


def _settings(folder: Path) -> dict:
    """What all runs of a case share, without the paths of this machine."""
    first = read_json(sorted(folder.glob("seed-*/*/config.json"))[0])
    return {key: value for key, value in first.items() if key not in (*OWN, "steps")}


if __name__ == "__main__":
    main()
