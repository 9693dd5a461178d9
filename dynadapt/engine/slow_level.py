"""The slow level of an engine: an engine of its own that learns from what was scored, and whose weights all streams read.

Tokens are kept as they are scored, in runs of consecutive tokens of one document. Once ``every`` of them are there, at the end of that step,
they are run again in windows, with the slow weights alone (no fast adapter, no memory), and one update follows their mean NLL. A score
depends on no later token and not on its own, but by this update on every document that was scored before, in any stream: with a slow level, S
streams are one stream of text in the order of the steps.

Between updates a step costs what it costs without: a learned product B A is added to the frozen weights when it changes (from the
weights as they were loaded, in float32, rounded once), and weights that learn whole are read where they learn.
"""

from __future__ import annotations

import copy
from dataclasses import asdict

import torch

from dynadapt.adapt.methods import LoRA
from dynadapt.adapt.resets import ChangePoint
from dynadapt.adapt.slow import Slow
from dynadapt.model.layout import group_parts
from dynadapt.ops import make_parts
from dynadapt.ops.precision import wide_dtype

from .learners.peft import adapted_modules, halves_of
from .weights import FrozenWeights, source_weight

SLOW_WINDOW = 1024  # tokens that are run together, where nothing else is said


class SlowLevel:
    """``learner``: the engine (one stream, no memory) whose adapter or weights are the slow level. ``weights``: what streams read."""

    def __init__(self, learner, slow: Slow, streams: int):
        self.learner, self.slow = learner, slow
        self.weights: FrozenWeights = copy.copy(learner.weights)
        self.weights.parts = dict(learner.weights.parts)
        self.runs: list[list[int]] = []  # token ids; of n + 1 ids n were scored
        self.open: list[int] = [-1] * streams  # the run that a stream's next segment goes on with
        self.merge()

    @property
    def kept(self) -> int:
        """Scored tokens that no update has used."""
        return sum(len(run) - 1 for run in self.runs)

    def end_document(self, stream: int) -> None:
        self.open[stream] = -1

    def keep(self, tokens: torch.Tensor, lengths: list[int], streams: list[int]) -> None:
        """Token ids [R, T+1] of a step, of which ``lengths`` were scored."""
        for row, count, stream in zip(tokens.tolist(), lengths, streams):
            if not count:
                continue
            at = self.open[stream]
            if at >= 0 and self.runs[at][-1] == row[0]:
                self.runs[at] += row[1 : count + 1]
            else:
                self.open[stream] = len(self.runs)
                self.runs.append(row[: count + 1])

    def windows(self) -> list[list[int]]:
        """What is run again: n + 1 ids each, n <= window, every scored token a target once."""
        most = self.learner.segment
        return [run[start : start + most + 1] for run in self.runs for start in range(0, len(run) - 1, most)]

    def update(self) -> dict[str, int]:
        """One update by all kept tokens, which are let go of. Returns its FLOPs by phase; its forward is work done again."""
        before, total = self.learner.flops, self.kept
        for window in self.windows():
            self.learner.forward_backward([window], weights=[(len(window) - 1) / total])
        self.learner.optim_step()
        self.runs, self.open = [], [-1] * len(self.open)
        done = {phase: n - before[phase] for phase, n in self.learner.flops.items()}
        done["recompute"] += done["forward"]
        return {**done, "forward": 0, "update": done["update"] + self.merge()}

    def merge(self) -> int:
        """Streams read the slow level as it is now. Returns the FLOPs of the products B A."""
        learner, given, flops = self.learner.learners[0], self.learner.settings, 0
        if not isinstance(given.adapt, LoRA):
            for key in learner.sizes:
                self.weights.parts[key] = learner.parts(*key)
            return 0
        config, wide = self.learner.config, wide_dtype(given.torch_dtype)
        adapted = {(one.layer, one.group, one.part): one for one in adapted_modules(learner, config)}
        for layer, group in learner.sizes:
            merged = []
            for p, part in enumerate(group_parts(config, layer, group)):
                weight = source_weight(self.learner.model, layer, group, p).to(wide)
                if (layer, group, part) in adapted:
                    one = adapted[layer, group, part]
                    A, Bt = halves_of(learner, learner.state.master[0], one)
                    weight = torch.add(weight, Bt.t().to(wide) @ A.to(wide), alpha=one.scale)
                    flops += 2 * one.rank * weight.numel()
                merged.append(weight.to(given.torch_dtype))
            self.weights.parts[layer, group] = make_parts(merged, given.backend, given.torch_dtype, given.device)
        return flops

    # ---- saving

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that going on bit for bit needs but what the learner's own state has."""
        ids = [token for run in self.runs for token in run]
        numbers = {"tokens": ids, "lengths": list(map(len, self.runs)), "open": [at + 1 for at in self.open]}
        counted = [self.learner.updates, self.learner.skipped_updates]
        return {name: torch.tensor(values, dtype=torch.int64) for name, values in {**numbers, "counts": counted}.items()}

    def load(self, tensors: dict[str, torch.Tensor], set_state) -> None:
        """``set_state`` puts the learner where its own tensors were taken."""
        ids, lengths = tensors["tokens"].tolist(), tensors["lengths"].tolist()
        starts = [sum(lengths[:i]) for i in range(len(lengths))]
        self.runs = [ids[start : start + n] for start, n in zip(starts, lengths)]
        self.open = [at - 1 for at in tensors["open"].tolist()]
        updates, skipped = tensors["counts"].tolist()
        stream = {"segments": 0, "since_reset": 0, "change": asdict(ChangePoint())}
        set_state(self.learner, tensors, {"streams": [stream], "updates": updates, "skipped_updates": skipped})
        self.merge()
