"""Training a regressor on fresh prompts: `dynadapt icl train`.

A step draws prompts, predicts, learns (model.py); all of it happens on the device, and between two logging points the host
neither waits for it nor looks at a number. On a GPU a step is one CUDA graph for each number of points, data and rate included.

A run may be killed at any instruction: resumed, its prompts, losses and weights are the same, bit for bit. It may go on on another kind
of device, where it draws other prompts from the same distribution; env.json says from which step on.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dynadapt.common.digests import sync_tree
from dynadapt.common.environment import peak_memory_bytes
from dynadapt.experiments.dyneval import Interrupted, interruptible
from dynadapt.runs.checkpoints import read_state, saved_states
from dynadapt.runs.rundir import RunDirectory, RunError, disk_error
from dynadapt.runs.stopping import CALLBACK
from dynadapt.runs.whole_files import discard, note, os_error

from .applicable_baselines import in_own_units
from .by_name import make_baseline
from .config import TrainConfig, trained_on
from .evaluate import curves
from .function_class import FunctionClass, IclError
from .inputs import Inputs
from .linear import NoisyLinear
from .model import Regressor, Weights
from .prompts import draw
from .unit_variance import own_units

DIVERGED = 100.0  # times the error of predicting zero


@dataclass(frozen=True)
class TrainOptions:
    """How a run is kept, as opposed to what it computes.

    checkpoint: steps between saves, 0 for none but the last; keep: steps between weights that stay (weights/STEP.safetensors),
    0: none; minutes: stop after so many, with a checkpoint, None: never; log: names of logs that see every line of metrics too
    (runs/logs.py).
    """

    resume: bool = False
    checkpoint: int = 5000
    keep: int = 0
    minutes: float | None = None
    log: tuple[str, ...] = ()


class Trainer:
    """The device's part of a run: prompts, steps, and what is to be logged of them.

    errors [log, points + 1]: by step since the last logging point, mean squared errors by number of examples and the gradient's
    norm.
    """

    def __init__(self, config: TrainConfig):
        self.config, self.kind, self.inputs = config, config.kind(), config.distribution()
        if type(self.inputs).queries is not Inputs.queries:
            raise IclError(f"inputs {config.inputs!r}: they ask at points of their own, which is a test and no way to train; give another")
        self.regressor = Regressor(
            config.geometry(), config.optimizer(), dtype=config.dtype, backend=config.backend, device=config.device, seed=config.seed
        )
        device = self.regressor.device
        self.generator = torch.Generator(device).manual_seed(config.seed)
        zeros = lambda *shape, dtype=torch.float32: torch.zeros(shape, dtype=dtype, device=device)  # noqa: E731
        self.rates, self.cursor = zeros(config.log), zeros(1, dtype=torch.int64)
        self.errors = zeros(config.log, config.points + 1, dtype=self.regressor.decoder.stat_dtype)
        self.dims, self.points = config.dims_ramp(), config.points_ramp()
        self.active = zeros(dtype=torch.int64) if self.dims.done else None  # the curriculum's dimensions
        self.runs: dict[int, int] = {}
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, int]] = {}  # and how often the workspace had grown when it was captured
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def begin_interval(self, step: int) -> None:
        """The rates of the steps from here to the next logging point, and an empty log."""
        rate = self.config.rate()
        rates = torch.tensor([rate.at(min(step + i, self.config.steps - 1)) for i in range(self.config.log)])
        self.rates.copy_(rates.pin_memory() if self.stream else rates, non_blocking=True)
        self.cursor.zero_()

    def step(self, step: int) -> None:
        """Training step 0, 1, ...; nothing waits for the device. ``regressor.ledger.step`` then has what it cost."""
        if self.active is not None and (step == 0 or step % self.dims.every == 0):
            self.active.fill_(self.dims.at(step))
        points = self.points.at(step)
        if self.stream is None:
            return self._body(points)
        with torch.cuda.device(self.regressor.device):
            self._on_gpu(points)

    def _on_gpu(self, points: int) -> None:
        """For each number of points the first step compiles kernels and makes buffers, and the second is captured; again where a buffer has
        given way to a larger one since, whose address the graph would not have."""
        graph, grown = self.graphs.get(points, (None, 0))
        if graph is not None and grown == self.regressor.workspace.grown:
            return graph.replay()
        self.runs[points] = self.runs.get(points, 0) + 1
        if self.runs[points] == 1:
            current = torch.cuda.current_stream()
            self.stream.wait_stream(current)
            with torch.cuda.stream(self.stream):
                self._body(points)
            current.wait_stream(self.stream)
            return
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        with torch.cuda.graph(graph, stream=self.stream):
            self._body(points)
        self.graphs[points] = graph, self.regressor.workspace.grown
        graph.replay()

    def _body(self, points: int) -> None:
        r = self.regressor
        r.ledger.begin_step()
        with r.with_scratch():
            drawn = draw(self.kind, self.config.batch, points, self.generator, inputs=self.inputs, active=self.active)
            torch.index_select(self.rates, 0, self.cursor, out=r.lr)
            row = r.learn(drawn.x, drawn.y).mean(0, keepdim=True)  # [1, points]
            self.errors[:, :points].index_copy_(0, self.cursor, row)
            self.errors[:, -1].index_copy_(0, self.cursor, r.norm.to(row.dtype))
            self.cursor.add_(1)

    def save(self, directory) -> None:
        self.regressor.save(directory)
        state = {"rates": self.rates, "errors": self.errors, "cursor": self.cursor, "generator": self.generator.get_state()}
        if self.active is not None:
            state["active"] = self.active
        save_file({name: t.cpu() for name, t in state.items()}, str(Path(directory) / "trainer.safetensors"))

    def restore(self, directory, step: int) -> bool:
        """What ``save`` wrote after so many steps. False: on another kind of device, whose generator draws other prompts: from here on those of
        a seed that comes of the run's and the step."""
        self.regressor.restore(directory)
        state = load_file(str(Path(directory) / "trainer.safetensors"))
        drawn, same = state.pop("generator"), True
        if drawn.shape == self.generator.get_state().shape:
            self.generator.set_state(drawn)
        else:
            self.generator.manual_seed(((step << 20) + self.config.seed) % 2**63)
            same = False
        for name, value in state.items():
            getattr(self, name).copy_(value)
        return same


