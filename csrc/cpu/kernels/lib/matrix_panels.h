// Reading a packed weight panel by panel, for the forward and for the backward product, and row by row: the one place where
// a storage matters.
#pragma once

#include "cpu/kernels/lib/gemm.h"
#include "cpu/kernels/lib/storage.h"

namespace dynadapt::DYN_ISA {

/// Panel j of a plain matrix: elements of T in the places of a Panel<T>.
template <class T>
inline T* stored_panel(const Matrix& matrix, int64_t j) {
  return static_cast<T*>(matrix.panels) + j * panel_size<T>(matrix.columns);
}

/// Place of weight[row][column] in the panels of a plain matrix.
template <class T>
inline int64_t place(const Matrix& matrix, int64_t row, int64_t column) {
  constexpr int step = kInterleave<Panel<T>>;
  return row / kNR * panel_size<T>(matrix.columns) + (column / step * kNR + row % kNR) * step + column % step;
}

/// Elements of room that `forward_panel` needs.
template <class T>
inline int64_t forward_room(const Matrix& matrix) {
  return sizeof(T) == sizeof(Panel<T>) && matrix.plain() ? 0 : panel_size<T>(matrix.columns);
}

/// Where `forward_panel` leaves panel j: where it is stored, or in `room`.
template <class T>
inline const Panel<T>* forward_place(const Matrix& matrix, int64_t j, Panel<T>* room) {
  if constexpr (sizeof(T) == sizeof(Panel<T>))
    if (matrix.plain()) return stored_panel<T>(matrix, j);
  return room;
}

/// Panel j for the forward product (columns of W^T): as stored, or made in `room`.
template <class T>
inline const Panel<T>* forward_panel(const Matrix& matrix, int64_t j, Panel<T>* room) {
  if (!matrix.plain()) {
    expand<T>(matrix, j, 0, matrix.columns, room);
    return room;
  }
  const T* stored = stored_panel<T>(matrix, j);
  if constexpr (sizeof(T) == sizeof(Panel<T>)) {
    (void)room;
    return stored;
  } else {
    for (int64_t i = 0; i < panel_size<T>(matrix.columns); i += kWidth) store(room + i, load(stored + i));
    return room;
  }
}

#if defined(__AVX512BF16__)
/// Turns 8 x 8 elements of 64 bits that stand in r, one row each.
inline void transpose_8x8(__m512i (&r)[8]) {
  __m512i s[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    s[i] = _mm512_unpacklo_epi64(r[2 * i], r[2 * i + 1]);
    s[i + 4] = _mm512_unpackhi_epi64(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 2
  for (int odd = 0; odd < 2; odd++) {
    const __m512i even_low = _mm512_shuffle_i64x2(s[4 * odd], s[4 * odd + 1], 0x88);
    const __m512i even_high = _mm512_shuffle_i64x2(s[4 * odd + 2], s[4 * odd + 3], 0x88);
    const __m512i odd_low = _mm512_shuffle_i64x2(s[4 * odd], s[4 * odd + 1], 0xdd);
    const __m512i odd_high = _mm512_shuffle_i64x2(s[4 * odd + 2], s[4 * odd + 3], 0xdd);
    r[odd] = _mm512_shuffle_i64x2(even_low, even_high, 0x88);
    r[odd + 2] = _mm512_shuffle_i64x2(odd_low, odd_high, 0x88);
    r[odd + 4] = _mm512_shuffle_i64x2(even_low, even_high, 0xdd);
    r[odd + 6] = _mm512_shuffle_i64x2(odd_low, odd_high, 0xdd);
  }
}

/// [16 pairs of k][16 rows][2] of a stored panel -> [8 pairs of rows][32 k][2] of a backward panel.
///
/// Within 64 bits, (row, k) (row, k + 1) (row + 1, k) (row + 1, k + 1) becomes (row, k) (row + 1, k) (row, k + 1)
/// (row + 1, k + 1): two elements of the backward panel that stay side by side, so that the rest is a transpose.
inline void turn_block(const bf16* from, bf16* to) {
  const __m512i swap = _mm512_broadcast_i32x4(_mm_set_epi8(15, 14, 11, 10, 13, 12, 9, 8, 7, 6, 3, 2, 5, 4, 1, 0));
#pragma GCC unroll 2
  for (int half = 0; half < 2; half++) {
    __m512i r[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
      const bf16* row = from + (8 * half + i) * 2 * kNR;
      r[i] = _mm512_shuffle_epi8(_mm512_loadu_si512(row), swap);
      __builtin_prefetch(row + kNR * kNR);  // the block of the next backward panel
    }
    transpose_8x8(r);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) _mm512_storeu_si512(to + i * 2 * kNR + half * 32, r[i]);
  }
}
#endif

/// to[r][n] = the element at [n][r] of `columns` columns of a panel that lie at `from` (E: T, or what they are widened to), as a
/// piece of a backward panel; zero for further columns.
template <class T, class E>
inline void turn(const E* from, int64_t columns, Panel<T>* to) {
  constexpr int step = kInterleave<Panel<T>>;
  if (columns >= kNR) {
#if defined(__AVX512BF16__)
    if constexpr (step == 2 && sizeof(E) == 2) {
      for (int r = 0; r < kNR; r += 16) turn_block(from + r * 2, to + r * kNR);
      return;
    }
#endif
    if constexpr (step == 1) {
      for (int r = 0; r < kNR; r += kWidth)
        for (int n = 0; n < kNR; n += kWidth)
          transpose_tile<E>(from + n * kNR + r, kNR * int64_t(sizeof(E)), kWidth, to + r * kNR + n, kNR * 4);
      return;
    }
  }
  for (int r = 0; r < kNR; r++)
    for (int n = 0; n < kNR; n++) {
      const float value = n < columns ? to_float(from[(n / step * kNR + r) * step + n % step]) : 0.0f;
      assign(to[(r / step * kNR + n) * step + r % step], value);
    }
}

/// Rows `row`.. (kNR of them: stored panel row / kNR) and columns `column`.. of the weight as a piece of a
/// backward panel: to[r][n] = weight[row + r][column + n], zero outside the weight.
template <class T>
inline void backward_block(const Matrix& matrix, int64_t row, int64_t column, Panel<T>* to) {
  const int64_t columns = smaller<int64_t>(kNR, matrix.columns - column);
  if (matrix.plain()) return turn<T>(stored_panel<T>(matrix, row / kNR) + column * kNR, columns, to);
  alignas(64) Panel<T> piece[kNR * kNR];
  expand<T>(matrix, row / kNR, column, columns, piece);
  turn<T>(piece, columns, to);
}

/// out [K] = one row of the weight.
template <class T>
inline void read_row(const Matrix& matrix, int64_t row, T* out) {
  constexpr int step = kInterleave<Panel<T>>;
  const int64_t K = matrix.columns;
  if (matrix.plain()) {
    const T* from = static_cast<const T*>(matrix.panels) + place<T>(matrix, row, 0);
    for (int64_t k = 0; k < K; k++) out[k] = from[k / step * kNR * step + k % step];
    return;
  }
  alignas(64) Panel<T> piece[kNR * kNR];
  for (int64_t column = 0; column < K; column += kNR) {
    const int64_t columns = smaller<int64_t>(kNR, K - column);
    expand<T>(matrix, row / kNR, column, columns, piece);
    for (int64_t k = 0; k < columns; k++)
      assign(out[column + k], to_float(piece[(k / step * kNR + row % kNR) * step + k % step]));
  }
}

/// Elements that a backward panel of this weight takes in `room` below.
template <class T>
inline int64_t backward_panel_size(const Matrix& matrix) {
  return panel_count(matrix.rows) * kNR * kNR;
}

/// Panel j for the backward product (columns kNR * j.. of W), over all rows of the weight.
template <class T>
inline void backward_panel(const Matrix& matrix, int64_t j, Panel<T>* room) {
  for (int64_t row = 0; row < matrix.rows; row += kNR) backward_block<T>(matrix, row, j * kNR, room + row * kNR);
}

}  // namespace dynadapt::DYN_ISA
