// What the elementwise kernels need beyond simd.h: loops over rows with a tail, and functions made of exponentials.
// A row's tail goes through the same operations as its body (absent lanes read as zero), so that an element's result
// depends on its column alone.
#pragma once

#include <cstddef>

#include "cpu/kernels/lib/simd.h"

namespace dynadapt::DYN_ISA {

/// How much of a vector is in memory: all of it, or the first `n` lanes.
struct Whole {};
struct Head {
  int n;
};

/// Calls body(i, Whole or Head) for every vector of a row of n elements.
template <class Body>
[[gnu::always_inline]] inline void for_vectors(size_t n, Body body) {
  size_t i = 0;
  for (; i + kWidth <= n; i += kWidth) body(i, Whole{});
  if (i < n) body(i, Head{int(n - i)});
}

template <class T>
inline vfloat load(const T* from, Whole) {
  return load(from);
}
template <class T>
inline vfloat load(const T* from, Head head) {
  return load(from, head.n);
}
template <class T>
inline void store(T* to, vfloat value, Whole) {
  store(to, value);
}
template <class T>
inline void store(T* to, vfloat value, Head head) {
  store(to, value, head.n);
}

/// 0, 1, 2, ...
inline vint lane_numbers() {
  vint lanes;
  for (int i = 0; i < kWidth; i++) lanes[i] = i;
  return lanes;
}

/// Zeroes the lanes that a tail does not have: for sums of what is not zero where its input is.
inline vfloat keep(vfloat value, Whole) { return value; }
inline vfloat keep(vfloat value, Head head) { return lane_numbers() < head.n ? value : vfloat{}; }

/// `maximum` in one instruction where there is one.
inline vfloat fast_maximum(vfloat a, vfloat b) {
#if defined(__AVX512F__)
  return (vfloat)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (vfloat)_mm256_max_ps((__m256)a, (__m256)b);
#elif DYN_NEON
  return (vfloat)vmaxq_f32((float32x4_t)a, (float32x4_t)b);
#else
  return maximum(a, b);
#endif
}

/// The largest lane, in every lane. (A NaN may get lost.)
inline vfloat largest_everywhere(vfloat value) {
  for (int half = kWidth / 2; half; half /= 2)
    value = fast_maximum(value, __builtin_shuffle(value, (lane_numbers() + half) & (kWidth - 1)));
  return value;
}

inline vfloat square_root(vfloat value) {
#if defined(__AVX512F__)
  return (vfloat)_mm512_maskz_sqrt_ps(0xffff, (__m512)value);
#elif defined(__AVX2__)
  return (vfloat)_mm256_sqrt_ps((__m256)value);
#elif DYN_NEON
  return (vfloat)vsqrtq_f32((float32x4_t)value);
#else
  for (int i = 0; i < kWidth; i++) value[i] = __builtin_sqrtf(value[i]);
  return value;
#endif
}

/// 2^x for x <= 0, as softmax needs it (relative error 1e-7): below -126 the result stays at the smallest normal
/// number; NaN stays NaN.
inline vfloat exp2_nonpositive(vfloat x) {
  x = fast_maximum(splat(-126.0f), x);
  const vfloat rounded = x + 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  const vfloat f = x - (rounded - 12582912.0f);
  vfloat p = splat(0x1.41d332p-13f);  // minimax fit of 2^f, |f| <= 1/2
  p = p * f + 0x1.5f456ap-10f;
  p = p * f + 0x1.3b2dbcp-7f;
  p = p * f + 0x1.c6aed4p-5f;
  p = p * f + 0x1.ebfbdap-3f;
  p = p * f + 0x1.62e430p-1f;
  p = p * f + 1.0f;
  return (vfloat)((vuint)p + ((vuint)rounded << 23));
}

/// 1 / (1 + e^-x)
inline vfloat sigmoid(vfloat x) { return 1.0f / (1.0f + exponential(-x)); }

/// tanh x: near 0 an odd polynomial (Cephes' coefficients), which keeps its relative accuracy, elsewhere 1 - 2 / (e^2|x| + 1).
inline vfloat hyperbolic_tangent(vfloat x) {
  const vfloat size = maximum(-x, x), z = x * x;
  vfloat p = splat(-5.70498872745e-3f);
  p = p * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  const vfloat near = p * z * x + x, far = 1.0f - 2.0f / (exponential(2.0f * size) + 1.0f);
  return size < 0.625f ? near : x < 0.0f ? -far : far;
}

/// The standard normal distribution and its density, from one exponential: erfc(z) = e^(-z^2) t g(t) with
/// t = 1 / (1 + 0.35 z) and g a minimax fit (relative error 4e-8).
inline void normal_distribution(vfloat x, vfloat* cumulative, vfloat* density) {
  const vfloat z = maximum(-x, x) * 0.707106781f;
  const vfloat gauss = exponential(-0.5f * x * x);
  const vfloat t = 1.0f / (1.0f + 0.35f * z);
  vfloat g = splat(0x1.4ddb9ap-5f);
  g = g * t - 0x1.6495f2p-3f;
  g = g * t + 0x1.c7e02ap-3f;
  g = g * t - 0x1.6dfe78p-4f;
  g = g * t + 0x1.25c9dcp-3f;
  g = g * t + 0x1.d02256p-4f;
  g = g * t + 0x1.4e3e8cp-3f;
  g = g * t + 0x1.7b4edcp-3f;
  g = g * t + 0x1.946c78p-3f;
  g = g * t + 0x1.946932p-3f;
  const vfloat tail = 0.5f * gauss * t * g;
  *cumulative = x > 0.0f ? 1.0f - tail : tail;
  *density = gauss * 0.398942280f;
}

}  // namespace dynadapt::DYN_ISA