def train(
    config: TrainConfig, out: str | Path, options: TrainOptions = TrainOptions(), progress: Callable[[dict], None] | None = None
) -> dict:
    """Trains to the end, or on to the end with options.resume; returns the summary.

    1. Look at the run directory (a finished one is returned as it is), make the model, go back to the last checkpoint. Nothing is
       written before.
    2. Steps; at every `config.log` of them a line of metrics.jsonl, and a checkpoint where one is due.
    3. Errors by number of examples of the model and of baselines, on prompts of each class: summary.json.

    progress is called with each line of metrics; it can stop the run as that of dyneval.run can. Raises IclError, RunError (a run that diverges among them), Interrupted.
    """
    return train_together({"": (config, out, options)}, None if progress is None else lambda name, line: progress(line))[""]


def train_together(
    runs: Mapping[str, tuple[TrainConfig, str | Path, TrainOptions]],
    progress: Callable[[str, dict], None] | None = None,
    at_once: int | None = None,
) -> dict[str, dict]:
    """``train`` for several runs (config, directory, options) by name in one process, a step of each in turn; their summaries by name.

    Each run is to the bit what it is alone. On a GPU each has a stream of its own: a small model's kernels fill a small part of the
    card, and those of several run beside each other. at_once: so many at a time, in their order; None: all. What can't begin is
    refused before anything has begun. A run that fails stops no other: a note says so, and what it raised is raised when the others have
    ended, of several the first. progress is called with a run's name and its line of metrics; it, a signal and the end of the minutes stop all of
    them, and one that had to wait is then not begun. Seconds and steps a second of a run are those of a run among these, and the peaks of
    memory the process's.
    """
    if at_once is not None and at_once < 1:
        raise IclError(f"at_once {at_once}: give at least 1, or None for all")
    _refuse_shared({name: out for name, (_, out, _) in runs.items()})
    told = (lambda name, line: None) if progress is None else progress
    found, going, directories = {}, {}, []
    try:
        for name, (config, out, options) in runs.items():
            directories.append(RunDirectory(out, config.to_dict(), options.resume, False, options.log, may_change=("device",)))
            if directories[-1].finished:
                found[name] = directories[-1].finished
            else:
                going[name] = _Run(config, options, directories[-1], waits=at_once is not None and len(going) >= at_once)
        _begin(going)
        with interruptible() as stop:
            steps = {name: run.steps(partial(stop.tell, partial(told, name)), stop) for name, run in going.items()}
            stopped = _in_turn(steps, going, found, at_once or len(runs))
        if stopped:
            raise _first(stopped, len(runs))
        if stop.signal not in (None, CALLBACK):  # it came while the last summary was made
            raise stop.reason("after the last step")
        return {name: found[name] for name in runs}
    finally:
        for directory in directories:
            directory.close()


