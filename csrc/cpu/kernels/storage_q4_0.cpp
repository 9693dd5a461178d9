// Q4_0: 32 columns in 18 bytes, a float16 d and 16 bytes of two columns each, k in the low half and k + 16 in the high one.
// A weight is d (q - 8).
#include "cpu/kernels/lib/block_storage.h"

namespace dynadapt::DYN_ISA {

namespace {

struct Q4_0 {
  static constexpr int kBlock = 32, kBytes = 18, kRun = 16;
  struct Run {
    Run(const uint8_t* block, int first) : d(halves(block)), q(block + 2 * kNR), shift(first / 16 * 4) {}
    vfloat column(int k) const { return as_float((unsigned_bytes(q + k % 16 * kNR) >> shift & 15) - 8) * d; }
    vfloat d;
    const uint8_t* q;
    int shift;
  };
};

}  // namespace

extern const StorageForm q4_0_form = BlockStorage<Q4_0>::form;

}  // namespace dynadapt::DYN_ISA
