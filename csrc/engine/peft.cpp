#include "engine/peft.h"

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <set>

#include "engine/peft_fields.h"
#include "engine/safetensors.h"

namespace dynadapt {

namespace {

namespace fs = std::filesystem;

constexpr const char *kConfig = "adapter_config.json", *kTensors = "adapter_model.safetensors";

/// One adapted weight: its A is rows [row, row + R) of the group's A, its B the columns [column, column + size) of Bt.
struct Adapted {
  std::string module;  // "model.layers.3.self_attn.q_proj"
  float *A, *Bt;       // of the first row and of the first column
  int64_t K, size, outputs;
};

std::string module_name(int64_t layer, const Part& part) { return "model.layers." + std::to_string(layer) + "." + part.module; }

std::vector<Adapted> adapted_weights(Adapters& adapters, const Model& model, int64_t stream) {
  const int64_t rank = adapters.lora().rank;
  std::vector<Adapted> out;
  for (int64_t layer = 0; layer < model.config.layers; layer++)
    for (int g = 0; g < kGroups; g++) {
      const AdapterPlace* at = adapters.place(layer, g);
      if (!at) continue;
      const GroupShape& group = model.groups[g];
      float *A = adapters.master(stream) + at->A, *Bt = adapters.master(stream) + at->Bt;
      for (const Part& part : group.parts) {
        out.push_back({module_name(layer, part), A, Bt, group.K, part.size, group.outputs()});
        A += rank * group.K;
        Bt += part.size;
      }
    }
  return out;
}

std::string key(const Adapted& weight, char which) { return "base_model.model." + weight.module + ".lora_" + which + ".weight"; }

std::string settings_text(const Adapters& adapters, const Model& model) {
  const LoraSettings& lora = adapters.lora();
  std::set<std::string> modules;
  for (int g = 0; g < kGroups; g++)
    if (adapters.place(lora.first_layer, g))
      for (const Part& part : model.groups[g].parts)
        modules.insert(std::string(part.module).substr(std::string(part.module).find('.') + 1));
  std::string targets, layers;
  for (const std::string& name : modules) targets += (targets.empty() ? "" : ", ") + json_string(name);
  const bool all = lora.first_layer == 0 && lora.last_layer == model.config.layers;
  for (int64_t i = lora.first_layer; i < lora.last_layer; i++) layers += (layers.empty() ? "" : ", ") + std::to_string(i);
  return "{\n  \"peft_type\": \"LORA\",\n  \"task_type\": \"CAUSAL_LM\",\n  \"base_model_name_or_path\": " +
         json_string(model.name) + ",\n  \"r\": " + std::to_string(lora.rank) +
         ",\n  \"lora_alpha\": " + json_number(lora.alpha) + ",\n  \"target_modules\": [" + targets +
         "],\n  \"lora_dropout\": 0.0,\n  \"bias\": \"none\",\n  \"fan_in_fan_out\": false,\n  \"inference_mode\": true,\n"
         "  \"init_lora_weights\": true,\n  \"use_rslora\": false,\n  \"use_dora\": false,\n  \"rank_pattern\": {},\n"
         "  \"alpha_pattern\": {},\n  \"modules_to_save\": null,\n  \"layers_to_transform\": " +
         (all ? "null" : "[" + layers + "]") + ",\n  \"layers_pattern\": " + (all ? "null" : "\"layers\"") + "\n}\n";
}

// ---- settings

/// Null, false or empty: what stands for a setting that is not used.
bool is_off(const Json& value) {
  switch (value.kind) {
    case Json::kNull:
      return true;
    case Json::kBool:
      return !value.boolean;
    case Json::kString:
      return value.string.empty();
    case Json::kArray:
      return value.items.empty();
    case Json::kObject:
      return value.members.empty();
    default:
      return false;
  }
}

bool equals(const Json& value, const Json& accepted) {
  return value.kind == accepted.kind && value.boolean == accepted.boolean && value.string == accepted.string;
}

void check_field(const std::string& directory, const std::string& name, const Json& value) {
  std::string accepts = "off";
  for (const PeftField& field : kPeftFields)
    if (name == field.name) accepts = field.accepts;
  if (accepts == "any" || accepts == "read" || (accepts == "off" && is_off(value))) return;
  if (accepts != "off") {
    const Json values = parse_json(accepts, name);
    if (std::any_of(values.items.begin(), values.items.end(), [&](const Json& one) { return equals(value, one); })) return;
  }
  throw Invalid(directory + ": adapter has " + name + " = " + value.text() +
                ", which is not supported; accepted: " + (accepts == "off" ? "null, false or empty" : accepts));
}

/// The modules that the settings name, as PEFT's check_target_module_exists finds them; regular expressions are refused.
class Targets {
 public:
  Targets(const std::string& directory, const Json& settings) : directory_(directory) {
    const Json* targets = settings.find("target_modules");
    if (targets && targets->is(Json::kString)) {
      std::string lower = targets->string;
      std::transform(lower.begin(), lower.end(), lower.begin(), [](unsigned char c) { return char(std::tolower(c)); });
      all_linear_ = lower == "all-linear";
    }
    if (!all_linear_) targets_ = words("target_modules", targets, false);
    if (!all_linear_ && targets_.empty())
      refuse("target_modules", targets, "a list of the adapted modules' names, or \"all-linear\"");
    excluded_ = words("exclude_modules", settings.find("exclude_modules"), false);
    patterns_ = words("layers_pattern", settings.find("layers_pattern"), true);
    for (const char* name : {"layers_to_transform", "layers_pattern"})
      if (const Json* value = settings.find(name); value && all_linear_) refuse(name, value, "null beside \"all-linear\"");
    if (!patterns_.empty() && !settings.find("layers_to_transform"))
      refuse("layers_pattern", settings.find("layers_pattern"), "null without layers_to_transform");
    if (const Json* layers = settings.find("layers_to_transform")) {
      const std::vector<Json> one(1, *layers);
      for (const Json& layer : layers->is(Json::kArray) ? layers->items : one) {
        if (!layer.is_count()) refuse("layers_to_transform", layers, "a layer's number or a list of them");
        layers_.insert(layer.count());
      }
    }
  }

