// Q5_0: 32 columns in 22 bytes, a float16 d, 4 bytes with the fifth bit of each column, lowest first, and 16 bytes of two columns' low
// four bits each, k in the low half and k + 16 in the high one. A weight is d (q - 16).
#include "cpu/kernels/lib/block_storage.h"

namespace dynadapt::DYN_ISA {

namespace {

struct Q5_0 {
  static constexpr int kBlock = 32, kBytes = 22, kRun = 16;
  struct Run {
    Run(const uint8_t* block, int first) : d(halves(block)), high(block + 2 * kNR), q(block + 6 * kNR), shift(first / 16 * 4) {}
    vfloat column(int k) const {
      const vint low = unsigned_bytes(q + k % 16 * kNR) >> shift & 15;
      const vint fifth = unsigned_bytes(high + k / 8 * kNR) >> k % 8 & 1;
      return as_float((low | fifth << 4) - 16) * d;
    }
    vfloat d;
    const uint8_t *high, *q;
    int shift;
  };
};

}  // namespace

extern const StorageForm q5_0_form = BlockStorage<Q5_0>::form;

}  // namespace dynadapt::DYN_ISA
