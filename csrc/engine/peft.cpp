#include "engine/peft.h"

#include <algorithm>
#include <filesystem>
#include <set>

#include "engine/safetensors.h"

namespace dynadapt {

namespace {

namespace fs = std::filesystem;

constexpr const char *kConfig = "adapter_config.json", *kTensors = "adapter_model.safetensors";

/// One adapted weight: its A is rows [row, row + R) of the group's A, its B the columns [column, column + size) of Bt.
struct Adapted {
  std::string module;
  float *A, *Bt;  // of the first row and of the first column
  int64_t K, size, outputs;
};

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
        out.push_back({"base_model.model.model.layers." + std::to_string(layer) + "." + part.module, A, Bt, group.K, part.size,
                       group.outputs()});
        A += rank * group.K;
        Bt += part.size;
      }
    }
  return out;
}

std::string key(const Adapted& weight, char which) { return weight.module + ".lora_" + which + ".weight"; }

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

/// Whether a setting that changes the product is in use.
bool in_use(const Json* value) {
  if (!value) return false;
  switch (value->kind) {
    case Json::kBool: return value->boolean;
    case Json::kNumber: return value->number != 0;
    case Json::kString: return !value->string.empty();
    case Json::kArray: return !value->items.empty();
    case Json::kObject: return !value->members.empty();
    default: return false;
  }
}

void check_settings(const std::string& directory, const LoraSettings& lora) {
  const std::string where = (fs::path(directory) / kConfig).string();
  const Json settings = parse_json(read_file(where), where);
  const auto same = [&](const char* name, double expected) {
    const Json* value = settings.find(name);
    if (!value || !value->is(Json::kNumber) || value->number != expected)
      throw Invalid(directory + ": adapter has " + name + " = " + (value ? value->text() : "null") + "; the engine's has " +
                    json_number(expected));
  };
  same("r", double(lora.rank));
  same("lora_alpha", lora.alpha);
  for (const char* name : {"use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save"})
    if (const Json* value = settings.find(name); in_use(value))
      throw Invalid(directory + ": adapter has " + name + " = " + value->text() + ", which is not supported");
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
  check_settings(directory, adapters.lora());
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