def _refuse_shared(places: Mapping[str, str | Path]) -> None:
    """RunError where two runs have the same directory."""
    names: dict[Path, str] = {}
    for name, place in places.items():
        other = names.setdefault(Path(place).resolve(), name)
        if other != name:
            raise RunError(f"{place} is the directory of {other!r} and of {name!r}; choose another for one of them")


def _begin(going: dict[str, _Run]) -> None:
    """All of them, or none: of what was made for those before one that can't be nothing stays."""
    try:
        for run in going.values():
            run.directory.begin(device=str(run.trainer.regressor.device))
    except BaseException:
        for run in going.values():
            run.directory.abandon()
        raise


def _in_turn(steps: dict, going: dict[str, _Run], found: dict[str, dict], at_once: int) -> list[tuple[int, Exception]]:
    """Steps of the first so many runs in turn, until each is finished or stopped; after how many steps which were stopped, and by what. A run that has
    ended keeps neither its model nor its lock."""
    stopped, several = [], len(steps) > 1
    while steps:
        for name in list(steps)[:at_once]:
            run = going[name]
            with run.on_its_stream():
                try:
                    if next(steps[name], None) is not None:
                        continue
                    found[name] = run.finish()
                except Exception as error:
                    stopped.append((run.step, error))
                    if several and not isinstance(error, Interrupted):
                        note(f"{name} failed: {error}")
            del steps[name], going[name]
            run.directory.close()
    return stopped


def _first(stopped: list[tuple[int, Exception]], runs: int) -> Exception:
    """What is raised of these: the first failure; where all were asked to stop, that, with how far how many of so many runs are."""
    first = next((error for _, error in stopped if not isinstance(error, Interrupted)), stopped[0][1])
    if runs == 1 or not isinstance(first, Interrupted):
        return first
    steps = sorted({step for step, _ in stopped})
    reached = " to ".join(f"{step:,}" for step in dict.fromkeys((steps[0], steps[-1])))
    return Interrupted(first.why, f"with {runs - len(stopped)} of {runs} runs finished, the others after {reached} steps")


