// Arguments of the linear cross-entropy, checked, as the kernels take them.
#pragma once

#include "cpu/matrix.h"

namespace dynadapt {

/// Low-rank adapters of the head: logits += scale u Bt[slot], u = h A[slot]^T. Rank 0: none.
struct HeadAdapters {
  int64_t rank = 0;
  float scale = 1;
  const int32_t* slots = nullptr;  // [N], those of one adapter side by side
  const void* A = nullptr;         // [slots, R, H]
  const void* Bt = nullptr;        // [slots, R, V]
  int64_t A_stride = 0, Bt_stride = 0;
  void* u = nullptr;   // [N, R]
  void* dU = nullptr;  // [N, R], or null: the score only
};

struct CrossEntropy {
  DType dtype;
  int64_t N, H;
  const void* h;
  const Matrix* head;
  const int64_t* targets;
  const float* weights;  // or null: ones
  float *nll, *lse;
  void* dh;           // or null: not wanted
  float softcap = 0;  // logits are softcap tanh(logit / softcap); 0: as they are
  // What is learned from is a teacher's K tokens of each row, K > 0, not the targets:
  int64_t K = 0;
  const int64_t* ids = nullptr;  // [N, K], negative: none
  const float* logp = nullptr;   // [N, K]
  float* kl = nullptr;
  HeadAdapters adapters = {};

  bool learns() const { return dh || adapters.dU; }
};

struct CrossEntropyGradient {
  DType dtype;
  int64_t N, H;
  const void* h;
  const Matrix* head;
  const int64_t* targets;
  const float* weights;
  const float* lse;
  float softcap;
  bool accumulate;
  float* dW = nullptr;  // [V, H]
  // or of adapters:
  HeadAdapters adapters = {};
  float *dA = nullptr, *dBt = nullptr;  // [slots, R, H], [slots, R, V]
  int64_t dA_stride = 0, dBt_stride = 0;
};

struct CrossEntropyKernels {
  void (*score)(const CrossEntropy&);
};
DYN_TABLE(CrossEntropyKernels, cross_entropy_kernels)

struct CrossEntropyGradientKernels {
  void (*weight)(const CrossEntropyGradient&);
  void (*adapters)(const CrossEntropyGradient&);
};
DYN_TABLE(CrossEntropyGradientKernels, cross_entropy_gradient_kernels)

}  // namespace dynadapt
