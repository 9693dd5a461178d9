// csrc/cpu/kernels/lib/vector_math.h whose powers of two are counted and not done.
#pragma once

#include "work.h"

#define exp2_nonpositive plain_exp2_nonpositive
#include_next "cpu/kernels/lib/vector_math.h"
#undef exp2_nonpositive

namespace dynadapt::DYN_ISA {

inline vfloat exp2_nonpositive(vfloat x) {
  counting::mine->functions += kWidth;
  return x;
}

}  // namespace dynadapt::DYN_ISA
