"""One's own texts as a task: the same documents as everywhere, whole, and refusals by name."""

import json
import math

import pytest
from tiny import english, tiny_tokenizer

lm_eval = pytest.importorskip("lm_eval")

from dynadapt.interop.lm_eval import DynadaptLM, text_task  # noqa: E402
from dynadapt.model import Tokenizer, random_model, tiny_config  # noqa: E402
from dynadapt.runs.text import TextError  # noqa: E402


def test_texts_of_ones_own_are_a_task(tmp_path):
    texts = [english(30, seed=1) + "\n\n", "{{text}} " + english(20, seed=2)]
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    (tmp_path / "c.txt").write_text(english(25, seed=3))
    tokenizer = Tokenizer(tiny_tokenizer(), bos_id=0, eos_id=1)
    config = tiny_config("llama", vocab_size=tokenizer.vocab_size, layers=2, bos_token_id=0, eos_token_id=1)
    lm = DynadaptLM(random_model(config, seed=1, std=0.3, tokenizer=tokenizer), reset="document", dtype="fp32", segment=16, rank=2, lr=0.02)
    task = text_task([str(tmp_path / "lines.jsonl"), str(tmp_path / "c.txt")], "mine", field="body")
    found = lm_eval.simple_evaluate(model=lm, tasks=[task], bootstrap_iters=0)
    nll = 0.0
    for text in [*texts, english(25, seed=3)]:
        lm.engine.reset(0)
        lm.engine.enter(0)
        nll += lm._read([lm.prefix_token_id, *lm.tok_encode(text)])
    size = sum(len(text.encode()) for text in [*texts, english(25, seed=3)])
    assert found["results"]["mine"]["bits_per_byte,none"] == pytest.approx(nll / math.log(2) / size, rel=1e-6)
    assert found["n-samples"]["mine"]["effective"] == 3


def test_what_is_no_text_is_no_task(tmp_path):
    (tmp_path / "lines.jsonl").write_text('{"body": "a"}\n')
    for texts, said in (
        ([], "texts: none given"),
        ([str(tmp_path / "no.txt")], "no such file"),
        ([str(tmp_path / "lines.jsonl")], 'no "text"'),
    ):
        with pytest.raises(TextError, match=said):
            text_task(texts)
