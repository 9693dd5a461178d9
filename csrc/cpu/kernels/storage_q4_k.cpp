// Q4_K: 256 columns in 144 bytes, float16 d and dmin, eight 6-bit scales and eight 6-bit minima in 12 bytes, and 128 bytes of two
// columns each: of 64 columns, k < 32 in the low half and k + 32 in the high one. A weight is (d scale) q - dmin minimum, with a
// scale and a minimum for 32 columns.
#include "cpu/kernels/lib/block_storage.h"

namespace dynadapt::DYN_ISA {

namespace {

struct Q4_K {
  static constexpr int kBlock = 256, kBytes = 144, kRun = 32;
  struct Run {
    Run(const uint8_t* block, int first) : q(block + (16 + first / 64 * 32) * kNR), shift(first / 32 % 2 * 4) {
      const int i = first / 32;
      const auto packed = [&](int b) { return unsigned_bytes(block + (4 + b) * kNR); };
      const vint scale = i < 4 ? packed(i) & 63 : (packed(i + 4) & 15) | packed(i - 4) >> 6 << 4;
      const vint least = i < 4 ? packed(i + 4) & 63 : packed(i + 4) >> 4 | packed(i) >> 6 << 4;
      d = halves(block) * as_float(scale);
      m = halves(block + 2 * kNR) * as_float(least);
    }
    vfloat column(int k) const { return as_float(unsigned_bytes(q + k % 32 * kNR) >> shift & 15) * d - m; }
    vfloat d, m;
    const uint8_t* q;
    int shift;
  };
};

}  // namespace

extern const StorageForm q4_k_form = BlockStorage<Q4_K>::form;

}  // namespace dynadapt::DYN_ISA
