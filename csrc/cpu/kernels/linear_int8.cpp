// The linear layer over weights in int8: its products are sums of whole numbers (lib/gemm_int8.h).
//
// As in linear.cpp, the low-rank activations come first and threads then share the columns. While they are made, each row of x (dy)
// is quantised, once for all columns. A tile starts with the low-rank term in float32 and goes on with the groups in order.
// The backward product contracts over rows of W, along which its scales differ: a panel of W is turned, and quantised
// again with scales that stand still along the contraction, once for all rows of the call.
#include "cpu/kernels/lib/gemm_int8.h"
#include "cpu/kernels/lib/linear_low.h"

namespace dynadapt::DYN_ISA {

namespace {

inline const char* stored_panel(const Matrix& matrix, int64_t j) {
  return static_cast<const char*>(matrix.panels) + j * stored_panel_bytes(matrix.columns);
}

/// The memory of a call: quantised rows, which all threads share, and a Room for each thread.
template <class Form, class Room, class Call>
struct Memory {
  Memory(const Call& call, int threads, int64_t count, int64_t groups) : call(call), room_bytes(Room(call, nullptr).bytes) {
    Arena measure;
    IntegerRows<Form>::take(measure, count, groups);
    char* base = static_cast<char*>(scratch(measure.used() + room_bytes * threads));
    Arena arena(base);
    rows = IntegerRows<Form>::take(arena, count, groups);
    rooms = base + measure.used();
  }
  Room room(int rank) const { return Room(call, rooms + room_bytes * rank); }

