// The micro-kernel: up to kMR rows of A times one panel of B, sums in registers. See gemm.h.
#pragma once

#include "cpu/kernels/lib/gemm_layout.h"

namespace dynadapt::DYN_ISA {

/// One term of a product for one panel: rows of A from `a`, and the panel `b`. The sum up to and
/// including this term is multiplied by `scale` (terms are added in order).
template <class T>
struct Term {
  const T* a;
  int64_t lda;
  const Panel<T>* b;
  int64_t k;
  float scale;

  Term from_row(int64_t row) const { return {a + row * lda, lda, b, k, scale}; }
};

/// M rows cut into tiles of at most kMR, as even as can be.
struct RowTiles {
  explicit RowTiles(int64_t M) : rows(M), count((M + kMR - 1) / kMR) {}
  int64_t begin(int64_t tile) const { return rows * tile / count; }
  int size(int64_t tile) const { return int(begin(tile + 1) - begin(tile)); }
  int64_t rows, count;
};

// ---- sums += a rows * panel rows, k of them ----

/// The panel is a stream that the first level of the cache does not hold from one tile to the next; its lines
/// are fetched this many bytes ahead, across the end of the panel too, where the next one usually begins.
constexpr int kPanelAhead = 8192;

template <int M, int NV>
inline void accumulate_rows(vfloat (&sum)[M][NV], const float* a, int64_t lda, const float* b) {
  vfloat bv[NV];
#pragma GCC unroll 4
  for (int j = 0; j < NV; j++) {
    bv[j] = load(b + j * kWidth);
    if (j * kWidth % 16 == 0) __builtin_prefetch(reinterpret_cast<const char*>(b + j * kWidth) + kPanelAhead);
  }
#pragma GCC unroll 16
  for (int i = 0; i < M; i++) {
    const vfloat av = splat(a[i * lda]);
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) sum[i][j] += av * bv[j];
  }
}

template <int M, int NV>
inline void accumulate_panel(vfloat (&sum)[M][NV], const float* a, int64_t lda, const float* b, int64_t k) {
  for (; k >= 4; k -= 4, a += 4, b += 4 * kNR) {
#pragma GCC unroll 4
    for (int q = 0; q < 4; q++) accumulate_rows(sum, a + q, lda, b + q * kNR);
  }
  for (; k > 0; k--, a++, b += kNR) accumulate_rows(sum, a, lda, b);
}

#if defined(__AVX512BF16__)
inline vfloat multiply_pairs(vfloat sum, int32_t pair, __m512i b) {
  return (vfloat)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)b);
}

template <int M, int NV>
inline void accumulate_pairs(vfloat (&sum)[M][NV], const bf16* a, int64_t lda, const bf16* b, size_t bytes) {
  __m512i bv[NV];
#pragma GCC unroll 4
  for (int j = 0; j < NV; j++) {
    bv[j] = _mm512_loadu_si512(b + j * 32);
    __builtin_prefetch(reinterpret_cast<const char*>(b + j * 32) + kPanelAhead);
  }
#pragma GCC unroll 16
  for (int i = 0; i < M; i++) {
    int32_t pair = 0;
    memcpy(&pair, a + i * lda, bytes);
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) sum[i][j] = multiply_pairs(sum[i][j], pair, bv[j]);
  }
}

template <int M, int NV>
inline void accumulate_panel(vfloat (&sum)[M][NV], const bf16* a, int64_t lda, const bf16* b, int64_t k) {
  for (; k >= 8; k -= 8, a += 8, b += 8 * kNR) {
#pragma GCC unroll 4
    for (int q = 0; q < 4; q++) accumulate_pairs(sum, a + 2 * q, lda, b + 2 * q * kNR, 4);
  }
  for (; k >= 2; k -= 2, a += 2, b += 2 * kNR) accumulate_pairs(sum, a, lda, b, 4);
  if (k) accumulate_pairs(sum, a, lda, b, 2);  // the last row of an odd K: its partner is zero in the panel, absent in a
}
#endif

/// What a tile does with c. `add` sums its own terms first and adds c once, so that a long product taken in blocks
/// rounds against the growing total once a block instead of once a term; `extend` goes on with the chain in c.
enum class Into {
  write,
  add,
  extend
};

