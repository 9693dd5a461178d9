// csrc/cpu/kernels/lib/transpose.h whose elements are counted and not moved.
#pragma once

#include "work.h"

#define transpose plain_transpose
#include_next "cpu/kernels/lib/transpose.h"
#undef transpose

namespace dynadapt::DYN_ISA {

template <class T>
inline void transpose(const T*, int64_t, int64_t rows, int64_t columns, Panel<T>*, int64_t) {
  counting::mine->accesses += 2.0 * double(rows) * double(columns);
}

}  // namespace dynadapt::DYN_ISA
