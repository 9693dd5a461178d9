// Packing operands into panels. See gemm.h for what a panel is.
#pragma once

#include "cpu/kernels/lib/gemm_layout.h"

namespace dynadapt::DYN_ISA {

/// Turns kWidth x kWidth elements of 32 bits that stand in r, one row each.
inline void turn_registers(vfloat (&r)[kWidth]) {
#if defined(__AVX512F__)
  __m512i s[16], t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) {
    s[2 * i] = _mm512_unpacklo_epi32((__m512i)r[2 * i], (__m512i)r[2 * i + 1]);
    s[2 * i + 1] = _mm512_unpackhi_epi32((__m512i)r[2 * i], (__m512i)r[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    t[4 * i] = _mm512_unpacklo_epi64(s[4 * i], s[4 * i + 2]);
    t[4 * i + 1] = _mm512_unpackhi_epi64(s[4 * i], s[4 * i + 2]);
    t[4 * i + 2] = _mm512_unpacklo_epi64(s[4 * i + 1], s[4 * i + 3]);
    t[4 * i + 3] = _mm512_unpackhi_epi64(s[4 * i + 1], s[4 * i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    s[i] = _mm512_shuffle_i32x4(t[i], t[i + 4], 0x88);
    s[i + 4] = _mm512_shuffle_i32x4(t[i], t[i + 4], 0xdd);
    s[i + 8] = _mm512_shuffle_i32x4(t[i + 8], t[i + 12], 0x88);
    s[i + 12] = _mm512_shuffle_i32x4(t[i + 8], t[i + 12], 0xdd);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) {
    r[i] = (vfloat)_mm512_shuffle_i32x4(s[i], s[i + 8], 0x88);
    r[i + 8] = (vfloat)_mm512_shuffle_i32x4(s[i], s[i + 8], 0xdd);
  }
#elif defined(__AVX2__)
  __m256 s[8], t[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    s[2 * i] = _mm256_unpacklo_ps((__m256)r[2 * i], (__m256)r[2 * i + 1]);
    s[2 * i + 1] = _mm256_unpackhi_ps((__m256)r[2 * i], (__m256)r[2 * i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; i++) {
    t[4 * i] = _mm256_shuffle_ps(s[4 * i], s[4 * i + 2], 0x44);
    t[4 * i + 1] = _mm256_shuffle_ps(s[4 * i], s[4 * i + 2], 0xee);
    t[4 * i + 2] = _mm256_shuffle_ps(s[4 * i + 1], s[4 * i + 3], 0x44);
    t[4 * i + 3] = _mm256_shuffle_ps(s[4 * i + 1], s[4 * i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    r[i] = (vfloat)_mm256_permute2f128_ps(t[i], t[i + 4], 0x20);
    r[i + 4] = (vfloat)_mm256_permute2f128_ps(t[i], t[i + 4], 0x31);
  }
#else
  const vfloat low = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5), high = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7);
  const vfloat low2 = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5), high2 = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);
  r[0] = __builtin_shufflevector(low, low2, 0, 1, 4, 5);
  r[1] = __builtin_shufflevector(low, low2, 2, 3, 6, 7);
  r[2] = __builtin_shufflevector(high, high2, 0, 1, 4, 5);
  r[3] = __builtin_shufflevector(high, high2, 2, 3, 6, 7);
#endif
}

/// to[j][i] = from[i][j] for kWidth x kWidth elements T as float (T = float: any 32 bits); rows `from_stride` and `to_stride`
/// bytes apart. Only the first `rows` rows of `from` are read, the others count as zero.
template <class T>
inline void transpose_tile(const void* from, int64_t from_stride, int rows, void* to, int64_t to_stride) {
  vfloat r[kWidth];
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; i++)
    r[i] = i < rows ? load(reinterpret_cast<const T*>(static_cast<const char*>(from) + i * from_stride)) : vfloat{};
  turn_registers(r);
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; i++) store(reinterpret_cast<float*>(static_cast<char*>(to) + i * to_stride), r[i]);
}

/// What one element of 32 bits of a Panel<T> is made of: two elements of T that stay side by side, or one that may be widened.
template <class T>
struct TileUnit {
  using type = T;
};
#if defined(__AVX512BF16__)
template <>
struct TileUnit<bf16> {
  using type = float;
};
#endif

/// One panel of B from its transpose: b row-major [columns, K], columns <= kNR; missing columns are zero.
template <class T>
inline void pack_panel_nt(const T* b, int64_t ldb, int columns, int64_t K, Panel<T>* panel) {
  constexpr int step = kInterleave<Panel<T>>, depth = kWidth * step;
  int64_t k = 0;
  for (; k + depth <= K; k += depth)
    for (int n = 0; n < kNR; n += kWidth)
      transpose_tile<typename TileUnit<T>::type>(b + smaller(n, columns) * ldb + k, ldb * int64_t(sizeof(T)), columns - n,
                                                 panel + k * kNR + n * step, kNR * 4);
  const int64_t padded = round_up(K, step);
  for (; k < padded; k++)
    for (int n = 0; n < kNR; n++)
      assign(panel[(k / step * kNR + n) * step + k % step], k < K && n < columns ? to_float(b[n * ldb + k]) : 0.0f);
}

/// Rows that packing fetches ahead: a panel takes a line or two of each row, which no prefetcher foresees.
constexpr int64_t kPackAhead = 24;

/// One panel of B: b row-major [K, columns], columns <= kNR; missing columns are zero.
template <class T>
inline void pack_panel_nn(const T* b, int64_t ldb, int columns, int64_t K, Panel<T>* panel) {
  if constexpr (kInterleave<Panel<T>> == 2) {
#if defined(__AVX512BF16__)
    const __mmask32 mask = columns == 32 ? ~0u : (1u << columns) - 1;
    const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4,
                                         35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    for (int64_t k = 0; k < K; k += 2) {
      __builtin_prefetch(b + (k + kPackAhead) * ldb);
      __builtin_prefetch(b + (k + kPackAhead + 1) * ldb);
      const __m512i even = _mm512_maskz_loadu_epi16(mask, b + k * ldb);
      const __m512i odd = k + 1 < K ? _mm512_maskz_loadu_epi16(mask, b + (k + 1) * ldb) : _mm512_setzero_si512();
      _mm512_storeu_si512(panel + k * kNR, _mm512_permutex2var_epi16(even, low, odd));
      _mm512_storeu_si512(panel + k * kNR + 32, _mm512_permutex2var_epi16(even, high, odd));
    }
#endif
  } else {
    for (int64_t k = 0; k < K; k++, b += ldb, panel += kNR) {
      for (int n = 0; n < kNR; n += 16) __builtin_prefetch(b + kPackAhead * ldb + n);
      for (int n = 0; n < kNR; n += kWidth)
        store(panel + n, n + kWidth <= columns ? load(b + n) : n < columns ? load(b + n, columns - n) : vfloat{});
    }
  }
}

}  // namespace dynadapt::DYN_ISA
