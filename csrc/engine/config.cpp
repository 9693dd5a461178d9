#include "engine/config.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <map>

#include "core/error.h"
#include "engine/config_keys.h"
#include "engine/config_values.h"

namespace dynadapt {

namespace {

constexpr int64_t kMaxLayers = 10'000;  // a larger number can only be a damaged file

struct Kind {
  const char *model_type, *architecture, *family;
  int64_t positions, kv_heads;  // where the file has no such key; kv_heads 0: as many as heads
  double theta;
  bool tied;

  bool is(const char* type) const { return std::string(type) == model_type; }
};
constexpr Kind kKinds[] = {{"llama", "LlamaForCausalLM", "llama", 2048, 0, 1e4, false},
                           {"mistral", "MistralForCausalLM", "llama", 131072, 8, 1e4, false},
                           {"qwen2", "Qwen2ForCausalLM", "qwen2", 32768, 32, 1e4, false},
                           {"qwen3", "Qwen3ForCausalLM", "qwen3", 32768, 32, 1e4, false},
                           {"smollm3", "SmolLM3ForCausalLM", "smollm3", 32768, 4, 2e6, true}};

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
  keys.stop("model_type " + found + " is not supported by this engine; accepted: " + accepted);
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

constexpr double kBand[] = {1e-6, 1e9}, kScale[] = {1e-6, 1e6};

/// A number in the bounds, `absent` where there is no such key or it is null.
double number_or(const ConfigValues& rope, const char* key, const double (&bounds)[2], double absent) {
  return rope.find(key) ? rope.number(key, bounds[0], bounds[1]) : absent;
}

/// factor; where it is null, how much longer the context is than the original one.
double grown(const ConfigValues& rope, const ModelConfig& c) {
  if (rope.find("factor")) return rope.number("factor", 0.01, 1e9);
  const double ratio = double(c.max_positions) / double(c.rope_scaling.original_positions);
  if (!(ratio >= 0.01 && ratio <= 1e9)) rope.stop("original_max_position_embeddings is too far from max_position_embeddings");
  return ratio;
}

/// How much yarn adds to queries and keys, by one of its two weights.
double yarn_scale(double factor, double weight) { return factor <= 1 ? 1.0 : 0.1 * weight * std::log(factor) + 1.0; }

void read_yarn(const ConfigValues& rope, ModelConfig& c) {
  RopeScaling& s = c.rope_scaling;
  if (!rope.value("factor")) rope.stop("factor is missing; accepted: a number, or null");
  s.factor = grown(rope, c);
  s.beta_fast = number_or(rope, "beta_fast", kBand, 32);
  s.beta_slow = number_or(rope, "beta_slow", kBand, 1);
  s.truncate = rope.flag("truncate", true);
  const double from_none[] = {0, kScale[1]};
  const double mscale = number_or(rope, "mscale", from_none, 0), all_dim = number_or(rope, "mscale_all_dim", from_none, 0);
  const bool ratio = mscale != 0 && all_dim != 0;
  s.attention_factor = yarn_scale(s.factor, ratio ? mscale : 1) / yarn_scale(s.factor, ratio ? all_dim : 0);
  s.attention_factor = number_or(rope, "attention_factor", kScale, s.attention_factor);
  if (c.rope_theta == 1) rope.stop("rope_theta = 1 with type yarn is not supported: all pairs turn alike");
}

std::vector<double> read_factors(const ConfigValues& rope, const char* key, const ModelConfig& c) {
  const Json* list = rope.value(key);
  bool fine = list && list->is(Json::kArray) && int64_t(list->items.size()) == c.head_dim / 2;
  std::vector<double> out;
  for (size_t i = 0; fine && i < list->items.size(); i++) {
    const Json& item = list->items[i];
    fine = item.is(Json::kNumber) && item.number >= kBand[0] && item.number <= kBand[1];
    out.push_back(item.number);
  }
  if (!fine)
    rope.stop(std::string(key) + (list ? " = " + list->text() : " is missing, it") + " must be a list of head_dim / 2 = " +
              std::to_string(c.head_dim / 2) + " numbers in " + json_number(kBand[0]) + ".." + json_number(kBand[1]));
  return out;
}

void read_longrope(const ConfigValues& rope, ModelConfig& c) {
  RopeScaling& s = c.rope_scaling;
  s.short_factor = read_factors(rope, "short_factor", c);
  s.long_factor = read_factors(rope, "long_factor", c);
  const double longer = grown(rope, c);
  if (!rope.find("attention_factor") && longer > 1) {
    if (s.original_positions == 1) rope.stop("original_max_position_embeddings = 1 with type longrope; accepted: at least 2");
    s.attention_factor = std::sqrt(1 + std::log(longer) / std::log(double(s.original_positions)));
  }
  s.attention_factor = number_or(rope, "attention_factor", kScale, s.attention_factor);
}

void read_llama3(const ConfigValues& rope, RopeScaling& s) {
  s.factor = rope.number("factor", 0.01, 1e9);
  s.low_freq_factor = rope.number("low_freq_factor", kBand[0], kBand[1]);
  s.high_freq_factor = rope.number("high_freq_factor", kBand[0], kBand[1]);
  if (s.high_freq_factor <= s.low_freq_factor) rope.stop("high_freq_factor must be above low_freq_factor");
}

/// Precedences are those of dynadapt/model/rope_settings.py, which are transformers' own.
void read_rope(const ConfigValues& keys, const std::string& where, const Kind& type, ModelConfig& c) {
  static const Json none;
  const std::string place = rope_place(keys);
  const Json* found = keys.find(place.c_str());
  const Json& object = found ? *found : none;
  for (const auto& [name, value] : object.members)
    if (value.is(Json::kObject)) keys.stop(place + " by layer type are not supported; accepted: one set for all layers");
  const ConfigValues rope(object, where, place + ".");
  refuse_partial(keys, keys.find("partial_rotary_factor"));
  refuse_partial(rope, rope.value("partial_rotary_factor"));
  c.rope_theta = (rope.value("rope_theta") ? rope : keys).number("rope_theta", 1.0, 1e15, &type.theta);
  const Json* kind = rope.value("rope_type");
  if (!kind) kind = rope.value("type");
  static const std::map<std::string, RopeScaling::Kind> kinds = {
      {"default", RopeScaling::kNone}, {"linear", RopeScaling::kLinear},     {"dynamic", RopeScaling::kDynamic},
      {"yarn", RopeScaling::kYarn},    {"longrope", RopeScaling::kLongrope}, {"llama3", RopeScaling::kLlama3}};
  RopeScaling& s = c.rope_scaling;
  if (kind) {
    const auto known = kinds.find(kind->string);
    if (!kind->is(Json::kString) || known == kinds.end())
      keys.stop(place + " type " + kind->text() +
                " is not supported; accepted: default, linear, dynamic, yarn, longrope, llama3");
    s.kind = known->second;
  }
  refuse_unread(object, "rope", where, place);
  const char* original = "original_max_position_embeddings";
  if (s.kind == RopeScaling::kYarn || s.kind == RopeScaling::kLongrope || s.kind == RopeScaling::kLlama3)
    s.original_positions = (keys.value(original) ? keys : rope).size(original, c.max_positions);
  if (s.kind == RopeScaling::kLinear || s.kind == RopeScaling::kDynamic) s.factor = rope.number("factor", 0.01, 1e9);
  if (s.kind == RopeScaling::kDynamic && c.head_dim == 2)
    keys.stop(place + " type dynamic with head_dim = 2 is not supported; accepted: at least 4");
  if (s.kind == RopeScaling::kYarn) read_yarn(rope, c);
  if (s.kind == RopeScaling::kLongrope) read_longrope(rope, c);
  if (s.kind == RopeScaling::kLlama3) read_llama3(rope, s);
}

/// Which layers slide, as layer_types says; without one, `slides` as it is.
void read_layer_types(const ConfigValues& keys, int64_t layers, std::vector<bool>& slides) {
  const Json* types = keys.find("layer_types");
  if (!types) return;
  bool fine = types->is(Json::kArray) && int64_t(types->items.size()) == layers;
  for (size_t i = 0; fine && i < types->items.size(); i++) {
    const Json& kind = types->items[i];
    slides[i] = kind.string == "sliding_attention";
    fine = slides[i] || kind.string == "full_attention" || kind.string == "attention";
  }
  if (!fine)
    keys.stop("layer_types = " + types->text() + " must be a list of num_hidden_layers = " + std::to_string(layers) +
              ", each of full_attention, sliding_attention");
}

/// The windows that a token within the model's own context notices: dynadapt/model/sliding.py.
void read_windows(const ConfigValues& keys, const Kind& kind, ModelConfig& c) {
  const bool qwen = kind.is("qwen2") || kind.is("qwen3"), mistral = kind.is("mistral"), smollm = kind.is("smollm3");
  int64_t window = 0;  // none
  if (const Json* given = keys.value("sliding_window"); given ? !given->is(Json::kNull) : qwen || mistral)
    window = keys.size("sliding_window", 4096);  // 4096: what transformers takes where a config says nothing, not even null
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
    slides.push_back(window && (mistral || (qwen && double(i) >= first) || (smollm && !c.rotates(i))));
  read_layer_types(keys, c.layers, slides);
  const bool any = std::find(slides.begin(), slides.end(), true) != slides.end();
  if (any && !window)
    keys.stop(
        "layer_types has sliding_attention and there is no sliding_window (use_sliding_window false, or null): accepted: "
        "full_attention in every layer");
  if (window == 0 || window >= c.max_positions) return;
  if (kind.is("llama"))  // its own attention does not slide, the cache that transformers gives it does
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
  if (!even && !(qwen2 || smollm ? keys.value("head_dim") : keys.find("head_dim")) && !qwen3)
    keys.stop("num_attention_heads = " + std::to_string(c.heads) + " does not divide hidden_size = " + std::to_string(c.hidden));
  c.head_dim = keys.size_or_null("head_dim", qwen3 ? 128 : even, qwen2 || qwen3 || smollm ? 0 : even);
  if (c.head_dim % 2) keys.stop("head_dim = " + std::to_string(c.head_dim) + " is odd: rotary positions need an even one");
  c.ffn = keys.size("intermediate_size");
  c.max_positions = keys.size("max_position_embeddings", kind.positions);
  const double usual_eps = 1e-6;
  c.norm_eps = float(keys.number("rms_norm_eps", 0.0, 1.0, &usual_eps));
  c.tied_head = keys.flag("tie_word_embeddings", kind.tied);
  c.qk_norm = qwen3;
  c.q_bias = qwen2 || (!mistral && keys.flag("attention_bias", false));
  c.o_bias = !qwen2 && c.q_bias;
  c.mlp_bias = (kind.is("llama") || smollm) && keys.flag("mlp_bias", false);
  read_rope(keys, where, kind, c);
  if (smollm) read_rotated(keys, c);
  read_windows(keys, kind, c);
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
