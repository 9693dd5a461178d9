// Turning activations so that their columns become rows of A: gradients sum over tokens.
#pragma once

#include "cpu/kernels/lib/gemm_pack.h"

namespace dynadapt::DYN_ISA {

/// to[c][r] = from[r][c] for `rows` x `columns` elements, as the kernel computes with them.
template <class T>
inline void transpose(const T* from, int64_t ld, int64_t rows, int64_t columns, Panel<T>* to, int64_t ldt) {
  constexpr int depth = kWidth * kInterleave<Panel<T>>;  // rows of `from` in kWidth elements of 32 bits
  const int64_t done_rows = rows / depth * depth, done_columns = columns / kWidth * kWidth;
  for (int64_t r = 0; r < done_rows; r += depth)
    for (int64_t c = 0; c < done_columns; c += kWidth) {
      if constexpr (sizeof(Panel<T>) == 2) {
        alignas(64) bf16 pairs[kWidth * 2 * kNR];
        pack_panel_nn(from + r * ld + c, ld, kWidth, depth, pairs);
        transpose_tile<float>(pairs, 4 * kNR, kWidth, to + c * ldt + r, ldt * 2);
      } else {
        transpose_tile<T>(from + r * ld + c, ld * int64_t(sizeof(T)), kWidth, to + c * ldt + r, ldt * 4);
      }
    }
  for (int64_t r = 0; r < rows; r++)
    for (int64_t c = r < done_rows ? done_columns : 0; c < columns; c++) assign(to[c * ldt + r], to_float(from[r * ld + c]));
}

}  // namespace dynadapt::DYN_ISA
