"""Special tokens that a vocabulary lacks: a tokenizer without ids for some texts is refused when it is read, by its file."""

import json
import re

import pytest
from tiny import tiny_config
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from dynadapt.model import ModelError, Tokenizer
from dynadapt.model.hf_tokenizer import directory_tokenizer
from dynadapt.model.hf_tokenizer_class import CLASSES
from dynadapt.model.tokenizer import EVERY_BYTE

TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *"abcdefgh")
BYTES = tuple(f"<0x{i:02X}>" for i in range(256))


def directory(path, tokens, settings=None, begins="", **model):
    """A tokenizer.json with a BPE of `tokens`, for a Gemma 3."""
    backend = Backend(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[], byte_fallback=True, **model))
    content = json.loads(backend.to_str())
    if begins:
        parts = {name: {"Sequence": {"id": name, "type_id": 0}} for name in "AB"}
        begin = {"SpecialToken": {"id": begins, "type_id": 0}}
        special = {begins: {"id": begins, "ids": [len(tokens)], "tokens": [begins]}}
        processor = {"type": "TemplateProcessing", "single": [begin, parts["A"]], "pair": [*parts.values()], "special_tokens": special}
        content["post_processor"] = processor
    (path / "tokenizer.json").write_text(json.dumps(content))
    (path / "tokenizer_config.json").write_text(json.dumps(settings or {}))
    (path / "config.json").write_text(json.dumps({"model_type": "gemma3_text"}))
    return path


def read(path, tokens):
    return directory_tokenizer(path, tiny_config("gemma3", vocab_size=len(tokens)))


def without(*lacking):
    return [token for token in TOKENS if token not in lacking]


@pytest.mark.parametrize("settings,model", [({}, {}), ({"tokenizer_class": "TokenizersBackend"}, {"unk_token": "<unk>"})])
def test_a_gemma_without_its_unknown_token_is_refused(settings, model, tmp_path):
    tokens = without("<unk>")
    where = re.escape(str(directory(tmp_path, tokens, settings, **model) / "tokenizer.json"))
    with pytest.raises(ModelError, match=f"^{where}: some texts have no ids: the vocabulary lacks the unknown token '<unk>'"):
        read(tmp_path, tokens)
    assert read(directory(tmp_path, TOKENS, settings, **model), TOKENS).encode("az") == [5, 3]


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("lacking", TOKENS[:5])
def test_each_class_reads_it_or_names_the_file(name, lacking, tmp_path):
    """Whichever special token is not there, a text has ids of the model's vocabulary or the error is named."""
    tokens = without(lacking)
    directory(tmp_path, tokens, {"tokenizer_class": name}, begins=lacking)
    try:
        tokenizer = read(tmp_path, tokens)
        tokenizer.encode("abz\u00e9")
        assert max(tokenizer.begins, default=0) < len(tokens)
    except ModelError as error:
        assert str(error).startswith(str(tmp_path / "tokenizer.json")), error
        assert lacking == "<unk>" or lacking in str(error) or f"gave id {len(tokens)}" in str(error), error


def test_a_token_for_every_byte_serves_instead(tmp_path):
    tokens = (*without("<unk>"), *BYTES)
    assert len(read(directory(tmp_path, tokens), tokens).encode("z\u00e9")) == 3
    fewer = tokens[:-1] + ("x",)  # the last byte stands in no text: F4 is the highest that does
    assert read(directory(tmp_path, fewer), fewer).encode("a")
    with pytest.raises(ModelError, match="<unk>"):
        fewer = tuple(token for token in tokens if token != "<0xED>")
        read(directory(tmp_path, fewer), fewer)


def test_every_byte_of_text_is_tried():
    assert set(range(256)) - set(EVERY_BYTE.encode()) == {0xC0, 0xC1, *range(0xF5, 0x100)}


@pytest.mark.parametrize(
    "model", [models.WordLevel({"a": 0}, unk_token="<unk>"), models.WordPiece({"a": 0}, unk_token="[UNK]"), models.Unigram([("a", 0.0)])]
)
def test_other_models_too(model):
    backend = Backend(model)
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    with pytest.raises(ModelError, match="^the tokenizer: some texts have no ids: the vocabulary lacks"):
        Tokenizer(backend)
