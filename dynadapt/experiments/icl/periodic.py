"""Functions of one number that repeat: sinusoids and Fourier series. They read coordinate 0 of x and ignore the others, so that they
combine with classes of more dimensions."""

from __future__ import annotations

import math

from .function_class import FunctionClass, Functions, IclError, check_count, check_number, check_range, normal, uniform
from .lazy_torch import torch


class Sinusoid(FunctionClass):
    """y = a sin(w x + p): a and w uniform in `amplitude` and `frequency` (radians per unit of x), p uniform in 0 to 2 pi.

    The default amplitudes and frequency are those of Finn et al. (arXiv 1703.03400, with x ~ U(-5, 5) and p in 0 to pi). The ranges of
    Yadlowsky et al. are not known to us; give your own for frequencies outside the training mixture.
    """

    name = "sinusoid"

    def __init__(
        self, dims: int = 1, *, amplitude: tuple[float, float] = (0.1, 5.0), frequency: tuple[float, float] = (1.0, 1.0), scale: float = 1.0
    ):
        super().__init__(dims, scale=scale)
        self.amplitude = check_range(f"{self.name}: amplitude", amplitude, 0.0)
        self.frequency = check_range(f"{self.name}: frequency", frequency, 0.0)
        if self.amplitude[1] == 0.0:
            raise IclError(f"{self.name}: amplitude {amplitude!r}: every function would be zero")

    @property
    def normaliser(self) -> float:
        low, high = self.amplitude
        return (low * low + low * high + high * high) / 6  # E[a^2] / 2, whatever x, since the phase is uniform

    def sample(self, prompts, generator, *, active=None, dtype=None) -> Functions:
        ranges = {"amplitude": self.amplitude, "frequency": self.frequency, "phase": (0.0, 2 * math.pi)}
        return {key: uniform(generator, prompts, 1, low=low, high=high, dtype=dtype) for key, (low, high) in ranges.items()}

    def _values(self, functions, x):
        return functions["amplitude"] * torch.sin(functions["frequency"] * x[:, :, 0] + functions["phase"])


class FourierSeries(FunctionClass):
    """y = sum over n = 1..F of (a_n cos(n pi x / L) + b_n sin(n pi x / L)) / sqrt(F), a and b ~ N(0, 1), F uniform in 1..max_frequency.

    Panwar et al. (mdrpanwar/icl-bayesian-prism src/tasks.py, `standardize`): L = `period` = 5, max_frequency 10, x ~ U(-5, 5).
    """

    name, normaliser = "fourier_series", 1.0

    def __init__(self, dims: int = 1, *, max_frequency: int = 10, period: float = 5.0, scale: float = 1.0):
        super().__init__(dims, scale=scale)
        self.max_frequency = check_count(f"{self.name}: max_frequency", max_frequency)
        self.period = check_number(f"{self.name}: period", period, 0.0, above=True)

    def sample(self, prompts, generator, *, active=None, dtype=None) -> Functions:
        terms = torch.randint(1, self.max_frequency + 1, (prompts, 1), generator=generator, device=generator.device)  # F
        used = torch.arange(1, self.max_frequency + 1, device=generator.device) <= terms  # [B, max_frequency]
        size = used / terms.sqrt().to(dtype or torch.float32)
        return {key: normal(generator, prompts, self.max_frequency, dtype=dtype) * size for key in ("cosine", "sine")}

    def _values(self, functions, x):
        orders = torch.arange(1, self.max_frequency + 1, device=x.device, dtype=x.dtype)
        angle = x[:, :, :1] * orders * (math.pi / self.period)  # [B, N, max_frequency]
        summed = torch.cos(angle) @ functions["cosine"][:, :, None] + torch.sin(angle) @ functions["sine"][:, :, None]
        return summed.squeeze(2)
