"""Every file operation of a command as a place where it dies or the disk fails; then it is gone on with, and compared.

campaign.py COMMAND FOLDER [SEED COUNT | log]   (with file_faults.c preloaded; a line of JSON at the end)

A command runs whole once, which counts its operations. Then, for every (way to fail, operation), or COUNT of them drawn by SEED, a
forked copy of this process runs it into a fresh directory with that fault, and another goes on without one: to the same bits,
or it is printed under "bad". Half of the time the one that goes on gets a fault of its own first. log: only what it does to files.
"""

import ctypes
import errno
import json
import os
import random
import shutil
import signal
import sys
import time
import warnings
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parents[2])]

import torch  # noqa: E402
from run_files import Killed, kill_at  # noqa: E402
from tiny import english, reweight_settings, tiny_directory  # noqa: E402

KILL_BEFORE, KILL_AFTER, TORN, ONCE, FROM, SHORT, RAISE = range(7)
WAYS = {
    "killed before": (KILL_BEFORE, 0),
    "killed after": (KILL_AFTER, 0),
    "torn write": (TORN, 0),
    "short write": (SHORT, 0),
    "no space once": (ONCE, errno.ENOSPC),
    "no space from then on": (FROM, errno.ENOSPC),
    "input/output error": (ONCE, errno.EIO),
    "read-only from then on": (FROM, errno.EROFS),
    "ctrl-C": (RAISE, signal.SIGINT),
    "SIGTERM": (RAISE, signal.SIGTERM),
}
shim = ctypes.CDLL(None)
shim.faults_count.restype = ctypes.c_long
NEVER = 1 << 60


def arm(point: int, way: str, directory: Path) -> None:
    mode, number = WAYS[way]
    shim.faults_arm(ctypes.c_long(point), mode, number, os.fsencode(directory))


# ---- commands: go(directory, resume) runs one to its end


def evaluation(root: Path, **changes):
    from dynadapt.experiments.config import EvalConfig
    from dynadapt.experiments.dyneval import RunOptions, run

    for name, words in (("a.txt", 60), ("b.txt", 25)):
        (root / name).write_text(english(words))
    settings = dict(
        model=str(tiny_directory(root / "model")),
        text=(str(root / "a.txt"), str(root / "b.txt")),
        segment=16,
        rank=2,
        dtype="fp32",
        backend="cpu",
        streams=2,
        memory=16,
        reset="document",
        lr=0.01,
    )
    config = EvalConfig(**{**settings, **changes})
    return lambda out, resume: run(config, out, RunOptions(resume=resume, scores=True, checkpoint=2))


def rows(root: Path):
    return evaluation(root, adapt="rows", density=0.3, every=2, reset="auto", memory=0, streams=1, text=(str(root / "a.txt"),))


def reweighting(root: Path, changed: bool = False):
    from dynadapt.experiments.reweight import ReweightConfig, ReweightOptions, run

    for number in range(2):
        (root / f"domain{number}").mkdir()
        for part in range(4):
            (root / f"domain{number}" / f"{part}.txt").write_text(english(60, seed=10 * number + part))
    changes = dict(rows=2, steps=7, evaluate=3, heldout_rows=2, backend="cpu", mixer="odm", adapt="lora", rank=2)
    domains = {f"d{i}": root / f"domain{i}" for i in range(2)}
    config = ReweightConfig(**reweight_settings(tiny_directory(root / "model"), domains, **changes))
    if not changed:
        return lambda out, resume: run(config, out, ReweightOptions(checkpoint=2, resume=resume))

    begun = root / "begun"
    with suppress(Killed):
        run(config, begun, ReweightOptions(checkpoint=2), kill_at(kind="step", step=5))

    def go(out, resume):
        """Goes on from step 4 with other weights."""
        return run(config, out, ReweightOptions(checkpoint=2, resume=True, change={"d0": 0.8, "d1": 0.2}))

    go.prepare = lambda out: shutil.copytree(begun, out)
    return go


def in_context(root: Path):
    from dynadapt.experiments.icl import train as module
    from dynadapt.experiments.icl.config import TrainConfig
    from dynadapt.experiments.icl.train import TrainOptions, train

    module.curves = partial(module.curves, prompts=64)  # of the errors in the summary
    config = TrainConfig(
        preset="test",
        dims=3,
        points=6,
        layers=1,
        hidden=16,
        heads=2,
        positions=12,
        batch=4,
        steps=12,
        log=3,
        lr=3e-3,
        device="cpu",
        clip=1.0,
    )
    return lambda out, resume: train(config, out, TrainOptions(resume=resume, checkpoint=6, keep=6))


def sweep(root: Path):
    """Two cells, each in this process."""
    from dynadapt import cli
    from dynadapt.experiments import sweep as module

    (root / "a.txt").write_text(english(40))
    tiny_directory(root / "model")

    def child(command, *rest, **more):
        try:
            cli.main(command[command.index("eval") :])
        except SystemExit as ended:
            return ended.code or 0, ""
        except KeyboardInterrupt:
            return 130, ""

    module._run_child = child

    def go(out, resume):
        file = root / f"{out.name}.yaml"
        file.write_text(
            json.dumps(
                {
                    "out": str(out),
                    "base": {
                        "model": str(root / "model"),
                        "text": str(root / "a.txt"),
                        "segment": 16,
                        "rank": 2,
                        "dtype": "fp32",
                        "backend": "cpu",
                        "adapt": "lora",
                    },
                    "grid": {"lr": [0.001, 0.01]},
                }
            )
        )
        code = module.run_sweep(str(file))
        if code:
            raise RuntimeError(f"the sweep ended with {code}: can't write")

    return go


