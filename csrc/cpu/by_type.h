// A table of kernels for each activation type.
#pragma once

#include "core/check.h"
#include "cpu/bf16.h"
#include "cpu/dispatch.h"

namespace dynadapt {

template <class Kernels>
struct ByType {
  Kernels f32, bf16;

  const Kernels& of(DType dtype) const { return dtype == kBF16 ? bf16 : f32; }
};

}  // namespace dynadapt
