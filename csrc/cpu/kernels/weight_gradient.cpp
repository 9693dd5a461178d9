// Gradients of weights, whole or some of their rows: products that sum over tokens. And the scores that choose rows.
//
// Both operands have tokens as rows. The one with more columns is packed into panels (tokens are the
// panel's depth), the other is turned once so that the micro-kernel can read it as A.
#include "cpu/weight_gradient.h"

#include "cpu/kernels/lib/gemm.h"
#include "cpu/kernels/lib/grid.h"
#include "cpu/kernels/lib/transpose.h"

namespace dynadapt::DYN_ISA {

namespace {

/// Rows [begin, end) of dy^T (of its chosen columns) into `to` [row_count, N], its rows `ldt` apart.
template <class T>
void turn_chosen(const WeightGradient& c, int64_t begin, int64_t end, Panel<T>* to, int64_t ldt) {
  const T* dy = static_cast<const T*>(c.dy);
  if (!c.rows) return transpose(dy + begin, c.ldy, c.N, end - begin, to + begin * ldt, ldt);
  constexpr int kRows = 32, kColumns = 64;  // gathered piece by piece: read along tokens' rows, turned in cache
  T piece[kRows * kColumns];
  for (int64_t n = 0; n < c.N; n += kRows) {
    const int64_t rows = smaller<int64_t>(kRows, c.N - n);
    for (int64_t r = begin; r < end; r += kColumns) {
      const int64_t columns = smaller<int64_t>(kColumns, end - r);
      for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++) piece[i * kColumns + j] = dy[(n + i) * c.ldy + c.rows[r + j]];
      transpose(piece, kColumns, rows, columns, to + r * ldt + n, ldt);
    }
  }
}

template <class T>
void weight_gradient(const WeightGradient& c) {
  const int64_t panels = panel_count(c.K), turned_row = turned_stride<Panel<T>>(c.N);
  const auto carve = [&](Arena arena, Panel<T>*& x, Panel<T>*& dy) {
    x = arena.take<Panel<T>>(panels * panel_size<T>(c.N));
    dy = arena.take<Panel<T>>(c.row_count * turned_row);
    return arena.used();
  };
  Panel<T>*x, *dy;
  carve(Arena(scratch(carve(Arena(), x, dy))), x, dy);
  const int threads = num_threads();
  const Grid grid(panels, c.row_count, threads);
  TaskQueue queue(grid.tasks());
  parallel(threads, panels * ((c.row_count + kMR - 1) / kMR), [&](Team team) {
    const auto packed = team.share(panels);
    const int64_t begin = packed.begin * kNR, end = smaller(packed.end * kNR, c.K);
    if (begin < end) pack_nn(static_cast<const T*>(c.x) + begin, c.K, c.N, end - begin, x + packed.begin * panel_size<T>(c.N));
    const auto turned = team.share((c.row_count + 15) / 16);
    turn_chosen<T>(c, turned.begin * 16, smaller(turned.end * 16, c.row_count), dy, turned_row);
    team.barrier();

    for (Range r = queue.take(team.size); r.begin < r.end; r = queue.take(team.size))
      for (int64_t t = r.begin; t < r.end; t++) {
        const int64_t j = grid.panel(t), row = grid.row_begin(t);
        const Term<Panel<T>> term{dy + row * turned_row, turned_row, x + j * panel_size<T>(c.N), c.N, 1.0f};
        multiply_panel(grid.row_end(t) - row, int(smaller<int64_t>(kNR, c.K - j * kNR)), term, c.dW + row * c.K + j * kNR, c.K,
                       c.accumulate);
      }
  });
}

// ---- scores that choose rows ----

template <class T>
float square_norm(const T* x, int64_t n) {
  vfloat total{};
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) total += load(x + i) * load(x + i);
  if (i < n) total += load(x + i, int(n - i)) * load(x + i, int(n - i));
  return sum(total);
}

template <class T>
void row_scores(const RowScores& c) {
  float* squares = static_cast<float*>(scratch(c.N * sizeof(float)));
  const T *dy = static_cast<const T*>(c.dy), *x = static_cast<const T*>(c.x);
  constexpr int kVectors = 4, kColumns = kVectors * kWidth;
  parallel(num_threads(), (c.O + kColumns - 1) / kColumns, [&](Team team) {
    const auto rows = team.share(c.N);
    for (int64_t m = rows.begin; m < rows.end; m++) squares[m] = square_norm(x + m * c.K, c.K);
    team.barrier();

    const auto blocks = team.share((c.O + kColumns - 1) / kColumns);
    for (int64_t o = blocks.begin * kColumns; o < smaller(blocks.end * kColumns, c.O); o += kColumns) {
      vfloat total[kVectors] = {};
      int width[kVectors];
      for (int v = 0; v < kVectors; v++) width[v] = int(larger<int64_t>(0, smaller<int64_t>(kWidth, c.O - o - v * kWidth)));
      for (int64_t m = 0; m < c.N; m++)
        for (int v = 0; v < kVectors && width[v]; v++) {
          const T* from = dy + m * c.ldy + o + v * kWidth;
          const vfloat d = width[v] == kWidth ? load(from) : load(from, width[v]);
          total[v] += d * d * squares[m];
        }
      for (int v = 0; v < kVectors; v++)
        for (int i = 0; i < width[v]; i++) c.out[o + v * kWidth + i] = __builtin_sqrtf(total[v][i]);
    }
  });
}

}  // namespace

extern const WeightGradientKernels weight_gradient_kernels = {
    [](const WeightGradient& c) { c.dtype == kF32 ? weight_gradient<float>(c) : weight_gradient<bf16>(c); },
    [](const RowScores& c) { c.dtype == kF32 ? row_scores<float>(c) : row_scores<bf16>(c); },
};

}  // namespace dynadapt::DYN_ISA
