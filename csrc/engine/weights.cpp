#include "engine/weights.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>

#include "engine/safetensors.h"

namespace dynadapt {

namespace {

namespace fs = std::filesystem;
using Shape = std::vector<int64_t>;

constexpr const char* kIndex = "model.safetensors.index.json";

bool is_file(const fs::path& path) {
  std::error_code ignored;
  return fs::is_regular_file(path, ignored);
}

std::vector<fs::path> indexed_files(const fs::path& directory) {
  const std::string where = (directory / kIndex).string();
  const Json index = parse_json(read_file(where, kMostIndexBytes), where, kMostTableValues);
  const Json* map = index.find("weight_map");
  if (!map || map->members.empty()) throw Invalid(where + ": no weight_map of tensor names to file names");
  std::set<std::string> names;
  for (const auto& [tensor, file] : map->members) {
    if (!file.is(Json::kString) || file.string.empty() || fs::path(file.string).filename() != fs::path(file.string) ||
        file.string == "." || file.string == "..")
      throw Invalid(where + ": " + file.text() + " is not the name of a file beside it");
    names.insert(file.string);
  }
  std::vector<fs::path> files;
  for (const std::string& name : names) {
    if (!is_file(directory / name)) throw Invalid(directory.string() + ": " + name + ", which " + kIndex + " names, is missing");
    files.push_back(directory / name);
  }
  return files;
}

/// model.safetensors, or the files of the index, or the only safetensors file there is.
std::vector<fs::path> weight_files(const fs::path& directory) {
  if (is_file(directory / "model.safetensors")) return {directory / "model.safetensors"};
  if (is_file(directory / kIndex)) return indexed_files(directory);
  std::vector<fs::path> files;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(directory, error))
    if (entry.path().extension() == ".safetensors") files.push_back(entry.path());
  if (files.size() == 1) return files;
  if (files.empty()) throw Invalid(directory.string() + ": no model.safetensors");
  throw Invalid(directory.string() + ": " + std::to_string(files.size()) + " safetensors files and no " + kIndex +
                " that says which belong together");
}

bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

/// The tensors of a checkpoint under the names that a config expects.
class Checkpoint {
 public:
  Checkpoint(const fs::path& directory, DType dtype, bool int8) : where_(directory.string()), dtype_(dtype), int8_(int8) {
    for (const fs::path& path : weight_files(directory)) files_.emplace_back(path.string());
    for (const SafetensorsFile& file : files_)
      for (const auto& [name, tensor] : file.tensors()) {
        const auto [at, added] = holder_.emplace(name, &file);
        if (!added) throw Invalid(file.path() + ": tensor " + name + " is also in " + at->second->path());
      }
    bare_ = std::none_of(holder_.begin(), holder_.end(), [](const auto& item) { return item.first.rfind("model.", 0) == 0; });
  }

  /// The stored name: checkpoints of the base model alone lack its prefix.
  std::string stored(const std::string& name) const { return bare_ && name.rfind("model.", 0) == 0 ? name.substr(6) : name; }

  bool has(const std::string& name) const { return holder_.count(stored(name)) > 0; }

  /// Says that the model needs this tensor, and that it has this shape.
  void expect(const std::string& name, const Shape& shape) {
    const std::string key = stored(name);
    const auto found = holder_.find(key);
    if (found == holder_.end())
      throw Invalid(where_ + ": tensor " + key + " of shape " + shape_text(shape) + " is missing (" +
                    std::to_string(holder_.size()) + " tensors found)");
    const std::string& stored_as = found->second->tensors().at(key).dtype;
    if (stored_as != "F32" && stored_as != "F16" && stored_as != "BF16")
      throw Invalid(found->second->path() + ": tensor " + key + " has dtype " + stored_as +
                    " (a quantised checkpoint?); accepted: F32, F16, BF16");
    const Shape& there = found->second->tensors().at(key).shape;
    if (there != shape)
      throw Invalid(where_ + ": tensor " + key + " has shape " + shape_text(there) + ", the config expects " + shape_text(shape));
    expected_.insert(key);
  }

