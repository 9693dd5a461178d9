// Matrix products: a micro-kernel over packed panels.
//
// C [M, N] = A [M, K] B. A is read in place, row-major. B is packed: panels of kNR columns, each
// panel holding all K rows one after the other, so that the kernel reads it as one stream. Where
// the processor multiplies bfloat16 (vdpbf16ps), a panel of bfloat16 holds pairs of rows
// interleaved, [K/2][kNR][2]; elsewhere bfloat16 is widened to float when B is packed and A read.
//
// The kernel keeps kMR x kNR sums in registers over the whole of K. Each element of C is one chain
// of additions over k, whatever M, N and the place of the element: results never depend on how a
// product is cut up. A product may have several terms, C = sum_t A_t B_t, summed in the same registers.
#pragma once

#include "cpu/kernels/lib/gemm_kernel.h"
#include "cpu/kernels/lib/gemm_layout.h"
#include "cpu/kernels/lib/gemm_pack.h"

namespace dynadapt::DYN_ISA {

/// Packs B given as its transpose, b row-major [N, K]. `panels` has panels_bytes<T>(N, K), 64-byte aligned.
template <class T>
inline void pack_nt(const T* b, int64_t ldb, int64_t N, int64_t K, void* panels) {
  Panel<T>* to = static_cast<Panel<T>*>(panels);
  for (int64_t n = 0; n < N; n += kNR, to += panel_size<T>(K))
    pack_panel_nt(b + n * ldb, ldb, int(smaller<int64_t>(kNR, N - n)), K, to);
}

/// Packs B given as b row-major [K, N].
template <class T>
inline void pack_nn(const T* b, int64_t ldb, int64_t K, int64_t N, void* panels) {
  Panel<T>* to = static_cast<Panel<T>*>(panels);
  for (int64_t n = 0; n < N; n += kNR, to += panel_size<T>(K))
    pack_panel_nn(b + n, ldb, int(smaller<int64_t>(kNR, N - n)), K, to);
}

/// c [M, columns] = (or +=) one term, for one panel; columns <= kNR.
template <class T>
inline void multiply_panel(int64_t M, int columns, const Term<T>& term, float* c, int64_t ldc, bool accumulate) {
  const RowTiles tiles(M);
  for (int64_t t = 0; t < tiles.count; t++)
    multiply_into(tiles.size(t), columns, term.from_row(tiles.begin(t)), c + tiles.begin(t) * ldc, ldc, accumulate);
}

/// c [M, N] = a [M, K] B, or += where `accumulate`. One thread; all of c is written, nothing beside it.
template <class T>
inline void gemm(int64_t M, int64_t N, int64_t K, const T* a, int64_t lda, const void* panels, float* c, int64_t ldc,
                 bool accumulate) {
  const Panel<T>* panel = static_cast<const Panel<T>*>(panels);
  for (int64_t n = 0; n < N; n += kNR, panel += panel_size<T>(K))
    multiply_panel<T>(M, int(smaller<int64_t>(kNR, N - n)), {a, lda, panel, K, 1.0f}, c + n, ldc, accumulate);
}

/// out [rows, columns] = sums [rows, kNR] (+ bias), rounded to T.
template <class T>
inline void store_rounded(int rows, int columns, const float* sums, const T* bias, T* out, int64_t ldo) {
  for (int j = 0; j < columns; j += kWidth) {
    const int width = smaller(kWidth, columns - j);
    const vfloat shift = !bias ? vfloat{} : width == kWidth ? load(bias + j) : load(bias + j, width);
    if (width == kWidth)
      for (int i = 0; i < rows; i++) store(out + i * ldo + j, load(sums + i * kNR + j) + shift);
    else
      for (int i = 0; i < rows; i++) store(out + i * ldo + j, load(sums + i * kNR + j) + shift, width);
  }
}

/// out [M, columns] = sum of terms (+ bias), rounded to T; columns <= kNR, count <= kMaxTerms.
constexpr int kMaxTerms = 17;
template <class T>
inline void multiply_rounded(int64_t M, int columns, const Term<T>* terms, int count, const T* bias, T* out, int64_t ldo) {
  alignas(64) float sums[kMR * kNR];
  Term<T> here[kMaxTerms];
  const RowTiles tiles(M);
  for (int64_t t = 0; t < tiles.count; t++) {
    const int rows = tiles.size(t);
    T* to = out + tiles.begin(t) * ldo;
    for (int i = 0; i < rows; i++) __builtin_prefetch(to + i * ldo, 1);
    for (int i = 0; i < count; i++) here[i] = terms[i].from_row(tiles.begin(t));
    multiply_tile(rows, columns, here, count, sums, kNR, Into::write);
    store_rounded(rows, columns, sums, bias, to, ldo);
  }
}

}  // namespace dynadapt::DYN_ISA
