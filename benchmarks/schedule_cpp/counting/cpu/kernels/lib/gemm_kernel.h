// csrc/cpu/kernels/lib/gemm_kernel.h whose tiles are counted and not computed.
#pragma once

#include "work.h"

#define multiply_tile plain_multiply_tile
#define multiply_into plain_multiply_into
#include_next "cpu/kernels/lib/gemm_kernel.h"
#undef multiply_tile
#undef multiply_into

namespace dynadapt::DYN_ISA {

template <class T>
inline void multiply_tile(int rows, int columns, const Term<T>* terms, int count, float*, int64_t, Into) {
  const int computed = columns <= kNR / 2 ? kNR / 2 : kNR;
  for (int i = 0; i < count; i++) counting::mine->flops += 2.0 * rows * computed * double(terms[i].k);
}

template <class T>
inline void multiply_into(int rows, int columns, const Term<T>& term, float* c, int64_t ldc, bool) {
  multiply_tile(rows, columns, &term, 1, c, ldc, Into::write);
}

}  // namespace dynadapt::DYN_ISA
