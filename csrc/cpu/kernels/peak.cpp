// Twelve independent chains of the instruction that a product's inner loop is made of, all operands in registers: enough chains to
// hide its latency, and nothing else to wait for.
#include "cpu/peak.h"

#include "cpu/kernels/lib/gemm_layout.h"

namespace dynadapt::DYN_ISA {
namespace {

constexpr int kChains = 12;

/// The compiler knows no value of `x` after this, so it can neither shorten a chain nor keep it in memory.
inline void keep(vfloat& x) {
#if defined(__AVX512F__)
  asm volatile("" : "+v"(x));
#elif defined(__x86_64__)
  asm volatile("" : "+x"(x));
#elif defined(__aarch64__)
  asm volatile("" : "+w"(x));
#else
  asm volatile("" : "+m"(x));
#endif
}

template <class T>
int64_t multiply_add(int64_t repetitions) {
  vfloat sum[kChains], a = splat(0.5f), b = splat(0.25f);
#pragma GCC unroll 12
  for (int j = 0; j < kChains; j++) sum[j] = splat(1.0f);
  keep(a);
  keep(b);
#if defined(__AVX512BF16__)
  constexpr bool kPairs = sizeof(Panel<T>) == 2;
#else
  constexpr bool kPairs = false;
#endif
  for (int64_t i = 0; i < repetitions; i++) {
#pragma GCC unroll 12
    for (int j = 0; j < kChains; j++) {
#if defined(__AVX512BF16__)
      if constexpr (kPairs)
        sum[j] = (vfloat)_mm512_dpbf16_ps((__m512)sum[j], (__m512bh)a, (__m512bh)b);
      else
#endif
        sum[j] = sum[j] * a + b;
      keep(sum[j]);
    }
  }
#pragma GCC unroll 12
  for (int j = 0; j < kChains; j++) keep(sum[j]);
  return repetitions * kChains * kWidth * (kPairs ? 4 : 2);
}

}  // namespace

const ByType<PeakKernels> peak_kernels = {{multiply_add<float>}, {multiply_add<bf16>}};

}  // namespace dynadapt::DYN_ISA
