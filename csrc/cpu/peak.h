// The arithmetic that products are made of, on registers alone: how fast this machine could be at best.
#pragma once

#include <cstdint>

#include "cpu/by_type.h"

namespace dynadapt {

struct PeakKernels {
  int64_t (*multiply_add)(int64_t repetitions);  // on the calling thread; the FLOPs it made
};
DYN_TABLE(ByType<PeakKernels>, peak_kernels)

}  // namespace dynadapt
