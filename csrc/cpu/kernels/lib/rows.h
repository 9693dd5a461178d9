// Rows shared out between threads, and sums over rows in an order that threads can't change: a block of rows adds
// into sums of its own, then the blocks are added in order.
#pragma once

#include "core/threads.h"
#include "cpu/kernels/lib/vector_math.h"

namespace dynadapt::DYN_ISA {

constexpr int64_t kBlockRows = 32;
constexpr int64_t kFewRows = 4;  // that are worth a thread

inline int64_t row_blocks(int64_t rows) { return (rows + kBlockRows - 1) / kBlockRows; }

// Calls row(n) for n in 0..rows-1.
template <class Row>
inline void for_rows(int64_t rows, const Row& row) {
  parallel(num_threads(), (rows + kFewRows - 1) / kFewRows, [&](Team team) {
    const auto share = team.share(rows);
    for (int64_t n = share.begin; n < share.end; ++n) row(n);
  });
}

// Sums of `width` floats for each block of rows; not there (every pointer null) where `wanted` is false.
class BlockSums {
 public:
  static size_t stride(size_t width) { return (width + 15) / 16 * 16; }
  static size_t floats(int64_t rows, size_t width) { return row_blocks(rows) * stride(width); }

  BlockSums(float* storage, size_t width, bool wanted) : sums_(wanted ? storage : nullptr), width_(width) {}

  // The zeroed sums of block b.
  float* start(int64_t b) const {
    if (!sums_) return nullptr;
    return static_cast<float*>(memset(sums_ + b * stride(width_), 0, width_ * sizeof(float)));
  }

  // out[i] += the blocks' sums, in order; `offset` skips the first sums.
  void add_to(float* out, int64_t blocks, size_t offset, size_t width) const {
    if (!sums_ || !out) return;
    const float* sums = sums_ + offset;
    for_vectors(width, [&](size_t i, auto part) {
      vfloat total{};
      for (int64_t b = 0; b < blocks; ++b) total += load(sums + b * stride(width_) + i, part);
      store(out + i, load(out + i, part) + total, part);
    });
  }

 private:
  float* sums_;
  size_t width_;
};

// Calls block(b, first row, last row + 1) for every block of rows.
template <class Block>
inline void for_row_blocks(int64_t rows, const Block& block) {
  parallel(num_threads(), row_blocks(rows), [&](Team team) {
    const auto share = team.share(row_blocks(rows));
    for (int64_t b = share.begin; b < share.end; ++b)
      block(b, b * kBlockRows, (b + 1) * kBlockRows < rows ? (b + 1) * kBlockRows : rows);
  });
}

// sum of a_i b_i
template <class A, class B>
inline float dot(const A* a, const B* b, size_t n) {
  vfloat total{};
  for_vectors(n, [&](size_t i, auto part) { total += load(a + i, part) * load(b + i, part); });
  return sum(total);
}

// sink[i] += scale x_i, where there is a sink
template <class T>
inline void add_scaled(float* sink, const T* x, float scale, size_t n) {
  if (!sink) return;
  for_vectors(n, [&](size_t i, auto part) { store(sink + i, load(sink + i, part) + scale * load(x + i, part), part); });
}

}  // namespace dynadapt::DYN_ISA
