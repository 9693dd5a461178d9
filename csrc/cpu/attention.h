// What the attention kernels are given once the tensors have been checked.
// `T` is the activation type, float or bf16.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/by_type.h"

namespace dynadapt {

constexpr int64_t kNoWindow = int64_t(1) << 62;  // farther than any position

struct AttentionShape {
  size_t streams, segment, query_heads, kv_heads, head_dim;
  size_t memory_capacity;  // C
  const void* mem_k;       // T [slots, C, kv_heads head_dim], keys before rotation; or null
  const void* mem_v;       // T like mem_k
  const int32_t* mem_len;  // [slots] or null
  const int32_t* slots;    // [streams]
  const float* cos;        // [positions, head_dim / 2] or null
  const float* sin;
  float scale;
  int64_t window = kNoWindow;  // a query at position p sees keys at p - window + 1 to p; at least 2
  float softcap = 0;           // scores are softcap tanh(score / softcap); 0: as they are
};

struct AttentionForward {
  AttentionShape shape;
  const void* qkv;  // T [streams segment, (query_heads + 2 kv_heads) head_dim]
  void* out;        // T [streams segment, query_heads head_dim]
  float* lse;       // [streams, query_heads, segment]
};

struct AttentionBackward {
  AttentionShape shape;
  const void* dout;  // T like out
  const void* qkv;
  const void* out;
  const float* lse;
  void* dqkv;  // T like qkv
};

struct AttentionForwardKernels {
  void (*run)(const AttentionForward&);
};
DYN_TABLE(ByType<AttentionForwardKernels>, attention_forward_kernels)

struct AttentionBackwardKernels {
  void (*run)(const AttentionBackward&);
};
DYN_TABLE(ByType<AttentionBackwardKernels>, attention_backward_kernels)

}  // namespace dynadapt
