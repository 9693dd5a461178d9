// Packing, reading and changing a frozen weight.
#include "core/threads.h"
#include "cpu/kernels/lib/matrix_panels.h"

namespace dynadapt::DYN_ISA {

namespace {

size_t bytes(const Matrix& matrix) {
  if (!matrix.plain()) return storage_form(matrix).bytes(matrix.rows, matrix.columns);
  const int64_t panels = panel_count(matrix.rows);
  return matrix.dtype == kF32 ? size_t(panels * panel_size<float>(matrix.columns)) * 4
                              : size_t(panels * panel_size<bf16>(matrix.columns)) * 2;
}

/// Panel j from the `rows` rows of the weight that it holds.
template <class T>
void pack_panel(Matrix& matrix, int64_t j, const T* from, int rows) {
  const int64_t K = matrix.columns;
  T* to = stored_panel<T>(matrix, j);
  if constexpr (sizeof(T) == sizeof(Panel<T>)) {
    pack_panel_nt(from, K, rows, K, to);
  } else {
    for (int64_t k = 0; k < K; k++)
      for (int n = 0; n < kNR; n++) to[k * kNR + n] = n < rows ? from[n * K + k] : T{};
  }
}

/// Packs a weight whose rows j * kNR.. row_block(team, j, count) gives.
template <class T, class RowBlock>
void pack_panels(Matrix& matrix, int threads, const RowBlock& row_block) {
  parallel(threads, panel_count(matrix.rows), [&](Team team) {
    const auto panels = team.share(panel_count(matrix.rows));
    for (int64_t j = panels.begin; j < panels.end; j++) {
      const int rows = int(smaller<int64_t>(kNR, matrix.rows - j * kNR));
      pack_panel<T>(matrix, j, row_block(team, j, rows), rows);
    }
  });
}

template <class T>
void pack(Matrix& matrix, const T* weight) {
  pack_panels<T>(matrix, num_threads(), [&](Team, int64_t j, int) { return weight + j * kNR * matrix.columns; });
}

/// All rows from float values: each thread rounds the rows of a panel, then packs them while they are in cache.
void update_all(Matrix& matrix, const float* values) {
  if (matrix.dtype == kF32) return pack(matrix, values);
  const int64_t size = kNR * matrix.columns;
  const int threads = num_threads();
  bf16* rooms = static_cast<bf16*>(scratch(size_t(threads) * size * sizeof(bf16)));
  pack_panels<bf16>(matrix, threads, [&](Team team, int64_t j, int rows) {
    bf16* room = rooms + team.rank * size;
    const float* from = values + j * size;
    for (int64_t i = 0; i < rows * matrix.columns; i++) assign(room[i], from[i]);
    return room;
  });
}

template <class T>
void gather(const Matrix& matrix, const int64_t* index, int64_t count, T* out) {
  parallel(num_threads(), count / 16 + 1, [&](Team team) {
    const auto rows = team.share(count);
    for (int64_t i = rows.begin; i < rows.end; i++) read_row(matrix, index ? index[i] : i, out + i * matrix.columns);
  });
}

template <class T>
void update(Matrix& matrix, const int32_t* rows, int64_t count, const float* values) {
  constexpr int step = kInterleave<Panel<T>>;
  const int64_t K = matrix.columns;
  parallel(num_threads(), count / 16 + 1, [&](Team team) {
    const auto share = team.share(count);
    for (int64_t i = share.begin; i < share.end; i++) {
      T* to = static_cast<T*>(matrix.panels) + place<T>(matrix, rows[i], 0);
      for (int64_t k = 0; k < K; k++) assign(to[k / step * kNR * step + k % step], values[i * K + k]);
    }
  });
}

void pack_any(Matrix& matrix, const void* weight) {
  if (!matrix.plain()) return storage_form(matrix).pack(matrix, weight);
  if (matrix.dtype == kF32) return pack(matrix, static_cast<const float*>(weight));
  pack(matrix, static_cast<const bf16*>(weight));
}
void gather_any(const Matrix& matrix, const int64_t* index, int64_t count, void* out) {
  if (matrix.dtype == kF32) return gather(matrix, index, count, static_cast<float*>(out));
  gather(matrix, index, count, static_cast<bf16*>(out));
}
void unpack_any(const Matrix& matrix, void* out) { gather_any(matrix, nullptr, matrix.rows, out); }
void update_any(Matrix& matrix, const int32_t* rows, int64_t count, const float* values) {
  if (!rows) return update_all(matrix, values);
  if (matrix.dtype == kF32) return update<float>(matrix, rows, count, values);
  update<bf16>(matrix, rows, count, values);
}

}  // namespace

extern const MatrixKernels matrix_kernels = {bytes, pack_any, unpack_any, gather_any, update_any};

}  // namespace dynadapt::DYN_ISA
