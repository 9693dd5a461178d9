// Turning activations so that their columns become rows of A: gradients sum over tokens.
#pragma once

#include "cpu/kernels/lib/gemm_pack.h"

namespace dynadapt::DYN_ISA {

/// to[c][r] = from[r][c] for `rows` x `columns` elements, as the kernel computes with them.
template <class T>
inline void transpose(const T* from, int64_t ld, int64_t rows, int64_t columns, Panel<T>* to, int64_t ldt) {
  int64_t done_rows = 0, done_columns = 0;
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == sizeof(Panel<T>)) {
    constexpr int depth = 16 * kInterleave<T>;  // rows of `from` in 16 elements of 32 bits
    done_rows = rows / depth * depth;
    done_columns = columns / 16 * 16;
    for (int64_t r = 0; r < done_rows; r += depth)
      for (int64_t c = 0; c < done_columns; c += 16) {
        if constexpr (sizeof(T) == 2) {
          alignas(64) bf16 pairs[16 * 2 * kNR];
          pack_panel_nn(from + r * ld + c, ld, 16, depth, pairs);
          transpose_16x16(pairs, 4 * kNR, 16, to + c * ldt + r, ldt * 2);
        } else {
          transpose_16x16(from + r * ld + c, ld * 4, 16, to + c * ldt + r, ldt * 4);
        }
      }
  }
#endif
  for (int64_t r = 0; r < rows; r++)
    for (int64_t c = r < done_rows ? done_columns : 0; c < columns; c++) assign(to[c * ldt + r], to_float(from[r * ld + c]));
}

}  // namespace dynadapt::DYN_ISA
