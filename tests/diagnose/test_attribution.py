"""The arithmetic: a planted change is found again, the identity holds, and the verdict is the right one."""

import sys
import types

import numpy as np
import pytest
from tiny import english, tiny_tokenizer

from dynadapt.experiments.diagnose import attribution, similarity
from dynadapt.experiments.diagnose.classes import CLASSES, classify, keywords, visible
from dynadapt.experiments.diagnose.driver import diagnosis_of
from dynadapt.experiments.diagnose.repeats import find_repeats
from dynadapt.experiments.diagnose.scored import Scored
from dynadapt.experiments.diagnose.verdict import BROADLY, DIVERGED, FEW_TYPES, HELPS, INCONCLUSIVE, MARGIN, UNCHANGED, goes_away, judge


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


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("count", [2, 4, 10])
def test_intervals_of_few_units_hold_the_truth_as_often_as_they_say(count, uneven):
    """Units that differ, of equal size and of very different ones."""
    random, held, trials = np.random.default_rng(3), 0, 1500
    for _ in range(trials):
        counts = random.lognormal(5, 1, count) if uneven else np.full(count, 256.0)
        means = random.normal(0.1, 0.2, count) + random.standard_normal(count) / np.sqrt(counts)
        low, high = attribution.ratio_interval(counts * means, counts)
        held += low <= 0.1 <= high
    assert 0.935 < held / trials < 0.98


def test_percentiles_of_a_bootstrap_would_not():
    random, held = np.random.default_rng(3), 0
    for _ in range(600):
        means = random.standard_normal(4)
        low, high = np.quantile(random.choice(means, (400, 4)).mean(axis=1), [0.025, 0.975])
        held += low <= 0 <= high
    assert 0.74 < held / 600 < 0.86


def test_an_interval_is_students_where_units_are_of_one_size():
    from scipy.stats import ttest_1samp

    values = np.random.default_rng(4).standard_normal((7, 3))
    low, high = attribution.ratio_interval(50 * values, np.full(7, 50.0))
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert low == pytest.approx(expected.low) and high == pytest.approx(expected.high)


def test_a_verdict_needs_a_change_worth_naming():
    judged = lambda low, high: judge((low, high), [], MARGIN)  # noqa: E731
    assert judged(-0.009, -0.001) == judged(0.001, 0.009) == judged(-0.01, 0.01) == UNCHANGED
    assert judged(-0.02, -0.001) == HELPS and judged(0.001, 0.02) == BROADLY
    assert judged(-0.02, 0.001) == judged(-0.001, 0.02) == judged(-np.inf, np.inf) == INCONCLUSIVE


def test_above_a_uniform_guess_it_is_diverged_and_not_harm(tokenizer):
    summary, _, _ = diagnosis_of(scored_text(tokenizer, lambda text: 9.0), tokenizer, None)
    assert summary["verdict"] == DIVERGED and any("diverged" in sentence for sentence in summary["evidence"])
    scored = scored_text(tokenizer, lambda text: 1.0)
    lost = Scored(scored.tokens, scored.before + 9.0, scored.after + 9.0, scored.document, scored.position, scored.names, 16)
    assert diagnosis_of(lost, tokenizer, None)[0]["verdict"] == BROADLY  # the model before knew nothing either


def test_no_change_worth_naming_is_said(tokenizer):
    summary, _, _ = diagnosis_of(scored_text(tokenizer, lambda text: 0.004, noise=0.02), tokenizer, None)
    assert summary["verdict"] == UNCHANGED and any("worth naming" in sentence for sentence in summary["evidence"])
    assert diagnosis_of(scored_text(tokenizer, lambda text: 0.004, noise=0.02), tokenizer, None, margin=0.001)[0]["verdict"] == BROADLY


def test_few_units_are_said(tokenizer):
    said = lambda documents: " ".join(  # noqa: E731
        diagnosis_of(scored_text(tokenizer, lambda text: 0.2, documents=documents, noise=0.3), tokenizer, None)[0]["evidence"]
    )
    assert "5 documents are few" in said(5) and "blocks" not in said(5)
    assert "the blocks are of 3 documents" in said(3) and "few" not in said(20)


def test_repeated_paragraphs_are_found_however_their_lines_break(tokenizer):
    random = np.random.default_rng(0)
    words = lambda count: " ".join("".join(random.choice(list("abcdefghij"), 6)) for _ in range(count))  # noqa: E731
    own, copied, near, half = words(40), words(40), words(40), words(40)
    held = f"# Head\n\n{own}\n\n{copied}\n\n{near}\n\n{half}\n"
    changed = near.split()
    changed[5] = changed[25] = "zzzzzz"  # an edit here and there
    learned = [words(30) + "\n" + copied.upper().replace(" ", "\n  ", 7), " ".join(changed) + words(9), " ".join(half.split()[:12])]
    tokens = tokenizer.encode(held).tokens
    texts = [tokenizer.decode([tokenizer.token_to_id(token)]) for token in tokens]
    assert "".join(texts) == held
    begins = np.cumsum([0, *map(len, texts)])[:-1]
    inside = (begins >= held.index(copied)) & (begins < held.index(half) - 2)
    found = find_repeats([texts], np.where(inside, -1.0, 0.5), learned)
    assert (found["paragraphs"], found["repeated"]) == (4, 2)
    assert [copied.startswith(found["examples"][0][:50]), near.startswith(found["examples"][1][:50])] == [True, True]
    assert found["share_of_tokens"] == pytest.approx(inside.mean(), abs=0.05) and found["change_without"] == pytest.approx(0.5, abs=0.05)
    nothing = find_repeats([texts], np.zeros(len(texts)), [words(100)])
    assert nothing["repeated"] == 0 and nothing["share_of_tokens"] == 0.0 and nothing["examples"] == []
    assert find_repeats([texts], np.zeros(len(texts)), [held])["repeated"] == 4


def test_paragraphs_without_spaces_are_compared_too():
    random = np.random.default_rng(1)
    text = "".join(chr(0x3042 + n) for n in random.integers(0, 80, 300))
    found = find_repeats([list(text)], np.arange(300.0), [text[:120] + "\n" + text[120:]])
    assert found["repeated"] == found["paragraphs"] == 1 and found["change_without"] is None
    assert find_repeats([list(text)], np.arange(300.0), [text[:100]])["repeated"] == 0


def test_a_long_text_is_looked_up_whole(monkeypatch):
    """Runs across the borders of what is looked up together are not lost."""
    from dynadapt.experiments.diagnose import repeats

    random = np.random.default_rng(2)
    text = "".join(random.choice(list("abcdefghijklmnop"), 500))
    monkeypatch.setattr(repeats, "CHUNK", 64)
    assert sum(len(repeats._hashes(part)) for part in repeats._chunks(repeats._letters(text))) == 500 - repeats.SHINGLE + 1


def test_few_documents_become_blocks_and_one_block_gives_no_interval(tokenizer):
    assert attribution.units(scored_text(tokenizer, lambda text: 1.0, documents=3)).name == "block of 256 tokens"
    assert attribution.units(scored_text(tokenizer, lambda text: 1.0, documents=4)).name == "document"
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
