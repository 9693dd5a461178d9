// Q6_K: 256 columns in 210 bytes: 128 bytes of two columns' low four bits, 64 of four columns' high two bits, a signed scale for 16
// columns each, and a float16 d. Of 128 columns, k and k + 64 share a byte of the former, k, k + 32, k + 64 and k + 96 one of the
// latter. A weight is (d scale) (q - 32).
#include "cpu/kernels/lib/block_storage.h"

namespace dynadapt::DYN_ISA {

namespace {

struct Q6_K {
  static constexpr int kBlock = 256, kBytes = 210, kRun = 16;
  struct Run {
    Run(const uint8_t* block, int first)
        : d(halves(block + 208 * kNR) * as_float(signed_bytes(block + (192 + first / 16) * kNR))),
          low(block + first / 128 * 64 * kNR),
          high(block + (128 + first / 128 * 32) * kNR),
          low_shift(first % 128 / 64 * 4),
          high_shift(first % 128 / 32 * 2) {}
    vfloat column(int k) const {
      const vint four = unsigned_bytes(low + k % 64 * kNR) >> low_shift & 15;
      const vint two = unsigned_bytes(high + k % 32 * kNR) >> high_shift & 3;
      return as_float((four | two << 4) - 32) * d;
    }
    vfloat d;
    const uint8_t *low, *high;
    int low_shift, high_shift;
  };
};

}  // namespace

extern const StorageForm q6_k_form = BlockStorage<Q6_K>::form;

}  // namespace dynadapt::DYN_ISA
