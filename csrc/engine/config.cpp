#include "engine/config.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>

#include "core/error.h"
#include "engine/config_keys.h"
#include "engine/config_values.h"
#include "engine/rope_settings.h"

namespace dynadapt {

namespace {

constexpr int64_t kMaxLayers = 10'000;  // a larger number can only be a damaged file

struct Kind {
  const char *model_type, *architecture, *family;
  int64_t positions, kv_heads;  // where the file has no such key; kv_heads 0: as many as heads
  double theta;
  bool tied;
  double eps;
  bool null_head_dim;  // whether head_dim may be null, which is hidden_size / num_attention_heads

  bool is(const char* type) const { return std::string(type) == model_type; }
};
constexpr Kind kKinds[] = {{"llama", "LlamaForCausalLM", "llama", 2048, 0, 1e4, false, 1e-6, true},
                           {"mistral", "MistralForCausalLM", "llama", 131072, 8, 1e4, false, 1e-6, true},
                           {"qwen2", "Qwen2ForCausalLM", "qwen2", 32768, 32, 1e4, false, 1e-6, false},
                           {"qwen3", "Qwen3ForCausalLM", "qwen3", 32768, 32, 1e4, false, 1e-6, false},
                           {"smollm3", "SmolLM3ForCausalLM", "smollm3", 32768, 4, 2e6, true, 1e-6, false},
                           {"olmo2", "Olmo2ForCausalLM", "olmo2", 2048, 0, 1e4, false, 1e-5, false},
                           {"olmo3", "Olmo3ForCausalLM", "olmo2", 2048, 0, 5e5, false, 1e-5, false},
                           {"granite", "GraniteForCausalLM", "granite", 2048, 0, 1e4, false, 1e-6, false}};

/// Model types that the Python engine alone runs, and what of them this one does not.
struct Other {
  const char *model_type, *lacks;
};
constexpr Other kOthers[] = {
    {"gpt2", "learned positions, LayerNorm, GELU and fused queries, keys and values"},
    {"gemma2", "GEGLU, norms on both sides of attention and feed-forward, and soft-caps"},
    {"gemma3_text", "GEGLU and norms on both sides of attention and feed-forward"},
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

/// Granite's factors; all others have none.
void read_scales(const ConfigValues& keys, const Kind& kind, ModelConfig& c) {
  const double one = 1.0, usual = 1 / std::sqrt(double(c.head_dim));
  const bool granite = c.family == "granite";
  const auto factor = [&](const char* key) { return granite ? keys.number(key, 1e-6, 1e6, &one) : 1.0; };
  const double residual = factor("residual_multiplier");
  c.norm_eps = float(keys.number("rms_norm_eps", 0.0, 1.0, &kind.eps) / (residual * residual));
  c.embedding_scale = float(factor("embedding_multiplier") / residual);
  c.attention_scale = float(granite ? factor("attention_multiplier") : usual);
  c.hidden_scale = float(1 / factor("logits_scaling"));
}

/// Which layers slide, as layer_types says; without one, `slides` as it is. `older`: whether a layer may be of the type "attention".
void read_layer_types(const ConfigValues& keys, int64_t layers, bool older, std::vector<bool>& slides) {
  const Json* types = keys.find("layer_types");
  if (!types) return;
  bool fine = types->is(Json::kArray) && int64_t(types->items.size()) == layers;
  for (size_t i = 0; fine && i < types->items.size(); i++) {
    const Json& kind = types->items[i];
    slides[i] = kind.string == "sliding_attention";
    fine = slides[i] || kind.string == "full_attention" || (older && kind.string == "attention");
  }
  if (!fine)
    keys.stop("layer_types = " + types->text() + " must be a list of num_hidden_layers = " + std::to_string(layers) +
              ", each of full_attention, sliding_attention");
}

/// The windows that a token within the model's own context notices: dynadapt/model/sliding.py.
void read_windows(const ConfigValues& keys, const Kind& kind, ModelConfig& c) {
  const bool qwen = kind.is("qwen2") || kind.is("qwen3"), mistral = kind.is("mistral"), smollm = kind.is("smollm3");
  const bool olmo3 = kind.is("olmo3");
  int64_t window = 0;  // none
  if (const Json* given = keys.value("sliding_window"); given ? !given->is(Json::kNull) : qwen || mistral || olmo3)
    window = keys.size("sliding_window", 4096);  // 4096: what transformers takes where a config says nothing, not even null
  if (olmo3 && !window) keys.stop("sliding_window = null is not supported for olmo3; accepted: at least 2 tokens");
  double first = 0;
  // Without it, layer_types of a SmolLM3 slides in some of transformers' attentions and not in others.
  if ((qwen || smollm) && !keys.flag("use_sliding_window", false)) window = 0;
  if (qwen) {
    const Json* given = keys.value("max_window_layers");
    if (given && !(given->is(Json::kNumber) && given->integer))
      keys.stop("max_window_layers = " + given->text() + " must be a whole number");
    first = given ? given->number : 28;
  }
  std::vector<bool> slides;
  for (int64_t i = 0; i < c.layers; i++)
    slides.push_back(window && (mistral || (qwen && double(i) >= first) || (smollm && !c.rotates(i)) || (olmo3 && (i + 1) % 4)));
  read_layer_types(keys, c.layers, !olmo3, slides);
  const bool any = std::find(slides.begin(), slides.end(), true) != slides.end();
  if (any && !window)
    keys.stop(
        "layer_types has sliding_attention and there is no sliding_window (use_sliding_window false, or null): accepted: "
        "full_attention in every layer");
  if (window == 0 || (window >= c.max_positions && !olmo3)) return;  // OLMo 3's layers with a window have their own rotations
  if (kind.is("llama") || kind.is("olmo2") ||
      kind.is("granite"))  // its own attention does not slide, the cache that transformers gives it does
    keys.stop("sliding-window attention (sliding_window = " + std::to_string(window) + ", context " +
              std::to_string(c.max_positions) + ") is not supported; accepted: full attention in every layer");
  if (any && window < 2)
    keys.stop("sliding_window = " + std::to_string(window) + " is not supported; accepted: null, or at least 2 tokens");
  for (const bool slid : slides)
    if (any) c.windows.push_back(slid ? window : 0);
}

/// Which layers have rotations: as no_rope_layers says, else all but each no_rope_layer_interval-th.
void read_rotated(const ConfigValues& keys, ModelConfig& c) {
  const int64_t every = keys.size("no_rope_layer_interval", 4);
  const Json* given = keys.find("no_rope_layers");
  bool fine = !given || (given->is(Json::kArray) && int64_t(given->items.size()) >= c.layers);
  for (size_t i = 0; fine && given && i < given->items.size(); i++) {
    const Json& flag = given->items[i];
    fine = flag.is(Json::kNumber) && flag.integer && (flag.number == 0 || flag.number == 1);
  }
  if (!fine)
    keys.stop("no_rope_layers = " + given->text() +
              " must be a list of at least num_hidden_layers = " + std::to_string(c.layers) + ", each 0 or 1");
  for (int64_t i = 0; i < c.layers; i++) c.rotated.push_back(given ? given->items[size_t(i)].number == 1 : (i + 1) % every != 0);
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
  const bool qwen2 = kind.is("qwen2"), qwen3 = kind.is("qwen3"), mistral = kind.is("mistral"), smollm = kind.is("smollm3");
  const bool olmo = c.family == "olmo2", granite = kind.is("granite");
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
  if (!even && !(kind.null_head_dim ? keys.find("head_dim") : keys.value("head_dim")) && !qwen3)
    keys.stop("num_attention_heads = " + std::to_string(c.heads) + " does not divide hidden_size = " + std::to_string(c.hidden));
  c.head_dim = keys.size_or_null("head_dim", qwen3 ? 128 : even, kind.null_head_dim ? even : 0);
  if (c.head_dim % 2) keys.stop("head_dim = " + std::to_string(c.head_dim) + " is odd: rotary positions need an even one");
  c.ffn = keys.size("intermediate_size");
  c.max_positions = keys.size("max_position_embeddings", kind.positions);
  read_scales(keys, kind, c);
  c.tied_head = keys.flag("tie_word_embeddings", kind.tied);
  c.qk_norm = qwen3 || olmo;
  c.norm_after = c.normed_together = olmo;
  c.q_bias = qwen2 || (!mistral && keys.flag("attention_bias", false));
  c.o_bias = !qwen2 && c.q_bias;
  c.mlp_bias = (kind.is("llama") || smollm || granite) && keys.flag("mlp_bias", false);
  if (kind.is("olmo3"))
    read_rope_by_kind(keys, where, kind.theta, c);
  else
    read_rope(keys, where, kind.theta, c);
  if (smollm) read_rotated(keys, c);
  read_windows(keys, kind, c);
  if (c.windows.empty() || (c.window_rope_theta == c.rope_theta && c.rope_scaling.kind == RopeScaling::kNone))
    c.window_rope_theta = 0;
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

}  // namespace dynadapt
