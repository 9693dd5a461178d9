"""Damaged files through the C engine: loaded or refused with a text, and nothing else happens."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .engine_c import LIBRARY, EngineC, write

PROGRAM = Path(__file__).with_name("fuzz_files.py")


def shards(model, path):
    """The same model in one file that an index names."""
    path.mkdir()
    (path / "config.json").write_bytes((model / "config.json").read_bytes())
    content = (model / "model.safetensors").read_bytes()
    (path / "part.safetensors").write_bytes(content)
    names = [name for name in json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]) if name != "__metadata__"]
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names, "part.safetensors")}))


@pytest.mark.parametrize("seconds,seed", [(5, 0), pytest.param(240, 1, marks=pytest.mark.slow)])
def test_damaged_files_are_loaded_or_refused(seconds, seed, tmp_path):
    model = write(tmp_path / "model", layers=1)
    shards(model, tmp_path / "shards")
    EngineC(model, dtype=1, segment=8, rank=2, alpha=4.0).save(0, tmp_path / "adapter")
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(LIBRARY), str(tmp_path), str(seconds), str(seed)],
        capture_output=True,
        text=True,
        timeout=seconds + 240,
    )
    assert done.returncode == 0, f"exit status {done.returncode}; the last case: {done.stderr[-300:]}"
    result = json.loads(done.stdout)
    assert not result["failures"], "\n".join(result["failures"])
    assert result["grown_mb"] < 1000  # AddressSanitizer keeps a quarter of it
    assert any(name.endswith("refused") for name in result["tally"]) and any(name.endswith("loaded") for name in result["tally"])
