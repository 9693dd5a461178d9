"""What ``Engine.step`` and its kin are given, checked before anything changes."""

from __future__ import annotations

import torch

from dynadapt.common.checks import is_integer, number, sequence, token_ids, wrong


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


def check_weights(weights, rows: int) -> list[float]:
    expected = f"{rows} finite numbers of at least 0"
    values = sequence("weights", weights, expected)
    if len(values) != rows:
        raise wrong("weights", values, expected)
    try:
        return [float(number("weights", value, expected)) for value in values]
    except ValueError:
        raise wrong("weights", values, expected) from None


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