  const Call& call;
  IntegerRows<Form> rows;
  char* rooms;
  size_t room_bytes;
};

template <class Form, class T>
struct ForwardRoom {
  char* panel;
  Panel<T>*low, *adapter;
  size_t bytes;
  ForwardRoom(const LinearForward& c, void* base) {
    Arena arena(base);
    panel = arena.take<char>(Form::kStep == 4 ? 0 : integer_panel_bytes<Form>(c.K));
    low = arena.take<Panel<T>>(panel_size<T>(c.adapters.largest()));
    adapter = arena.take<Panel<T>>(forward_low_size<T>(c));
    bytes = arena.used();
  }
};

/// The columns of one panel of y for rows [begin, end).
template <class Form, class T>
void forward_panel_rows(const LinearForward& c, const ForwardRoom<Form, T>& room, const IntegerRows<Form>& x, const Place& at,
                        const char* panel, int64_t begin, int64_t end) {
  const T* bias = c.bias ? static_cast<const T*>(c.bias) + at.column : nullptr;
  for_streams(c.N, c.adapters.streams(), begin, end, [&](int64_t s, int64_t from, int64_t to) {
    const PartRank own = c.adapters.empty() ? PartRank{} : c.adapters[size_t(s)].ranks.part[at.part];
    Term<T> low_rank;
    if (own.rank) {
      pack_panel_nn(static_cast<const T*>(c.adapters[size_t(s)].Bt) + at.column, c.O, at.columns, own.rank, room.low);
      low_rank = {static_cast<const T*>(c.u) + from * c.low_width + own.first, c.low_width, room.low, own.rank, own.scale};
    }
    const IntegerTerm<Form> term{x.from(from, 0), panel, group_count(c.K)};
    integer_rounded(to - from, at.columns, own.rank ? &low_rank : nullptr, &term, 1, bias,
                    static_cast<T*>(c.y) + from * c.O + at.column, c.O);
  });
}

template <class Form, class T>
void forward(const LinearForward& c) {
  const int64_t panels = total_panels(c.parts, c.part_count);
  const int threads = num_threads();
  const Memory<Form, ForwardRoom<Form, T>, LinearForward> memory(c, threads, c.N, group_count(c.K));
  const IntegerRows<Form>& x = memory.rows;
  const Grid grid(panels, c.N, threads);
  const RowTasks low(c.N, threads);
  TaskQueue row_queue(low.tasks()), queue(grid.tasks());
  parallel(threads, panels * ((c.N + kMR - 1) / kMR), [&](Team team) {
    const auto room = memory.room(team.rank);
    int64_t packed = -1;
    for (Range r = row_queue.take(team.size); r.begin < r.end; r = row_queue.take(team.size)) {
      const int64_t begin = low.begin(r.begin), end = low.begin(r.end);
      for (int64_t n = begin; n < end; n++) quantize_row(static_cast<const T*>(c.x) + n * c.ldx, c.K, x.from(n, 0));
      if (!c.adapters.empty()) forward_low<T>(c, room.adapter, packed, begin, end);
    }
    team.barrier();
    int64_t last = -1;
    const char* panel = nullptr;
    for (Range r = queue.take(team.size); r.begin < r.end; r = queue.take(team.size))
      for (int64_t t = r.begin; t < r.end; t++) {
        const Place at = locate(c.parts, grid.panel(t));
        if (grid.panel(t) != last) panel = integer_panel<Form>(stored_panel(*c.parts[at.part], at.panel), c.K, room.panel);
        last = grid.panel(t);
        forward_panel_rows<Form, T>(c, room, x, at, panel, grid.row_begin(t), grid.row_end(t));
      }
  });
}

int64_t output_groups(const LinearBackward& c) {
  int64_t groups = 0;
  for (int p = 0; p < c.part_count; p++) groups += group_count(c.parts[p]->rows);
  return groups;
}

template <class Form, class T>
struct BackwardRoom {
  char* turned;
  float* wide;
  Panel<T>*low, *adapter;
  size_t bytes;
  BackwardRoom(const LinearBackward& c, void* base) {
    Arena arena(base);
    turned = arena.take<char>(output_groups(c) * kBlockBytes<Form>);
    wide = arena.take<float>(kScaleGroup * kNR);
    low = arena.take<Panel<T>>(panel_size<T>(c.adapters.widest()));
    adapter = arena.take<Panel<T>>(backward_low_size<T>(c));
    bytes = arena.used();
  }
};

/// Panel j of dx's columns of all parts, turned and quantised by groups of rows into the room.
template <class Form, class T>
void turn_parts(const LinearBackward& c, const BackwardRoom<Form, T>& room, int64_t j) {
  char* to = room.turned;
  for (int p = 0; p < c.part_count; p++) {
    const Matrix& part = *c.parts[p];
    for (int64_t g = 0; g < group_count(part.rows); g++, to += kBlockBytes<Form>) {
      alignas(64) int32_t most[kNR] = {};
      for (int i = 0; i < kScaleGroup / kNR; i++) {
        const int64_t panel = g * (kScaleGroup / kNR) + i;
        float* square = room.wide + i * kNR * kNR;
        if (panel < panel_count(part.rows))
          dequantize_square(stored_panel(part, panel), j * kNR, square, most);
        else
          memset(square, 0, sizeof(float) * kNR * kNR);
      }
      quantize_columns<Form>(room.wide, most, to);
    }
  }
}

/// Columns kNR * j.. of dx for rows [begin, end), from the turned panels of all parts.
template <class Form, class T>
void backward_panel_rows(const LinearBackward& c, const BackwardRoom<Form, T>& room, const IntegerRows<Form>& dy, int64_t j,
                         int64_t begin, int64_t end) {
  const int columns = int(smaller<int64_t>(kNR, c.K - j * kNR));
  for_streams(c.N, c.adapters.streams(), begin, end, [&](int64_t s, int64_t from, int64_t to) {
    const int64_t width = c.adapters.empty() ? 0 : c.adapters[size_t(s)].ranks.width;
    Term<T> low_rank;
    if (width) {
      pack_panel_nn(static_cast<const T*>(c.adapters[size_t(s)].A) + j * kNR, c.K, columns, width, room.low);
      low_rank = {static_cast<const T*>(c.dU) + from * c.low_width, c.low_width, room.low, width, 1.0f};
    }
    IntegerTerm<Form> terms[kMaxParts];
    int64_t group = 0;
    for (int p = 0; p < c.part_count; p++) {
      const int64_t groups = group_count(c.parts[p]->rows);
      terms[p] = {dy.from(from, group), room.turned + group * kBlockBytes<Form>, groups};
      group += groups;
    }
    integer_rounded(to - from, columns, width ? &low_rank : nullptr, terms, c.part_count, static_cast<const T*>(nullptr),
                    static_cast<T*>(c.dx) + from * c.K + j * kNR, c.K);
  });
}

/// A row of dy, each part in groups of its own.
template <class Form, class T>
void quantize_parts(const LinearBackward& c, const T* row, IntegerRows<Form> to) {
  for (int p = 0; p < c.part_count; p++) {
    quantize_row(row, c.parts[p]->rows, to);
    row += c.parts[p]->rows;
    to = to.from(0, group_count(c.parts[p]->rows));
  }
}

template <class Form, class T>
void backward(const LinearBackward& c) {
  const int64_t panels = panel_count(c.K);
  const int threads = num_threads();
  const Memory<Form, BackwardRoom<Form, T>, LinearBackward> memory(c, threads, c.dx ? c.N : 0, output_groups(c));
  const IntegerRows<Form>& dy = memory.rows;
  const Grid grid(panels, c.N, threads);
  const RowTasks low(c.N, threads);
  TaskQueue row_queue(low.tasks()), queue(grid.tasks());
  parallel(threads, panels * ((c.N + kMR - 1) / kMR), [&](Team team) {
    const auto room = memory.room(team.rank);
    int64_t packed = -1;
    for (Range r = row_queue.take(team.size); r.begin < r.end; r = row_queue.take(team.size)) {
      const int64_t begin = low.begin(r.begin), end = low.begin(r.end);
      if (!c.adapters.empty()) backward_low<T>(c, room.adapter, packed, begin, end);
      for (int64_t n = begin; c.dx && n < end; n++) quantize_parts(c, static_cast<const T*>(c.dy) + n * c.O, dy.from(n, 0));
    }
    if (!c.dx) return;
    team.barrier();
    int64_t last = -1;
    for (Range r = queue.take(team.size); r.begin < r.end; r = queue.take(team.size))
      for (int64_t t = r.begin; t < r.end; t++) {
        const int64_t j = grid.panel(t);
        if (j != last) turn_parts(c, room, j);
        last = j;
        backward_panel_rows<Form, T>(c, room, dy, j, grid.row_begin(t), grid.row_end(t));
      }
  });
}

template <class Form>
void forward_of(const LinearForward& c) {
  c.dtype == kF32 ? forward<Form, float>(c) : forward<Form, bf16>(c);
}
template <class Form>
void backward_of(const LinearBackward& c) {
  c.dtype == kF32 ? backward<Form, float>(c) : backward<Form, bf16>(c);
}

}  // namespace

extern const Int8LinearKernels int8_linear_kernels = {{
    [](const LinearForward& c) { vnni() ? forward_of<Bytes>(c) : forward_of<Words>(c); },
    [](const LinearBackward& c) { vnni() ? backward_of<Bytes>(c) : backward_of<Words>(c); },
}};

}  // namespace dynadapt::DYN_ISA
