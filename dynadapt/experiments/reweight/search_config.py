"""Settings of a search for a mixture, beside those of the run that it is for."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from dynadapt.common.options import check, setting
from dynadapt.experiments.config import ConfigError

from .config import ReweightConfig, scratch_size

DECIDING = ("penalty", "unforeseen")  # they change no measurement: a search that was refused is decided anew with others
METHODS = ("op-mix", "proxies")
PROBES, PROXIES = {"method": ("op-mix",)}, {"method": ("proxies",)}


@dataclass(frozen=True)
class SearchConfig:
    """How a mixture is looked for: from probes interpolated (probes.py), or from small runs (proxies.py)."""

    method: str = setting("op-mix", "what is measured: probes of each domain interpolated, or a small run on each mixture", choices=METHODS)
    mixtures: int = setting(
        20, "how many mixtures are measured, at least two more than a law has numbers, one part of five left out", least=3
    )
    part: float = setting(0.1, "length of a probe or a proxy, as a share of --steps", above=0, most=1, what="a share")
    penalty: float = setting(0.05, "nats of the divergence from the initial weights, added to the mean loss that is minimised", least=0)
    unforeseen: str = setting(
        "refuse",
        "what happens when a domain's law foresees no better than its mean: the search is refused, or that domain is held at its mean",
        choices=("refuse", "hold"),
    )
    spread: float = setting(
        1.0,
        "mean parameter of the Dirichlet distribution around the initial weights that mixtures are drawn from; above 1 they lie closer to these",
        above=0,
    )
    own: float = setting(
        0.9, "share of a probe's rows that are of its domain; the others are drawn by the initial weights", above=0, most=1, needs=PROBES
    )
    probe_rank: int = setting(16, "rank of a probe, on every linear of the layers, with twice that for alpha", least=1, needs=PROBES)
    probe_lr: float | None = setting(
        None, "learning rate of the probes (default: the run's with --adapt lora, twice the run's else)", above=0, needs=PROBES
    )
    proxy: str | None = setting(
        None, "with --scratch: size of the proxies (default: the run's)", metavar="LAYERSxHIDDEN", what="LAYERSxHIDDEN", needs=PROXIES
    )

    def __post_init__(self):
        check(self)
        if self.proxy is not None:
            scratch_size(self.proxy, "proxy")

    def steps(self, config: ReweightConfig) -> int:
        """Of a probe or a proxy."""
        return max(1, round(self.part * config.steps))

    def rate(self, config: ReweightConfig) -> float:
        """Learning rate of the probes."""
        if self.probe_lr is not None:
            return self.probe_lr
        return config.learning_rate * (1.0 if config.adapt == "lora" else 2.0)

    def check_for(self, config: ReweightConfig, domains: int) -> None:
        """ConfigError for what can't be searched, before anything is loaded."""
        seen = self.mixtures - -(-self.mixtures // 5)  # foresight fits a law to four parts of five
        if seen < domains + 2:
            raise ConfigError(
                f"mixtures {self.mixtures} for {domains} domains: a law has {domains + 1} numbers and is fitted to {seen}, four parts of five; "
                f"give at least {-(-5 * (domains + 2) // 4)}"
            )
        if domains < 2:
            raise ConfigError("domains: one is given; a mixture is of at least two")
        for name, weight in {} if isinstance(config.weights, str) else config.weights.items():
            if weight == 0:
                raise ConfigError(
                    f"weights: domain {name!r} has {weight!r}: mixtures are drawn around the weights, so none would have any of it; give it a "
                    "weight above 0, or leave it out of the domains"
                )
        if self.method == "op-mix" and config.scratch:
            raise ConfigError(
                f"method 'op-mix' with scratch {config.scratch!r}: probes are learned on a model that has begun to learn; train the beginning, "
                "`dynadapt export` it, and name what that writes as --model"
            )
        if self.proxy is not None and not config.scratch:
            raise ConfigError(f"proxy {self.proxy!r} without scratch: a model that is loaded has its size; leave it out, or give --scratch")

    def to_dict(self, config: ReweightConfig) -> dict:
        """JSON-ready: what is measured. The run's own settings are under "run"; no mark of another kind of run stands at the top."""
        own = {name: value for name, value in asdict(self).items() if name not in DECIDING}
        return {"kind": "mixture", **own, "dtype": config.dtype, "run": config.to_dict()}
