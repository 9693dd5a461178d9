// Token embedding (with learned positions), and the scatter of its gradient. The scatter splits columns, not rows,
// between threads: each element of the table adds its occurrences in the order of the text.
#include "cpu/embedding.h"

#include "cpu/kernels/lib/rows.h"

namespace dynadapt::DYN_ISA {
namespace {

constexpr size_t kColumns = 64;  // columns of the table that one thread scatters into at a time

template <class T>
void forward(const EmbeddingForward& a) {
  for_rows(a.rows, [&](int64_t n) {
    const T* row = static_cast<const T*>(a.table) + size_t(a.tokens[n]) * a.width;
    T* out = static_cast<T*>(a.out) + n * a.width;
    if (!a.position_table) {
      memcpy(out, row, a.width * sizeof(T));
      return;
    }
    const T* position = static_cast<const T*>(a.position_table) + size_t(a.positions[n]) * a.width;
    for_vectors(a.width, [&](size_t i, auto part) { store(out + i, load(row + i, part) + load(position + i, part), part); });
  });
}

template <class T>
void backward(const EmbeddingBackward& a) {
  const int64_t blocks = (a.width + kColumns - 1) / kColumns;
  parallel(num_threads(), blocks, [&](Team team) {
    const auto share = team.share(blocks);
    const size_t first = share.begin * kColumns;
    const size_t end = share.end * kColumns < a.width ? share.end * kColumns : a.width;
    for (size_t n = 0; n < a.rows; ++n) {
      const T* from = static_cast<const T*>(a.dout) + n * a.width + first;
      add_scaled(a.dtable + size_t(a.tokens[n]) * a.width + first, from, 1.0f, end - first);
    }
  });
}

}  // namespace

const ByType<EmbeddingKernels> embedding_kernels = {{forward<float>, backward<float>}, {forward<bf16>, backward<bf16>}};

}  // namespace dynadapt::DYN_ISA
