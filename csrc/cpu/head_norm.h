// What the head norm kernels are given once the tensors have been checked.
// `T` is the activation type, float or bf16.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/by_type.h"

namespace dynadapt {

/// What of a qkv row is normalised by itself: every query and key head, or `together` all query heads and all key heads.
struct NormedPieces {
  NormedPieces() = default;
  NormedPieces(size_t query_heads, size_t kv_heads, size_t head_dim, bool together)
      : queries(together ? 1 : query_heads),
        keys(together ? 1 : kv_heads),
        query_width(together ? query_heads * head_dim : head_dim),
        key_width(together ? kv_heads * head_dim : head_dim),
        value_width(kv_heads * head_dim) {}

  size_t count() const { return queries + keys; }
  size_t row() const { return queries * query_width + keys * key_width + value_width; }

  size_t queries = 0, keys = 0;           // pieces
  size_t query_width = 0, key_width = 0;  // elements of one
  size_t value_width = 0;                 // elements that are copied
};

struct HeadNormForward {
  size_t rows;
  NormedPieces pieces;
  float eps;
  const void* qkv;            // T [rows, pieces.row()]
  const void* q_weight;       // T [query_width], or float
  const void* k_weight;       // T [key_width], or float
  void* out;                  // T like qkv
  float* rstd;                // [rows, pieces.count()]
  bool wide_weights = false;  // float whatever T is
};

struct HeadNormBackward {
  size_t rows;
  NormedPieces pieces;
  const void* dout;      // T like qkv
  const void* qkv;       // T [rows, pieces.row()]
  const void* q_weight;  // T [query_width], or float
  const void* k_weight;  // T [key_width], or float
  const float* rstd;     // [rows, pieces.count()]
  void* dqkv;            // T like qkv
  float* dq_weight;      // [query_width] or null, added to
  float* dk_weight;      // [key_width] or null, added to
  bool wide_weights = false;
};

struct HeadNormKernels {
  void (*forward)(const HeadNormForward&);
  void (*backward)(const HeadNormBackward&);
};
DYN_TABLE(ByType<HeadNormKernels>, head_norm_kernels)

}  // namespace dynadapt
