#include "engine/config.h"

#include <cmath>
#include <initializer_list>

#include "core/error.h"
#include "engine/config_keys.h"
#include "engine/config_values.h"

namespace dynadapt {

namespace {

constexpr int64_t kMaxLayers = 10'000;  // a larger number can only be a damaged file
constexpr double kUsualEps = 1e-6;

struct Kind {
  const char *model_type, *architecture, *family;
  int64_t positions, kv_heads;  // where the file has no such key; kv_heads 0: as many as heads
};
constexpr Kind kKinds[] = {{"llama", "LlamaForCausalLM", "llama", 2048, 0},
                           {"mistral", "MistralForCausalLM", "llama", 131072, 8},
                           {"qwen2", "Qwen2ForCausalLM", "qwen2", 32768, 32},
                           {"qwen3", "Qwen3ForCausalLM", "qwen3", 32768, 32},
                           {"granite", "GraniteForCausalLM", "granite", 2048, 0}};

/// Model types that the Python engine alone runs, and what of them this one does not.
struct Other {
  const char *model_type, *lacks;
};
constexpr Other kOthers[] = {
    {"gpt2", "learned positions, LayerNorm, GELU and fused queries, keys and values"},
    {"gemma3_text", "norms behind attention and feed-forward, GEGLU and sliding windows"},
    {"phi3", "fused queries, keys and values, fused gate and up, and heads rotated in part"},
    {"gpt_neox",
     "attention and feed-forward side by side, LayerNorm, GELU, fused queries, keys and values, and heads rotated in part"},
    {"qwen3_5_text", "layers of the gated delta rule, attention with a gate, and heads rotated in part"}};

/// The kind of a config; one without a model_type is known by its architecture.
const Kind& kind_of(const ConfigValues& keys) {
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
  std::string lacks;
  for (const Other& other : kOthers)
    if (type && type->is(Json::kString) && type->string == other.model_type)
      lacks = std::string(", which does not compute ") + other.lacks;
  keys.stop("model_type " + found + " is not supported by this engine" + lacks + "; accepted: " + accepted);
}

void refuse_partial(const ConfigValues& keys, const Json* part) {
  if (part && !(part->is(Json::kNumber) && part->number == 1))
    keys.stop("partial_rotary_factor = " + part->text() + " is not supported; accepted: 1.0 or absent");
}

/// The object of the rotary settings: rope_scaling, the key of older files, unless it is empty.
const char* rope_place(const ConfigValues& keys) {
  for (const char* place : {"rope_scaling", "rope_parameters"})
    if (const Json* found = keys.find(place); found && !found->is(Json::kObject))
      keys.stop(std::string(place) + " = " + found->text() + " must be an object or null");
  const Json* scaling = keys.find("rope_scaling");
  return scaling && !scaling->members.empty() ? "rope_scaling" : "rope_parameters";
}

/// Precedences are those of dynadapt/model/rope_settings.py, which are transformers' own.
void read_rope(const ConfigValues& keys, const std::string& where, ModelConfig& c) {
  static const Json none;
  const std::string place = rope_place(keys);
  const Json* found = keys.find(place.c_str());
  const Json& object = found ? *found : none;
  for (const auto& [name, value] : object.members)
    if (value.is(Json::kObject)) keys.stop(place + " by layer type are not supported; accepted: one set for all layers");
  const ConfigValues rope(object, where, place + ".");
  refuse_partial(keys, keys.find("partial_rotary_factor"));
  refuse_partial(rope, rope.value("partial_rotary_factor"));
  const double usual = 10000.0;
  c.rope_theta = (rope.value("rope_theta") ? rope : keys).number("rope_theta", 1.0, 1e15, &usual);
  const Json* kind = rope.value("rope_type");
  if (!kind) kind = rope.value("type");
  RopeScaling& s = c.rope_scaling;
  if (!kind || kind->string == "default")
    s.kind = RopeScaling::kNone;
  else if (kind->string == "linear")
    s.kind = RopeScaling::kLinear;
  else if (kind->string == "llama3")
    s.kind = RopeScaling::kLlama3;
  else
    keys.stop(place + " type " + kind->text() + " is not supported; accepted: default, linear, llama3");
  refuse_unread(object, "rope", where, place);
  if (s.kind == RopeScaling::kNone) return;
  s.factor = rope.number("factor", 0.01, 1e9);
  if (s.kind == RopeScaling::kLinear) return;
  s.low_freq_factor = rope.number("low_freq_factor", 1e-6, 1e9);
  s.high_freq_factor = rope.number("high_freq_factor", 1e-6, 1e9);
  const char* original = "original_max_position_embeddings";
  s.original_positions = (keys.value(original) ? keys : rope).size(original, c.max_positions);
  if (s.high_freq_factor <= s.low_freq_factor) rope.stop("high_freq_factor must be above low_freq_factor");
}

/// Granite's factors; all others have none.
void read_scales(const ConfigValues& keys, ModelConfig& c) {
  const double one = 1.0, usual = 1 / std::sqrt(double(c.head_dim));
  const bool granite = c.family == "granite";
  const auto factor = [&](const char* key) { return granite ? keys.number(key, 1e-6, 1e6, &one) : 1.0; };
  const double residual = factor("residual_multiplier");
  c.norm_eps = float(keys.number("rms_norm_eps", 0.0, 1.0, &kUsualEps) / (residual * residual));
  c.embedding_scale = float(factor("embedding_multiplier") / residual);
  c.attention_scale = float(granite ? factor("attention_multiplier") : usual);
  c.hidden_scale = float(1 / factor("logits_scaling"));
}

/// Refuses a sliding window that would change a result within the model's own context: dynadapt/model/sliding.py.
void refuse_sliding(const ConfigValues& keys, const Kind& kind, const ModelConfig& c) {
  const bool qwen = std::string(kind.family).rfind("qwen", 0) == 0, mistral = std::string(kind.model_type) == "mistral";
  int64_t window = 0;  // none
  if (const Json* given = keys.value("sliding_window"); given ? !given->is(Json::kNull) : qwen || mistral)
    window = keys.size("sliding_window", 4096);  // 4096: what transformers takes where a config says nothing, not even null
  const Json* types = keys.find("layer_types");
  bool slides = window > 0;
  if (qwen) {
    if (!keys.flag("use_sliding_window", false)) window = 0;
    const Json* first = keys.value("max_window_layers");
    if (first && !(first->is(Json::kNumber) && first->integer))
      keys.stop("max_window_layers = " + first->text() + " must be a whole number");
    slides = window > 0 && (first ? first->number : 28) < double(c.layers) && !types;
  }
  if (types) {
    bool fine = types->is(Json::kArray) && int64_t(types->items.size()) == c.layers;
    for (const Json& item : types->items) {
      const bool sliding = item.string == "sliding_attention";
      fine = fine && (sliding || item.string == "full_attention" || item.string == "attention");
      slides = slides || sliding;
    }
    if (!fine)
      keys.stop("layer_types = " + types->text() + " must be a list of num_hidden_layers = " + std::to_string(c.layers) +
                ", each of full_attention, sliding_attention");
  }
  if (slides && !window)
    keys.stop(
        "layer_types has sliding_attention and there is no sliding_window (use_sliding_window false, or null): accepted: "
        "full_attention in every layer");
  if (slides && window < c.max_positions)
    keys.stop("sliding-window attention (sliding_window = " + std::to_string(window) + ", context " +
              std::to_string(c.max_positions) + ") is not supported; accepted: full attention in every layer");
}

void refuse_others(const ConfigValues& keys) {
  for (const char* key : {"quantization_config", "compression_config"})
    if (const Json* value = keys.find(key))
      keys.stop(std::string(key) + " = " + value->text() + " is not supported: give the unquantised checkpoint");
  const std::string activation = keys.text("hidden_act", "silu");
  if (activation != "silu" && activation != "swish")
    keys.stop("hidden_act = \"" + activation + "\" is not supported; accepted: silu");
  keys.check_token("bos_token_id");
  keys.check_token("eos_token_id");
}

}  // namespace

ModelConfig read_config(const Json& raw, const std::string& where) {
  if (!raw.is(Json::kObject)) throw Invalid(where + ": the config must be a JSON object, not " + raw.text());
  const ConfigValues keys(raw, where);
  const Kind& kind = kind_of(keys);
  refuse_others(keys);
  refuse_unread(raw, kind.model_type, where);
  ModelConfig c{};
  c.family = kind.family;
  const bool qwen2 = c.family == "qwen2", qwen3 = c.family == "qwen3", granite = c.family == "granite";
  const bool mistral = std::string(kind.model_type) == "mistral";
  c.vocabulary = keys.size("vocab_size");
  c.hidden = keys.size("hidden_size");
  c.layers = keys.size("num_hidden_layers");
  if (c.layers > kMaxLayers)
    keys.stop("num_hidden_layers = " + std::to_string(c.layers) + " must be in 1.." + std::to_string(kMaxLayers));
  c.heads = keys.size("num_attention_heads");
  c.kv_heads = keys.size_or_null("num_key_value_heads", kind.kv_heads ? kind.kv_heads : c.heads, mistral ? 0 : c.heads);
  if (c.heads % c.kv_heads)
    keys.stop("num_key_value_heads = " + std::to_string(c.kv_heads) +
              " does not divide num_attention_heads = " + std::to_string(c.heads));
  const int64_t even = c.hidden % c.heads ? 0 : c.hidden / c.heads;
  if (!even && !(qwen2 || granite ? keys.value("head_dim") : keys.find("head_dim")) && !qwen3)
    keys.stop("num_attention_heads = " + std::to_string(c.heads) + " does not divide hidden_size = " + std::to_string(c.hidden));
  c.head_dim = keys.size_or_null("head_dim", qwen3 ? 128 : even, qwen2 || qwen3 || granite ? 0 : even);
  if (c.head_dim % 2) keys.stop("head_dim = " + std::to_string(c.head_dim) + " is odd: rotary positions need an even one");
  c.ffn = keys.size("intermediate_size");
  c.max_positions = keys.size("max_position_embeddings", kind.positions);
  read_scales(keys, c);
  c.tied_head = keys.flag("tie_word_embeddings", false);
  c.qk_norm = qwen3;
  c.q_bias = qwen2 || (!mistral && keys.flag("attention_bias", false));
  c.o_bias = !qwen2 && c.q_bias;
  c.mlp_bias = (granite || c.family == "llama") && !mistral && keys.flag("mlp_bias", false);
  read_rope(keys, where, c);
  refuse_sliding(keys, kind, c);
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
