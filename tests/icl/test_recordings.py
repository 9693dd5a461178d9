"""Training in context as a GPU replays it, with recordings that a CPU pretends."""

from contextlib import contextmanager, nullcontext

import torch

from dynadapt.experiments.icl.config import TrainConfig
from dynadapt.experiments.icl.train import Trainer

SMALL = dict(preset="test", dims=3, points=6, layers=1, hidden=32, heads=2, positions=12, batch=2, steps=20, log=10, device="cpu")


class Graph:
    """Replays what was captured, and says so."""

    captured: list["Graph"] = []

    def __init__(self):
        self.replays = 0
        Graph.captured.append(self)

    def register_generator_state(self, generator):
        pass

    def replay(self):
        self.replays += 1


def test_steps_are_captured_again_behind_a_buffer_that_has_grown(monkeypatch):
    """A graph holds the address that the buffer had."""

    @contextmanager
    def capturing(graph, stream):
        yield

    monkeypatch.setattr(Graph, "captured", [])
    for name, pretended in {
        "CUDAGraph": Graph,
        "graph": capturing,
        "stream": lambda stream: nullcontext(),
        "current_stream": lambda: stream,
    }.items():
        monkeypatch.setattr(torch.cuda, name, pretended)
    stream = type("Stream", (), {"wait_stream": lambda *_: None})()
    trainer = Trainer(TrainConfig(**SMALL))
    trainer.begin_interval(0)
    trainer.stream = stream
    for _ in range(3):  # as it is, captured, replayed
        trainer._on_gpu(6)
    (first,) = Graph.captured
    assert first.replays == 2
    workspace = trainer.regressor.workspace
    name, dtype = next(iter(workspace.buffers))
    workspace(name, 2 * workspace.buffers[name, dtype].numel(), dtype=dtype)
    for _ in range(2):
        trainer._on_gpu(6)
    assert first.replays == 2 and [graph.replays for graph in Graph.captured] == [2, 2]
