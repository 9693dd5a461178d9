// csrc/cpu/kernels/lib/gemm_pack.h whose elements are counted and not moved.
#pragma once

#include "work.h"

#define transpose_16x16 plain_transpose_16x16
#define pack_panel_nt plain_pack_panel_nt
#define pack_panel_nn plain_pack_panel_nn
#include_next "cpu/kernels/lib/gemm_pack.h"
#undef transpose_16x16
#undef pack_panel_nt
#undef pack_panel_nn

namespace dynadapt::DYN_ISA {

inline void transpose_16x16(const void*, int64_t, int, void*, int64_t) { counting::mine->accesses += 2 * 16 * 16; }

template <class T>
inline void pack_panel_nt(const T*, int64_t, int, int64_t K, Panel<T>*) {
  counting::mine->accesses += 2.0 * double(K) * kNR;
}

template <class T>
inline void pack_panel_nn(const T*, int64_t, int, int64_t K, Panel<T>*) {
  counting::mine->accesses += 2.0 * double(K) * kNR;
}

}  // namespace dynadapt::DYN_ISA
