"""Saving an engine: the old state, the new one, or a refusal that names the file, wherever it stops."""

import json
import os
import shutil

import pytest
import torch

from dynadapt import Adam, Engine, LoRA
from dynadapt.engine import state as engine_state
from dynadapt.model import random_model, tiny_config

MODEL = random_model(tiny_config("llama"), seed=0)


def engine() -> Engine:
    return Engine(MODEL, adapt=LoRA(rank=2), optimizer=Adam(lr=0.01), streams=2, segment=8, backend="reference", dtype="fp32")


def tokens(seed: int) -> torch.Tensor:
    return torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(seed))


class Stopped(BaseException):
    pass


def test_a_save_that_stops_leaves_the_old_state_or_one_that_is_refused(tmp_path, monkeypatch):
    learner, other = engine(), tmp_path / "state" / "mine.txt"
    learner.step(tokens(0))
    learner.save(tmp_path / "state")
    other.write_text("mine")
    old = engine()
    old.restore(tmp_path / "state")
    expected = {"old": old.step(tokens(2))}
    learner.step(tokens(1))
    renames, replace = 0, os.replace

    def counted(*names):
        nonlocal renames
        renames += 1
        replace(*names)

    with monkeypatch.context() as patch:
        patch.setattr(engine_state.os, "replace", counted)
        learner.save(tmp_path / "new")
    expected["new"] = learner.step(tokens(2))
    learner = engine()
    learner.restore(tmp_path / "new")
    ends = []
    for stop in range(renames + 2):  # 0: while tensors are written; then before and after each renaming
        out = shutil.copytree(tmp_path / "state", tmp_path / f"at{stop}")
        left = [stop]

        def dying(*arguments, real):
            left[0] -= 1
            if left[0] < 0:
                raise Stopped
            return real(*arguments)

        with monkeypatch.context() as patch:
            if stop == 0:
                patch.setattr(engine_state, "save_file", lambda *a: dying(*a, real=None))
            else:
                left[0] -= 1
                patch.setattr(engine_state.os, "replace", lambda *a: dying(*a, real=replace))
            try:
                learner.save(out)
            except Stopped:
                pass
        assert (out / "mine.txt").read_text() == "mine" and not (out / engine_state.SAVING).exists()
        again = engine()
        try:
            again.restore(out)
        except ValueError as error:
            assert str(out) in str(error) and "engine.json beside it was written with other files" in str(error)
            ends.append("refused")
        else:
            scores = again.step(tokens(2))
            ends.append(next(name for name, value in expected.items() if torch.equal(value, scores)))
    middle = "".join(end[0] for end in ends[2:-1])  # an adapter_config.json that stays the same leaves the old state whole
    assert ends[:2] == ["old", "old"] and ends[-1] == "new" and middle.lstrip("o") and set(middle.lstrip("o")) == {"r"}


@pytest.mark.parametrize("name", ["state.safetensors", "adapter-1/adapter_model.safetensors"])
def test_a_damaged_state_is_refused_by_name(name, tmp_path):
    learner = engine()
    learner.save(tmp_path)
    content = bytearray((tmp_path / name).read_bytes())
    content[-3] ^= 4
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        engine().restore(tmp_path)


def test_a_state_of_the_first_format_is_read(tmp_path):
    """It has no digests, and the fingerprint of a sample of the weights."""
    learner = engine()
    learner.step(tokens(0))
    learner.save(tmp_path)
    record = json.loads((tmp_path / "engine.json").read_text())
    record.update(format=1, engine={**record["engine"], "model": MODEL.fingerprint(sampled=True)})
    del record["files"]
    (tmp_path / "engine.json").write_text(json.dumps(record))
    again = engine()
    again.restore(tmp_path)
    assert torch.equal(again.step(tokens(1)), learner.step(tokens(1)))
    other = Engine(
        random_model(tiny_config("llama"), seed=1),
        adapt=LoRA(rank=2),
        optimizer=Adam(lr=0.01),
        streams=2,
        segment=8,
        backend="reference",
        dtype="fp32",
    )
    with pytest.raises(ValueError, match="saved with model="):
        other.restore(tmp_path)
