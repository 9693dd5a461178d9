"""Texts of domains as rows of tokens, which runs of one process share."""

import gc

import numpy as np
from tiny import english, tiny_directory

import dynadapt
from dynadapt.experiments.reweight import domains


def test_tokens_of_the_same_texts_are_made_once_while_they_are_held(tmp_path, monkeypatch):
    made, plain = [], domains._encode
    monkeypatch.setattr(domains, "_encode", lambda texts, model: made.append(len(texts)) or plain(texts, model))
    tiny_directory(tmp_path / "model")
    model, texts = dynadapt.load(tmp_path / "model"), [english(80, seed=i) for i in range(3)]
    first, again, longer = (domains.encode_rows(texts, segment, model) for segment in (8, 8, 16))
    assert made == [3] and first.tokens is again.tokens is longer.tokens and len(longer) < len(first)
    assert np.array_equal(first[2], first.tokens[16:25]) and not first.tokens.flags.writeable
    for others in ([texts[0] + texts[1], texts[2]], texts[:2]):
        domains.encode_rows(others, 8, model)
    assert made == [3, 2, 2]
    model.tokenizer.backend.encode_special_tokens = True  # of which no file, and no fingerprint of a tokenizer, knows
    assert domains.encode_rows(texts, 8, model).tokens is not first.tokens and made == [3, 2, 2, 3]
    model.tokenizer.backend.encode_special_tokens = False
    del first, again, longer
    gc.collect()
    domains.encode_rows(texts, 8, model)
    assert made == [3, 2, 2, 3, 3]
