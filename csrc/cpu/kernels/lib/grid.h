// Cutting a product into tasks for a team: panels of columns, and rows too where panels are few.
#pragma once

#include "core/threads.h"
#include "cpu/kernels/lib/gemm_layout.h"

namespace dynadapt::DYN_ISA {

/// `panels` x `chunks` tasks; task t is panel t / chunks, rows chunk t % chunks. Threads take runs of
/// tasks, so that a thread meets a panel once.
struct Grid {
  Grid(int64_t panels, int64_t rows, int threads) : panels(panels), rows(rows) {
    // Few chunks are best (a panel is then loaded or made once); more are worth it where panels don't divide evenly.
    double best = 1e30;
    for (int64_t c = 1; c <= larger<int64_t>(1, rows / (2 * kMR)) && c <= 4 * threads; c++) {
      const double longest = double((panels * c + threads - 1) / threads) / double(c) * (1.0 + 0.02 * double(c));
      if (longest < best) {
        best = longest;
        chunks = c;
      }
    }
  }
  int64_t tasks() const { return panels * chunks; }
  int64_t panel(int64_t task) const { return task / chunks; }
  int64_t row_begin(int64_t task) const { return rows * (task % chunks) / chunks; }
  int64_t row_end(int64_t task) const { return rows * (task % chunks + 1) / chunks; }

  int64_t panels, rows, chunks = 1;
};

/// Rows that a thread takes at a time where rows alone are shared out: a few tiles, down to one where there would be too few
/// tasks otherwise.
struct RowTasks {
  RowTasks(int64_t rows, int threads)
      : rows(rows), block(smaller<int64_t>(8, larger<int64_t>(1, rows / (2 * threads * kMR))) * kMR) {}
  int64_t tasks() const { return (rows + block - 1) / block; }
  int64_t begin(int64_t task) const { return smaller(rows, task * block); }

  int64_t rows, block;
};

/// Calls body(stream, begin, end) for each of `streams` equal runs of `rows` rows that meets [begin, end).
template <class Body>
inline void for_streams(int64_t rows, int64_t streams, int64_t begin, int64_t end, const Body& body) {
  const int64_t length = rows / streams;
  for (int64_t s = begin / length; begin < end; s++) {
    const int64_t stop = smaller(end, (s + 1) * length);
    body(s, begin, stop);
    begin = stop;
  }
}

}  // namespace dynadapt::DYN_ISA
