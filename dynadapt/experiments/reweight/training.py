"""Training on several domains: a mixer moves their weights while the model learns.

A step draws its rows by the mixer's weights, scores them and learns from them (`Engine(shared=True)`: each score is made before
the update that saw its tokens). Every `evaluate` steps the held-out rows of each domain are scored with the weights of the
moment. What a mixer reads, and when, is its `signal` and `cadence`:
  train, after each step        the step's own scores, by domain;
  heldout, after an evaluation  the held-out losses;
  excess, at each step          scores less those of the reference model. DoReMi's weights act on the loss of the very step they
                                come from, so its rows are scored once more, ahead of the step (acts="sampling" needs no such
                                pass).

A run may be killed at any instruction: resumed, it draws the same rows, and its losses and weights are the same, bit for bit.

Several processes (torchrun) run as one: all draw the same rows, each learns from its share of them, gradients are averaged before
the update, and every process sees all rows' scores, so that all mixers move alike. The first alone writes (dynadapt/distributed).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from dynadapt.adapt.optimizers import OPTIMIZERS
from dynadapt.common.environment import peak_memory_bytes
from dynadapt.common.version import VERSION
from dynadapt.distributed import Processes, join
from dynadapt.distributed.learn import collected, connect
from dynadapt.engine.ledger import PHASES
from dynadapt.experiments.config import ConfigError
from dynadapt.experiments.defaults import note_usual_rate, settled_dtype
from dynadapt.experiments.dyneval import interruptible
from dynadapt.experiments.eval_totals import finite
from dynadapt.experiments.mixers import MIXERS, Exhausted, excess
from dynadapt.experiments.mixers.mixer import check_weights
from dynadapt.runs.rundir import Follower, RunDirectory, RunError, open_directory

from . import setup
from .config import ReweightConfig
from .control import check_control, check_inputs
from .domains import read_domains
from .heldout_power import check_rows
from .sampler import Sampler, heldout_order


@dataclass(frozen=True)
class ReweightOptions:
    """How a run is kept, as opposed to what it computes. checkpoint: steps between saves, 0 for none but the last.

    change: with resume, weights by domain that take the place of the mixer's from here on.
    shard: with several processes, each keeps a part of the masters and moments (distributed/sharded.py).
    log: names of logs that see every line of metrics too (runs/logs.py).
    """

    resume: bool = False
    checkpoint: int = 50
    change: dict[str, float] | None = None
    shard: bool = False
    log: tuple[str, ...] = ()


def run(
    config: ReweightConfig, out: str | Path, options: ReweightOptions = ReweightOptions(), progress: Callable[[dict], None] | None = None
) -> dict:
    """Trains to the end, or on to the end with options.resume; returns the summary.

    progress is called with each line of metrics.jsonl; it can stop the run as that of dyneval.run can. Raises ConfigError, MixerError, CorpusError, RunError, Interrupted; with
    several processes also ProcessError.
    """
    if options.change and not options.resume:
        raise RunError("changed weights: they are for a run that goes on (--resume); a new one takes its initial weights")
    with join() as processes:
        _check_processes(config, options, processes)
        config = replace(config, dtype=processes.from_first(lambda: settled_dtype(config, out, options.resume)))
        paths = processes.together(lambda: setup_paths(config))
        directory = open_directory(processes, out, config.to_dict(), options.resume, False, options.log)
        try:
            _check_change(options, directory)
            if directory.finished:
                return directory.finished
            processes.from_first(lambda: check_rows(config))
            engine, domains = processes.together(lambda: _prepare(config, processes))
            training = _Training(config, options, directory, engine, domains, processes)
            processes.from_first(lambda: directory.begin(domains=paths))
            training.change()
            return training.finish(progress or (lambda event: None))
        finally:
            directory.close()


def _check_change(options: ReweightOptions, directory: RunDirectory | Follower) -> None:
    if options.change and directory.finished:
        wanted = check_weights("changed weights", tuple(options.change), options.change).tolist()
        if dict(zip(options.change, wanted)) not in [change["weights"] for change in directory.finished["changes"][-1:]]:
            raise RunError(f"changed weights: {directory.path} is finished; they are for a run that goes on")
        return
    if options.change and not directory.state:
        raise RunError(f"changed weights: {directory.path} has no checkpoint to go on from; a new run takes its initial weights")


def _check_processes(config: ReweightConfig, options: ReweightOptions, processes: Processes) -> None:
    """Settings that need several processes, or other ones."""
    processes.same({**config.to_dict(), **asdict(options), "version": VERSION})
    if config.rows < processes.world:
        raise ConfigError(f"rows {config.rows} with {processes.world} processes: each needs one of them; give at least {processes.world}")
    if processes.world == 1 and (config.compress != "none" or options.shard):
        what = "shard" if options.shard else f"compress {config.compress!r}"
        raise ConfigError(f"{what} with one process: there is nobody to send gradients to; start several with torchrun, or leave it out")
    if options.shard and config.adapt != "full":
        raise ConfigError(f"shard with adapt {config.adapt!r}: only --adapt full has masters and moments worth spreading")
    if options.shard and config.compress == "powersgd":
        raise ConfigError("shard with compress 'powersgd': sharded gradients are summed in float32 or bf16; give none or bf16")
    if options.shard and OPTIMIZERS[config.optimizer]().rule().arithmetic.prepared:
        raise ConfigError(
            f"shard with optimizer {config.optimizer!r}: it moves matrices as wholes, which no process would have; give another"
        )


def _prepare(config: ReweightConfig, processes: Processes):
    """(engine, domains) of one process."""
    model = setup.load_model(config)
    note_usual_rate(config, model.config)
    domains = read_domains(config, model)
    setup.check_mixer(config, {domain.name: len(domain.train) for domain in domains})
    return setup.build_engine(model, config, processes.device(config.device)), domains


def setup_paths(config: ReweightConfig) -> dict[str, str]:
    """Refuses paths and weights of domains that aren't there, before a run directory is made."""
    from .domains import domain_paths

    check_control(config)
    paths = domain_paths(config)
    for name, path in paths.items():
        if not path.exists():
            raise ConfigError(f"domain {name!r}: {path}: no such file or directory")
    setup.check_mixer(config, dict.fromkeys(paths, 1))
    return {name: path.name for name, path in paths.items()}


