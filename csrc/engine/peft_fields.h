// What each field of PEFT's adapter_config.json may hold: the rows of FIELDS in dynadapt/model/peft_fields.py, which says why.
// A test holds the two to each other.
#pragma once

namespace dynadapt {

/// `accepts`: "any" value, "off" (null, false or empty), "read" and checked there, or the values that are accepted, as JSON.
/// A field that has no row must be off.
struct PeftField {
  const char *name, *accepts;
};

constexpr PeftField kPeftFields[] = {
    {"peft_type", R"(["LORA"])"},
    {"task_type", R"([null, "CAUSAL_LM"])"},
    {"r", "read"},
    {"lora_alpha", "read"},
    {"target_modules", "read"},
    {"exclude_modules", "read"},
    {"layers_to_transform", "read"},
    {"layers_pattern", "read"},
    {"bias", R"(["none"])"},
    {"init_lora_weights", R"([null, true, false, "gaussian", "orthogonal", "eva"])"},
    {"use_rslora", "read"},
    {"use_dora", "off"},
    {"rank_pattern", "read"},
    {"alpha_pattern", "read"},
    {"modules_to_save", "off"},
    {"lora_bias", "off"},
    {"target_parameters", "off"},
    {"trainable_token_indices", "off"},
    {"layer_replication", "off"},
    {"alora_invocation_tokens", "off"},
    {"use_qalora", "off"},
    {"use_bdlora", "off"},
    {"arrow_config", "off"},
    {"kasa_config", "off"},
    {"velora_config", "off"},
    {"monteclora_config", "off"},
    {"megatron_config", "off"},
    {"loftq_config", "off"},
    {"corda_config", "off"},
    {"lora_ga_config", "off"},
    {"enable_lora", "off"},
    {"auto_mapping", "any"},
    {"peft_version", "any"},
    {"base_model_name_or_path", "any"},
    {"revision", "any"},
    {"inference_mode", "any"},
    {"lora_dropout", "any"},
    {"merge_weights", "any"},
    {"runtime_config", "any"},
    {"fan_in_fan_out", "any"},
    {"megatron_core", "any"},
    {"eva_config", "any"},
    {"qalora_group_size", "any"},
    {"ensure_weight_tying", "any"},
};

}  // namespace dynadapt
