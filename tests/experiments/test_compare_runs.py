"""Runs over one text, token by token: what is joined, what is refused, the tables, the files and the page."""

import csv
import json
import shutil

import chromium
import numpy as np
import pytest
from command_line import call
from safetensors.torch import load_file, save_file
from tiny import english, tiny_directory

from dynadapt.experiments.compare import read_compared, summarise, write_page
from dynadapt.experiments.config import EvalConfig
from dynadapt.experiments.diagnose.classes import CLASSES
from dynadapt.experiments.dyneval import RunOptions, run
from dynadapt.runs.rundir import RunError

TEXT = english(400) + "\tEnde. \U0001f642 w\u00f6rld </script><b>\n\n" + english(60, seed=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two documents scored three ways, and the first of them in two parts."""
    base = tmp_path_factory.mktemp("compare")
    model = tiny_directory(base / "model")
    (base / "a.txt").write_text(TEXT, encoding="utf-8")
    (base / "b.txt").write_text(english(150, seed=5), encoding="utf-8")
    both = (str(base / "a.txt"), str(base / "b.txt"))
    common = dict(model=str(model), segment=16, rank=2, dtype="fp32", backend="cpu", lr=1e-2)
    for name, changes in {
        "static": {"text": both, "adapt": "none"},
        "lora": {"text": both},
        "streams": {"text": both, "streams": 2},
        "short": {"text": both, "tokens": 100},
        "split": {"text": both[:1], "split": True, "streams": 2},
        "split-static": {"text": both[:1], "split": True, "streams": 2, "adapt": "none"},
    }.items():
        run(EvalConfig(**{**common, **changes}), base / name, RunOptions(scores=name != "unscored"))
    run(EvalConfig(text=both, **common), base / "unscored", RunOptions())
    return base


def test_every_token_has_its_text(folder):
    compared = read_compared([folder / "static", folder / "lora"])
    for number, name in enumerate(("a.txt", "b.txt")):
        whole, inside = (folder / name).read_bytes(), compared.document == number
        start, stop = compared.start[inside], compared.stop[inside]
        assert stop[-1] == len(whole) and (start[1:] == stop[:-1]).all() and (start <= stop).all()
        text = "".join(piece for piece, one in zip(compared.pieces, inside) if one)
        assert text == whole[start[0] :].decode() and len(text) > 100
    assert "\U0001f642" in "".join(compared.pieces)


def test_scores_are_those_of_the_runs(folder):
    compared = read_compared([folder / "static", folder / "lora", folder / "streams"])
    for path, nll in zip(("static", "lora", "streams"), compared.nll):
        summary = json.loads((folder / path / "summary.json").read_text())
        assert len(nll) == summary["tokens"] and nll.mean() == pytest.approx(summary["nll"], rel=1e-6)


def test_parts_of_one_text_have_their_own_bytes(folder):
    compared = read_compared([folder / "split-static", folder / "split"])
    whole = (folder / "a.txt").read_bytes()
    assert compared.names == ("a.txt, part 1", "a.txt, part 2")
    texts = ["".join(p for p, d in zip(compared.pieces, compared.document) if d == part) for part in (0, 1)]
    assert whole.decode().endswith(texts[1]) and texts[0] in whole.decode() and len(texts[0]) > 100
    assert compared.start[compared.document == 1].min() > compared.stop[compared.document == 0].max()


def test_tokens_that_only_one_run_scored_are_left_out(folder):
    compared = read_compared([folder / "static", folder / "short"])
    assert len(compared.token) == json.loads((folder / "short" / "summary.json").read_text())["tokens"] < 100


def test_last_seen_counts_tokens_back(folder):
    compared = read_compared([folder / "static", folder / "lora"])
    for i in np.random.default_rng(0).integers(0, len(compared.token), 40):
        earlier = [j for j in range(i) if compared.document[j] == compared.document[i] and compared.token[j] == compared.token[i]]
        assert compared.last_seen[i] == (i - earlier[-1] if earlier else 0)


def test_tables_add_up(folder):
    compared = read_compared([folder / "static", folder / "lora"])
    (pair,) = summarise(compared)["pairs"]
    gain = compared.nll[0].mean() - compared.nll[1].mean()
    assert pair["gain"] == pytest.approx(gain) and sum(row["part"] for row in pair["classes"]) == pytest.approx(gain)
    assert sum(row["tokens"] for row in pair["classes"]) == sum(row["tokens"] for row in pair["documents"]) == len(compared.token)
    assert pair["interval"][0] < gain < pair["interval"][1]
    assert pair["new"]["tokens"] + pair["repeated"]["tokens"] == len(compared.token)


def test_bytes_of_a_character_are_no_whitespace(folder, tmp_path):
    text = tmp_path / "t.txt"
    text.write_text("\u732b\u304c\u597d\u304d\u3002\U0001f642 the cat sat.\n" * 12, encoding="utf-8")
    common = dict(model=str(folder / "model"), text=(str(text),), segment=16, rank=2, dtype="fp32", backend="cpu")
    for name, adapt in (("static", "none"), ("lora", "lora")):
        run(EvalConfig(**common, adapt=adapt), tmp_path / name, RunOptions(scores=True))
    compared = read_compared([tmp_path / "static", tmp_path / "lora"])
    classes, blank = compared.classes, CLASSES.index("newline and whitespace")
    partial = compared.partial
    assert partial.sum() > 50 and not (classes[partial] == blank).any()
    assert all(not piece.strip() for piece, kind in zip(compared.pieces, classes) if kind == blank)


def test_other_weights_under_the_same_name_are_said(folder, tmp_path, capsys):
    model = shutil.copytree(folder / "model", tmp_path / "model")
    config = EvalConfig(model=str(model), text=(str(folder / "b.txt"),), segment=16, rank=2, dtype="fp32", backend="cpu", adapt="none")
    run(config, tmp_path / "one", RunOptions(scores=True))
    tensors = load_file(model / "model.safetensors")
    save_file({name: tensor * 1.01 for name, tensor in tensors.items()}, model / "model.safetensors", {"format": "pt"})
    run(config, tmp_path / "other", RunOptions(scores=True))
    assert call("compare", tmp_path / "one", tmp_path / "other") == 0
    assert "its weights were others" in capsys.readouterr().out
    assert "its weights were others" in (tmp_path / "compare.html").read_text(encoding="utf-8")


def test_the_same_text_under_another_name(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    common = dict(model=str(folder / "model"), segment=16, rank=2, dtype="fp32", backend="cpu", adapt="none")
    for name, text in (("one", "b.txt"), ("two", "./b.txt")):
        run(EvalConfig(**common, text=(text,)), tmp_path / name, RunOptions(scores=True))
    assert len(read_compared([tmp_path / "one", tmp_path / "two"]).token) > 50
    monkeypatch.chdir(tmp_path)
    assert len(read_compared([tmp_path / "one", tmp_path / "two"]).token) > 50  # found where the runs were made
    environment = json.loads((tmp_path / "one" / "env.json").read_text())
    (tmp_path / "one" / "env.json").write_text(json.dumps({**environment, "folder": "/nowhere"}))
    with pytest.raises(RunError, match="is not in .* or /nowhere: put it back, or run this where the run was made"):
        read_compared([tmp_path / "one", tmp_path / "two"])
    (tmp_path / "b.txt").write_text("another")
    with pytest.raises(RunError, match="is not what .* scored: it has changed since, or .* has another of that name"):
        read_compared([tmp_path / "one", tmp_path / "two"])


def test_files_are_whole_and_have_names_of_their_own(folder, tmp_path, capsys):
    def compare(*words):
        return call("compare", folder / "static", folder / "lora", *words), capsys.readouterr().err

    assert compare("--out", tmp_path / "a", "--json", tmp_path / "a")[0] == 2
    (tmp_path / "folder").mkdir()
    code, said = compare("--out", tmp_path / "folder")
    assert code == 2 and "can't write: it is a directory" in said and "--resume" not in said
    (tmp_path / "j.json.tmp").write_text("mine")
    assert compare("--out", tmp_path / "p.html", "--json", tmp_path / "j.json")[0] == 0
    assert (tmp_path / "j.json.tmp").read_text() == "mine" and not list(tmp_path.glob(".*"))


def damaged(folder, tmp_path, name):
    """A copy of a run to spoil, without the digests that would give the damage away."""
    copy = shutil.copytree(folder / name, tmp_path / name)
    summary = json.loads((copy / "summary.json").read_text())
    (copy / "summary.json").write_text(json.dumps({key: value for key, value in summary.items() if key != "files"}))
    return copy


def test_what_cannot_be_compared_is_refused_by_name(folder, tmp_path):
    def refused(words, *paths):
        with pytest.raises(RunError, match=words):
            read_compared(paths)

    refused("at least two runs", folder / "static")
    refused("unscored has no scores of single tokens .* --scores", folder / "static", folder / "unscored")
    refused("no such run directory", folder / "static", folder / "a.txt")
    refused("split has text", folder / "static", folder / "split")
    refused("no such run directory", folder / "static", folder / "nowhere")
    old = damaged(folder, tmp_path, "lora")
    rows = np.load(old / "scores.npy")
    np.save(old / "scores.npy", rows[["document", "position", "nll"]].astype([("document", "<i4"), ("position", "<i4"), ("nll", "<f4")]))
    refused("lora was made by a version whose scores keep no tokens", folder / "static", old)
    rows["token"][7] += 1
    np.save(old / "scores.npy", rows)
    refused("other tokens than", folder / "static", old)
    reweighted = damaged(folder, tmp_path, "static")
    config = json.loads((reweighted / "config.json").read_text())
    (reweighted / "config.json").write_text(json.dumps({**config, "kind": "reweight"}))
    refused("is a run of dynadapt reweight", reweighted, folder / "lora")


def test_a_text_that_has_changed_is_refused(folder, tmp_path):
    text = tmp_path / "t.txt"
    text.write_text(english(100))
    config = EvalConfig(model=str(folder / "model"), text=(str(text),), segment=16, rank=2, dtype="fp32", backend="cpu")
    run(config, tmp_path / "before", RunOptions(scores=True))
    run(config.with_(adapt="none"), tmp_path / "after", RunOptions(scores=True))
    text.write_text(english(100, seed=9))
    with pytest.raises(RunError, match="has changed since"):
        read_compared([tmp_path / "before", tmp_path / "after"])
    run(config.with_(adapt="none"), tmp_path / "later", RunOptions(scores=True))
    with pytest.raises(RunError, match="another version of"):
        read_compared([tmp_path / "before", tmp_path / "later"])


def test_the_command_writes_page_numbers_and_tokens(folder, tmp_path, capsys):
    assert (
        call(
            "compare",
            *(str(folder / name) for name in ("static", "lora", "streams")),
            "--out",
            tmp_path / "new" / "page.html",
            "--json",
            tmp_path / "numbers.json",
            "--csv",
            tmp_path / "tokens.csv",
        )
        == 0
    )
    said = capsys.readouterr().out
    assert "nats a token over static" in said and str(tmp_path / "tokens.csv") in said
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert len(numbers["runs"]) == 3 and len(numbers["pairs"]) == 2
    with open(tmp_path / "tokens.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == numbers["tokens"] and {"text", "class", "last_seen"} <= set(rows[0])
    page = (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    assert "@DATA@" not in page and page.count("</script>") == 2  # the text's own is data, not markup
    assert "http://" not in page and "https://" not in page and "src=" not in page


# ---- in a browser

SEEN = """(() => {
  const view = $("view").getBoundingClientRect(), lines = [...document.querySelectorAll(".row:not(#probe)")].map(r => r.getBoundingClientRect());
  return {n: N, drawn: lines.length, overflow: document.documentElement.scrollWidth - innerWidth, width: innerWidth,
          shown: rows.map(r => r.map(p => p[1]).join("")).join("\\n"),
          fits: lines.every(box => box.right <= view.right + 1 && box.left >= view.left),
          canvases: [...document.querySelectorAll("canvas")].every(c => c.getBoundingClientRect().right <= innerWidth)};
})()"""
TIP = """(() => {
  const tip = $("tip"), box = tip.getBoundingClientRect();
  return tip.style.display !== "block" ? null : {text: tip.innerText, inside: box.left >= 0 && box.right <= innerWidth && box.top >= 0 && box.bottom <= innerHeight,
                                                 left: box.left, right: box.right, top: box.top, bottom: box.bottom};
})()"""
SPOT = """(() => {
  const view = $("view").getBoundingClientRect(), spans = [...document.querySelectorAll("#tall span[data-i]")];
  const span = spans.filter(s => { const b = s.getBoundingClientRect(); return b.top > view.top && b.bottom < view.bottom && b.width > 6; })[PICK];
  const b = span.getBoundingClientRect();
  return {i: +span.dataset.i, x: (b.left + b.right) / 2, y: (b.top + b.bottom) / 2};
})()"""
CHOSEN = """(() => {
  $(ID).value = VALUE;
  const begun = performance.now();
  $(ID).dispatchEvent(new Event("change"));
  $("view").getBoundingClientRect();
  return {matches: matches.length, ms: performance.now() - begun, count: $("count").textContent,
          faint: document.querySelectorAll("#tall .faint").length, drawn: document.querySelectorAll("#tall span[data-i]").length};
})()"""
SIZES = pytest.mark.parametrize("width, touch", [(1300, False), (420, True)])


def choose(page, name, value):
    return page.run(CHOSEN.replace("ID", json.dumps(name)).replace("VALUE", json.dumps(value)))


def busy(page, action):
    """(what the action gives, seconds that the page's main thread computed for it): not what other programs take of the processor."""

    def spent() -> float:
        return next(metric["value"] for metric in page.call("Performance.getMetrics")["metrics"] if metric["name"] == "TaskDuration")

    page.settle()
    before = spent()
    found = action()
    page.settle()
    return found, spent() - before


def spot(page, pick=12):
    return page.run(SPOT.replace("PICK", str(pick)))


def expected_tip(compared, i):
    """What the tip of a token says, its text apart."""
    before, after, seen = compared.nll[0][i], compared.nll[1][i], compared.last_seen[i]
    signed = lambda x: ("" if round(abs(x), 3) == 0 else "+" if x > 0 else "\u2212") + f"{abs(x):.3f}"  # noqa: E731
    return [
        f"before {before:.3f}, after {after:.3f} nats",
        f"gain {signed(before - after)} nats, {signed((before - after) / np.log(2))} bits",
        f"last seen {seen:,} tokens ago" if seen else "new in its document",
        f"{CLASSES[compared.classes[i]]}; segment {compared.segment[i] + 1:,}",
    ]


@chromium.browser
@SIZES
def test_the_page_in_a_browser(folder, tmp_path, width, touch):
    compared = read_compared([folder / "static", folder / "lora", folder / "streams"])
    write_page(tmp_path / "page.html", compared, summarise(compared))
    with chromium.Page(f"file://{tmp_path}/page.html", width, touch=touch) as page:
        seen, n = page.run(SEEN), len(compared.token)
        assert seen["n"] == n and seen["width"] == width and seen["overflow"] <= 0 and seen["fits"] and seen["canvases"]
        shown = seen["shown"].replace("\n", "").replace("\u21b5", "\n")
        assert "</script><b>" in shown and "\U0001f642" in shown
        for which in ("new", "repeated", "gains", "losses"):
            seen[which] = choose(page, "which", which)
        assert seen["new"]["matches"] == int((compared.last_seen == 0).sum()) == n - seen["repeated"]["matches"]
        assert 0 < seen["gains"]["matches"] <= n // 50 and 0 < seen["losses"]["matches"] <= n // 50 and seen["gains"]["faint"] > 0
        assert f"{seen['losses']['matches']:,} of {n:,} tokens" in seen["losses"]["count"]
        choose(page, "which", "all")
        kind = page.run("$('class').options[1].value")
        assert choose(page, "class", kind)["matches"] == int((compared.classes == int(kind)).sum())
        first, second, back = (page.run(f"($('{name}').click(), at)") for name in ("next", "next", "previous"))
        assert second > first == back
        assert choose(page, "class", "-1")["faint"] == 0
        page.run(f"goTo({n - 1})")
        assert page.run(f"document.querySelector('#tall span[data-i=\"{n - 1}\"]') !== null")
        said = page.run("$('verdict').textContent")
        choose(page, "after", "2")
        assert page.run("$('verdict').textContent") != said and not page.errors


@chromium.browser
@SIZES
def test_pointing_and_tapping(folder, tmp_path, width, touch):
    """With real input: a mouse over a token, or a finger on it, and what hides the tip again."""
    compared = read_compared([folder / "static", folder / "lora"])
    write_page(tmp_path / "page.html", compared, summarise(compared))
    with chromium.Page(f"file://{tmp_path}/page.html", width, touch=touch) as page:
        page.run("$('view').scrollIntoView({block: 'center', behavior: 'instant'})")
        page.settle()
        for pick in (3, 12, 40):
            at = spot(page, pick)
            page.run("hide()")
            page.until("$('tip').style.display === 'block'", page.tap if touch else page.hover, at["x"], at["y"])
            tip = page.run(TIP)
            lines = tip["text"].split("\n")
            assert lines[1:5] == expected_tip(compared, at["i"]) and tip["inside"], (pick, lines)
            assert lines[0].replace("\u2423", " ").replace("\u21b5", "\n") == compared.pieces[at["i"]] or compared.partial[at["i"]]
            assert not (tip["left"] <= at["x"] <= tip["right"] and tip["top"] <= at["y"] <= tip["bottom"])  # what it tells of stays in view
            assert page.run("at") == (at["i"] if touch else -1)
        box = page.run("(b => [b.left, b.top])($('classes').previousElementSibling.getBoundingClientRect())") if touch else (5, 5)
        page.until("$('tip').style.display === 'none'", page.tap if touch else page.hover, max(2, box[0]), min(850, box[1]))
        at = spot(page)
        page.until(f"at === {at['i']} && $('tip').style.display === 'block'", page.tap if touch else page.click, at["x"], at["y"])
        page.run("$('view').focus(); $('view').dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true}))")
        assert page.run("at") == at["i"] + 1
        page.run("new Promise(done => setTimeout(done, 120))")
        page.run("$('view').scrollTop += 200")
        page.wait("$('tip').style.display === 'none'")
        assert not page.errors


@chromium.browser
def test_in_the_dark_and_on_paper(folder, tmp_path):
    compared = read_compared([folder / "static", folder / "lora"])
    write_page(tmp_path / "page.html", compared, summarise(compared))
    bright = "(c => c.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0))(getComputedStyle(document.body).NAME)"
    for scheme, dark in (("light", False), ("dark", True)):
        with chromium.Page(f"file://{tmp_path}/page.html", 420, scheme=scheme) as page:
            paper, ink = (page.run(bright.replace("NAME", name)) for name in ("backgroundColor", "color"))
            assert (paper < 150 and ink > 600) if dark else (paper > 700 and ink < 200)
            page.run("dispatchEvent(new Event('beforeprint'))")
            assert page.run("document.querySelectorAll('#tall .row').length === rows.length && rows.length > 40")
            page.run("dispatchEvent(new Event('afterprint'))")
            assert page.run("document.querySelectorAll('#tall .row').length < rows.length")
            assert not page.errors


@pytest.fixture(scope="module")
def big_page(folder):
    small = read_compared([folder / "static", folder / "lora"])
    big = _repeated(small, -(-100_000 // len(small.token)))
    write_page(folder / "big.html", big, summarise(big))
    assert (folder / "big.html").stat().st_size < 8e6
    return folder / "big.html"


@chromium.browser
@SIZES
def test_a_page_of_100000_tokens_stays_fluent(big_page, width, touch):
    with chromium.Page(f"file://{big_page}", width, touch=touch) as page:
        seen = page.run(SEEN)
        assert seen["n"] >= 100_000 and page.run("rows.length") > 1500 and seen["overflow"] <= 0 and seen["fits"]
        assert page.run("document.querySelectorAll('#tall span[data-i]').length") < 3000  # the lines in view, no others
        for which in ("new", "repeated", "gains", "losses", "all"):
            tries = [busy(page, lambda: choose(page, "which", which)) for _ in range(3)]
            assert min(spent for _, spent in tries) < 0.15 and tries[0][0]["drawn"] < 3000, which

        def scroll(steps):
            for i in range(steps):
                page.run(f"$('view').scrollTop = {i} / {steps} * $('view').scrollHeight")
                page.settle()

        assert min(busy(page, lambda: scroll(10))[1] for _ in range(2)) < 10 * 0.15  # far jumps, each drawn
        assert page.run("$('tall').children.length") > 10
        assert min(busy(page, lambda: page.run("$('view').scrollTop -= 60"))[1] for _ in range(3)) < 0.1
        at = spot(page)
        (page.tap if touch else page.hover)(at["x"], min(at["y"], 880))
        assert not page.errors


def _repeated(compared, times):
    """The same documents many times over, as one longer text each."""
    from dynadapt.experiments.compare import Compared

    part = np.flatnonzero(compared.document == 0)
    size, begin = int(compared.stop[part[-1]]), int(compared.start[part[0]])
    length, times = size - begin, -(-times * len(compared.token) // len(part))
    tile = lambda array: np.tile(array[..., part], times)  # noqa: E731
    shift = np.repeat(np.arange(times), len(part))
    text = compared.texts[0][:begin] + compared.texts[0][begin:size] * times
    return Compared(
        compared.runs,
        compared.names[:1],
        tile(compared.document),
        np.arange(1, times * len(part) + 1),
        tile(compared.token),
        tile(compared.start) + shift * length,
        tile(compared.stop) + shift * length,
        tile(compared.nll),
        (text,),
    )
