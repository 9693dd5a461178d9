"""Public names stay: what they are, what they take, and where they are imported from."""

import difflib
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from public_names import MODULES, NAMES, described

import dynadapt
from dynadapt.common import children

FACES = [module for module in MODULES if (Path(dynadapt.__file__).parent / f"{module.partition('.')[2]}.py").exists()]


def test_no_public_name_or_signature_changes_unnoticed():
    pytest.importorskip("jax"), pytest.importorskip("lm_eval"), pytest.importorskip("transformers")
    then, now = NAMES.read_text("utf-8").splitlines(), described().splitlines()
    changed = list(difflib.unified_diff(then, now, "public_names.txt", "now", n=0, lineterm=""))
    assert not changed, "\n".join([*changed, "meant? python tests/project/public_names.py, and an entry in CHANGELOG.md"])


@pytest.mark.parametrize("module", FACES)
def test_every_face_is_imported_by_itself(module):
    """In a fresh process, so that nothing else has imported what it needs."""
    pytest.importorskip({"dynadapt.jax": "jax", "dynadapt.lm_eval": "lm_eval", "dynadapt.callbacks": "transformers"}.get(module, "torch"))
    code = f"import {module} as m; [getattr(m, name) for name in m.__all__]"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=children.environment())
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "face, home", [("memory", "engine.memory"), ("session", "interop.session"), ("text", "runs.text"), ("nn", "interop.nn")]
)
def test_a_face_shows_what_its_home_has(face, home):
    shown, there = import_module(f"dynadapt.{face}"), import_module(f"dynadapt.{home}")
    assert shown.__all__ is there.__all__ and shown.__all__
    assert all(getattr(shown, name) is getattr(there, name) for name in shown.__all__)
