"""The arithmetic: a planted change is found again, the identity holds, and the verdict is the right one."""

import sys
import types

import numpy as np
import pytest
from tiny import english, tiny_tokenizer

from dynadapt.experiments.diagnose import attribution, similarity
from dynadapt.experiments.diagnose.classes import CLASSES, classify, keywords, visible
from dynadapt.experiments.diagnose.driver import diagnosis_of
from dynadapt.experiments.diagnose.scored import Scored
from dynadapt.experiments.diagnose.verdict import BROADLY, FEW_TYPES, HELPS, INCONCLUSIVE, goes_away


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def scored_text(tokenizer, change, documents: int = 20, noise: float = 0.0) -> Scored:
    """Random NLLs of documents of lines of words; change(text of a token) is what is added to the second."""
    random = np.random.default_rng(0)
    ids = [tokenizer.encode(english(40, seed).replace(".", ".\n")).ids for seed in range(documents)]
    tokens = np.concatenate([row[1:] for row in ids])
    before = random.gamma(2.0, 1.0, len(tokens))
    added = np.array([change(tokenizer.decode([token])) for token in tokens]) + noise * random.standard_normal(len(tokens))
    return Scored(
        tokens,
        before,
        before + added,
        np.repeat(np.arange(documents), [len(row) - 1 for row in ids]),
        np.concatenate([np.arange(1, len(row)) for row in ids]),
        tuple(f"{i}.txt" for i in range(documents)),
        16,
    )


def test_a_change_planted_on_one_type_is_attributed_to_it_alone(tokenizer):
    """The reference's self-check: +c nats on newlines only."""
    scored = scored_text(tokenizer, lambda text: 1.5 if text == "\n" else 0.0)
    summary, _, _ = diagnosis_of(scored, tokenizer, None)
    share = np.mean([tokenizer.decode([token]) == "\n" for token in scored.tokens])
    assert share > 0.01 and summary["change"] == pytest.approx(1.5 * share, abs=1e-9)
    assert summary["identity_error"] < 1e-6
    top = summary["top_types"][0]
    assert top["text"] == "\n" and top["shown"] == "⏎" and top["class"] == "newline and whitespace"
    assert top["contribution"] == pytest.approx(summary["change"], abs=1e-9) and top["change"] == pytest.approx(1.5)
    for record in summary["concentration"]:
        assert record["net"] == record["rise"] == pytest.approx(1.0, abs=1e-9)
        assert record["held_out"] == pytest.approx(1.0, abs=1e-9)
    assert summary["concentration"][0]["tokens"] == pytest.approx(share)
    by_name = {record["class"]: record for record in summary["classes"]}
    assert by_name["newline and whitespace"]["share_of_change"] == pytest.approx(1.0, abs=1e-9)
    without = by_name["newline and whitespace"]["perplexity_without"]
    assert without["after"] == pytest.approx(without["before"])
    assert summary["verdict"] == FEW_TYPES and any("'⏎'" in sentence for sentence in summary["evidence"])


@pytest.mark.parametrize(
    "change, noise, verdict",
    [
        (lambda text: 0.2, 0.3, BROADLY),
        (lambda text: -0.2, 0.3, HELPS),
        (lambda text: 0.0, 0.3, INCONCLUSIVE),
        (lambda text: 2.0 if text == "\n" else 0.0, 0.3, FEW_TYPES),
        (lambda text: 2.0 if text == "\n" else 0.3, 0.3, BROADLY),
    ],
)
def test_verdicts(change, noise, verdict, tokenizer):
    summary, _, _ = diagnosis_of(scored_text(tokenizer, change, noise=noise), tokenizer, None)
    assert summary["verdict"] == verdict
    low, high = summary["interval"]
    assert low < summary["change"] < high and high - low < 0.2


def test_parts_add_up_and_noise_is_not_taken_for_a_few_types(tokenizer):
    scored = scored_text(tokenizer, lambda text: 0.01, noise=1.0)
    summary, kinds, _ = diagnosis_of(scored, tokenizer, None)
    assert sum(kinds.contribution) == pytest.approx(summary["change"], abs=1e-6)
    parts = sorted(kinds.contribution)
    assert [t["contribution"] for t in summary["top_types"][:3]] == pytest.approx(parts[:-4:-1] if summary["change"] > 0 else parts[:3])
    assert [t["contribution"] for t in summary["against"][:3]] == pytest.approx(parts[:3] if summary["change"] > 0 else parts[:-4:-1])
    assert sum(record["contribution"] for record in summary["classes"]) == pytest.approx(summary["change"], abs=1e-6)
    assert sum(record["tokens"] for record in summary["classes"]) == summary["tokens"] == len(scored.tokens)
    assert sum(record["contribution"] for record in summary["places"]) == pytest.approx(summary["change"], abs=1e-6)
    assert summary["verdict"] == INCONCLUSIVE


