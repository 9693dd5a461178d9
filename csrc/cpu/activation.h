// What the activation kernels are given once the tensors have been checked.
// `T` is the activation type, float or bf16.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/by_type.h"

namespace dynadapt {

enum class ActivationKind {
  kSwiglu,
  kGeluTanh,
  kGelu,
  kGegluTanh,
  kGlu
};

/// Whether h is gate and up side by side.
inline bool is_gated(ActivationKind kind) { return kind != ActivationKind::kGeluTanh && kind != ActivationKind::kGelu; }

struct ActivationForward {
  size_t rows, width;  // width of y
  ActivationKind kind;
  const void* h;  // T [rows, 2 width] (gated) or [rows, width]
  void* y;        // T [rows, width]
};

struct ActivationBackward {
  size_t rows, width;
  ActivationKind kind;
  const void* dy;  // T [rows, width]
  const void* h;   // T like h of ActivationForward
  void* dh;        // T like h
  void* y;         // T [rows, width] or null: the forward's output again
};

struct ActivationKernels {
  void (*forward)(const ActivationForward&);
  void (*backward)(const ActivationBackward&);
};
DYN_TABLE(ByType<ActivationKernels>, activation_kernels)

}  // namespace dynadapt
