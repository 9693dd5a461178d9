// What the kernels of the gated delta rule are given once the tensors have been checked.
// `T` is the activation type, float or bf16.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/by_type.h"

namespace dynadapt {

struct DeltaRuleInputs {
  size_t streams, segment, key_heads, value_heads, key_dim, value_dim;
  float scale, eps;
  const void* qkv;         // T [streams segment, 2 key_heads key_dim + value_heads value_dim]
  const float* g;          // [streams segment, value_heads]
  const float* beta;       // like g
  const float* state;      // [slots, value_heads, key_dim, value_dim] or null
  const int32_t* slots;    // [streams]
  const int32_t* lengths;  // [streams] or null
};

struct DeltaRuleForward {
  DeltaRuleInputs in;
  void* out;     // T [streams segment, value_heads value_dim]
  float* final;  // [streams, value_heads, key_dim, value_dim] or null
};

struct DeltaRuleBackward {
  DeltaRuleInputs in;
  const void* dout;  // T like out
  void* dqkv;        // T like qkv
  float* dg;         // like g
  float* dbeta;      // like g
};

struct DeltaRuleKernels {
  void (*forward)(const DeltaRuleForward&);
  void (*backward)(const DeltaRuleBackward&);
};
DYN_TABLE(ByType<DeltaRuleKernels>, delta_rule_kernels)

}  // namespace dynadapt
