"""One of two processes that run the cases of test_distributed.py one after the other: processes_worker.py RANK FOLDER."""

import faulthandler
import json
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from run_files import Killed, kill_at

from dynadapt import Adam, Engine, Full
from dynadapt.distributed import Processes
from dynadapt.distributed.learn import connect
from dynadapt.experiments.reweight import ReweightConfig, ReweightOptions, run
from dynadapt.model import random_model, tiny_config

WORLD = 2


def one(case: dict, rank: int) -> str:
    """How a case ended: "finished", "killed", or the words of the error."""
    progress = kill_at(kind="step", step=case.get("kill"))
    changes = {**case["config"], **(case.get("rank_1", {}) if rank == 1 else {})}
    try:
        run(ReweightConfig(**changes), case["out"], ReweightOptions(**{"checkpoint": 3, **case.get("options", {})}), progress)
    except Killed:
        return "killed"
    except Exception as error:  # noqa: BLE001  (the tests read what it says)
        return f"{type(error).__name__}: {error}"
    return "finished"


def skip(rank: int, **how) -> list:
    """A gradient that is not finite on process 1 alone, in the third step of five: who updated, and whether weights moved."""
    model = random_model(tiny_config("llama"), seed=0)
    engine = Engine(model, adapt=Full(), optimizer=Adam(lr=0.01), shared=True, streams=2, segment=8, dtype="fp32", backend="reference")
    connect(engine, Processes(rank, WORLD), **how)
    update, found = engine.learners[0].state.update, []
    for step in range(5):

        def poisoned(*arguments):
            if step == 2 and rank == 1:  # noqa: B023
                engine.learners[0].state.grad[0, 7] = float("nan")
            return update(*arguments)

        engine.learners[0].state.update = poisoned
        before = engine.learners[0].weights()
        tokens = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(step))
        engine.step(tokens[rank : rank + 1], streams=[rank])
        moved = any(not torch.equal(value, before[name]) for name, value in engine.learners[0].weights().items())
        finite = all(bool(torch.isfinite(value).all()) for value in engine.learners[0].weights().values())
        found.append([engine.last.updated[rank], engine.last.skipped[rank], moved, finite])
    state = engine.learners[0].state
    return found, state.second.numel() / state.layout.size, state.master is None


def main() -> None:
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    faulthandler.dump_traceback_later(390, exit=True)
    torch.set_num_threads(1)
    os.chdir(folder / f"place-{rank}")  # what is named by a relative path may differ
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=WORLD, timeout=timedelta(seconds=120))
    ended = {name: one(case, rank) for name, case in json.loads((folder / "cases.json").read_text()).items()}
    for name, how in {"whole": {}, "sharded": {"shard": True}, "powersgd": {"compress": "powersgd", "powersgd_rank": 1}}.items():
        ended[f"skip, {name}"] = skip(rank, **how)
    (folder / f"ended-{rank}.json").write_text(json.dumps(ended))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
