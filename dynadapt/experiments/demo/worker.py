"""A process that has torch loaded and forks one for each cell: `python -m dynadapt.experiments.demo.worker`, driven by cells.py.

Each cell is a process of its own, so that its peak memory is its own and its end ends nobody else, but none of them waits for an import.
A line of JSON on standard input is a request; the lines that answer it end with one that has "end", the exit status. The process that
forks starts no thread and touches no GPU, neither of which would survive in a child.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import warnings

from dynadapt.common.launch import end_with

WARM = 64  # tokens of the step before the one that is timed
EVENTS = 0.2  # seconds between two events


def main() -> None:
    wire = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no answer
    warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)  # the thread it finds is BLAS's, which minds forks itself
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the cell, which gets it too, stops; then this one is told to end
    try:
        import dynadapt.engine
        import dynadapt.experiments.dyneval
        import dynadapt.model  # noqa: F401
    except ImportError as error:
        return tell(wire, fatal=str(error))
    for line in sys.stdin:
        child = os.fork()
        if not child:
            serve(json.loads(line), wire)
        tell(wire, end=os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def tell(wire, **content) -> None:
    wire.write(json.dumps(content) + "\n")
    wire.flush()


def serve(request: dict, wire) -> None:
    """In the child: answers, and ends the process."""
    status = 1
    try:
        end_with(os.getppid())
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        warnings.showwarning = lambda message, *where, **more: print(f"dynadapt: note: {message}", file=sys.stderr)
        answer = {"look": look, "cell": cell}[request["what"]](request, wire)
        tell(wire, answer=answer)
        status = 0
    except KeyboardInterrupt:
        status = 130
    except Exception as error:  # noqa: BLE001  (all of it is told, and the next cell goes on)
        if isinstance(error, BrokenPipeError):
            os._exit(status)
        known = isinstance(error, (ValueError, OSError, ImportError)) or type(error).__module__.startswith("dynadapt")
        tell(wire, error=("" if known else f"{type(error).__name__}: ") + " ".join(str(error).split()))
    finally:
        sys.stderr.flush()
        os._exit(status)


def cell(request: dict, wire) -> None:
    from dynadapt.experiments.config import EvalConfig
    from dynadapt.experiments.dyneval import RunOptions, run

    shown = 0.0

    def progress(event: dict) -> None:
        nonlocal shown
        if time.monotonic() - shown > EVENTS:
            shown = time.monotonic()
            tell(wire, event={key: event[key] for key in ("segment", "fraction", "total_nll", "total_tokens", "total_seconds")})

    run(EvalConfig.from_dict(request["config"]), request["out"], RunOptions(resume=True, scores=True, checkpoint=0), progress)


def look(request: dict, wire) -> dict:
    """{"dtype", "rates"} that the machine and the model are given (rates: by what learns, where the model's family wants others than most), and where "time" is
    asked for also the seconds of a static and of a LoRA segment of this text, and "start": from nothing to the first segment."""
    begun = time.perf_counter()
    import dynadapt.model
    from dynadapt.experiments.config import EvalConfig
    from dynadapt.experiments.defaults import family_rates, settle

    config = EvalConfig.from_dict(request["config"])
    model = dynadapt.model.load(config.model)
    rates = family_rates(config.optimizer, model.config) if config.lr is None else {}
    config = settle(config, model.config)
    if not request["time"]:
        return {"dtype": config.dtype, "rates": rates}
    model.check_finite()
    tokens, spent, seconds = first_tokens(config, model), 0.0, {}
    for name, adapt in (("static", "none"), ("lora", "lora")):
        all_steps, seconds[name] = time_step(model, config.with_(adapt=adapt), tokens)
        spent += all_steps
    return {"dtype": config.dtype, "rates": rates, **seconds, "start": time.perf_counter() - begun - spent}


def first_tokens(config, model):
    """[1, T + 1] of the text."""
    import torch

    from dynadapt.runs.document_streams import Feed
    from dynadapt.runs.text import Document, Source, streaming_tokenizer

    source = Source(config.text[0])
    source.check()
    segment = Feed([Document(source)], streaming_tokenizer(model.tokenizer), 1, config.segment, None).next()
    return torch.from_numpy(segment.tokens[:, : int(segment.lengths[0]) + 1])


def time_step(model, config, tokens) -> tuple[float, float]:
    """(seconds of all steps made, seconds of one segment)."""
    from dynadapt.experiments.dyneval import build_engine

    engine = build_engine(model, config)
    gpu = engine.device.type == "cuda"  # where a new shape is compiled and captured first
    begun = time.perf_counter()
    for row in (tokens if gpu else tokens[:, : WARM + 1], tokens):
        start = time.perf_counter()
        engine.step(row).sum().item()
        if gpu:
            import torch

            torch.cuda.synchronize(engine.device)
    return time.perf_counter() - begun, time.perf_counter() - start


if __name__ == "__main__":
    main()
