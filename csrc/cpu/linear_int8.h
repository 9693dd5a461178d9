// The linear family over matrices that are all stored as int8.
#pragma once

#include "cpu/linear.h"

namespace dynadapt {

struct Int8LinearKernels {
  void (*forward)(const LinearForward&);
  void (*backward)(const LinearBackward&);
};
DYN_TABLE(Int8LinearKernels, int8_linear_kernels)

}  // namespace dynadapt
