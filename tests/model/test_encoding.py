"""Text is UTF-8 wherever it is read or written, whatever the locale says."""

import json
import os
import subprocess
import sys

from dynadapt.model import random_model, tiny_config
from dynadapt.model.convert import write_directory

PROGRAM = """
import locale, sys
from pathlib import Path
assert locale.getpreferredencoding(False).lower() not in ("utf-8", "utf8")
from dynadapt.model import load
from dynadapt.model.convert import write_directory
from dynadapt.model.directory import read_json
from dynadapt.model.geometries import geometry
here = Path(sys.argv[1])
model = load(here / "tiny")
assert geometry(str(here / "tiny")) == model.config
assert read_json(here / "tiny/config.json")["_name_or_path"] == "mod\\u00e8le \\u6f22\\u5b57"
write_directory(model, here / "again")
assert load(here / "again").config == model.config
"""


def test_ascii_locale(tmp_path):
    write_directory(random_model(tiny_config("llama")), tmp_path / "tiny")
    file = tmp_path / "tiny/config.json"
    raw = json.loads(file.read_bytes()) | {"_name_or_path": "modèle 漢字"}
    file.write_text(json.dumps(raw, ensure_ascii=False), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    )
    assert done.returncode == 0, done.stderr
