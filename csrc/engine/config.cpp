#include "engine/config.h"

#include <cmath>
#include <initializer_list>

#include "core/error.h"

namespace dynadapt {

namespace {

constexpr int64_t kMaxLayers = 10'000;  // a larger number can only be a damaged file

/// Reads the keys of one JSON object; every failure names the file and the key.
class Keys {
 public:
  Keys(const Json& raw, const std::string& where) : raw_(raw), where_(where) {}

  [[noreturn]] void stop(const std::string& text) const { throw Invalid(where_ + ": " + text); }

  bool has(const char* key) const { return raw_.members.count(key) > 0; }

  /// Null where the key is absent or null.
  const Json* find(const char* key) const { return raw_.find(key); }

  int64_t size(const char* key, int64_t fallback = 0) const {
    const Json* value = find(key);
    if (!value && fallback) return fallback;
    if (!value) stop(std::string(key) + " is missing");
    if (!value->is_count() || value->number < 1 || value->number > 2147483647.0)
      stop(std::string(key) + " = " + value->text() + " must be a whole number in 1..2147483647");
    return value->count();
  }

  double number(const char* key, double low, double high, const double* fallback = nullptr) const {
    const Json* value = find(key);
    if (!value && fallback) return *fallback;
    if (!value) stop(std::string(key) + " is missing");
    if (!value->is(Json::kNumber) || !(value->number >= low && value->number <= high))
      stop(std::string(key) + " = " + value->text() + " must be a number in " + json_number(low) + ".." + json_number(high));
    return value->number;
  }

  bool flag(const char* key, bool fallback) const {
    const Json* value = find(key);
    if (value && !value->is(Json::kBool)) stop(std::string(key) + " = " + value->text() + " must be true or false");
    return value ? value->boolean : fallback;
  }

  /// A text, "" where the key is absent.
  std::string text(const char* key) const {
    const Json* value = find(key);
    if (value && !value->is(Json::kString)) stop(std::string(key) + " = " + value->text() + " must be a text");
    return value ? value->string : "";
  }

