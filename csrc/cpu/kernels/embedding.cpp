// Token embedding (with learned positions), and the scatter of its gradient. The scatter splits columns, not rows,
// between threads: each element of the table adds its occurrences in the order of the text. And adapters on it.
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

/// A row's R numbers of A are taken out of its columns first, next to each other.
template <class T>
void adapted_forward(const AdaptedEmbeddingForward& a) {
  const int64_t length = a.rows / a.streams, stride = round_up(a.rank, 16);
  const int threads = num_threads();
  float* room = static_cast<float*>(scratch(size_t(threads * stride) * sizeof(float)));
  parallel(threads, (a.rows + kFewRows - 1) / kFewRows, [&](Team team) {
    float* low = room + team.rank * stride;
    const auto share = team.share(a.rows);
    for (int64_t n = share.begin; n < share.end; ++n) {
      const int64_t slot = a.slots[n / length];
      const T* A = static_cast<const T*>(a.A) + slot * a.A_stride + a.tokens[n];
      const T* Bt = static_cast<const T*>(a.Bt) + slot * a.Bt_stride;
      T* out = static_cast<T*>(a.out) + n * a.width;
      for (int64_t r = 0; r < a.rank; r++) low[r] = a.scale * to_float(A[r * a.vocabulary]);
      for_vectors(size_t(a.width), [&](size_t i, auto part) {
        vfloat total{};
        for (int64_t r = 0; r < a.rank; r++) total += low[r] * load(Bt + r * a.width + i, part);
        store(out + i, load(out + i, part) + total, part);
      });
    }
  });
}

/// A thread has whole rows of dA and dBt, and adds a stream's tokens to them in the order of the text.
template <class T>
void adapted_backward(const AdaptedEmbeddingBackward& a) {
  const int64_t length = a.rows / a.streams, tasks = a.streams * a.rank;
  parallel(num_threads(), tasks, [&](Team team) {
    const auto share = team.share(tasks);
    for (int64_t task = share.begin; task < share.end; ++task) {
      const int64_t stream = task / a.rank, r = task % a.rank, slot = a.slots[stream];
      const T* A = static_cast<const T*>(a.A) + slot * a.A_stride + r * a.vocabulary;
      const T* Bt = static_cast<const T*>(a.Bt) + slot * a.Bt_stride + r * a.width;
      float* dA = a.dA + slot * a.dA_stride + r * a.vocabulary;
      float* dBt = a.dBt + slot * a.dBt_stride + r * a.width;
      if (!a.accumulate) {
        memset(dA, 0, size_t(a.vocabulary) * sizeof(float));
        memset(dBt, 0, size_t(a.width) * sizeof(float));
      }
      for (int64_t n = stream * length; n < (stream + 1) * length; ++n) {
        const T* from = static_cast<const T*>(a.dout) + n * a.width;
        const int64_t token = a.tokens[n];
        dA[token] += a.scale * dot(from, Bt, size_t(a.width));
        add_scaled(dBt, from, a.scale * to_float(A[token]), size_t(a.width));
      }
    }
  });
}

template <class T>
constexpr EmbeddingKernels kernels_of() {
  return {forward<T>, backward<T>, adapted_forward<T>, adapted_backward<T>};
}

}  // namespace

const ByType<EmbeddingKernels> embedding_kernels = {kernels_of<float>(), kernels_of<bf16>()};

}  // namespace dynadapt::DYN_ISA
