"""How many streams a memory holds."""

from __future__ import annotations

from collections.abc import Callable

MOST = 1 << 20  # streams that are looked at


def most_streams(held: Callable[[int], int], capacity: float, most: int = MOST) -> int:
    """The largest number of streams n, up to ``most``, with held(n) <= capacity bytes; 0 where not even one fits.

    ``held`` grows with n. It is nearly a line, so the search begins where the line through two points meets the capacity, and
    widens from there until two numbers enclose the answer, which bisection then finds.
    """
    one = held(1)
    if one > capacity:
        return 0
    slope = max(1.0, (held(9) - one) / 8)
    low, high = 1, None  # held(low) fits, held(high) does not
    n, stride = max(2, min(most, 1 + int((capacity - one) / slope))), 1
    while high is None or high - low > 1:
        if held(n) <= capacity:
            low = n
            if n == most:
                return most
            n = min(most, n + stride) if high is None else (low + high) // 2
        else:
            high = n
            n = max(low + 1, n - stride) if high - low > 2 * stride else (low + high) // 2
        stride *= 2
    return low