class _Run:
    """One run between its checkpoints."""

    def __init__(self, config: TrainConfig, options: TrainOptions, directory: RunDirectory, waits: bool = False):
        self.config, self.options, self.directory, self.waits = config, options, directory, waits
        self.trainer = Trainer(config)
        self.end = math.inf if options.minutes is None else time.perf_counter() + 60 * options.minutes
        self.step, self.logged, self.seconds, self.line, self.flops = 0, 0, 0.0, None, None
        if directory.state:
            self.step, self.logged, self.seconds = (directory.state[key] for key in ("segments", "logged", "seconds"))
            self.line, self.flops = directory.state["line"], directory.state.get("flops")
            if not self.trainer.restore(directory.checkpoint / "engine", self.step):
                note(f"{directory.path} goes on on another kind of device, with other prompts than it would have had")
        else:
            self.trainer.begin_interval(0)
        self.saved = self.step
        if self.trainer.stream:
            self.trainer.stream.wait_stream(torch.cuda.current_stream(self.trainer.stream.device))  # on which the model was made

    def on_its_stream(self):
        """That of the trainer's captures, whose scratch memory (cuBLAS's) goes by the stream: of two runs that torch gave the same stream, which
        it does from some number on, one then waits for the other."""
        return torch.cuda.stream(self.trainer.stream) if self.trainer.stream else nullcontext()

    def finish(self) -> dict:
        return self.directory.finish(self._summary())

    def steps(self, progress, stop):
        """A generator that makes a step each time, until the last. Stopped, it saves and raises why."""
        config, self.began = self.config, time.perf_counter()
        if self.waits and self.began > self.end:
            self._stop(self._too_late)
        while self.step < config.steps:
            if stop.signal:
                self._stop(stop.reason)
            self.trainer.step(self.step)
            self.step += 1
            self.flops = dict(self.trainer.regressor.ledger.step)
            if self.step % config.log == 0 or self.step == config.steps:
                self._log(progress)
                due = self.options.checkpoint and self.step // self.options.checkpoint > self.saved // self.options.checkpoint
                self._keep()  # before the checkpoint after which it would not be made again
                if due or self.step == config.steps:
                    self._save()
                if time.perf_counter() > self.end and self.step < config.steps:
                    self._stop(self._too_late)
            yield self.step
        if stop.error:
            raise stop.error

    def _too_late(self, where: str) -> Exception:
        return Interrupted(f"stopped after {round(self.options.minutes, 2):g} minutes", where)

    def _stop(self, reason: Callable[[str], Exception]) -> None:
        if self.logged < self.step:
            self._check(self._read())  # what is saved must be sound
        if self.saved < self.step:
            self._save()
        raise reason(f"after step {self.step}")

    def _read(self) -> Tensor:
        """[steps since the last logging point, points + 1] float64; waits for the device."""
        return self.trainer.errors[: self.step - self.logged].cpu().double()

    def _check(self, rows: Tensor) -> Tensor:
        """The loss of each of these steps; RunError where training has diverged."""
        points = [self.trainer.points.at(step) for step in range(self.logged, self.step)]
        losses = torch.stack([row[:n].mean() for row, n in zip(rows, points)])
        sound = torch.isfinite(losses) & torch.isfinite(rows[:, -1]) & (losses < DIVERGED * self.trainer.kind.normaliser)
        if not sound.all():
            first = int((~sound).nonzero()[0])
            step, last = self.logged + first, self.directory.checkpoint
            kept = f"the last good checkpoint is {last}, of step {self.saved}" if last else "no checkpoint was written before"
            raise RunError(
                f"{self.directory.path}: training diverged at step {step}: squared error {float(losses[first]):g}, gradient norm "
                f"{float(rows[first, -1]):g}; {kept}. Take a smaller --lr, more --warmup or a --clip"
            )
        return losses

    def _log(self, progress) -> None:
        rows = self._read()
        now = time.perf_counter()
        losses = self._check(rows)
        seconds, self.began = now - self.began, now
        self.seconds += seconds
        steps, last = len(rows), self.step - 1
        points = self.trainer.points.at(last)
        same = [i for i in range(steps) if self.trainer.points.at(self.logged + i) == points]
        by_k = (rows[same, :points].mean(0) / self.trainer.kind.normaliser).tolist()
        loss = float(losses.mean())
        self.line = {
            "step": self.step,
            "loss": loss,
            "error": loss / self.trainer.kind.normaliser,
            "by_k": [round(value, 6) for value in by_k],
            "grad_norm": float(rows[:, -1].mean()),
            "dims": self.trainer.dims.at(last),
            "points": points,
            "lr": self.config.rate().at(last),
            "seconds": seconds,
            "total_seconds": self.seconds,
        }
        self.directory.append(self.line)
        self.logged = self.step
        self.trainer.begin_interval(self.step)
        progress(self.line)

    def _save(self) -> None:
        now = time.perf_counter()
        self.seconds, self.began = self.seconds + now - self.began, now
        state = {"segments": self.step, "logged": self.logged, "seconds": self.seconds, "line": self.line, "flops": self.flops}
        self.directory.save(self.trainer, state)
        self.saved, self.began = self.step, time.perf_counter()

    def _keep(self) -> None:
        """Weights that stay when the next checkpoint takes the place of this one."""
        every = self.options.keep
        if every and self.step // every > (self.step - self.config.log) // every:
            save_weights(self.trainer.regressor, weights_path(self.directory.path, self.step))

    def _summary(self) -> dict:
        config, r = self.config, self.trainer.regressor
        errors = {name: evaluate_class(r, kind, config) for name, kind in config.classes_by_name().items()}
        means = {name: (found["model"]["mean"], found["least_squares"]["mean"]) for name, found in errors.items()}
        above = {name: max(model - best for model, best in zip(*both)) for name, both in means.items()}
        return {
            "preset": config.preset,
            "steps": self.step,
            "prompts": self.step * config.batch,
            "errors": errors,
            "above_least_squares": above,
            "last": self.line,
            "seconds": self.seconds,
            "steps_per_second": self.step / self.seconds,
            "flops_last_step": self.flops or {},
            "parameters": r.parameters,
            "peak_memory_bytes": peak_memory_bytes(),
            "peak_gpu_memory_bytes": torch.cuda.max_memory_allocated(r.device) if r.device.type == "cuda" else None,
            "backend": r.backend,
            "device": str(r.device),
            "dtype": r.dtype,
        }


