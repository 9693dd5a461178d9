// Arguments of the linear cross-entropy, checked, as the kernels take them.
#pragma once

#include "cpu/matrix.h"

namespace dynadapt {

struct CrossEntropy {
  DType dtype;
  int64_t N, H;
  const void* h;
  const Matrix* head;
  const int64_t* targets;
  const float* weights;  // or null: ones
  float *nll, *lse;
  void* dh;  // or null: the score only
  // What is learned from is a teacher's K tokens of each row, K > 0, not the targets:
  int64_t K = 0;
  const int64_t* ids = nullptr;  // [N, K], negative: none
  const float* logp = nullptr;   // [N, K]
  float* kl = nullptr;
};

struct CrossEntropyWeightGradient {
  DType dtype;
  int64_t N, H;
  const void* h;
  const Matrix* head;
  const int64_t* targets;
  const float* weights;
  const float* lse;
  float* dW;
  bool accumulate;
};

struct CrossEntropyKernels {
  void (*score)(const CrossEntropy&);
  void (*weight_gradient)(const CrossEntropyWeightGradient&);
};
DYN_TABLE(CrossEntropyKernels, cross_entropy_kernels)

}  // namespace dynadapt
