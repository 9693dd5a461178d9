"""Small trained tokenizers of each kind: byte-level BPE, BPE with spaces as marks and byte fallback, unigram, wordpiece."""

import json

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "the cat sat on the mat, and 1234 other cats don't sit (at all)!",
    "naïve café déjà 漢字 🙂 e\u0301",
    "def f(x):\n\treturn x  # 99\r\n",
] * 20


def byte_level(**settings):
    backend = Backend(models.BPE(**settings))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    return train(backend, trainers.BpeTrainer, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet())


def metaspace():
    backend = Backend(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", left=1)])
    first = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)]
    backend = json.loads(train(backend, trainers.BpeTrainer, special_tokens=first, vocab_size=500).to_str())
    backend["added_tokens"] = backend["added_tokens"][:3]
    backend["post_processor"] = template("<s>", 1)
    return Backend.from_str(json.dumps(backend))


def template(token, number):
    made = processors.TemplateProcessing(single=f"{token} $A", pair=f"{token} $A {token} $B", special_tokens=[(token, number)])
    return json.loads(made.__getstate__())


def unigram():
    backend = Backend(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return train(backend, trainers.UnigramTrainer, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>")


def wordpiece():
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return train(backend, trainers.WordPieceTrainer, special_tokens=["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"])


def train(backend, trainer, vocab_size=400, **settings):
    backend.train_from_iterator(CORPUS, trainer(vocab_size=vocab_size, show_progress=False, **settings))
    return backend


KINDS = {"byte-level": byte_level, "metaspace": metaspace, "unigram": unigram, "wordpiece": wordpiece}
