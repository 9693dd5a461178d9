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

/// An adapter on the embedding for each of `streams` streams, whose rows lie one behind the other.
struct AdaptedEmbedding {
  int64_t rows, streams, width, vocabulary, rank;
  const int64_t* tokens;  // [rows]
  const int32_t* slots;   // [streams]
  const void *A, *Bt;     // T [slots, rank, vocabulary] and [slots, rank, width]
  int64_t A_stride, Bt_stride;
  float scale;
};

struct AdaptedEmbeddingForward : AdaptedEmbedding {
  void* out;  // T [rows, width], added to
};

struct AdaptedEmbeddingBackward : AdaptedEmbedding {
  const void* dout;  // T [rows, width]
  float *dA, *dBt;   // as A and Bt
  int64_t dA_stride, dBt_stride;
  bool accumulate;
};

struct EmbeddingKernels {
  void (*forward)(const EmbeddingForward&);
  void (*backward)(const EmbeddingBackward&);
  void (*adapted_forward)(const AdaptedEmbeddingForward&);
  void (*adapted_backward)(const AdaptedEmbeddingBackward&);
};
DYN_TABLE(ByType<EmbeddingKernels>, embedding_kernels)

}  // namespace dynadapt