  /// `layer`: of the module; -1: of none.
  bool has(const std::string& module, int64_t layer) const {
    if (among(excluded_, module)) return false;
    if (all_linear_) return layer >= 0;
    if (std::count(targets_.begin(), targets_.end(), module)) return true;
    return among(targets_, module) && (layers_.empty() || (layer >= 0 && layers_.count(layer) && pattern_fits()));
  }

 private:
  [[noreturn]] void refuse(const std::string& name, const Json* value, const std::string& accepted) const {
    throw Invalid(directory_ + ": adapter has " + name + " = " + (value ? value->text() : "null") +
                  ", which is not supported; accepted: " + accepted);
  }

  /// A list of words; with `or_one` also one word alone.
  std::vector<std::string> words(const std::string& name, const Json* value, bool or_one) const {
    std::vector<std::string> out;
    if (!value || is_off(*value)) return out;
    const bool list = value->is(Json::kArray), one = value->is(Json::kString) && or_one;
    const std::string accepted = or_one ? "a word or a list of them" : "a list of modules' names";
    if (!list && !one) refuse(name, value, accepted);
    const std::vector<Json> alone(1, *value);
    for (const Json& item : list ? value->items : alone) {
      if (!item.is(Json::kString) || (or_one && !is_word(item.string))) refuse(name, value, accepted);
      out.push_back(item.string);
    }
    return out;
  }

  static bool is_word(const std::string& text) {
    return std::all_of(text.begin(), text.end(), [](unsigned char c) { return std::isalnum(c) || c == '_'; });
  }

  static bool among(const std::vector<std::string>& names, const std::string& module) {
    return std::any_of(names.begin(), names.end(), [&](const std::string& name) {
      const std::string end = "." + name;
      return module == name || (module.size() > end.size() && module.compare(module.size() - end.size(), end.size(), end) == 0);
    });
  }

  /// The layers of every family here are "layers".
  bool pattern_fits() const { return patterns_.empty() || std::count(patterns_.begin(), patterns_.end(), "layers"); }

