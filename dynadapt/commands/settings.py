"""The options of `dynadapt eval`, one for each field of EvalConfig; other commands take them too."""

from __future__ import annotations

import argparse
from dataclasses import fields

from dynadapt.experiments.config import CHOICES, LEARNING_RATES, ConfigError, EvalConfig, parse_layers, parse_reset

HELP = {
    "model": "a name that `dynadapt fetch` knows, a Hugging Face directory, a GGUF file, a PEFT adapter's directory, or a hub id (org/name) in "
    "the Hugging Face cache",
    "text": "files (each a document), directories of them, .jsonl or .parquet (each line or row a document), any of them as .gz, "
    "- for standard input, or builtin:python-reference, builtin:python-source",
    "field": "of .jsonl, .json and .parquet: the key or column that holds the text",
    "tokens": "read only the first N tokens, over all texts (default: all)",
    "adapt": "what learns: nothing, low-rank adapters, the rows with the largest gradients, or whole weights",
    "rank": "rank of the low-rank adapters",
    "alpha": "the adapters are scaled by alpha / rank (default: twice the rank)",
    "targets": "which linear weights learn; with --adapt full also model: every parameter there is",
    "layers": "learn only in layers A to B-1 (default: all)",
    "density": "with --adapt rows: share of each weight's rows that learn",
    "segment": "tokens scored, and then learned from, at a time",
    "memory": "tokens of earlier segments kept as keys and values, 0 for none (default: 512; fewer or none where the model's positions "
    "leave no room, or with --context)",
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
    "dtype": "arithmetic; masters of what learns are float32 (fp64: on the reference backend, for checks; auto: bf16 on GPUs and on "
    "processors with AVX512-BF16, else fp32, which is faster there)",
    "backend": "native kernels on the CPU, Triton and CUDA kernels on a GPU, or the plain reference",
    "device": "cpu, cuda or cuda:N; auto takes the GPU where there is one",
    "batch": "streams that go through the layers together, 0 for all; fewer take less memory and score the same",
    "recompute": "make norm outputs and activations again in backward instead of keeping them: less memory, a little more time",
    "base": "frozen linear weights in the arithmetic of --dtype, or in float8 with a scale per row",
    "seed": "seed of the adapters' first values",
}
METAVAR = {
    "text": "FILE",
    "statistics": "FILE",
    "tokens": "N",
    "layers": "A:B",
    "reset": "never|document|N|auto",
    "lr": "X",
    "alpha": "X",
    "every": "K",
}


def _argument_type(convert):
    """argparse reports an ArgumentTypeError's own words."""

    def parse(value):
        try:
            return convert(value)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def add_config_options(parser: argparse.ArgumentParser, **defaults) -> None:
    """One option for each field of EvalConfig, with its default, or the command's own in `defaults`."""
    types = {
        "text": str,
        "tokens": int,
        "memory": int,
        "layers": _argument_type(parse_layers),
        "reset": _argument_type(parse_reset),
        "lr": float,
        "alpha": float,
    }
    types.update({f.name: type(f.default) for f in fields(EvalConfig) if f.name not in types})
    for field in fields(EvalConfig):
        name, default = field.name, defaults.get(field.name, field.default)
        settings = {"help": HELP[name].partition(" (default: ")[0] if name in defaults else HELP[name], "default": default}
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
                rates = "; ".join(
                    f"{adapt}: " + ", ".join(f"{key} {rate:g}" for key, rate in by.items()) for adapt, by in LEARNING_RATES.items()
                )
                settings["help"] += f" (default: {rates})"
            elif default is not None:
                settings["help"] += f" (default: {default})"
        parser.add_argument(f"--{name}", **settings)


def log_name(name: str) -> str:
    """The type of --log: refuses a log that there is none of, or whose package is not installed."""
    from dynadapt.runs.logs import check_logs

    return _argument_type(lambda name: check_logs([name])[0])(name)


def add_log_option(parser: argparse.ArgumentParser, type=log_name) -> None:
    """--log NAME, which may be given several times, as `arguments.logs`: a tuple, for the `log` of a run's options."""
    parser.add_argument(
        "--log",
        "--log-to",
        dest="logs",
        type=type,
        action=_AppendLog,
        default=(),
        metavar="NAME",
        help="show every line of metrics.jsonl in wandb, trackio or tensorboard too; can be given several times (under "
        "torchrun, whose own options begin with --log, as --log-to)",
    )


class _AppendLog(argparse.Action):
    def __call__(self, parser, namespace, value, option=None):
        if isinstance(value, int):  # `icl train --log 100`, as --log-every was called
            namespace.log = value
        else:
            namespace.logs = tuple(dict.fromkeys((*namespace.logs, value)))


def config_from(arguments) -> EvalConfig:
    content = {field.name: getattr(arguments, field.name) for field in fields(EvalConfig)}
    return EvalConfig(**{**content, "text": tuple(content["text"])})
