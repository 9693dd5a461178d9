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
    kDynamic,
    kYarn,
    kLongrope,
    kLlama3
  };
  Kind kind = kNone;
  double factor = 1, low_freq_factor = 1, high_freq_factor = 1;
  double attention_factor = 1;                    // of cosines and sines: yarn, longrope
  double beta_fast = 32, beta_slow = 1;           // yarn
  bool truncate = true;                           // yarn
  std::vector<double> short_factor, long_factor;  // longrope, [head_dim / 2] each
  int64_t original_positions = 0;
};

struct ModelConfig {
  std::string family;  // "llama", "qwen2", "qwen3", "smollm3", "olmo2", "granite"
  int64_t vocabulary, hidden, layers, heads, kv_heads, head_dim, ffn, max_positions;
  float norm_eps;         // in the units in which the residual is kept: dynadapt/model/config.py, stream_scale
  float embedding_scale;  // likewise
  float attention_scale;  // of the products of queries and keys
  float hidden_scale;     // of hidden states in front of the head
  double rope_theta;
  RopeScaling rope_scaling;
  bool tied_head, qk_norm, q_bias, o_bias, mlp_bias;  // q_bias: of queries, keys and values
  std::vector<bool> rotated;                          // of each layer: whether its queries and keys are; no entry at all: all
  std::vector<int64_t> windows;  // of each layer: how many tokens a token attends to, itself included; 0, or no entry at all: all

  bool norm_after, normed_together;  // norms behind attention and feed-forward alone; queries and keys each as one piece
  double window_rope_theta;          // of layers with a window, whose rotations are not scaled then; 0: theirs are the others'

  int64_t q_width() const { return heads * head_dim; }
  int64_t kv_width() const { return kv_heads * head_dim; }
  bool rotates(int64_t layer) const { return rotated.empty() || rotated[size_t(layer)]; }
  /// Of `layer`, 0: no window.
  int64_t window(int64_t layer) const { return windows.empty() ? 0 : windows[size_t(layer)]; }
  /// How many of `memory` entries some query of `layer` sees.
  int64_t seen_memory(int64_t layer, int64_t memory) const {
    return window(layer) && window(layer) - 1 < memory ? window(layer) - 1 : memory;
  }
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

}  // namespace dynadapt
