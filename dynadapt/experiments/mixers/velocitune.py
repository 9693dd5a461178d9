"""Velocitune (arXiv 2411.14318): domains that learn slowly get more weight.

    V_i = clamp((loss_i - target_i) / (start_i - target_i), 0, 1)        how much of the way to its target domain i still has to go
    w_i <- w_i exp(V_i) / sum_j w_j exp(V_j)                             at every evaluation

loss_i is the held-out loss now, start_i the base model's before training, target_i what the scaling-law fit predicts for the whole
training set (dynadapt/experiments/scaling_fit.py). Initial weights are the data's own proportions. The paper gives the update no
step size and no smoothing; `Shaping` has both (its `step` is an eta that multiplies V), and a floor.

Only differences between velocities count, and they add up: 20 updates with V 0.2 apart change the odds of two domains e^4 = 55 times.
Two cases that the paper leaves open need a decision here:
  rising   a loss above its start. Clamped to V = 1, as published, such a domain gains weight for ever, although training on it hurts
           (the case of arXiv 2410.05581). "clamp" keeps that and notes it; "zero" gives it V = 0; "error" stops.
  flat     start_i - target_i under `least_headroom`: V is then noise over almost nothing. "error" refuses it, "zero" sets V = 0 for good.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .mixer import Mixer, MixerError, Shaping, by_domain, check_choice, check_number, reweighted


class Velocitune(Mixer):
    """start, target: nats per token by domain. least_headroom: nats. `velocity` are the last V, by domain; 1 before any."""

    name, signal, cadence = "velocitune", "heldout", "evaluation"
    _kept = ("velocity",)

    def __init__(
        self,
        domains: Sequence[str],
        initial: Mapping[str, float],
        *,
        start: Mapping[str, float],
        target: Mapping[str, float],
        rising: str = "clamp",
        flat: str = "error",
        least_headroom: float = 1e-3,
        shaping: Shaping = Shaping(),
    ):
        super().__init__(domains, initial, shaping)
        self.start = by_domain("start losses", self.domains, start, least=0.0)
        self.target = by_domain("target losses", self.domains, target, least=0.0)
        self.rising = check_choice("rising", rising, ("clamp", "zero", "error"))
        check_choice("flat", flat, ("error", "zero"))
        self.least_headroom = check_number("least_headroom", least_headroom, 0.0)
        headroom = self.start - self.target
        self.flat = headroom <= self.least_headroom
        for index in np.flatnonzero(self.flat) if flat == "error" else ():
            raise MixerError(
                f"target losses: domain {self.domains[index]!r} starts at {self.start[index]:.4f} and has target "
                f"{self.target[index]:.4f}; its headroom must be above {self.least_headroom:g} nats. Give another target, "
                "leave the domain out, or flat='zero' to give it velocity 0"
            )
        self._headroom = np.where(self.flat, 1.0, headroom)
        self._velocity = np.where(self.flat, 0.0, 1.0)

    @property
    def velocity(self) -> dict[str, float]:
        return self._named(self._velocity)

    def _rule(self, step, losses, tokens):
        velocity = np.clip((losses - self.target) / self._headroom, 0.0, 1.0)
        self._check_rising(losses, velocity)
        self._velocity = self._carried(np.where(self.flat, 0.0, velocity), self._velocity, "velocity")
        return reweighted(self._weights, self._velocity)

    def _check_rising(self, losses, velocity) -> None:
        """Changes velocity in place where a loss is above its start."""
        for index in np.flatnonzero((losses > self.start) & ~self.flat):
            what = f"{self.domains[index]}: held-out loss {losses[index]:.4f} is above the {self.start[index]:.4f} it started with"
            if self.rising == "error":
                raise MixerError(f"{what}; rising='clamp' or 'zero' goes on")
            if self.rising == "zero":
                velocity[index] = 0.0
            self._note(f"{what}; velocity {velocity[index]:g}" + (", so its weight keeps growing" if self.rising == "clamp" else ""))
