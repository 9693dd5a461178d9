// What the kernels of the short convolution are given once the tensors have been checked.
// `T` is the activation type, float or bf16; strides are in elements.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/by_type.h"

namespace dynadapt {

struct ConvolutionInputs {
  size_t streams, segment, channels, width;
  const void* x;  // T [streams segment, channels]
  int64_t x_stride;
  const void* weight;      // T [channels, width]
  const void* state;       // T [slots, width - 1, channels] or null
  const int32_t* slots;    // [streams]
  const int32_t* lengths;  // [streams] or null
};

struct ConvolutionForward {
  ConvolutionInputs in;
  void* y;  // T like x
  int64_t y_stride;
  void* final;  // T [streams, width - 1, channels] or null
};

struct ConvolutionBackward {
  ConvolutionInputs in;
  const void* dy;  // T like x
  void* dx;        // T like x
  int64_t dy_stride, dx_stride;
  float* dweight;  // [channels, width] or null, added to
};

struct ConvolutionKernels {
  void (*forward)(const ConvolutionForward&);
  void (*backward)(const ConvolutionBackward&);
};
DYN_TABLE(ByType<ConvolutionKernels>, short_convolution_kernels)

}  // namespace dynadapt