 private:
  const Json& raw_;
  const std::string& where_;
};

struct Kind {
  const char *model_type, *architecture, *family;
};
constexpr Kind kKinds[] = {{"llama", "LlamaForCausalLM", "llama"},
                           {"mistral", "MistralForCausalLM", "llama"},
                           {"qwen2", "Qwen2ForCausalLM", "qwen2"},
                           {"qwen3", "Qwen3ForCausalLM", "qwen3"}};

/// The kind of a config; one without a model_type is known by its architecture.
const Kind& kind_of(const Keys& keys) {
  const Json *type = keys.find("model_type"), *list = keys.find("architectures");
  const Json* only = list && list->is(Json::kArray) && list->items.size() == 1 ? &list->items[0] : nullptr;
  std::string accepted;
  for (const Kind& kind : kKinds) {
    if (type ? type->is(Json::kString) && type->string == kind.model_type
             : only && only->is(Json::kString) && only->string == kind.architecture)
      return kind;
    accepted += std::string(accepted.empty() ? "" : ", ") + kind.model_type;
  }
  const std::string found = type ? type->text() : list ? list->text() : "without a model_type";
  keys.stop("model_type " + found + " is not supported by this engine; accepted: " + accepted);
}

/// Refuses extras of related architectures that would change the computation, unless they have the value that does nothing.
void refuse_extras(const Keys& keys) {
  for (const char* key : {"attention_multiplier", "final_logit_softcapping", "attn_logit_softcapping", "query_pre_attn_scalar",
                          "clip_qkv", "no_rope_layers", "num_experts", "num_local_experts", "quantization_config"})
    if (const Json* value = keys.find(key))
      keys.stop(std::string(key) + " = " + value->text() + " is not supported; accepted: absent");
  for (const char* key :
       {"embedding_multiplier", "residual_multiplier", "logits_scaling", "logit_scale", "partial_rotary_factor", "rotary_pct"})
    if (const Json* value = keys.find(key); value && !(value->is(Json::kNumber) && value->number == 1))
      keys.stop(std::string(key) + " = " + value->text() + " is not supported; accepted: 1.0 or absent");
  for (const char* key : {"use_parallel_residual", "parallel_attn", "scale_attn_by_inverse_layer_idx", "add_cross_attention"})
    if (const Json* value = keys.find(key); value && !(value->is(Json::kBool) && !value->boolean))
      keys.stop(std::string(key) + " = " + value->text() + " is not supported; accepted: false or absent");
  const std::string activation = keys.text("hidden_act");
  if (!activation.empty() && activation != "silu" && activation != "swish")
    keys.stop("hidden_act = \"" + activation + "\" is not supported; accepted: silu");
}

/// Newer configs keep all of the rotary settings in rope_parameters, older ones in two keys.
void read_rope(const Keys& keys, const std::string& where, ModelConfig& c) {
  static const Json none;
  const Json* parameters = keys.find("rope_parameters");
  if (!parameters) parameters = keys.find("rope_scaling");
  if (!parameters) parameters = &none;
  if (!parameters->is(Json::kObject) && !parameters->is(Json::kNull))
    keys.stop("rope_scaling = " + parameters->text() + " must be an object or null");
  for (const auto& [name, value] : parameters->members)
    if (value.is(Json::kObject)) keys.stop("rope_parameters by layer type are not supported; accepted: one set for all layers");
  const Keys rope(*parameters, where);
  if (const Json* part = rope.find("partial_rotary_factor"); part && !(part->is(Json::kNumber) && part->number == 1))
    keys.stop("partial_rotary_factor = " + part->text() + " is not supported; accepted: 1.0 or absent");
  const double usual = 10000.0;
  c.rope_theta = (rope.find("rope_theta") ? rope : keys).number("rope_theta", 1e-6, 1e15, &usual);
  std::string kind = rope.text("rope_type");
  if (kind.empty()) kind = rope.text("type");
  if (kind.empty() || kind == "default") return;
  RopeScaling& s = c.rope_scaling;
  if (kind != "linear" && kind != "llama3")
    keys.stop("rope_scaling type \"" + kind + "\" is not supported; accepted: default, linear, llama3");
  s.kind = kind == "linear" ? RopeScaling::kLinear : RopeScaling::kLlama3;
  s.factor = rope.number("factor", 1e-6, 1e9);
  if (s.kind == RopeScaling::kLinear) return;
  s.low_freq_factor = rope.number("low_freq_factor", 1e-6, 1e9);
  s.high_freq_factor = rope.number("high_freq_factor", 1e-6, 1e9);
  s.original_positions = rope.size("original_max_position_embeddings", c.max_positions);
  if (s.high_freq_factor <= s.low_freq_factor) keys.stop("high_freq_factor must be above low_freq_factor");
}

/// Refuses a sliding window that would change a result within the model's own context.
void refuse_window(const Keys& keys, const Kind& kind, const ModelConfig& c) {
  const Json* types = keys.find("layer_types");
  const bool listed = types && types->is(Json::kArray);
  bool sliding = false;
  for (size_t i = 0; listed && i < types->items.size(); i++) sliding |= types->items[i].string != "full_attention";
  if (listed && !sliding) return;
  int64_t window = 0;  // none
  if (std::string(kind.model_type) == "mistral") {
    if (keys.find("sliding_window")) window = keys.size("sliding_window");
    if (!keys.has("sliding_window")) window = 4096;  // what transformers takes where a config says nothing, not even null
  } else if (std::string(kind.family) == "llama") {
    if (listed && keys.find("sliding_window")) window = keys.size("sliding_window");
  } else {
    const Json* first = keys.find("max_window_layers");
    const double from = first && first->is(Json::kNumber) ? first->number : 28;
    const bool slides = keys.flag("use_sliding_window", false) && from < double(c.layers);
    if ((slides || listed) && keys.find("sliding_window")) window = keys.size("sliding_window");
  }
  if (window && window < c.max_positions)
    keys.stop("sliding-window attention (sliding_window = " + std::to_string(window) + ", context " +
              std::to_string(c.max_positions) + ") is not supported; accepted: full attention in every layer");
}

}  // namespace

ModelConfig read_config(const Json& raw, const std::string& where) {
  if (!raw.is(Json::kObject)) throw Invalid(where + ": the config must be a JSON object, not " + raw.text());
  const Keys keys(raw, where);
  const Kind& kind = kind_of(keys);
  refuse_extras(keys);
  ModelConfig c{};
  c.family = kind.family;
  c.vocabulary = keys.size("vocab_size");
  c.hidden = keys.size("hidden_size");
  c.layers = keys.size("num_hidden_layers");
  if (c.layers > kMaxLayers)
    keys.stop("num_hidden_layers = " + std::to_string(c.layers) + " must be in 1.." + std::to_string(kMaxLayers));
  c.heads = keys.size("num_attention_heads");
  c.kv_heads = keys.size("num_key_value_heads", c.heads);
  if (c.heads % c.kv_heads)
    keys.stop("num_key_value_heads = " + std::to_string(c.kv_heads) +
              " does not divide num_attention_heads = " + std::to_string(c.heads));
  const bool qwen3 = c.family == "qwen3";
  if (!keys.find("head_dim") && !qwen3 && c.hidden % c.heads)
    keys.stop("num_attention_heads = " + std::to_string(c.heads) + " does not divide hidden_size = " + std::to_string(c.hidden));
  c.head_dim = keys.size("head_dim", qwen3 ? 128 : c.hidden / c.heads ? c.hidden / c.heads : 1);
  if (c.head_dim % 2) keys.stop("head_dim = " + std::to_string(c.head_dim) + " is odd: rotary positions need an even one");
  c.ffn = keys.size("intermediate_size");
  c.max_positions = keys.size("max_position_embeddings");
  const double usual_eps = 1e-6;
  c.norm_eps = float(keys.number("rms_norm_eps", 0.0, 1.0, &usual_eps));
  c.tied_head = keys.flag("tie_word_embeddings", false);
  c.qk_norm = qwen3;
  const bool mistral = std::string(kind.model_type) == "mistral";
  c.q_bias = c.family == "qwen2" || (!mistral && keys.flag("attention_bias", false));
  c.o_bias = c.family != "qwen2" && c.q_bias;
  c.mlp_bias = c.family == "llama" && !mistral && keys.flag("mlp_bias", false);
  read_rope(keys, where, c);
  refuse_window(keys, kind, c);
  return c;
}

int64_t GroupShape::outputs() const {
  int64_t total = 0;
  for (const Part& part : parts) total += part.size;
  return total;
}

std::vector<GroupShape> group_shapes(const ModelConfig& c) {
  return {{"qkv",
           c.hidden,
           {{"self_attn.q_proj", c.q_width(), c.q_bias},
            {"self_attn.k_proj", c.kv_width(), c.q_bias},
            {"self_attn.v_proj", c.kv_width(), c.q_bias}}},
          {"o", c.q_width(), {{"self_attn.o_proj", c.hidden, c.o_bias}}},
          {"mlp_in", c.hidden, {{"mlp.gate_proj", c.ffn, c.mlp_bias}, {"mlp.up_proj", c.ffn, c.mlp_bias}}},
          {"down", c.ffn, {{"mlp.down_proj", c.hidden, c.mlp_bias}}}};
}

RopeTables rope_tables(const ModelConfig& config, int64_t length) {
  const int64_t half = config.head_dim / 2;
  const RopeScaling& s = config.rope_scaling;
  RopeTables out{std::vector<float>(size_t(length * half)), std::vector<float>(size_t(length * half))};
  for (int64_t i = 0; i < half; i++) {
    double frequency = std::pow(config.rope_theta, -(double(2 * i) / double(config.head_dim)));
    if (s.kind == RopeScaling::kLinear) frequency /= s.factor;
    if (s.kind == RopeScaling::kLlama3) {
      // Wavelengths beyond the original context are divided, short ones stay, those in between are blended (Llama 3.1).
      const double turns = double(s.original_positions) * frequency / (2 * M_PI);
      const double keep = std::fmin(std::fmax((turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor), 0.0), 1.0);
      frequency = keep * frequency + (1 - keep) * frequency / s.factor;
    }
    for (int64_t p = 0; p < length; p++) {
      const double angle = double(p) * frequency;
      out.cos[size_t(p * half + i)] = float(std::cos(angle));
      out.sin[size_t(p * half + i)] = float(std::sin(angle));
    }
  }
  return out;
}

}  // namespace dynadapt
