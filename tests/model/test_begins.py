"""The ids that a tokenizer puts before a text: those that transformers and the post-processor put there, and no others."""

import json

import pytest
from gguf_files import write_gguf
from test_hf_tokenizer import mutated, plain_files, read, theirs
from test_tokenizer import byte_level, gguf_metadata, sentencepiece
from tiny_tokenizers import KINDS, template
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors

from dynadapt.model import ModelError, load, random_model, tiny_config
from dynadapt.model.hf_config import config_to_hf
from dynadapt.model.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")
WORDS = {"<s>": 0, "</s>": 1, "<unk>": 2, "cat": 3}


@pytest.fixture(scope="module")
def stored():
    return {kind: json.loads(make().to_str()) for kind, make in KINDS.items()}


def check_against(tokenizer, reference, text="the cat sat"):
    """transformers' ids of the text are `begins`, the text's own, and what stands behind it."""
    ids, own, begins = reference(text)["input_ids"], tokenizer.encode(text), list(tokenizer.begins)
    assert ids[: len(begins)] == begins and ids[len(begins) :][: len(own)] == own
    return begins


def around(single):
    """A post-processor of this template over WORDS."""
    named = {part for part in single.split() if part in WORDS}
    return processors.TemplateProcessing(single=single, special_tokens=[(token, WORDS[token]) for token in named])


@pytest.mark.parametrize("unknown", ["<unk>", None])
@pytest.mark.parametrize(
    "post_processor, begins",
    [
        (None, ()),
        (around("$A"), ()),
        (around("$A </s>"), ()),
        (around("<s> $A"), (0,)),
        (around("<s> $A </s>"), (0,)),
        (around("<s> $A <s>"), (0,)),
        (around("<unk> $A"), (2,)),  # which a text may begin with too
        (around("<s> <unk> $A </s>"), (0, 2)),
        (processors.Sequence([processors.ByteLevel(), around("<s> $A")]), (0,)),
        (processors.BertProcessing(("</s>", 1), ("<s>", 0)), (0,)),
        (processors.RobertaProcessing(("</s>", 1), ("<s>", 0)), (0,)),
        (processors.ByteLevel(), ()),
    ],
)
def test_each_kind_of_post_processor(post_processor, begins, unknown):
    """Whether or not the vocabulary knows any one text."""
    backend = Backend(models.WordLevel(WORDS, unk_token=unknown))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if post_processor is not None:
        backend.post_processor = post_processor
    tokenizer = Tokenizer(backend)
    assert tokenizer.begins == begins
    assert tokenizer.encode("cat") == [3]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bos", [None, True, False])
@pytest.mark.parametrize("put", [True, False])
def test_with_tokenizer_json_its_post_processor_says_it(kind, bos, put, stored, tmp_path):
    """add_bos_token in tokenizer_config.json counts, or does not, as it does for transformers."""
    if kind == "wordpiece":
        first = "[CLS]"
    else:
        first = "<|endoftext|>" if kind == "byte-level" else "<s>"
    settings = {"bos_token": first} | ({} if bos is None else {"add_bos_token": bos})
    files = plain_files(stored, kind, **settings)
    number = next(token["id"] for token in files["tokenizer.json"]["added_tokens"] if token["content"] == first)
    files["tokenizer.json"]["post_processor"] = template(first, number) if put else None
    tokenizer = read(tmp_path, files)
    assert check_against(tokenizer, theirs(tmp_path)) == list(tokenizer.begins)
    if put:
        assert tokenizer.begins == (number,)


@pytest.mark.parametrize("family, name", [("gpt2", "GPT2Tokenizer"), ("qwen2", "Qwen2Tokenizer"), ("llama", "GPT2Tokenizer")])
@pytest.mark.parametrize("bos", [True, False])
def test_without_tokenizer_json_the_settings_say_it(family, name, bos, stored, tmp_path):
    files = plain_files(stored, family=family, bos_token="<|endoftext|>", add_bos_token=bos)
    content = files.pop("tokenizer.json")
    files["tokenizer_config.json"]["tokenizer_class"] = name
    (tmp_path / "vocab.json").write_text(json.dumps(content["model"]["vocab"], ensure_ascii=False), encoding="utf-8")
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in content["model"]["merges"]]
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    assert len(check_against(read(tmp_path, files), theirs(tmp_path))) == bos


def test_edited_files_begin_as_for_transformers(stored, tmp_path):
    begun = plain = 0
    for seed in range(60):
        try:
            tokenizer = read(tmp_path, mutated(seed, stored))
        except ModelError:
            continue
        reference = None if tokenizer is None else theirs(tmp_path)
        if reference is None:
            continue
        found = check_against(tokenizer, reference)
        begun, plain = begun + bool(found), plain + (not found)
    assert begun >= 3 and plain >= 3, (begun, plain)


@pytest.mark.parametrize("kind", ["spm", "llama-bpe", "gpt-2"])
@pytest.mark.parametrize("said", [None, True, False])
def test_a_gguf_file_says_it_itself(kind, said, tmp_path):
    """tokenizer.ggml.add_bos_token; a SentencePiece file that does not say begins a text with its token, any other does not."""
    backend = sentencepiece() if kind == "spm" else byte_level(kind)
    metadata = gguf_metadata(kind, backend) | {"tokenizer.ggml.bos_token_id": 1}
    if said is not None:
        metadata["tokenizer.ggml.add_bos_token"] = said
    family = "gpt2" if kind == "gpt-2" else "llama"
    model = random_model(tiny_config(family, vocab_size=backend.get_vocab_size()))
    tokenizer = load(write_gguf(model, tmp_path / "tiny.gguf", metadata=metadata)).tokenizer
    wanted = kind == "spm" if said is None else said
    assert tokenizer.begins == ((1,) if wanted else ())
    check_against(tokenizer, transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="tiny.gguf"))


def test_an_id_beyond_the_vocabulary_is_refused():
    backend = Backend(models.WordLevel(WORDS))
    backend.post_processor = around("<s> $A")
    assert Tokenizer(backend, limit=1).begins == (0,)
    backend.post_processor = around("<unk> $A")
    with pytest.raises(ModelError, match=r"the tokenizer gave id 2 \('<unk>'\), the model's vocabulary ends at 1"):
        Tokenizer(backend, limit=2).begins


def test_a_live_model_begins_as_its_directory_does(stored, tmp_path):
    files = plain_files(stored, "metaspace", bos_token="<s>")
    vocabulary = Backend.from_str(json.dumps(files["tokenizer.json"])).get_vocab_size()
    config = tiny_config("llama", vocab_size=vocabulary)
    files["config.json"] = config_to_hf(config)
    read(tmp_path, files)
    live = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(tmp_path))
    live.save_pretrained(tmp_path)
    live = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert load(live).tokenizer.begins == load(tmp_path).tokenizer.begins == (1,)
