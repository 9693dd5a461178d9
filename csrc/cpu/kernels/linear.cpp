// Linear layer with a low-rank adapter, forward and backward.
//
// The frozen product and the low-rank one are two terms of one product: a tile of y starts with
// u Bt in its registers, is scaled, goes on with x W^T, gets the bias and is rounded once. u (or dU)
// is needed by every column of y (dx), so it is computed first, rows shared out over the threads;
// then threads share the columns. A panel of the weight is read (forward) or turned (backward)
// once and used for all rows of all streams.
#include "cpu/linear.h"
#include "cpu/kernels/lib/linear_low.h"
#include "cpu/kernels/lib/matrix_panels.h"

namespace dynadapt::DYN_ISA {

namespace {

template <class T>
struct ForwardRoom {
  Panel<T>*wide, *low, *adapter;
  size_t bytes;
  ForwardRoom(const LinearForward& c, void* base) {
    Arena arena(base);
    int64_t widest = 0;
    for (int p = 0; p < c.part_count; p++) widest = larger(widest, forward_room<T>(*c.parts[p]));
    wide = arena.take<Panel<T>>(widest);
    low = arena.take<Panel<T>>(panel_size<T>(c.adapters.largest()));
    adapter = arena.take<Panel<T>>(forward_low_size<T>(c));
    bytes = arena.used();
  }
};

/// The columns of one panel of y for rows [begin, end).
template <class T>
void forward_panel_rows(const LinearForward& c, const ForwardRoom<T>& room, const Place& at, const Panel<T>* panel, int64_t begin,
                        int64_t end) {
  const T* bias = c.bias ? static_cast<const T*>(c.bias) + at.column : nullptr;
  for_streams(c.N, c.adapters.streams(), begin, end, [&](int64_t s, int64_t from, int64_t to) {
    const PartRank own = c.adapters.empty() ? PartRank{} : c.adapters[size_t(s)].ranks.part[at.part];
    Term<T> terms[2];
    int count = 0;
    if (own.rank) {
      pack_panel_nn(static_cast<const T*>(c.adapters[size_t(s)].Bt) + at.column, c.O, at.columns, own.rank, room.low);
      terms[count++] = {static_cast<const T*>(c.u) + from * c.low_width + own.first, c.low_width, room.low, own.rank, own.scale};
    }
    terms[count++] = {static_cast<const T*>(c.x) + from * c.ldx, c.ldx, panel, c.K, 1.0f};
    multiply_rounded<T>(to - from, at.columns, terms, count, bias, static_cast<T*>(c.y) + from * c.O + at.column, c.O);
  });
}

template <class T>
void forward(const LinearForward& c) {
  const int64_t panels = total_panels(c.parts, c.part_count);
  const size_t bytes = ForwardRoom<T>(c, nullptr).bytes;
  const int threads = num_threads();
  char* base = static_cast<char*>(scratch(bytes * threads));
  const Grid grid(panels, c.N, threads);
  const RowTasks low(c.N, threads);
  TaskQueue low_queue(low.tasks()), queue(grid.tasks());
  parallel(threads, panels * ((c.N + kMR - 1) / kMR), [&](Team team) {
    const ForwardRoom<T> room(c, base + bytes * team.rank);
    if (!c.adapters.empty()) {
      int64_t packed = -1;
      for (Range r = low_queue.take(team.size); r.begin < r.end; r = low_queue.take(team.size))
        forward_low<T>(c, room.adapter, packed, low.begin(r.begin), low.begin(r.end));
      team.barrier();
    }
    int64_t last = -1;
    const Panel<T>* panel = nullptr;
    for (Range r = queue.take(team.size); r.begin < r.end; r = queue.take(team.size))
      for (int64_t t = r.begin; t < r.end; t++) {
        const Place at = locate(c.parts, grid.panel(t));
        if (grid.panel(t) != last) panel = forward_panel<T>(*c.parts[at.part], at.panel, room.wide);
        last = grid.panel(t);
        forward_panel_rows<T>(c, room, at, panel, grid.row_begin(t), grid.row_end(t));
      }
  });
}

template <class T>
struct BackwardRoom {
  Panel<T>*turned, *low, *adapter;
  size_t bytes;
  BackwardRoom(const LinearBackward& c, void* base) {
    Arena arena(base);
    int64_t turned_size = 0;
    for (int p = 0; p < c.part_count; p++) turned_size += backward_panel_size<T>(*c.parts[p]);
    turned = arena.take<Panel<T>>(turned_size);
    low = arena.take<Panel<T>>(panel_size<T>(c.adapters.widest()));
    adapter = arena.take<Panel<T>>(backward_low_size<T>(c));
    bytes = arena.used();
  }
};

/// Columns kNR * j.. of dx for rows [begin, end), from the turned panels of all parts.
template <class T>
void backward_panel_rows(const LinearBackward& c, const BackwardRoom<T>& room, const Panel<T>* turned, int64_t j, int64_t begin,
                         int64_t end) {
  const int columns = int(smaller<int64_t>(kNR, c.K - j * kNR));
  for_streams(c.N, c.adapters.streams(), begin, end, [&](int64_t s, int64_t from, int64_t to) {
    const int64_t width = c.adapters.empty() ? 0 : c.adapters[size_t(s)].ranks.width;
    Term<T> terms[kMaxParts + 1];
    int count = 0;
    if (width) {
      pack_panel_nn(static_cast<const T*>(c.adapters[size_t(s)].A) + j * kNR, c.K, columns, width, room.low);
      terms[count++] = {static_cast<const T*>(c.dU) + from * c.low_width, c.low_width, room.low, width, 1.0f};
    }
    const T* dy = static_cast<const T*>(c.dy) + from * c.O;
    const Panel<T>* panel = turned;
    for (int p = 0; p < c.part_count; p++) {
      terms[count++] = {dy, c.O, panel, c.parts[p]->rows, 1.0f};
      dy += c.parts[p]->rows;
      panel += backward_panel_size<T>(*c.parts[p]);
    }
    multiply_rounded<T>(to - from, columns, terms, count, nullptr, static_cast<T*>(c.dx) + from * c.K + j * kNR, c.K);
  });
}

/// Panel j of dx's columns of all parts, turned into the room.
template <class T>
void turn_parts(const LinearBackward& c, const BackwardRoom<T>& room, int64_t j) {
  Panel<T>* to = room.turned;
  for (int p = 0; p < c.part_count; to += backward_panel_size<T>(*c.parts[p++])) backward_panel<T>(*c.parts[p], j, to);
}

/// Pieces [begin, end) of all panels of dx: as many of each as the parts have stored panels.
template <class T>
void turn_pieces(const LinearBackward& c, int64_t pieces, int64_t begin, int64_t end, Panel<T>* to) {
  for (int64_t i = begin; i < end; i++) {
    const Place at = locate(c.parts, i % pieces);
    backward_block<T>(*c.parts[at.part], at.panel * kNR, i / pieces * kNR, to + i * kNR * kNR);
  }
}

/// Where threads need parts of a panel, all are turned before, each once, if they take no more than this.
constexpr size_t kMostTurned = size_t(32) << 20;

template <class T>
void backward(const LinearBackward& c) {
  const int64_t panels = panel_count(c.K), pieces = total_panels(c.parts, c.part_count);
  const size_t bytes = BackwardRoom<T>(c, nullptr).bytes, whole = size_t(panels * pieces) * kNR * kNR * sizeof(Panel<T>);
  const int threads = num_threads();
  const bool before = c.dx && panels < 4 * threads && threads > 2 && whole <= kMostTurned;
  char* base = static_cast<char*>(scratch(bytes * threads + (before ? whole : 0)));
  Panel<T>* all = reinterpret_cast<Panel<T>*>(base + bytes * threads);
  const Grid grid(panels, c.N, threads);
  const RowTasks low(c.N, threads);
  TaskQueue low_queue(low.tasks()), queue(grid.tasks());
  parallel(threads, panels * ((c.N + kMR - 1) / kMR), [&](Team team) {
    const BackwardRoom<T> room(c, base + bytes * team.rank);
    if (before) {
      const auto share = team.share(panels * pieces);
      turn_pieces<T>(c, pieces, share.begin, share.end, all);
    }
    if (!c.adapters.empty()) {
      int64_t packed = -1;
      for (Range r = low_queue.take(team.size); r.begin < r.end; r = low_queue.take(team.size))
        backward_low<T>(c, room.adapter, packed, low.begin(r.begin), low.begin(r.end));
      if (!c.dx) return;
    }
    if (before || !c.adapters.empty()) team.barrier();
    int64_t last = -1;
    for (Range r = queue.take(team.size); r.begin < r.end; r = queue.take(team.size))
      for (int64_t t = r.begin; t < r.end; t++) {
        const int64_t j = grid.panel(t);
        if (!before && j != last) turn_parts(c, room, j);
        last = j;
        backward_panel_rows<T>(c, room, before ? all + j * pieces * kNR * kNR : room.turned, j, grid.row_begin(t),
                               grid.row_end(t));
      }
  });
}

}  // namespace

extern const LinearKernels linear_kernels = {
    [](const LinearForward& c) { c.dtype == kF32 ? forward<float>(c) : forward<bf16>(c); },
    [](const LinearBackward& c) { c.dtype == kF32 ? backward<float>(c) : backward<bf16>(c); },
};

}  // namespace dynadapt::DYN_ISA
