// What the head norm kernels are given once the tensors have been checked.
// `T` is the activation type, float or bf16.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/by_type.h"

namespace dynadapt {

struct HeadNormForward {
  size_t rows, query_heads, kv_heads, head_dim;
  float eps;
  const void* qkv;       // T [rows, (query_heads + 2 kv_heads) head_dim]
  const void* q_weight;  // T [head_dim]
  const void* k_weight;  // T [head_dim]
  void* out;             // T like qkv
  float* rstd;           // [rows, query_heads + kv_heads]
};

struct HeadNormBackward {
  size_t rows, query_heads, kv_heads, head_dim;
  const void* dout;      // T like qkv
  const void* qkv;       // T [rows, (query_heads + 2 kv_heads) head_dim]
  const void* q_weight;  // T [head_dim]
  const void* k_weight;  // T [head_dim]
  const float* rstd;     // [rows, query_heads + kv_heads]
  void* dqkv;            // T like qkv
  float* dq_weight;      // [head_dim] or null, added to
  float* dk_weight;      // [head_dim] or null, added to
};

struct HeadNormKernels {
  void (*forward)(const HeadNormForward&);
  void (*backward)(const HeadNormBackward&);
};
DYN_TABLE(ByType<HeadNormKernels>, head_norm_kernels)

}  // namespace dynadapt