  /// Throws for a tensor that nothing expects, buffers aside that old checkpoints keep.
  void refuse_others(bool tied_head) const {
    for (const auto& [name, file] : holder_) {
      const bool buffer = name == "rotary_emb.inv_freq" || ends_with(name, ".rotary_emb.inv_freq");
      if (!expected_.count(name) && !buffer && !(tied_head && name == "lm_head.weight"))
        throw Invalid(where_ + ": tensor " + name + " of shape " + shape_text(file->tensors().at(name).shape) +
                      " has no place in this model");
    }
  }

  void read(const std::string& name, void* out) const { read_as(name, dtype_, out); }

  Storage vector(const std::string& name, int64_t size) const {
    Storage out(dtype_, size);
    read(name, out.data());
    return out;
  }

  MatrixPtr matrix(const std::string& name, int64_t rows, int64_t columns) const {
    const DType source = int8_ ? kF32 : dtype_;
    const Storage plain(source, rows * columns);
    read_as(name, source, plain.data());
    return make_matrix(rows, columns, dtype_, int8_ ? MatrixStorage::int8 : plain_storage(dtype_), plain.data());
  }

 private:
  void read_as(const std::string& name, DType dtype, void* out) const {
    const std::string key = stored(name);
    holder_.at(key)->read(key, dtype, out);
  }

  std::string where_;
  DType dtype_;
  bool int8_;
  std::vector<SafetensorsFile> files_;
  std::map<std::string, const SafetensorsFile*> holder_;
  std::set<std::string> expected_;
  bool bare_ = false;
};

/// A vector of a layer: Hugging Face's name within it, its size, and where it goes.
struct LayerVector {
  const char* name;
  int64_t size;
  Storage LayerWeights::* place;
};

std::vector<LayerVector> layer_vectors(const ModelConfig& c) {
  std::vector<LayerVector> out;
  if (c.norm_after)
    out = {{"post_attention_layernorm.weight", c.hidden, &LayerWeights::attn_post_norm},
           {"post_feedforward_layernorm.weight", c.hidden, &LayerWeights::mlp_post_norm}};
  else
    out = {{"input_layernorm.weight", c.hidden, &LayerWeights::attn_norm},
           {"post_attention_layernorm.weight", c.hidden, &LayerWeights::mlp_norm}};
  if (c.qk_norm) {
    out.push_back({"self_attn.q_norm.weight", c.normed_together ? c.q_width() : c.head_dim, &LayerWeights::q_norm});
    out.push_back({"self_attn.k_norm.weight", c.normed_together ? c.kv_width() : c.head_dim, &LayerWeights::k_norm});
  }
  return out;
}

constexpr const char *kEmbed = "model.embed_tokens.weight", *kNorm = "model.norm.weight", *kHead = "lm_head.weight";

std::string layer_name(int64_t layer, const std::string& rest) { return "model.layers." + std::to_string(layer) + "." + rest; }

/// A tied config whose checkpoint nevertheless brings a head stays tied if that equals the embedding, as in transformers.
bool head_is_tied(Checkpoint& files, const ModelConfig& c) {
  if (!c.tied_head || !files.has(kHead)) return c.tied_head;
  for (const char* name : {kEmbed, kHead}) files.expect(name, {c.vocabulary, c.hidden});
  const int64_t count = c.vocabulary * c.hidden;
  const Storage embed = files.vector(kEmbed, count), head = files.vector(kHead, count);
  return std::memcmp(embed.data(), head.data(), embed.bytes()) == 0;
}

void expect_all(Checkpoint& files, const ModelConfig& c, const std::vector<GroupShape>& groups) {
  files.expect(kEmbed, {c.vocabulary, c.hidden});
  if (!c.tied_head) files.expect(kHead, {c.vocabulary, c.hidden});
  for (int64_t i = 0; i < c.layers; i++) {
    for (const LayerVector& vector : layer_vectors(c)) files.expect(layer_name(i, vector.name), {vector.size});
    for (const GroupShape& group : groups)
      for (const Part& part : group.parts) {
        files.expect(layer_name(i, std::string(part.module) + ".weight"), {part.size, group.K});
        if (part.bias) files.expect(layer_name(i, std::string(part.module) + ".bias"), {part.size});
      }
  }
  files.expect(kNorm, {c.hidden});
  files.refuse_others(c.tied_head);
}

LayerWeights load_layer(const Checkpoint& files, const ModelConfig& c, const std::vector<GroupShape>& groups, int64_t i,
                        DType dtype) {
  LayerWeights w;
  for (const LayerVector& vector : layer_vectors(c)) w.*vector.place = files.vector(layer_name(i, vector.name), vector.size);
  for (int g = 0; g < kGroups; g++) {
    const bool biased = groups[g].parts[0].bias;  // the parts of a group have biases together
    if (biased) w.bias[g] = Storage(dtype, groups[g].outputs());
    int64_t column = 0;
    for (const Part& part : groups[g].parts) {
      w.parts[g].push_back(files.matrix(layer_name(i, std::string(part.module) + ".weight"), part.size, groups[g].K));
      if (biased) files.read(layer_name(i, std::string(part.module) + ".bias"), offset(w.bias[g].data(), dtype, column));
      column += part.size;
    }
  }
  return w;
}

int64_t count_parameters(const ModelConfig& c, const std::vector<GroupShape>& groups) {
  int64_t layer = 0;
  for (const LayerVector& vector : layer_vectors(c)) layer += vector.size;
  for (const GroupShape& group : groups)
    for (const Part& part : group.parts) layer += part.size * (group.K + (part.bias ? 1 : 0));
  return c.layers * layer + c.hidden + c.vocabulary * c.hidden * (c.tied_head ? 1 : 2);
}

}  // namespace

