// Q8_0: 32 columns in 34 bytes, a float16 d and signed bytes q. A weight is d q.
#include "cpu/kernels/lib/block_storage.h"

namespace dynadapt::DYN_ISA {

namespace {

struct Q8_0 {
  static constexpr int kBlock = 32, kBytes = 34, kRun = 32;
  struct Run {
    Run(const uint8_t* block, int) : d(halves(block)), q(block + 2 * kNR) {}
    vfloat column(int k) const { return as_float(signed_bytes(q + k * kNR)) * d; }
    vfloat d;
    const uint8_t* q;
  };
};

}  // namespace

extern const StorageForm q8_0_form = BlockStorage<Q8_0>::form;

}  // namespace dynadapt::DYN_ISA
