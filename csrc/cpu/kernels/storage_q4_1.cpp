// Q4_1: 32 columns in 20 bytes, float16 d and m and 16 bytes of two columns each, k in the low half and k + 16 in the high one.
// A weight is d q + m.
#include "cpu/kernels/lib/block_storage.h"

namespace dynadapt::DYN_ISA {

namespace {

struct Q4_1 {
  static constexpr int kBlock = 32, kBytes = 20, kRun = 16;
  struct Run {
    Run(const uint8_t* block, int first)
        : d(halves(block)), m(halves(block + 2 * kNR)), q(block + 4 * kNR), shift(first / 16 * 4) {}
    vfloat column(int k) const { return as_float(unsigned_bytes(q + k % 16 * kNR) >> shift & 15) * d + m; }
    vfloat d, m;
    const uint8_t* q;
    int shift;
  };
};

}  // namespace

extern const StorageForm q4_1_form = BlockStorage<Q4_1>::form;

}  // namespace dynadapt::DYN_ISA
