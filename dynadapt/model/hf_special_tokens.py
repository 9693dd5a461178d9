"""Special and added tokens of a Hugging Face directory: which there are, and in what order transformers adds them.

tokenizer_config.json names them; where it has no `added_tokens_decoder`, special_tokens_map.json, added_tokens.json and
tokenizer.json itself (older layouts) are read for them too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from .errors import ModelError

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_EXTRA, _SPECIFIC, _DECODER = "extra_special_tokens", "model_specific_special_tokens", "added_tokens_decoder"


@dataclass(frozen=True)
class SpecialTokens:
    """`named`: name -> token in the order of their names; `extra`: further special ones; `added`: id -> token."""

    named: dict[str, str | AddedToken]
    extra: list[str | AddedToken]
    added: dict[int, AddedToken]

    def names(self) -> dict[str, str]:
        return {name: str(token) for name, token in self.named.items()}

    def add_to(self, backend: Backend, again: bool = False) -> None:
        """Adds them: first those with ids in the order of these, then the special ones that are not added yet.

        A token gets the id that the vocabulary has for it, or the next free one. With `again` the special ones are added
        once more, which takes away what else was said of them.
        """
        tokens = [token for _, token in sorted(self.added.items())]
        known = {token.content for token in backend.get_added_tokens_decoder().values()} | {str(token) for token in tokens}
        names = {str(token) for token in self.named.values() if str(token)}
        for token in (*self.named.values(), *self.extra):
            if str(token) not in known and not any(token is other or token == other for other in tokens):
                tokens.append(token)
        for i, token in enumerate(tokens):
            if isinstance(token, str):
                tokens[i] = AddedToken(token, special=True)
            elif not token.special and str(token) in names:
                token.special = True
        backend.add_tokens(tokens)
        if again:
            every = dict.fromkeys([*(self.names().values()), *map(str, self.extra)])
            backend.add_tokens([AddedToken(token, special=True) for token in every])


def read_special_tokens(
    settings: Mapping, legacy: Mapping, added: Mapping, content: Mapping | None, defaults: Mapping[str, str | None], padding: str | None
) -> SpecialTokens:
    """The tokens that tokenizer_config.json `settings`, special_tokens_map.json `legacy`, added_tokens.json `added` and
    tokenizer.json `content` give. `defaults` are the class', `padding` the token of a padding section."""
    kept = dict(settings)
    for where, given in (("", settings), ("special_tokens_map.json: ", legacy)):
        for key, kinds in ((_EXTRA, (list, dict)), ("additional_special_tokens", (list, dict)), (_SPECIFIC, (dict,))):
            if given.get(key) is not None and not isinstance(given[key], kinds):
                raise ModelError(f"{where}{key} = {given[key]!r} must be a list of tokens, or an object of tokens by name")
    if "additional_special_tokens" in kept and not kept.get(_EXTRA):
        kept[_EXTRA] = kept.pop("additional_special_tokens")
    specific = {key: kept.pop(key) for key in list(kept) if _is_specific(key) and isinstance(kept[key], str)}
    if isinstance(kept.get(_EXTRA), dict):
        specific.update(kept.pop(_EXTRA))
    if specific:
        kept[_SPECIFIC] = specific
    if _DECODER in kept:
        tokens = _decoder(kept[_DECODER])
    else:
        _merge_legacy(kept, legacy)
        tokens = _legacy_tokens(kept, added, content)
    kept = {
        key: _revive(value, key)
        for key, value in kept.items()
        if key in (*NAMED, _EXTRA, _SPECIFIC) or _is_specific(key) or key == "additional_special_tokens"
    }
    contents = {str(token): token for token in tokens.values()}
    for key in NAMED:
        if kept.get(key) is not None:
            kept[key] = contents.get(str(kept[key]), kept[key])
    for key, token in defaults.items():
        kept.setdefault(key, token)
    if padding is not None:
        kept.setdefault("pad_token", padding)
    return SpecialTokens(_named(kept), _extra(kept), tokens)


def _is_specific(key):
    return key.endswith("_token") and key not in NAMED


def _decoder(given):
    if not isinstance(given, dict):
        raise ModelError(f"{_DECODER} = {str(given)[:80]!r} must be an object of tokens by id")
    tokens = {}
    for key, token in given.items():
        if not key.lstrip("-").isdecimal() or not isinstance(token, dict):
            raise ModelError(f"{_DECODER}[{key!r}] = {token!r} must be an id with a token's content and flags")
        tokens[int(key)] = _added(token, f"{_DECODER}[{key!r}]")
    return tokens


def _merge_legacy(kept, legacy):
    """special_tokens_map.json goes before tokenizer_config.json."""
    for key, value in legacy.items():
        where = f"special_tokens_map.json: {key}"
        if isinstance(value, dict) and key != _EXTRA:
            value = _added({**value, "special": True}, where)
        elif key == _EXTRA and isinstance(value, list):
            more = [_added({**token, "special": True}, where) if isinstance(token, dict) else token for token in value]
            value = list(kept.get(_EXTRA) or [])
            value += [token for i, token in enumerate(more) if token not in value and token not in more[:i]]
        kept[key] = value
    if isinstance(kept.get(_EXTRA), dict):
        kept.setdefault(_SPECIFIC, {}).update(kept.pop(_EXTRA))


def _legacy_tokens(kept, added, content):
    special = {str(kept[key]) for key in NAMED if kept.get(key)} | {str(token) for token in kept.get(_EXTRA) or []}
    tokens = {}
    for text, index in added.items():
        if isinstance(index, bool) or not isinstance(index, int):
            raise ModelError(f"added_tokens.json: {text!r} = {index!r} must be a token id")
        tokens[index] = AddedToken(text, rstrip=False, lstrip=False, normalized=text not in special, special=text in special)
    for entry in [] if content is None else content.get("added_tokens", []):
        flags = {key: value for key, value in entry.items() if key != "id"}
        tokens[entry["id"]] = _added(flags, f"tokenizer.json: added_tokens[{entry['id']}]")
    return tokens


def _added(entry, where):
    flags = {key: value for key, value in entry.items() if key != "content"}
    if not isinstance(entry.get("content"), str) or not all(isinstance(flag, bool) for flag in flags.values()):
        raise ModelError(f"{where} = {entry!r} must be a token's content and flags")
    return AddedToken(**entry)


def _revive(value, key):
    """Objects marked as tokens become them, wherever they are."""
    if isinstance(value, dict):
        if value.get("__type") == "AddedToken":
            return _added({name: flag for name, flag in value.items() if name != "__type"}, key)
        return {name: _revive(inner, key) for name, inner in value.items()}
    return [_revive(inner, key) for inner in value] if isinstance(value, list) else value


def _named(kept):
    named = {key: kept[key] for key in NAMED if kept.get(key) is not None}
    further = kept.get(_SPECIFIC) or {}
    if not isinstance(further, dict):
        raise ModelError(f"{_SPECIFIC} = {further!r} must be an object of tokens by name")
    automatic = {key: value for key, value in kept.items() if _is_specific(key) and isinstance(value, (str, AddedToken))}
    for key, token in (named | automatic | further).items():
        if not isinstance(token, (str, AddedToken)):
            raise ModelError(f"{key} = {token!r} must be a token")
        named[key] = token
    return named


def _extra(kept):
    name = _EXTRA if _EXTRA in kept else "additional_special_tokens"
    extra = kept.get(name) or []
    if not isinstance(extra, list) or not all(isinstance(token, (str, AddedToken)) for token in extra):
        raise ModelError(f"{name} = {extra!r} must be a list of tokens")
    return extra
