// csrc/cpu/kernels/lib/simd.h whose loads, stores and exponentials are counted and not done.
#pragma once

#include "work.h"

#define load plain_load
#define store plain_store
#define assign plain_assign
#define exponential plain_exponential
#include_next "cpu/kernels/lib/simd.h"
#undef load
#undef store
#undef assign
#undef exponential

namespace dynadapt::DYN_ISA {

template <class T>
inline vfloat load(const T*, int n = kWidth) {
  counting::mine->accesses += n;
  return vfloat{};
}
template <class T>
inline void store(T*, vfloat, int n = kWidth) {
  counting::mine->accesses += n;
}
template <class T>
inline void assign(T&, float) {
  counting::mine->accesses++;
}
inline vfloat exponential(vfloat x) {
  counting::mine->functions += kWidth;
  return x;
}

}  // namespace dynadapt::DYN_ISA
