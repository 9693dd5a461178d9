"""How a call is timed: warmed up, with a cold L2, by device events; the median and the 20% and 80% quantiles."""

from __future__ import annotations

import signal
import statistics
import time
from contextlib import contextmanager

import torch

from dynadapt.bench.quantiles import quantiles

FLUSH_BYTES = 512 << 20  # several times any L2


def spread(milliseconds: list[float]) -> dict:
    return {**quantiles(milliseconds, "_ms"), "runs": len(milliseconds)}


def evict(buffer: torch.Tensor) -> None:
    """Pushes all else out of the caches by reading: overwriting would leave lines that the timed call then has to write back."""
    buffer.sum()


class Timer:
    """``timer(call)`` -> its milliseconds (`spread`). On a GPU the call is captured in a CUDA graph where that is possible, as in
    the step itself, so that the host's launch time does not count; before each run something else is read through the L2."""

    def __init__(self, device: str, seconds: float = 0.25):
        self.device, self.seconds = device, seconds
        self.flush = torch.zeros(FLUSH_BYTES // 4, device=device) if device == "cuda" else None

    def __call__(self, call, cold: bool = True) -> dict:
        return self.made(lambda: call, cold)

    def made(self, make, cold: bool = True) -> dict:
        """Of the call that ``make`` returns. What it computes beforehand it computes on the stream of the capture: autograd runs a backward on
        the stream of its forward, and only what runs on the captured stream can be captured."""
        if self.device == "cpu":
            return self._on_cpu(make())
        replay, captured = capture(make)
        return {**self._on_gpu(replay, cold), "graph": captured, "cold_l2": cold}

    def _on_cpu(self, call) -> dict:
        times = []
        for _ in range(3):
            start = time.perf_counter()
            call()
            times.append(1e3 * (time.perf_counter() - start))
        return spread(times)

    def _on_gpu(self, call, cold) -> dict:
        once = self._round(call, 3, cold)
        count = int(min(300, max(10, 1e3 * self.seconds / (statistics.median(once) + 0.3))))
        return spread(self._round(call, count, cold))

    def _round(self, call, count, cold) -> list[float]:
        pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(count)]
        for start, end in pairs:
            if cold:
                evict(self.flush)
            torch.cuda._sleep(200_000)  # about 0.1 ms, in which the host gets ahead
            start.record()
            call()
            end.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) for start, end in pairs]


def capture(make):
    """(a call that replays from a CUDA graph the call that ``make`` returns, True), or (that call, False) where it cannot be captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call = make()
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=stream):
            call()
        graph.replay()
        torch.cuda.synchronize()
    except RuntimeError:
        torch.cuda.synchronize()
        return call, False

    def replay(_held=call):  # the graph has addresses of what the call holds
        graph.replay()

    return replay, True


@contextmanager
def within(seconds: float):
    """Raises TimeoutError in a block of the main thread that takes longer: between two calls of Python's, as an autotuner makes many."""

    def stop(*_):
        raise TimeoutError(f"took more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def comparable(theirs: dict, ours: dict) -> dict:
    """``theirs`` as a time beside ``ours``; without a median, and why, where one side is a graph's replay and the other pays for its launches."""
    if theirs.get("graph") == ours.get("graph"):
        return theirs
    how = {True: "from a graph", False: "without one"}
    said = f"not comparable: timed {how[theirs['graph']]}, ours {how[ours['graph']]}"
    return {
        **{name: value for name, value in theirs.items() if name != "median_ms"},
        "skipped": said,
        "not_comparable_ms": theirs["median_ms"],
    }
