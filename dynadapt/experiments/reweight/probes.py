"""OP-Mix: a LoRA probe of each domain, and models of mixtures as sums of the probes' products on one base.

K probes are K streams of one engine: a step is K rows, one of each probe, with one pass over the shared weights and an adapter of its own for each row; an
update comes after `rows` of them, with their mean gradient. The model of a mixture is W + scale sum_i a_i B_i A_i, formed in float32 and scored like any
other. Interpolating the products is what the authors do; a mean of the A and of the B would be another model.

As in the authors' code (michahu/op-mix@aa60707, pipeline/pretrain_opm.py): rank 16 and alpha 32 on the linears of the layers, no warm-up, twice the
training's rate, a tenth of its steps, 0.9 of a probe's rows of its own domain and the others of the old mixture, 20 mixtures of a flat Dirichlet
distribution, a log-linear law, a penalty of 0.05 times the divergence from the prior. Chosen otherwise, or where it is silent:
  - what a law sees is the mixture of rows that an interpolation stands for, own x a + (1 - own) x prior, as in their code for continual training; the least
    is looked for on the whole simplex, a little beyond;
  - no further probe of the old mixture: with the same domains before and after, that is the sum of the others with the prior's weights;
  - coefficients a are drawn around the run's initial weights, not flat, where these are not equal (--spread);
  - the rate is the run's own where the run trains adapters; constant, where theirs has the schedule of the training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from dynadapt.adapt import LoRA
from dynadapt.engine import Engine
from dynadapt.engine.learners.peft import adapted_modules, halves_of
from dynadapt.experiments.dyneval import optimizer_of
from dynadapt.experiments.mixers import Exhausted
from dynadapt.model import Model
from dynadapt.runs.rundir import RunDirectory, RunError, read_json, write_json

from .config import ReweightConfig
from .domains import Domain
from .sampler import Sampler, heldout_order
from .search_config import SearchConfig


def measure(
    config: ReweightConfig,
    how: SearchConfig,
    directory: RunDirectory,
    model: Model,
    domains: Sequence[Domain],
    coefficients: np.ndarray,
    prior: np.ndarray,
    checkpoint: int,
    stop,
    progress: Callable[[dict], None],
) -> dict:
    """{"mixtures", "losses" [N, K], "flops"} of interpolations with these coefficients [N, K]."""
    probes = Probes(config, how, directory, model, domains, prior)
    probes.learn(checkpoint, stop, progress)
    losses, flops = [], {"probes": sum(probes.engine.ledger.totals.values()), "merging": 0, "heldout": 0}
    folder = directory.path / "mixtures"
    folder.mkdir(exist_ok=True)
    for index, row in enumerate(coefficients):
        known = folder / f"{index:03d}.json"
        if not known.exists():
            if stop.signal:
                raise stop.reason(f"after mixture {index} of {len(coefficients)}")
            write_json(known, {"coefficients": row.tolist(), **probes.score(row)})
        found = read_json(known)
        losses.append([found["heldout"][domain.name] for domain in domains])
        for what, value in found["flops"].items():
            flops[what] += value
        stop.tell(progress, {"kind": "mixture", "mixture": index, "heldout": found["heldout"]})
    mixtures = how.own * coefficients + (1.0 - how.own) * prior
    return {"mixtures": mixtures.tolist(), "losses": losses, "flops": flops}


class Probes:
    """One adapter a domain, learned side by side."""

    def __init__(
        self, config: ReweightConfig, how: SearchConfig, directory: RunDirectory, model: Model, domains: Sequence[Domain], prior: np.ndarray
    ):
        self.config, self.how, self.directory, self.model, self.domains = config, how, directory, model, domains
        names, sizes = [domain.name for domain in domains], {domain.name: len(domain.train) for domain in domains}
        self.steps = how.steps(config)
        shares = how.own * np.eye(len(names)) + (1.0 - how.own) * prior  # [K, K] of a probe's rows
        self.shares = [dict(zip(names, row.tolist())) for row in shares]
        self.samplers = [Sampler(sizes, config.policy, config.seed * 1009 + probe + 1) for probe in range(len(names))]
        self.engine = Engine(
            model,
            adapt=LoRA(rank=how.probe_rank),
            optimizer=optimizer_of(replace(config, lr=how.rate(config))),
            streams=len(names),
            segment=config.segment,
            every=config.rows,
            accumulate=True,
            dtype=config.dtype,
            backend=config.backend,
            device=config.device,
            seed=config.seed,
        )
        self.step = 0
        if directory.state:
            self.step = directory.state["segments"]
            for sampler, state in zip(self.samplers, directory.state["supplies"]):
                sampler.supply.load_state_dict(state)
            self.engine.restore(directory.checkpoint / "engine")

    def learn(self, checkpoint: int, stop, progress: Callable[[dict], None]) -> None:
        """To the end, saving every `checkpoint` steps and there; Interrupted between two steps."""
        tell = partial(stop.tell, progress)
        while self.step < self.steps:
            if stop.signal:
                self._save()
                raise stop.reason(f"after step {self.step} of the probes")
            line = self._update()
            self.directory.append(line)
            tell(line)
            if checkpoint and self.step % checkpoint == 0 and self.step < self.steps:
                self._save()
        if self.directory.state is None or self.directory.state["segments"] < self.step:
            self._save()

    def _update(self) -> dict:
        """`rows` rows of each probe, then its update."""
        try:
            drawn = [sampler.draw(self.step, self.config.rows, share) for sampler, share in zip(self.samplers, self.shares)]
        except Exhausted as reason:
            raise RunError(f"step {self.step + 1} of the probes: {reason}; give a smaller --part, more text, or --policy repeat") from None
        rows = {domain.name: domain.train for domain in self.domains}
        total, skipped = np.zeros(len(self.domains)), 0
        for row in range(self.config.rows):
            tokens = np.stack([rows[name][index] for name, index in (probe[row] for probe in drawn)])  # [K, T + 1]
            total += self.engine.step(torch.from_numpy(tokens)).double().mean(1).cpu().numpy()
            skipped += int(sum(self.engine.last.skipped))
        if not np.isfinite(total).all():
            raise RunError(
                f"step {self.step + 1} of the probes: scores are not finite: training diverged at rate {self.how.rate(self.config):g}; take a smaller "
                "--probe-lr, or --dtype fp32"
            )
        self.step += 1
        losses = dict(zip((domain.name for domain in self.domains), (total / self.config.rows).tolist()))
        return {"kind": "probes", "step": self.step, "losses": losses, "skipped": skipped}

    def _save(self) -> None:
        supplies = [sampler.supply.state_dict() for sampler in self.samplers]
        self.directory.save(self.engine, {"segments": self.step, "supplies": supplies})

    def score(self, coefficients: np.ndarray) -> dict:
        """{"heldout": nats by domain, "flops": {"merging", "heldout"}} of the interpolation with these coefficients [K]."""
        config = self.config
        merged, merging = merged_model(self.engine, coefficients)
        engine = Engine(
            merged, streams=config.rows, segment=config.segment, dtype=config.dtype, backend=config.backend, device=config.device
        )
        heldout = {}
        for index, domain in enumerate(self.domains):
            chosen = heldout_order(len(domain.heldout), config.heldout_rows, config.seed, index)
            parts = [chosen[first : first + config.rows] for first in range(0, len(chosen), config.rows)]
            scores = [engine.score(torch.from_numpy(np.stack([domain.heldout[row] for row in part]))) for part in parts]
            heldout[domain.name] = float(torch.cat(scores).double().mean())
        return {"heldout": heldout, "flops": {"merging": merging, "heldout": sum(engine.ledger.totals.values())}}


def merged_model(engine: Engine, coefficients: np.ndarray) -> tuple[Model, int]:
    """(model, FLOPs of its products): the engine's with sum_i coefficients[i] scale B_i A_i added to each adapted linear.

    A linear is read when it is asked for, each time anew; its FLOPs are those of one reading, K products and their sum.
    """
    base, step = engine.model, engine.driver.step
    halves: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    flops = 0
    for stream, coefficient in enumerate(coefficients.tolist()):
        learner = step.learner(stream)
        for adapted in adapted_modules(learner, engine.config):
            A, Bt = halves_of(learner, learner.state.master[step.slot(stream)], adapted)
            scaled = (coefficient * adapted.scale * Bt.t().float(), A.float())
            halves.setdefault(f"layers.{adapted.layer}.{adapted.part}.weight", []).append(scaled)
            flops += 2 * Bt.shape[1] * A.shape[0] * A.shape[1] + Bt.shape[1] * A.shape[1] if coefficient else 0

    def read(name: str) -> torch.Tensor:
        weight = base.tensor(name)
        if name not in halves:
            return weight
        B, A = (torch.cat(parts, dim) for parts, dim in zip(zip(*halves[name]), (1, 0)))  # [O, K R], [K R, I]
        return (weight.to(B.device).float() + B @ A).to(weight.device)

    identity = lambda sampled: base.fingerprint(sampled).encode() + coefficients.tobytes()  # noqa: E731
    return Model(engine.config, f"{base.name}, interpolated", read, identity, lambda: base.tokenizer), flops