def test_intervals_cover_and_are_wider_when_documents_differ():
    """Of 100 samples about 95 intervals hold the true mean; tokens of a document that move together make it wide."""
    random, covered, wide = np.random.default_rng(1), 0, []
    for trial in range(100):
        of_document = random.normal(0, 1, 40)
        change = np.repeat(of_document, 50) + random.normal(0, 1, 2000)
        drawn = attribution.Units(np.repeat(np.arange(40), 50), 40, "document")
        low, high = attribution.mean_interval(change, drawn)
        covered += low <= 0 <= high
        wide.append(high - low)
    assert 88 <= covered <= 99
    assert np.mean(wide) == pytest.approx(2 * 1.96 / np.sqrt(40), rel=0.12)  # not 2 * 1.96 * sqrt(2 / 2000)


def test_few_documents_are_drawn_as_blocks_and_one_block_gives_no_interval(tokenizer):
    scored = scored_text(tokenizer, lambda text: 1.0, documents=9)
    assert attribution.units(scored).name == "block of 256 tokens"
    assert attribution.units(scored_text(tokenizer, lambda text: 1.0, documents=10)).name == "document"
    summary, _, _ = diagnosis_of(scored_text(tokenizer, lambda text: 1.0, documents=1), tokenizer, None)
    assert summary["interval"] == [None, None] and summary["verdict"] == INCONCLUSIVE


def test_every_token_is_in_the_class_that_fits_first():
    cases = {
        "\n": 0,
        " ": 0,
        "\t\n": 0,
        "": 0,
        ",": 1,
        " --": 1,
        "?!": 1,
        " 42": 2,
        "3.14": 2,
        " the": 3,
        "The": 3,
        "'s": 1,
        " enzyme": 4,
        " zygote": 5,
        " word": 6,
        "\ufffd": 6,
        "x1": 6,
    }
    counts = np.array([1 if text == " zygote" else 9 for text in cases])
    keyword = np.array([text in (" enzyme", " the", ",") for text in cases])
    found = classify(list(cases), counts, keyword)
    # 's has a letter, so it is the function word
    expected = [3 if text == "'s" else place for text, place in cases.items()]
    assert [CLASSES[c] for c in found] == [CLASSES[c] for c in expected]
    assert visible("a b\n\t\x00") == "a␣b⏎⇥\\u0000" and visible("") == "(empty)"


def test_keywords_are_what_the_text_has_more_of():
    random = np.random.default_rng(0)
    common = random.integers(0, 50, 4000)
    text = np.concatenate([common[:2000], np.full(60, 77)])
    chosen = keywords(text, common[2000:], 100)
    assert chosen[77] and chosen.sum() <= 2
    assert not keywords(common[2000:], text, 100)[77]


def test_similarity_of_same_other_and_nothing_in_common():
    random = np.random.default_rng(0)
    text, same = random.integers(0, 40, 8000), random.integers(0, 40, 9000)
    near = similarity.compare(text, same, 100)
    far = similarity.compare(text, 40 + random.integers(0, 40, 9000), 100)
    assert [order["n"] for order in near["orders"]] == [1, 2, 3] and near["tokens"] <= 4096
    for order in near["orders"]:
        assert order["divergence"] == pytest.approx(order["within"], abs=0.02)
    assert all(order["divergence"] == pytest.approx(1.0) for order in far["orders"])
    assert similarity.jensen_shannon(np.array([1, 1, 2, 2]), np.array([2, 1])) == pytest.approx(0.0, abs=1e-12)
    # p = (1, 0), q = (1/2, 1/2): H(3/4, 1/4) - 1/2
    assert similarity.jensen_shannon(np.array([1, 1]), np.array([1, 2])) == pytest.approx(0.3112781, abs=1e-6)
    with pytest.raises(ValueError, match="too short"):
        similarity.compare(text[:4], same, 100)


def test_ngrams_are_told_apart():
    keys = similarity.ngrams(np.array([1, 2, 3, 1, 2]), 2, 10)
    assert keys.tolist() == [12, 23, 31, 12]
    with pytest.raises(ValueError, match="63 bits"):
        similarity.ngrams(np.zeros(5, np.int64), 4, 1 << 17)


def test_embeddings_are_compared_where_the_package_is_and_refused_where_not(monkeypatch):
    class Fake:
        def __init__(self, name):
            assert name == "some-model"

        def encode(self, pieces, normalize_embeddings):
            return [[1.0, 0.0] if "a" in piece else [0.6, 0.8] for piece in pieces]

    monkeypatch.setitem(sys.modules, "sentence_transformers", types.SimpleNamespace(SentenceTransformer=Fake))
    assert similarity.embedding_similarity("a" * 5000, "b" * 3000, "some-model") == pytest.approx(0.6)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ValueError, match="sentence-transformers"):
        similarity.embedding_similarity("a", "b", "some-model")


def test_a_rise_that_a_normal_form_removes_is_one_of_format():
    assert goes_away({"change": 0.001, "interval": [-0.01, 0.02]}, 0.2)
    assert goes_away({"change": 0.05, "interval": [0.01, 0.09]}, 0.2)
    assert not goes_away({"change": 0.18, "interval": [0.15, 0.2]}, 0.2)
