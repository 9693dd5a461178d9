// csrc/cpu/kernels/lib/gemm_pack.h whose elements are counted and not moved.
#pragma once

#include "work.h"

#define transpose_tile plain_transpose_tile
#define pack_panel_nt plain_pack_panel_nt
#define pack_panel_nn plain_pack_panel_nn
#include_next "cpu/kernels/lib/gemm_pack.h"
#undef transpose_tile
#undef pack_panel_nt
#undef pack_panel_nn

namespace dynadapt::DYN_ISA {

template <class T>
inline void transpose_tile(const void*, int64_t, int, void*, int64_t) {
  counting::mine->accesses += 2 * kWidth * kWidth;
}

template <class T>
inline void pack_panel_nt(const T*, int64_t, int, int64_t K, Panel<T>*) {
  counting::mine->accesses += 2.0 * double(K) * kNR;
}

template <class T>
inline void pack_panel_nn(const T*, int64_t, int, int64_t K, Panel<T>*) {
  counting::mine->accesses += 2.0 * double(K) * kNR;
}

}  // namespace dynadapt::DYN_ISA
