// The C entry point of the peak: arguments are checked here, and nowhere below.
#include "cpu/peak.h"

#include "core/threads.h"

using namespace dynadapt;

extern "C" int64_t dynadapt_peak_flops(int bf16, int64_t repetitions) {
  int64_t flops = -1;
  guarded([&] {
    if (bf16 != 0 && bf16 != 1) throw Invalid(format("peak_flops: bf16 is %d, accepted is 0 or 1", bf16));
    if (repetitions < 1 || repetitions > int64_t(1) << 40)
      throw Invalid(format("peak_flops: repetitions is %lld, accepted is 1 to 2^40", static_cast<long long>(repetitions)));
    const PeakKernels& kernel = kernels<ByType<PeakKernels>>().of(bf16 ? kBF16 : kF32);
    const int threads = num_threads();
    int64_t total = 0;
    parallel(threads, threads, [&](Team) { __atomic_fetch_add(&total, kernel.multiply_add(repetitions), __ATOMIC_RELAXED); });
    flops = total;
  });
  return flops;
}
