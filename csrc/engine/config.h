// What a decoder is: sizes and choices, from a Hugging Face config.json. dynadapt/model/families/rotary.py reads the same.
#pragma once

#include <string>
#include <vector>

#include "engine/json.h"

namespace dynadapt {

struct RopeScaling {
  enum Kind {
    kNone,
    kLinear,
    kLlama3
  };
  Kind kind = kNone;
  double factor = 1, low_freq_factor = 1, high_freq_factor = 1;
  int64_t original_positions = 0;
};

struct ModelConfig {
  std::string family;  // "llama", "qwen2", "qwen3", "granite"
  int64_t vocabulary, hidden, layers, heads, kv_heads, head_dim, ffn, max_positions;
  float norm_eps;         // in the units in which the residual is kept: dynadapt/model/config.py, stream_scale
  float embedding_scale;  // likewise
  float attention_scale;  // of the products of queries and keys
  float hidden_scale;     // of hidden states in front of the head
  double rope_theta;
  RopeScaling rope_scaling;
  bool tied_head, qk_norm, q_bias, o_bias, mlp_bias;  // q_bias: of queries, keys and values

  int64_t q_width() const { return heads * head_dim; }
  int64_t kv_width() const { return kv_heads * head_dim; }
};

/// The linear groups of a layer, in the order of the forward pass. The parts of a group share their input.
enum Group {
  kQkv,
  kO,
  kMlpIn,
  kDown,
  kGroups
};

/// A part of a group: a linear weight [size, K].
struct Part {
  const char* module;  // Hugging Face's name within a layer: "self_attn.q_proj"
  int64_t size;
  bool bias;
};

struct GroupShape {
  const char* name;  // "qkv"
  int64_t K;
  std::vector<Part> parts;

  int64_t outputs() const;
};

std::vector<GroupShape> group_shapes(const ModelConfig& config);

/// The config of a config.json. Throws Invalid with `where` in front, naming the key that is missing or not supported.
ModelConfig read_config(const Json& raw, const std::string& where);

/// cos and sin, each [length, head_dim / 2], for positions 0..length-1: computed in float64, then rounded once.
struct RopeTables {
  std::vector<float> cos, sin;
};
RopeTables rope_tables(const ModelConfig& config, int64_t length);

}  // namespace dynadapt
