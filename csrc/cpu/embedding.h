// What the embedding kernels are given once the tensors have been checked.
// `T` is the activation type, float or bf16.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/by_type.h"

namespace dynadapt {

struct EmbeddingForward {
  size_t rows, width;
  const int64_t* tokens;     // [rows], each within the table
  const void* table;         // T [V, width]
  const int64_t* positions;  // [rows], or null with position_table
  const void* position_table;
  void* out;  // T [rows, width]
};

struct EmbeddingBackward {
  size_t rows, width;
  const int64_t* tokens;  // [rows]
  const void* dout;       // T [rows, width]
  float* dtable;          // [V, width], added to
};

struct EmbeddingKernels {
  void (*forward)(const EmbeddingForward&);
  void (*backward)(const EmbeddingBackward&);
};
DYN_TABLE(ByType<EmbeddingKernels>, embedding_kernels)

}  // namespace dynadapt