/// c [M, NV * kWidth] = sum of terms, with c as `into` says.
template <class P, int M, int NV>
[[gnu::noinline]] void tile(const Term<P>* terms, int count, float* c, int64_t ldc, Into into) {
  vfloat sum[M][NV] = {};
  if (into == Into::extend) {
#pragma GCC unroll 16
    for (int i = 0; i < M; i++)
#pragma GCC unroll 4
      for (int j = 0; j < NV; j++) sum[i][j] = load(c + i * ldc + j * kWidth);
  }
  // Fetch the lines of c to be written now: by the time the sums are ready they are here, and the stores
  // of up to 24 lines on different pages don't wait for memory one after the other.
#pragma GCC unroll 16
  for (int i = 0; i < M; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) __builtin_prefetch(c + i * ldc + j * kWidth, 1);
  for (int t = 0; t < count; t++) {
    accumulate_panel(sum, terms[t].a, terms[t].lda, terms[t].b, terms[t].k);
    if (terms[t].scale != 1.0f) {
#pragma GCC unroll 16
      for (int i = 0; i < M; i++)
#pragma GCC unroll 4
        for (int j = 0; j < NV; j++) sum[i][j] *= terms[t].scale;
    }
  }
  if (into == Into::add) {
#pragma GCC unroll 16
    for (int i = 0; i < M; i++)
#pragma GCC unroll 4
      for (int j = 0; j < NV; j++) sum[i][j] += load(c + i * ldc + j * kWidth);
  }
#pragma GCC unroll 16
  for (int i = 0; i < M; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) store(c + i * ldc + j * kWidth, sum[i][j]);
}

template <class P, int NV>
inline void tile_of(int rows, const Term<P>* terms, int count, float* c, int64_t ldc, Into into) {
  switch (rows) {
#define DYN_ROWS(n) \
  case n:           \
    return tile<P, n, NV>(terms, count, c, ldc, into);
    DYN_ROWS(1)
    DYN_ROWS(2)
    DYN_ROWS(3)
    DYN_ROWS(4)
    DYN_ROWS(5)
    DYN_ROWS(6)
#if defined(__AVX512F__)
    DYN_ROWS(7)
    DYN_ROWS(8)
    DYN_ROWS(9)
    DYN_ROWS(10)
    DYN_ROWS(11)
    DYN_ROWS(12)
#endif
#undef DYN_ROWS
  }
}

/// c [rows, kNR] = sum of terms (`write`) or += it (`add`), for rows <= kMR. All kNR columns are written, or only
/// the first `columns` rounded up to whole vectors.
template <class T>
inline void multiply_tile(int rows, int columns, const Term<T>* terms, int count, float* c, int64_t ldc, Into into) {
  const bool half = columns <= kNR / 2;
  if constexpr (sizeof(T) == sizeof(Panel<T>)) {
    half ? tile_of<T, kNR / kWidth / 2>(rows, terms, count, c, ldc, into)
         : tile_of<T, kNR / kWidth>(rows, terms, count, c, ldc, into);
  } else if (into == Into::add) {
    alignas(64) float local[kMR * kNR];
    multiply_tile(rows, columns, terms, count, local, kNR, Into::write);
    for (int i = 0; i < rows; i++)
      for (int j = 0; j < (half ? kNR / 2 : kNR); j += kWidth)
        store(c + i * ldc + j, load(c + i * ldc + j) + load(local + i * kNR + j));
  } else {
    // Widen the rows of A in pieces; the sums wait in c between pieces, which changes none of their bits.
    constexpr int64_t kPiece = 256;
    alignas(64) float wide[kMR * kPiece];
    for (int t = 0; t < count; t++) {
      const Term<T>& term = terms[t];
      for (int64_t k = 0; k < term.k || k == 0; k += kPiece) {
        const int64_t size = smaller(kPiece, term.k - k);
        for (int i = 0; i < rows; i++) {
          const T* from = term.a + i * term.lda + k;
          int64_t j = 0;
          for (; j + kWidth <= size; j += kWidth) store(wide + i * kPiece + j, load(from + j));
          for (; j < size; j++) wide[i * kPiece + j] = to_float(from[j]);
        }
        const Term<float> piece{wide, kPiece, term.b + k * kNR, size, k + kPiece < term.k ? 1.0f : term.scale};
        half ? tile_of<float, kNR / kWidth / 2>(rows, &piece, 1, c, ldc, into)
             : tile_of<float, kNR / kWidth>(rows, &piece, 1, c, ldc, into);
        into = Into::extend;
      }
    }
  }
}

/// One term, writing (or adding to) exactly `columns` columns of c.
template <class T>
inline void multiply_into(int rows, int columns, const Term<T>& term, float* c, int64_t ldc, bool accumulate) {
  if (columns == kNR) return multiply_tile(rows, columns, &term, 1, c, ldc, accumulate ? Into::add : Into::write);
  alignas(64) float local[kMR * kNR];
  multiply_tile(rows, columns, &term, 1, local, kNR, Into::write);
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < columns; j++) {
      float& to = c[i * ldc + j];
      to = local[i * kNR + j] + (accumulate ? to : 0.0f);
    }
}

}  // namespace dynadapt::DYN_ISA
