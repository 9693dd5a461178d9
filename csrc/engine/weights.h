// A model's frozen weights in the form that the kernels read, loaded from a Hugging Face directory.
#pragma once

#include <string>
#include <vector>

#include "engine/config.h"
#include "engine/storage.h"

namespace dynadapt {

struct LayerWeights {
  std::vector<MatrixPtr> parts[kGroups];
  Storage bias[kGroups];                  // [outputs] or empty
  Storage attn_norm, mlp_norm;            // [H], of what attention and feed-forward read, or empty
  Storage attn_post_norm, mlp_post_norm;  // [H], of what they add, or empty
  Storage q_norm, k_norm;                 // [d], or of all heads; or empty
};

struct Weights {
  DType dtype;
  std::vector<LayerWeights> layers;
  Storage final_norm;  // [H]
  MatrixPtr head;      // [V, H]; its rows serve the token look-up where it is tied
  Storage table;       // [V, H], where the head is not tied
  int64_t parameters = 0;

  size_t bytes() const;
};

struct Model {
  std::string name;  // of the directory
  ModelConfig config;
  std::vector<GroupShape> groups;
  Weights weights;
};

/// Loads config.json and the safetensors files of `directory`, weights rounded to `dtype`, or linear weights and head to int8 with
/// scales. Throws Invalid naming the file, the tensor or the key that does not fit.
Model load_model(const std::string& directory, DType dtype, bool int8);

}  // namespace dynadapt