size_t Weights::bytes() const {
  size_t total = final_norm.bytes() + head->bytes + table.bytes();
  for (const LayerWeights& layer : layers) {
    for (const Storage* vector :
         {&layer.attn_norm, &layer.mlp_norm, &layer.attn_post_norm, &layer.mlp_post_norm, &layer.q_norm, &layer.k_norm})
      total += vector->bytes();
    for (int g = 0; g < kGroups; g++) {
      total += layer.bias[g].bytes();
      for (const MatrixPtr& part : layer.parts[g]) total += part->bytes;
    }
  }
  return total;
}

Model load_model(const std::string& directory, DType dtype, bool int8) {
  std::error_code error;
  const fs::path path = fs::canonical(directory, error);
  if (error || !fs::is_directory(path)) throw Invalid("model_dir \"" + directory + "\" is not a directory that can be read");
  const std::string where = (path / "config.json").string();
  Model model;
  model.name = path.string();  // of adapters' base_model_name_or_path: they load from anywhere on this machine
  model.config = read_config(parse_json(read_file(where), where), where);
  model.groups = group_shapes(model.config);
  Checkpoint files(path, dtype, int8);
  ModelConfig& c = model.config;
  c.tied_head = head_is_tied(files, c);
  expect_all(files, c, model.groups);
  Weights& w = model.weights;
  w.dtype = dtype;
  for (int64_t i = 0; i < c.layers; i++) w.layers.push_back(load_layer(files, c, model.groups, i, dtype));
  w.final_norm = files.vector(kNorm, c.hidden);
  w.head = files.matrix(c.tied_head ? kEmbed : kHead, c.vocabulary, c.hidden);
  if (!c.tied_head) w.table = files.vector(kEmbed, c.vocabulary * c.hidden);
  w.parameters = count_parameters(c, model.groups);
  return model;
}

}  // namespace dynadapt
