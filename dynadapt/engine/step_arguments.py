"""What ``Engine.step`` and its kin are given, checked before anything changes."""

from __future__ import annotations

import numpy as np
import torch

from dynadapt.common.checks import is_integer, number, sequence, shown, token_ids, wrong

from .plan import LossWeights


def check_ids(tokens: torch.Tensor, vocabulary: int, name: str = "tokens") -> None:
    low, high = (int(bound) for bound in torch.aminmax(tokens))
    if low < 0 or high >= vocabulary:
        raise ValueError(f"{name} hold ids {low}..{high}: expected 0..{vocabulary - 1}")


def _integers(name: str, values, count: int | None, most: int, what: str) -> list[int]:
    expected = f"{what} in 0..{most}"
    numbers = sequence(name, values, expected)
    if not all(is_integer(n) and 0 <= n <= most for n in numbers) or (count is not None and len(numbers) != count):
        raise wrong(name, numbers, expected)
    return [int(n) for n in numbers]


def check_stream(stream, streams: int) -> int:
    if not is_integer(stream) or not 0 <= stream < streams:
        raise wrong("stream", stream, f"0..{streams - 1}")
    return int(stream)


def check_streams(streams, count: int) -> list[int]:
    if streams is None:
        return list(range(count))
    numbers = _integers("streams", streams, None, count - 1, "different numbers")
    if len(set(numbers)) != len(numbers) or not numbers:
        raise wrong("streams", numbers, f"different numbers in 0..{count - 1}, at least one")
    return numbers


def check_lengths(lengths, rows: int, width: int) -> list[int]:
    return [width] * rows if lengths is None else _integers("lengths", lengths, rows, width, f"{rows} numbers")


def check_weights(weights, lengths: list[int], width: int, shared: bool, dtype: torch.dtype) -> LossWeights:
    """R numbers, or one a target [R, width], rounded to ``dtype``, each token's and so each row's part in what is learned.

    A row of numbers of its own is a mean over the tokens whose number isn't 0. A number of its row is a factor of its mean over all its
    tokens; where weights are shared, that is of its part in the mean over all rows' tokens.
    """
    rows = len(lengths)
    if not _nested(weights):
        expected = f"{rows} finite numbers of at least 0, or one for each of [{rows}, {width}] targets"
        factors = _factors(sequence("weights", weights, expected), rows, expected)
        return LossWeights(factors, [n if shared or factor > 0 else 0 for n, factor in zip(lengths, factors)])
    tokens = per_token("weights", weights, (rows, width), dtype, f", one a target, or [{rows}], one a row")
    if not bool((tokens >= 0).all()):
        row, place = (tokens < 0).nonzero()[0].tolist()
        raise ValueError(f"weights[{row}, {place}]={tokens[row, place].item():g}: expected finite numbers of at least 0")
    counted = [int(row[:n].count_nonzero()) for row, n in zip(tokens, lengths)]
    return LossWeights([1.0] * rows, counted, tokens)


def _nested(values) -> bool:
    """Whether there is a number for each token, not for each row."""
    if isinstance(values, (torch.Tensor, np.ndarray)):
        return values.ndim > 1
    return isinstance(values, (list, tuple)) and any(isinstance(row, (list, tuple, torch.Tensor, np.ndarray)) for row in values)


def _factors(values: list, rows: int, expected: str) -> list[float]:
    if len(values) != rows:
        raise wrong("weights", values, expected)
    try:
        return [float(number("weights", value, expected)) for value in values]
    except ValueError:
        raise wrong("weights", values, expected) from None


def per_token(name: str, values, shape: tuple[int, ...], dtype: torch.dtype, also: str = "") -> torch.Tensor:
    """A number for each token, as a tensor of ``shape`` and ``dtype`` on the host; of tensors, arrays and nested lists.

    Raises:
        ValueError: another shape, no numbers, or one that is not finite, naming its place.
    """
    expected = f"finite numbers {list(shape)}{also}"
    try:
        found = values.detach() if isinstance(values, torch.Tensor) else torch.from_numpy(np.array(_on_host(values)))
    except (TypeError, ValueError, RuntimeError):
        raise wrong(name, values, expected) from None
    if found.is_complex() or found.is_quantized or found.is_meta or found.layout != torch.strided:
        raise wrong(name, values, expected)
    if tuple(found.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(found.shape)}: expected {expected}")
    found = found.cpu()
    rounded = found.to(dtype, copy=True)
    if not bool(rounded.isfinite().all()):
        place = rounded.isfinite().logical_not().nonzero()[0].tolist()
        raise ValueError(f"{name}[{', '.join(map(str, place))}]={shown(found[tuple(place)].item())}: expected finite numbers")
    return rounded


def _on_host(values):
    """Tensors in lists as arrays, which numpy can join."""
    if isinstance(values, (list, tuple)):
        return [_on_host(value) for value in values]
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else values


def check_tokens(tokens, rows: int | None, longest: int, vocabulary: int, device: torch.device, looks: bool = True) -> torch.Tensor:
    """int64 [rows, 2..longest]; ``rows`` None: any number. Ids on a device are looked at only where ``looks``."""
    tokens = token_ids("tokens", tokens)
    if tokens.dim() != 2 or rows not in (None, tokens.shape[0]) or not 2 <= tokens.shape[1] <= longest:
        raise ValueError(f"tokens has shape {tuple(tokens.shape)}: expected [{'rows' if rows is None else rows}, 2..{longest}]")
    if tokens.device.type not in ("cpu", device.type):
        raise ValueError(f"tokens is on {tokens.device}: this engine works on {device.type}, and takes tokens from there or the CPU")
    if looks or tokens.device.type == "cpu":
        check_ids(tokens, vocabulary)
    return tokens
