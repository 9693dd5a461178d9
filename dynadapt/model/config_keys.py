"""Which keys of a config.json mean something: read, known not to change a score, or refused by name.

transformers keeps every key that it does not know as an attribute and says nothing, so that a key which an unread one would
silently change the computation must be told from one that is only kept there. csrc/engine/config_keys.h holds the same lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .errors import ModelError

# Bookkeeping, tokens, dtypes, training, classification heads, and the settings of generate() that old files keep here.
IGNORED = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _attn_implementation_internal _commit_hash _experts_implementation
    _experts_implementation_internal _flash_attn_2_enabled _name_or_path _num_labels architectures attn_implementation auto_map
    base_model_tp_plan chunk_size_feed_forward cross_attention_hidden_size dtype experts_implementation finetuning_task
    gradient_checkpointing id2label initializer_factor initializer_range is_decoder is_llama_config
    keys_to_ignore_at_inference label2id max_sequence_length model_max_length model_type name_or_path num_labels
    output_attentions output_hidden_states prefix problem_type return_dict task_specific_params tf_legacy_loss
    tokenizer_class tokenizer_model_max_length torch_dtype torchscript transformers.js_config transformers_version
    unsloth_fixed unsloth_version use_bfloat16 use_cache use_return_dict xla_device

    attention_dropout attn_pdrop classifier_dropout dropout embd_pdrop hidden_dropout resid_pdrop

    cls_token_id decoder_start_token_id mask_token_id pad_token_id sep_token_id unk_token_id

    assistant_confidence_threshold assistant_lookbehind bad_words_ids begin_suppress_tokens diversity_penalty do_sample
    early_stopping encoder_no_repeat_ngram_size encoder_repetition_penalty epsilon_cutoff eta_cutoff
    exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty max_length max_new_tokens
    min_length min_new_tokens min_p no_repeat_ngram_size num_assistant_tokens num_assistant_tokens_schedule
    num_beam_groups num_beams num_return_sequences output_scores remove_invalid_values repetition_penalty
    return_dict_in_generate suppress_tokens target_lookbehind temperature top_k top_p typical_p
""".split()
)

# Of related architectures, with the only value at which they do nothing. null is another value: `is_causal` shows why.
NEUTRAL = {
    "add_cross_attention": False,
    "embedding_multiplier": 1.0,
    "is_causal": True,
    "is_encoder_decoder": False,
    "logit_scale": 1.0,
    "logits_scaling": 1.0,
    "parallel_attn": False,
    "pruned_heads": {},
    "residual_multiplier": 1.0,
    "rotary_pct": 1.0,
    "tie_encoder_decoder": False,
    "use_parallel_residual": False,
}


@dataclass(frozen=True)
class Keys:
    """The keys of one model_type beside those that all have: `read` by its reader, `ignored`, and `neutral` ones."""

    read: frozenset[str]
    ignored: frozenset[str] = frozenset()
    neutral: dict = field(default_factory=dict)

    @property
    def all_neutral(self) -> dict:
        """Also those of other architectures, but for what this one reads."""
        return {key: value for key, value in (NEUTRAL | self.neutral).items() if key not in self.read}


def refuse_unread(raw: Mapping, model_type: str, keys: Keys) -> None:
    """Raise ModelError for a key that is neither read nor known not to matter. A null under an unknown key says nothing."""
    neutral = keys.all_neutral
    for key, value in raw.items():
        if key in keys.read or key in keys.ignored or key in IGNORED:
            continue
        if key in neutral and not same_value(value, neutral[key]):
            raise ModelError(f"{key} = {value!r} is not supported; accepted: {neutral[key]!r} or absent")
        if key not in neutral and value is not None:
            raise ModelError(
                f"{key} = {repr(value)[:80]} is not read for model_type {model_type} and not known to leave "
                f"scores as they are; accepted: null or absent"
            )


def same_value(value, neutral) -> bool:
    """Whether two JSON values are equal, true and 1 being different."""
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)
