"""A diagnosis of SmolLM2-135M: adapted to a reference manual it gets better at other pages of it."""

import json

import pytest
from command_line import call

from dynadapt.runs.text import BUILTINS

pytestmark = pytest.mark.model


def test_adapting_to_a_manual_helps_on_its_other_pages(smollm2_directory, tmp_path):
    """Advice first, then the adaptation and its diagnosis, from the command line."""
    pages = BUILTINS["python-reference"]().split("\n\n\n")
    pages = [page for page in pages if len(page) > 1000]
    held, train = pages[::8][:12], [page for i, page in enumerate(pages) if i % 8]
    (tmp_path / "held.jsonl").write_text("".join(json.dumps({"text": page[:1200]}) + "\n" for page in held))
    (tmp_path / "train.txt").write_text("\n\n\n".join(train))
    model = ["diagnose", "--model", str(smollm2_directory), "--segment", "256"]
    for words in (
        ["--advise", str(tmp_path / "train.txt"), "--windows", "10", "--out", str(tmp_path / "advice")],
        [
            "--learn",
            str(tmp_path / "train.txt"),
            "--learn-tokens",
            "2561",
            "--text",
            str(tmp_path / "held.jsonl"),
            "--reference",
            "builtin:python-source",
            "--control",
            "none",
            "--out",
            str(tmp_path / "run"),
        ],
    ):
        assert call(*model + words) == 0
    advice, found = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("advice", "run"))
    assert found["verdict"] == "helps" and found["change"] < -0.03 and found["identity_error"] < 1e-6
    assert advice["expected_change"] < 0 and advice["advice"] == "adapt"
    assert {record["class"] for record in found["classes"]} >= {
        "newline and whitespace",
        "punctuation",
        "function words",
        "domain keywords",
    }
