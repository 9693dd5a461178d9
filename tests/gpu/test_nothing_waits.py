"""The host reads nothing of the device's around a recorded step: seen on a CPU, where no read waits and none is refused."""

import torch
from pytest import importorskip, mark
from torch.utils._python_dispatch import TorchDispatchMode

importorskip("triton")
from triton.runtime import interpreter  # noqa: E402

from dynadapt import SGD, Adam, Engine, Full, LoRA, Muon, Overlap, RowSparse, SegmentMemory  # noqa: E402
from dynadapt.model import random_model, tiny_config  # noqa: E402

from .compare import DEVICE  # noqa: E402

MODEL = random_model(tiny_config("llama"), seed=0, std=0.1)
T = 3
pytestmark = mark.skipif(DEVICE != "cpu", reason="on a GPU torch itself refuses what waits (test_step.py)")
ASKING = ("tolist", "item", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__")
# what shows in torch's own ops: numbers, and results whose size hangs on numbers
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique_dim", "_unique2", "repeat_interleave")


def tensors_of(root) -> list[torch.Tensor]:
    """All that an object holds, through its attributes, dicts and lists."""
    found, seen, waiting = [], set(), [root]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, torch.Tensor):
            found.append(one)
        elif isinstance(one, dict):
            waiting += one.values()
        elif isinstance(one, (list, tuple, set)):
            waiting += one
        elif type(one).__module__.startswith("dynadapt"):
            waiting += vars(one).values() if hasattr(one, "__dict__") else []
    return found


class OfTheDevice(TorchDispatchMode):
    """As if some tensors were on a device: ``read`` lists where the host asks for their numbers, or for those of what came of them."""

    def __init__(self, tensors):
        super().__init__()
        self.kept, self.read = [], []  # kept: no address is given to another tensor
        self.places = set()
        self.mark(tensors)

    def mark(self, tensors) -> None:
        for t in tensors:
            self.kept.append(t)
            self.places.add(t.untyped_storage().data_ptr())

    def holds(self, t) -> bool:
        return isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() in self.places

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        leaves = torch.utils._pytree.tree_leaves((args, kwargs or {}))
        name, of_device = function.overloadpacket.__name__, any(map(self.holds, leaves))
        if of_device and name in WAITING:
            self.read.append(name)
        made = function(*args, **(kwargs or {}))
        if of_device:
            self.mark(t for t in torch.utils._pytree.tree_leaves(made) if isinstance(t, torch.Tensor))
        return made

    def watch(self, patch) -> None:
        """Also reads that pass by torch's ops, which those of a tensor on the CPU do."""
        for name in ASKING:
            patch.setattr(torch.Tensor, name, self._noting(name, getattr(torch.Tensor, name)))

    def _noting(self, name, own):
        def asked(tensor, *args, **kwargs):
            if self.holds(tensor):
                self.read.append(name)
            return own(tensor, *args, **kwargs)

        return asked


def engine(**options):
    plain = {"adapt": LoRA(2), "optimizer": Adam(lr=0.01), "memory": SegmentMemory(3, 1), "streams": 2, "segment": T, "dtype": "fp32"}
    return Engine(MODEL, **{**plain, **options}, backend="triton", device="cpu", static=True)


def text(seed):
    return torch.randint(MODEL.config.vocab_size, (2, T + 1), generator=torch.Generator().manual_seed(seed))


def reads_of(e, monkeypatch, call) -> list[str]:
    device = OfTheDevice(tensors_of([e.driver, e.learners, e.lr, e.guarding, e.workspace]))
    with monkeypatch.context() as patch:
        device.watch(patch)
        with device:
            call()
    return device.read


OPTIONS = mark.parametrize(
    "options",
    [
        {},
        {"reset": "auto"},
        {"reset": "auto", "optimizer": SGD(lr=0.1, clip=0)},
        {"reset": "auto", "every": 2, "accumulate": True},
        {"reset": 2 * T},
        {"guard": "exact"},
        {"optimizer": SGD(lr=0.1, clip=0)},
        {"memory": Overlap(2)},
        {"adapt": LoRA(2, targets=["q", "head"])},
        {"adapt": RowSparse(0.3), "shared": True},
        {"adapt": Full(), "shared": True, "every": 2, "accumulate": True},
        {"adapt": LoRA(2, keep_a=True), "optimizer": Muon(lr=0.01), "reset": "auto"},
        {"adapt": LoRA(2, rate_pattern={"q": 0.5, "up": 0}, b_rate=4), "optimizer": SGD(lr=0.1, clip=0)},
        {"adapt": LoRA(2, also=["norms"]), "batch": 1},
        {"adapt": RowSparse(0.3, select="fixed")},
        {"adapt": None, "optimizer": None},
    ],
    ids=str,
)


@OPTIONS
def test_the_host_reads_nothing_of_the_devices(options, monkeypatch):
    """Kernels leave things alone here: what they do inside is the interpreter's, and no host's."""
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", lambda *_, **__: None)
    e = engine(**options)
    for step in range(2):  # with every=2 the second kind of pass is made at the second step
        e.step(text(step))
    for step in range(2, 5):
        assert reads_of(e, monkeypatch, lambda: e.step(text(step))) == []  # noqa: B023


def made_of_the_hosts(monkeypatch, call) -> list[str]:
    """How tensors were made of numbers of the host's: of pageable memory, which a graph that is being captured can't copy, and later replays would
    not see change."""
    found = []
    with monkeypatch.context() as patch:
        for name in ("tensor", "as_tensor", "from_numpy"):
            patch.setattr(
                torch, name, lambda *args, name=name, own=getattr(torch, name), **more: (found.append(name), own(*args, **more))[1]
            )
        call()
    return found


@OPTIONS
def test_a_pass_makes_nothing_of_the_hosts_numbers(options, monkeypatch):
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", lambda *_, **__: None)
    e, found = engine(**options), []
    for step in range(2):
        e.step(text(step))
    run = e.driver.step.run
    e.driver.step.run = lambda *pass_: found.extend(made_of_the_hosts(monkeypatch, lambda: run(*pass_)))
    for step in range(2, 4):
        e.step(text(step))
    assert found == []
    assert made_of_the_hosts(monkeypatch, lambda: torch.tensor([1.0])) == ["tensor"]


def test_reads_are_seen(monkeypatch):
    """Of what the engine holds, of a step's scores, and of what is made of them; a number of the host's is none."""
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", lambda *_, **__: None)
    e = engine(reset="auto")
    e.step(text(0))
    assert reads_of(e, monkeypatch, lambda: e.lr.tolist()) == ["tolist"]
    assert "tolist" in reads_of(e, monkeypatch, lambda: (e.step(text(1)) + 1).tolist())
    assert reads_of(e, monkeypatch, lambda: e.step(text(2)).nonzero()) == ["nonzero"]
    assert {"item", "_local_scalar_dense"} & set(reads_of(e, monkeypatch, lambda: e.step(text(2)).sum().item()))
    assert "tolist" in reads_of(e, monkeypatch, lambda: (e.step(text(3)), e.last.updated))
    assert reads_of(e, monkeypatch, lambda: torch.ones(3).tolist()) == []