  const std::string& directory_;
  bool all_linear_ = false;
  std::vector<std::string> targets_, excluded_, patterns_;
  std::set<int64_t> layers_;
};

/// PEFT leaves tensors of modules that the settings do not name unread, and draws those of others at random.
void check_targets(const std::string& directory, const Targets& targets, const std::vector<Adapted>& weights,
                   const Model& model) {
  std::set<std::string> found;
  for (const Adapted& weight : weights) found.insert(weight.module);
  const auto check = [&](const std::string& module, int64_t layer) {
    const bool named = targets.has(module, layer);
    if (named == (found.count(module) > 0)) return;
    throw Invalid(directory + ": adapter has " +
                  (named ? "no tensors of " + module + ", which its target_modules name"
                         : "tensors of " + module +
                               ", which its target_modules, exclude_modules "
                               "and layers_to_transform leave out"));
  };
  for (int64_t layer = 0; layer < model.config.layers; layer++)
    for (const GroupShape& group : model.groups)
      for (const Part& part : group.parts) check(module_name(layer, part), layer);
  check("model.embed_tokens", -1);
  check("lm_head", -1);
}

Json read_settings(const std::string& directory, const LoraSettings& lora) {
  const std::string where = (fs::path(directory) / kConfig).string();
  Json settings = parse_json(read_file(where), where);
  if (!settings.is(Json::kObject)) throw Invalid(where + ": not a JSON object");
  if (!settings.find("peft_type")) check_field(directory, "peft_type", Json());
  for (const auto& [name, value] : settings.members) check_field(directory, name, value);
  const auto same = [&](const char* name, double expected) {
    const Json* value = settings.find(name);
    if (!value || !value->is(Json::kNumber) || value->number != expected)
      throw Invalid(directory + ": adapter has " + name + " = " + (value ? value->text() : "null") + "; the engine's has " +
                    json_number(expected));
  };
  if (const Json* rank = settings.find("r"); rank && rank->is(Json::kNumber) && !rank->is_count())
    throw Invalid(directory + ": adapter has r = " + rank->text() + "; expected a whole number of at least 1");
  for (const char* name : {"use_rslora", "rank_pattern", "alpha_pattern"})  // this engine has one rank and one scale
    if (const Json* value = settings.find(name); value && !is_off(*value))
      throw Invalid(directory + ": adapter has " + name + " = " + value->text() +
                    ", which is not supported; accepted: null, false or empty");
  same("r", double(lora.rank));
  same("lora_alpha", lora.alpha);
  return settings;
}

}  // namespace

void write_peft(const std::string& directory, Adapters& adapters, const Model& model, int64_t stream) {
  const int64_t rank = adapters.lora().rank;
  std::error_code error;
  fs::create_directories(directory, error);
  if (error) throw FileError(directory + ": cannot be made (" + error.message() + ")");
  std::vector<NamedTensor> tensors;
  for (const Adapted& w : adapted_weights(adapters, model, stream)) {
    tensors.push_back({key(w, 'A'), {rank, w.K}, std::vector<float>(w.A, w.A + rank * w.K)});
    NamedTensor B{key(w, 'B'), {w.size, rank}, std::vector<float>(size_t(w.size * rank))};
    for (int64_t o = 0; o < w.size; o++)
      for (int64_t r = 0; r < rank; r++) B.values[size_t(o * rank + r)] = w.Bt[r * w.outputs + o];
    tensors.push_back(std::move(B));
  }
  write_safetensors((fs::path(directory) / kTensors).string(), tensors);
  write_file((fs::path(directory) / kConfig).string(), settings_text(adapters, model));
}

void read_peft(const std::string& directory, Adapters& adapters, const Model& model, int64_t stream) {
  const int64_t rank = adapters.lora().rank;
  const Json settings = read_settings(directory, adapters.lora());
  const Targets targets(directory, settings);
  const SafetensorsFile file((fs::path(directory) / kTensors).string());
  const std::vector<Adapted> weights = adapted_weights(adapters, model, stream);
  std::set<std::string> left;
  for (const auto& [name, tensor] : file.tensors()) left.insert(name);
  std::vector<std::vector<float>> values;  // A and B of each weight: all are read before anything changes
  for (const Adapted& w : weights)
    for (const char which : {'A', 'B'}) {
      const std::string name = key(w, which);
      if (!left.erase(name))
        throw Invalid(directory + ": adapter has no " + name + ", which targets = " + adapters.lora().targets + " needs");
      const std::vector<int64_t> shape = which == 'A' ? std::vector<int64_t>{rank, w.K} : std::vector<int64_t>{w.size, rank};
      const std::vector<int64_t>& there = file.tensors().at(name).shape;
      if (there != shape)
        throw Invalid(directory + ": " + name + " has shape " + shape_text(there) + "; expected " + shape_text(shape));
      values.emplace_back(size_t(shape[0] * shape[1]));
      file.read(name, kF32, values.back().data());
    }
  if (!left.empty())
    throw Invalid(directory + ": adapter has " + *left.begin() + " and " + std::to_string(left.size() - 1) +
                  " more that targets = " + adapters.lora().targets + " does not cover");
  check_targets(directory, targets, weights, model);
  for (size_t i = 0; i < weights.size(); i++) {
    const Adapted& w = weights[i];
    std::copy(values[2 * i].begin(), values[2 * i].end(), w.A);
    for (int64_t o = 0; o < w.size; o++)
      for (int64_t r = 0; r < rank; r++) w.Bt[r * w.outputs + o] = values[2 * i + 1][size_t(o * rank + r)];
  }
  adapters.clear_optimizer(stream);
  adapters.refresh(stream);
}

}  // namespace dynadapt
