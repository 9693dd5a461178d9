// Vectors of float for kernels: one width per instruction set, written with the compiler's vector
// types, so that arithmetic is plain C++ and the portable build needs nothing more.
//
// Include only from cpu/kernels/: everything here lives in the namespace of the instruction set.
// Such sources avoid templates of the standard library: a weak function compiled for a newer
// processor could otherwise be the one that the linker keeps for all.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#elif DYN_NEON
#include <arm_neon.h>
#endif

#include "cpu/bf16.h"

namespace dynadapt::DYN_ISA {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif
#if defined(__AVX512BF16__)
constexpr bool kNativeBF16 = true;
#else
constexpr bool kNativeBF16 = false;
#endif

typedef float vfloat __attribute__((vector_size(kWidth * 4)));
typedef int32_t vint __attribute__((vector_size(kWidth * 4)));
typedef uint32_t vuint __attribute__((vector_size(kWidth * 4)));
typedef uint16_t vhalf __attribute__((vector_size(kWidth * 2)));

template <class T>
inline T smaller(T a, T b) {
  return b < a ? b : a;
}
template <class T>
inline T larger(T a, T b) {
  return a < b ? b : a;
}
inline int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// ---- scalars ----

inline float to_float(float value) { return value; }
inline float to_float(bf16 value) {
  const uint32_t bits = uint32_t(value.bits) << 16;
  float result;
  memcpy(&result, &bits, 4);
  return result;
}

/// Rounds to nearest even; NaN stays NaN.
inline void assign(float& to, float value) { to = value; }
inline void assign(bf16& to, float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  to.bits = value != value ? uint16_t((bits >> 16) | 0x40) : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// ---- loads and stores of kWidth elements, or of the first n (the others read as 0) ----

/// `value` in every lane, as one broadcast. x - 0 is x for every x, so the subtraction goes away; 0 + x is not (x = -0), and
/// that addition would stay in the inner loop of every product.
inline vfloat splat(float value) { return value - vfloat{}; }

inline vfloat load(const float* from) {
  vfloat value;
  memcpy(&value, from, sizeof value);
  return value;
}
inline vfloat load(const bf16* from) {
  vhalf half;
  memcpy(&half, from, sizeof half);
  return (vfloat)(__builtin_convertvector(half, vuint) << 16);
}
inline void store(float* to, vfloat value) { memcpy(to, &value, sizeof value); }
inline void store(bf16* to, vfloat value) {
#if defined(__AVX512BF16__)
  const __m256bh half = _mm512_cvtneps_pbh((__m512)value);
  memcpy(to, &half, sizeof half);
#else
  const vuint bits = (vuint)value;
  const vuint rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const vuint quiet = (bits >> 16) | 0x40;
  const vuint result = value == value ? rounded : quiet;
  const vhalf half = __builtin_convertvector(result, vhalf);
  memcpy(to, &half, sizeof half);
#endif
}

#if defined(__AVX512F__)
inline __mmask16 first(int n) { return __mmask16((1u << n) - 1); }
inline vfloat load(const float* from, int n) { return (vfloat)_mm512_maskz_loadu_ps(first(n), from); }
inline vfloat load(const bf16* from, int n) {
  const __m256i half = _mm256_maskz_loadu_epi16(first(n), from);
  return (vfloat)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
}
inline void store(float* to, vfloat value, int n) { _mm512_mask_storeu_ps(to, first(n), (__m512)value); }
inline void store(bf16* to, vfloat value, int n) {
  __m256i half;
  store(reinterpret_cast<bf16*>(&half), value);
  _mm256_mask_storeu_epi16(to, first(n), half);
}
#else
template <class T>
inline vfloat load(const T* from, int n) {
  T buffer[kWidth] = {};
  for (int i = 0; i < n; i++) buffer[i] = from[i];
  return load(buffer);
}
template <class T>
inline void store(T* to, vfloat value, int n) {
  T buffer[kWidth];
  store(buffer, value);
  for (int i = 0; i < n; i++) to[i] = buffer[i];
}
#endif

// ---- functions ----

/// The larger of each pair; where b is NaN the result is NaN.
inline vfloat maximum(vfloat a, vfloat b) { return a > b ? a : b; }
/// The smaller of each pair; where b is NaN the result is NaN.
inline vfloat minimum(vfloat a, vfloat b) { return a < b ? a : b; }

inline float sum(vfloat value) {
  float total[kWidth];
  store(total, value);
  for (int half = kWidth / 2; half; half /= 2)
    for (int i = 0; i < half; i++) total[i] += total[i + half];
  return total[0];
}
/// NaN where any element is NaN.
inline float largest(vfloat value) {
  float best[kWidth];
  store(best, value);
  for (int i = 1; i < kWidth; i++) best[0] = best[0] > best[i] || best[0] != best[0] ? best[0] : best[i];
  return best[0];
}

/// e^x to about 1e-7 relative: x = n ln2 + r, a polynomial of degree 6 in r (Cephes' coefficients), times 2^n.
/// Below -87.3 the result is 0, above 88.7 infinity; NaN stays NaN.
inline vfloat exponential(vfloat x) {
  const vfloat low = splat(-87.33654f), high = splat(88.72283f);
  const vfloat bounded = minimum(high, maximum(low, x));
  const vfloat shift = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
  const vfloat rounded = bounded * 1.44269504088896341f + shift;
  const vfloat n = rounded - shift;
  const vfloat r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
  vfloat p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  // 2^n as 2^(n-1) * 2: n reaches 128, whose exponent field would be infinity's.
  const vfloat power = (vfloat)(((vint)rounded - (vint)shift + 126) << 23);
  vfloat result = p * power * 2.0f;
  result = x < low ? vfloat{} : result;
  return x > high ? splat(__builtin_inff()) : result;
}

}  // namespace dynadapt::DYN_ISA