COMMANDS = {
    "eval": evaluation,
    "rows": rows,
    "reweight": reweighting,
    "change": lambda root: reweighting(root, True),
    "icl": in_context,
    "sweep": sweep,
}


# ---- what is compared


def strip(content):
    """Without times and sizes of the process."""
    if isinstance(content, dict):
        return {
            key: strip(value)
            for key, value in content.items()
            if "second" not in key and "memory" not in key and key not in ("files", "until", "digest", "seen")
        }
    return [strip(value) for value in content] if isinstance(content, list) else content


def left_by(out: Path) -> dict:
    """Everything that a finished run left, by name."""
    found = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if not path.is_file() or path.name in (".lock", "sweep.csv"):
            continue
        if path.name == "metrics.jsonl":
            found[name] = [strip(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.suffix == ".json" and path.name not in ("env.json", "engine.json"):
            found[name] = strip(json.loads(path.read_text()))
        elif path.name == "engine.json":
            found[name] = json.loads(path.read_text())
        elif path.name == "env.json":
            found[name] = "earlier" in json.loads(path.read_text())
        else:
            found[name] = path.read_bytes()
    return found


def in_fork(work) -> tuple[str, str]:
    """(how it ended, what it said): "done", "said" for an error in words, "signal N", or "other"."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            for number in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            warnings.simplefilter("ignore")
            try:
                work()
                code, words = 0, ""
            except (KeyboardInterrupt, Exception) as error:  # noqa: BLE001
                known = (
                    isinstance(error, (RuntimeError, ValueError, OSError, KeyboardInterrupt)) and type(error).__module__ != "safetensors"
                )
                code, words = 3 if known else 4, f"{type(error).__name__}: {error}"
            os.write(writer, words.encode()[:4000])
        finally:
            os._exit(code)
    os.close(writer)
    words = b"".join(iter(lambda: os.read(reader, 4096), b"")).decode()
    os.close(reader)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return f"signal {os.WTERMSIG(status)}", words
    return {0: "done", 3: "said"}.get(os.WEXITSTATUS(status), "other"), words


class Campaign:
    def __init__(self, name: str, root: Path):
        self.root, self.go = root, COMMANDS[name](root)
        self.bad, self.endings = [], Counter()
        self.go(self._fresh("warm"), False)  # what is imported and compiled is so in every copy of this process
        self.whole = self._fresh("whole")
        self.operations = self._counted(self.whole)
        self.expected = left_by(self.whole)

    def _fresh(self, name: str) -> Path:
        out = self.root / name / "run"
        shutil.rmtree(out.parent, ignore_errors=True)
        out.parent.mkdir()
        if hasattr(self.go, "prepare"):
            self.go.prepare(out)
        return out

    def _counted(self, out: Path) -> int:
        counted = self.root / "count"

        def work():
            shim.faults_log(os.open(self.root / "log", os.O_WRONLY | os.O_CREAT))
            arm(NEVER, "killed before", out)
            self.go(out, False)
            counted.write_text(str(shim.faults_count()))

        ended = in_fork(work)
        assert ended[0] == "done", ended
        return int(counted.read_text())

    def log(self) -> list[list[str]]:
        """[what, path in the run's directory] of every operation of a whole run."""
        lines = [line.split(" ", 2)[1:] for line in (self.root / "log").read_text().splitlines()]
        return [[what, os.path.relpath(path, self.whole)] for what, path in lines]

    def try_at(self, way: str, point: int, second: tuple[str, int] | None) -> None:
        out = self._fresh("run")

        def faulty(way, point, resume):
            arm(point, way, out)
            self.go(out, resume)

        ended, words = in_fork(lambda: faulty(way, point, False))
        self.endings[f"{way}: {ended}"] += 1
        problems = [f"ended in {ended}: {words}"] if ended == "other" else []
        if second and ended != "done":
            again, words = in_fork(lambda: faulty(*second, True))
            problems += [f"{second}: ended in {again}: {words}"] if again == "other" else []
        sizes = {name: (out / name).stat().st_size if (out / name).exists() else 0 for name in ("metrics.jsonl", "scores.npy")}
        started = sizes["metrics.jsonl"] > 0 or sizes["scores.npy"] > 128
        resume = (out / "summary.json").exists() or started or point % 2 == 0
        ended, words = in_fork(lambda: self.go(out, resume))
        if ended != "done":
            problems.append(f"going on ended in {ended}: {words}")
        else:
            left = left_by(out)
            problems += [f"{key} differs" for key in sorted({*left, *self.expected}) if left.get(key) != self.expected.get(key)]
        if problems:
            self.bad.append({"way": way, "point": point, "second": second, "problems": problems})

    def run(self, seed: int | None, count: int) -> dict:
        points = [(way, point) for point in range(1, self.operations + 1) for way in WAYS]
        draws = random.Random(seed or 0)
        if seed is not None:
            points = draws.sample(points, min(count, len(points)))
        began = time.monotonic()
        for number, (way, point) in enumerate(points):
            kind = draws.choice(list(WAYS))
            self.try_at(way, point, (kind, draws.randrange(1, self.operations)) if number % 2 else None)
        return {
            "operations": self.operations,
            "tried": len(points),
            "endings": dict(self.endings),
            "bad": self.bad,
            "seconds": round(time.monotonic() - began, 1),
        }


if __name__ == "__main__":
    torch.set_num_threads(1)
    name, root, *drawn = sys.argv[1:]
    campaign = Campaign(name, Path(root))
    print(json.dumps(campaign.log() if drawn == ["log"] else campaign.run(*(map(int, drawn) if drawn else (None, 0)))))
