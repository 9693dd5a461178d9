// Sizes of the micro-kernel's tile and of the panels it reads. See gemm.h.
#pragma once

#include "cpu/kernels/lib/simd.h"

namespace dynadapt::DYN_ISA {

#if defined(__AVX512F__)
constexpr int kMR = 12, kNR = 32;
#elif defined(__AVX2__)
constexpr int kMR = 6, kNR = 16;
#elif DYN_NEON
constexpr int kMR = 6, kNR = 16;  // 24 of 32 registers hold sums, 4 the panel's row, the rest one element of A at a time
#else
constexpr int kMR = 6, kNR = 8;
#endif

/// Element type of a panel that the kernel reads, for activations of type T.
template <class T>
struct PanelOf {
  using type = float;
};
#if defined(__AVX512BF16__)
template <>
struct PanelOf<bf16> {
  using type = bf16;
};
#endif
template <class T>
using Panel = typename PanelOf<T>::type;

/// Rows of B that lie interleaved in a panel.
template <class P>
constexpr int kInterleave = sizeof(P) == 2 ? 2 : 1;

/// Elements of one panel of K rows.
template <class T>
inline int64_t panel_size(int64_t K) {
  return round_up(K, kInterleave<Panel<T>>) * kNR;
}
inline int64_t panel_count(int64_t N) { return (N + kNR - 1) / kNR; }

/// From one row of an A of our own making to the next, in elements: an odd number of cache lines, n elements and a few. Rows that lie
/// a power of two apart, as turned tokens would, share a set of the first level of the cache: 8 or 12 lines for the kNR rows that are
/// written at once.
template <class P>
inline int64_t turned_stride(int64_t n) {
  constexpr int64_t line = 64 / sizeof(P);
  return ((n + line - 1) / line | 1) * line;
}

/// Bytes that the panels of a [K, N] operand take.
template <class T>
inline size_t panels_bytes(int64_t N, int64_t K) {
  return size_t(panel_count(N) * panel_size<T>(K)) * sizeof(Panel<T>);
}

}  // namespace dynadapt::DYN_ISA