def evaluate_class(regressor: Regressor, kind: FunctionClass, config: TrainConfig) -> dict[str, dict]:
    """Normalised errors by number of examples of the model and of the baselines that fit the class, on the same new prompts."""
    predictors = {"model": lambda x, y, query: regressor.predict(x, y)}
    predictors.update({name: make_baseline(name) for name in ("zero", "averaging", "nearest_neighbours", "least_squares")})
    own, divisor = own_units(kind)
    if own.name == "sparse_linear":
        predictors["lasso"] = in_own_units(make_baseline("lasso"), divisor)
    if isinstance(own, NoisyLinear) and own.noise:
        predictors["ridge"] = in_own_units(make_baseline("ridge", penalty=own.noise**2), divisor)
    generator = torch.Generator().manual_seed(config.seed + 1)
    found = curves(predictors, kind, config.points, generator, inputs=config.distribution())
    return {name: curve.to_dict() for name, curve in found.items()}


# ---- finished and kept runs


def weights_path(run: str | Path, step: int) -> Path:
    return Path(run) / "weights" / f"{step:08d}.safetensors"


def save_weights(regressor: Regressor, path: Path) -> None:
    """By canonical name, whole or not at all. RunError when the disk fails."""
    temporary = path.parent / ".tmp"  # a directory: what a killed process leaves, and the writer of tensors, is in it
    try:
        path.parent.mkdir(exist_ok=True)
        discard(temporary)
        temporary.mkdir()
        save_file({name: t.cpu().contiguous() for name, t in regressor.weights().items()}, str(temporary / path.name))
        sync_tree(temporary)
        os.replace(temporary / path.name, path)
        sync_tree(path.parent, deep=False)
        sync_tree(path.parent.parent, deep=False)
        discard(temporary)
    except Exception as error:
        cause = os_error(error, path.parent.parent)
        discard(temporary)
        if cause is None:
            raise
        raise disk_error(cause, path) from error


def load_run(path: str | Path, step: int | None = None, *, device: str = "cpu", dtype: str | None = None) -> Regressor:
    """The regressor of a run directory as it was after `step` steps; None: at its last checkpoint. dtype None: the run's.

    RunError for a directory that holds no such run or no such step.
    """
    path = Path(path)
    config = trained_on(path)
    checkpoints = {int(p.name.partition("-")[0]): p for p in saved_states(path)}
    kept = {int(p.stem): p for p in (path / "weights").glob("*.safetensors")}
    if not checkpoints and not kept:
        raise RunError(f"{path} holds no checkpoint yet")
    wanted = max({**checkpoints, **kept}) if step is None else step
    if wanted not in {**checkpoints, **kept}:
        there = ", ".join(map(str, sorted({**checkpoints, **kept})))
        raise RunError(f"{path} has no weights of step {step}; it has those of {there}")
    weights = Weights(config.geometry(), _loaded(kept[wanted])) if wanted in kept else None
    regressor = Regressor(config.geometry(), config.optimizer(), weights, dtype=dtype or config.dtype, device=device, seed=config.seed)
    if weights is None:
        read_state(checkpoints[wanted])
        regressor.load({"master": _loaded(checkpoints[wanted] / "engine" / "state.safetensors")["master"]})
    return regressor


def _loaded(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path}: not readable as safetensors ({error})") from None
