#include "engine/config_keys.h"

#include <algorithm>
#include <string_view>

#include "core/error.h"

namespace dynadapt {

namespace {

/// Words with a space between them. `neutral`: key=the only value at which it does nothing.
struct TypeKeys {
  std::string_view type, read, ignored, neutral;
};

// The lists of dynadapt/model/config_keys.py, rope_settings.py and families/. The first row is for every model_type.
constexpr TypeKeys kTypeKeys[] = {
    {"",
     "bos_token_id compression_config eos_token_id head_dim hidden_act hidden_size intermediate_size max_position_embeddings "
     "num_attention_heads num_hidden_layers num_key_value_heads original_max_position_embeddings partial_rotary_factor "
     "quantization_config rms_norm_eps rope_parameters rope_scaling rope_theta sliding_window tie_word_embeddings vocab_size",
     "_attn_implementation _attn_implementation_autoset _attn_implementation_internal _commit_hash _experts_implementation "
     "_experts_implementation_internal _flash_attn_2_enabled _name_or_path _num_labels architectures "
     "assistant_confidence_threshold assistant_lookbehind attention_dropout attn_implementation attn_pdrop auto_map "
     "bad_words_ids base_model_tp_plan begin_suppress_tokens chunk_size_feed_forward classifier_dropout cls_token_id "
     "cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dropout dtype early_stopping embd_pdrop "
     "encoder_no_repeat_ngram_size encoder_repetition_penalty epsilon_cutoff eta_cutoff experts_implementation "
     "exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id gradient_checkpointing "
     "hidden_dropout id2label initializer_factor initializer_range is_decoder is_llama_config keys_to_ignore_at_inference "
     "label2id length_penalty mask_token_id max_length max_new_tokens max_sequence_length min_length min_new_tokens min_p "
     "model_max_length model_type name_or_path no_repeat_ngram_size num_assistant_tokens num_assistant_tokens_schedule "
     "num_beam_groups num_beams num_labels num_return_sequences output_attentions output_hidden_states output_scores "
     "pad_token_id prefix pretraining_tp problem_type remove_invalid_values repetition_penalty resid_pdrop return_dict "
     "return_dict_in_generate sep_token_id suppress_tokens target_lookbehind task_specific_params temperature tf_legacy_loss "
     "tokenizer_class tokenizer_model_max_length top_k top_p torch_dtype torchscript transformers.js_config "
     "transformers_version typical_p unk_token_id unsloth_fixed unsloth_version use_bfloat16 use_cache use_return_dict "
     "xla_device",
     "add_cross_attention=false embedding_multiplier=1.0 is_causal=true is_encoder_decoder=false logit_scale=1.0 "
     "logits_scaling=1.0 parallel_attn=false pruned_heads={} residual_multiplier=1.0 rope_interleaved=false rotary_pct=1.0 "
     "tie_encoder_decoder=false use_mrope=false use_parallel_residual=false"},
    {"llama", "attention_bias layer_types mlp_bias", "max_window_layers", "use_sliding_window=false"},
    {"mistral", "", "", "attention_bias=false mlp_bias=false"},
    {"granite",
     "attention_bias attention_multiplier embedding_multiplier layer_types logits_scaling mlp_bias residual_multiplier",
     "max_window_layers", "use_sliding_window=false"},
    {"qwen2", "layer_types max_window_layers use_sliding_window", "attention_bias", "mlp_bias=false"},
    {"qwen3", "attention_bias layer_types max_window_layers use_sliding_window", "", "mlp_bias=false"},
    {"rope",
     "factor high_freq_factor low_freq_factor original_max_position_embeddings partial_rotary_factor rope_theta rope_type "
     "type",
     "attention_factor beta_fast beta_slow finetuned mscale mscale_all_dim truncate", ""}};

/// The rest of the word of `words` that begins with `begin`, up to a space; null where there is none.
const char* find_word(std::string_view words, const std::string& begin, bool whole) {
  for (size_t at = 0; at < words.size();) {
    const size_t end = std::min(words.find(' ', at), words.size());
    if (words.substr(at, begin.size()) == begin && (!whole || end - at == begin.size())) return words.data() + at + begin.size();
    at = end + 1;
  }
  return nullptr;
}

}  // namespace

bool same_value(const Json& a, const Json& b) {
  return a.kind == b.kind && a.boolean == b.boolean && a.number == b.number && a.string == b.string && a.items.empty() &&
         b.items.empty() && a.members.empty() && b.members.empty();
}

void refuse_unread(const Json& object, const std::string& type, const std::string& where, const std::string& place) {
  const bool rope = type == "rope";
  for (const auto& [key, value] : object.members) {
    const auto applies = [&](const TypeKeys& keys) { return keys.type == type || (!rope && keys.type.empty()); };
    bool known = false;
    for (const TypeKeys& keys : kTypeKeys)
      known = known || (applies(keys) && (find_word(keys.read, key, true) || find_word(keys.ignored, key, true)));
    for (const TypeKeys& keys : kTypeKeys) {
      if (known || !applies(keys)) continue;
      const char* neutral = find_word(keys.neutral, key + "=", false);
      if (!neutral) continue;
      known = true;
      const std::string_view rest(neutral);
      const std::string accepted(rest.substr(0, rest.find(' ')));
      if (!same_value(value, parse_json(accepted, key)))
        throw Invalid(where + ": " + key + " = " + value.text() + " is not supported; accepted: " + accepted + " or absent");
    }
    if (known || value.is(Json::kNull)) continue;
    const std::string name = place.empty() ? key : place + "." + key;
    throw Invalid(where + ": " + name + " = " + value.text() + " is not read" +
                  (rope ? "" : " for model_type " + type + " and not known to leave scores as they are") +
                  "; accepted: null or absent");
  }
}

}  // namespace dynadapt