class _Training:
    """One run between its checkpoints."""

    def __init__(
        self, config: ReweightConfig, options: ReweightOptions, directory: RunDirectory | Follower, engine, domains, processes: Processes
    ):
        self.config, self.options, self.directory, self.engine, self.processes = config, options, directory, engine, processes
        self.domains = {domain.name: domain for domain in domains}
        self.names = tuple(self.domains)
        self.sizes = {domain.name: len(domain.train) for domain in domains}
        self.sampler = Sampler(self.sizes, config.policy, config.seed)
        self.heldout = [heldout_order(len(domain.heldout), config.heldout_rows, config.seed, index) for index, domain in enumerate(domains)]
        compares = MIXERS[config.mixer].signal == "excess"
        self.reference = processes.together(
            lambda: setup.build_reference(config, engine.config.vocab_size, str(engine.device)) if compares else None
        )
        self.mixer, self.changing = None, False
        self.ended: str | None = None
        self.step, self.start, self.last = 0, None, None  # held-out losses before training, and of the last evaluation
        self.pending = dict.fromkeys(self.names, 0)  # tokens since the mixer's last update
        self.totals = {
            "tokens": dict.fromkeys(self.names, 0),
            "seconds": 0.0,
            "updates": 0,
            "skipped_updates": 0,
            "evaluations": 0,
            "evaluated": 0,  # how many, and the step of the last
            "flops": {**dict.fromkeys(PHASES, 0), "heldout": 0, "excess": 0},
            "changes": [],
        }
        self.digests = {name: domain.digest() for name, domain in self.domains.items()}
        texts = {f"the text of domain {name!r}": digest for name, digest in self.digests.items()}
        inputs = {"the model": engine.model.fingerprint(), "the tokenizer": engine.model.tokenizer.fingerprint(), **texts}
        if self.reference is not None:
            inputs["the reference model"] = setup.learned_digest(self.reference)
        processes.together(lambda: check_inputs(config, inputs))
        processes.same({**inputs, "backend": engine.backend})
        processes.from_first(lambda: directory.expect(inputs))
        if directory.state:
            processes.together(lambda: self._restore(directory.state))
        connect(
            engine,
            processes,
            config.compress,
            config.powersgd_rank,
            config.steps // 10,
            options.shard,
            directory.checkpoint and directory.checkpoint / "engine",
        )

    # ------------------------------------------------------------------------------------------------------- states

    def _build_mixer(self) -> None:
        self.mixer = setup.build_mixer(self.config, self.sizes, self.start, self.engine.config.vocab_size)
        self.ahead = getattr(self.mixer, "acts", "sampling") == "loss"  # weights act on the loss of the step they come from

    def _restore(self, state: dict) -> None:
        changed = [name for name in self.names if state["digests"].get(name) != self.digests[name]]
        if changed:
            raise RunError(f"domain {changed[0]!r} has changed since this run began")
        self.step, self.start, self.last = state["segments"], state["start"], state["last"]
        self.pending, self.totals = state["pending"], state["totals"]
        self._build_mixer()
        mixer = dict(state["mixer"])
        if self.options.change:
            weights = check_weights("changed weights", self.names, self.options.change).tolist()
            made = [change["weights"] for change in self.totals["changes"][-1:]]
            self.changing = dict(zip(self.names, weights)) not in made
            mixer["weights"] = weights if self.changing else mixer["weights"]
        self.mixer.load_state_dict(mixer)
        self.sampler.supply.load_state_dict(state["supply"])
        self.engine.restore(self.directory.checkpoint / "engine")

    def _save(self, anew: bool = False) -> None:
        if self.mixer is None or (not anew and self.directory.state and self.directory.state["segments"] == self.step):
            return
        with collected(self.engine) as state:
            self.directory.save(
                state,
                {
                    "segments": self.step,
                    "start": self.start,
                    "last": self.last,
                    "pending": self.pending,
                    "totals": self.totals,
                    "mixer": self.mixer.state_dict(),
                    "supply": self.sampler.supply.state_dict(),
                    "digests": self.digests,
                },
            )

    def change(self) -> None:
        """Weights that were changed on the way here are part of the run from now on. The same command again, after a stop, goes on
        with what it changed."""
        if self.changing:
            self.totals["changes"].append({"step": self.step, "weights": self.mixer.weights})
            self._save(anew=True)

    # ------------------------------------------------------------------------------------------------------ the run

    def finish(self, progress: Callable[[dict], None]) -> dict:
        with interruptible() as stop:
            tell = partial(stop.tell, progress)
            if self.start is None:
                self._evaluate(tell)
            self._loop(tell, stop)
            if stop.error or stop.signal and not self.ended and self.step < self.config.steps:
                if self.options.checkpoint:
                    self._save()
                raise stop.reason(f"after step {self.step}")
            if not self.step:
                raise RunError(f"no step was made: {self.ended}")
            self._save()
            return self.directory.finish(self._summary())

    def _loop(self, progress, stop) -> None:
        while self.step < self.config.steps and not self._stopped(stop):
            began = time.perf_counter()
            try:
                drawn = self.sampler.draw(self.step, self.config.rows, self.mixer.sampling)
            except Exhausted as reason:
                self.ended = str(reason)
                break
            line = self._train(drawn)
            line["seconds"] = time.perf_counter() - began
            self.totals["seconds"] += line["seconds"]
            line["total_seconds"] = self.totals["seconds"]
            self.directory.append(line)
            progress(line)
            if self.step % self.config.evaluate == 0 or self.step == self.config.steps:
                self._evaluate(progress)
            if self.options.checkpoint and self.step % self.options.checkpoint == 0:
                self._save()
        if self.ended and self.totals["evaluated"] < self.step:
            self._evaluate(progress)

    def _stopped(self, stop) -> bool:
        """Whether any process was asked to stop. A signal that arrives while they agree counts the next time."""
        agreed = self.processes.any(stop.signal or 0)
        stop.signal = agreed or stop.signal
        return bool(agreed)

    def _train(self, drawn: list[tuple[str, int]]) -> dict:
        """One step; returns its line of metrics, times aside."""
        config, engine = self.config, self.engine
        tokens = torch.from_numpy(np.stack([self.domains[name].train[row] for name, row in drawn]))
        owners = np.array([self.names.index(name) for name, _ in drawn])
        count = {name: config.segment * sum(owner == index for owner in owners.tolist()) for index, name in enumerate(self.names)}
        in_force, rate = self.mixer.weights, config.rate(self.step)
        flops, factors, reference = {}, None, None
        if self.reference is not None:
            reference = self._scores(self.reference, tokens, flops, "excess")
        if self.reference is not None and self.ahead:
            self._mix(self._excess(self._scores(engine, tokens, flops, "excess"), reference, owners), count)
            in_force = self.mixer.weights
            by_domain = self.mixer.token_weights({name: n for name, n in count.items() if n})
            factors = [by_domain[name] for name, _ in drawn]
        engine.set_lr(0, rate)
        own = self.processes.share(len(drawn))
        nll = engine.step(tokens[own.start : own.stop], streams=own, weights=self._shares(factors, own))
        nll = self.processes.rows(nll.double().cpu(), len(drawn)).numpy()
        report = engine.last
        self._check_finite(nll)
        self.step += 1
        losses = {name: float(nll[owners == index].mean()) for index, name in enumerate(self.names) if count[name]}
        if self.reference is not None and not self.ahead:
            self._mix(self._excess(nll, reference, owners), count)
        elif self.reference is None:
            self._gather(count)
            if self.mixer.cadence == "step":
                self._mix(losses)
        flops = self.processes.counts({**flops, **{phase: int(report.flops.get(phase, 0)) for phase in PHASES}})
        updated, skipped = bool(report.updated[own.start]), bool(report.skipped[own.start])
        self._count(count, flops, updated, skipped)
        return {
            "kind": "step",
            "step": self.step,
            "tokens": int(nll.size),
            "total_tokens": sum(self.totals["tokens"].values()),
            "loss": float(nll.mean()),
            "losses": losses,
            "drawn": {name: n // config.segment for name, n in count.items()},
            "rows": [list(pair) for pair in drawn],
            "weights": in_force,
            "notes": list(self.mixer.notes),
            "lr": rate,
            "grad_norm": finite(report.grad_norm[own.start]),
            "skipped": skipped,
            "flops": flops,
        }

    def _shares(self, factors: list[float] | None, own: range) -> list[float] | None:
        """What this process's rows count in its mean loss, so that the mean over processes is the mean over all rows."""
        share = len(own) * self.processes.world / self.config.rows
        if factors is None:
            return None if share == 1 else [share] * len(own)
        return [share * factors[row] for row in own]

    def _scores(self, engine, tokens: torch.Tensor, flops: dict, what: str) -> np.ndarray:
        """[R, T] float64, with what they cost added to flops[what]."""
        own = self.processes.share(len(tokens))
        nll = torch.zeros(0, tokens.shape[1] - 1, dtype=torch.float64)
        flops.setdefault(what, 0)
        if own:
            nll = engine.score(tokens[own.start : own.stop]).double().cpu()
            flops[what] += sum(engine.ledger.step.values())
        return self.processes.rows(nll, len(tokens)).numpy()

    def _excess(self, proxy: np.ndarray, reference: np.ndarray, owners: np.ndarray) -> dict[str, float]:
        return excess(proxy.ravel(), reference.ravel(), owners.repeat(proxy.shape[1]), self.names)

    def _gather(self, count: dict[str, int]) -> None:
        for name, n in count.items():
            self.pending[name] += n

    def _mix(self, losses: dict[str, float], count: dict[str, int] | None = None) -> None:
        """An update of the mixer with the tokens since the last one. In a step that isn't counted yet, `count` are its own."""
        step = self.step
        if count is not None:
            self._gather(count)
            step = self.step + 1 if self.ahead else self.step
        self.mixer.update(step, losses, self.pending)
        self.pending = dict.fromkeys(self.names, 0)

    def _count(self, count: dict[str, int], flops: dict[str, int], updated: bool, skipped: bool) -> None:
        for name, n in count.items():
            self.totals["tokens"][name] += n
        for phase, value in flops.items():
            self.totals["flops"][phase] += value
        self.totals["updates"] += updated
        self.totals["skipped_updates"] += skipped

    def _check_finite(self, nll: np.ndarray) -> None:
        if not np.isfinite(nll).all():
            raise RunError(
                f"the scores of step {self.step + 1} are not finite: training diverged at lr "
                f"{self.config.learning_rate:g}; take a smaller --lr, a smaller --clip, or --dtype fp32. "
                f"What was done before is in {self.directory.path}"
            )

    # -------------------------------------------------------------------------------------------------- evaluations

    def _evaluate(self, progress) -> None:
        """Held-out losses with the weights of the moment; the first one, before training, also makes the mixer."""
        began, flops, losses, by_row = time.perf_counter(), {}, {}, {}
        for name, chosen in zip(self.names, self.heldout):
            rows, total, by_row[name] = self.domains[name].heldout, [], []
            for first in range(0, len(chosen), self.config.rows):
                tokens = torch.from_numpy(np.stack([rows[row] for row in chosen[first : first + self.config.rows]]))
                scores = self._scores(self.engine, tokens, flops, "heldout")
                total.append(scores.sum())
                by_row[name] += [round(float(value), 6) for value in scores.mean(1)]  # reweight/paired.py reads them
            losses[name] = float(math.fsum(total) / (len(chosen) * self.config.segment))
        flops = self.processes.counts(flops)
        if not all(map(math.isfinite, losses.values())):
            raise RunError(
                f"held-out losses at step {self.step} are not finite ({losses}): training diverged; take a smaller --lr, or --dtype fp32"
            )
        self.last = losses
        if self.start is None:
            self.start = losses
            self._build_mixer()
        elif self.mixer.cadence != "step" and sum(self.pending.values()):
            self._mix(losses if self.mixer.signal == "heldout" else {})
        seconds = time.perf_counter() - began
        self.totals["seconds"] += seconds
        self.totals["flops"]["heldout"] += flops["heldout"]
        self.totals["evaluations"] += 1
        self.totals["evaluated"] = self.step
        line = {
            "kind": "evaluation",
            "step": self.step,
            "total_tokens": sum(self.totals["tokens"].values()),
            "heldout": losses,
            "heldout_rows": by_row,
            "mean": math.fsum(losses.values()) / len(losses),
            "change": {name: losses[name] - self.start[name] for name in self.names},
            "velocity": getattr(self.mixer, "velocity", None),
            "weights": self.mixer.weights,
            "notes": list(self.mixer.notes),
            "seconds": seconds,
            "total_seconds": self.totals["seconds"],
            "flops": {"heldout": flops["heldout"]},
        }
        self.directory.append(line)
        progress(line)

    def _summary(self) -> dict:
        totals, mixer = self.totals, self.mixer
        tokens = sum(totals["tokens"].values())
        mean = lambda losses: math.fsum(losses.values()) / len(losses)  # noqa: E731
        return {
            "mixer": mixer.name,
            "steps": self.step,
            "ended": self.ended or "all steps are made",
            "tokens": tokens,
            "tokens_by_domain": totals["tokens"],
            "epochs": self.sampler.supply.epochs,
            "heldout_start": self.start,
            "heldout": self.last,
            "mean_start": mean(self.start),
            "mean": mean(self.last),
            "weights": mixer.weights,
            "average_weights": mixer.average,
            "static_weights": mixer.static_weights,
            "changes": totals["changes"],
            "seconds": totals["seconds"],
            "tokens_per_second": tokens / totals["seconds"],
            "flops": totals["flops"],
            "flops_per_token": sum(totals["flops"][phase] for phase in PHASES) / tokens,
            "evaluations": totals["evaluations"],
            "updates": totals["updates"],
            "skipped_updates": totals["skipped_updates"],
            "learned_parameters": int(self.engine.learned_parameters),
            "peak_memory_bytes": peak_memory_bytes(),
            "peak_gpu_memory_bytes": (torch.cuda.max_memory_allocated(self.engine.device) if self.engine.device.type == "cuda" else None),
            "processes": self.processes.world,
            "backend": self.engine.backend,
            "device": str(self.engine.device),
            "dtype": self.engine.dtype,
            "model": self.engine.model.name,
        }
