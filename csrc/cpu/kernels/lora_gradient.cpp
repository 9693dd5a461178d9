// Gradients of low-rank adapters: products that sum over tokens, stream by stream.
//
// The operand with more columns is packed into panels (tokens are the panel's depth), the other is turned once so that the
// micro-kernel can read it as A.
#include "cpu/lora_gradient.h"

#include "core/threads.h"
#include "cpu/kernels/lib/gemm.h"
#include "cpu/kernels/lib/transpose.h"

namespace dynadapt::DYN_ISA {

namespace {

template <class T>
struct LoraRoom {
  Panel<T>*dU, *u, *panel;  // dU^T and u^T [width, length] of one stream, and one panel
  size_t bytes;
  LoraRoom(const LoraGradient& c, void* base) {
    Arena arena(base);
    const int64_t length = c.N / c.gradients.streams(), width = c.gradients.widest();
    dU = arena.take<Panel<T>>(width * length);
    u = arena.take<Panel<T>>(width * length);
    panel = arena.take<Panel<T>>(panel_size<T>(length));
    bytes = arena.used();
  }
};

/// Columns kNR * j.. of dA of stream s.
template <class T>
void lora_dA(const LoraGradient& c, const LoraRoom<T>& room, int64_t s, int64_t j) {
  const int64_t length = c.N / c.gradients.streams();
  const auto& own = c.gradients[size_t(s)];
  if (!own.ranks.width) return;
  const int columns = int(smaller<int64_t>(kNR, c.K - j * kNR));
  pack_panel_nn(static_cast<const T*>(c.x) + s * length * c.K + j * kNR, c.K, columns, length, room.panel);
  const Term<Panel<T>> term{room.dU, length, room.panel, length, 1.0f};
  multiply_panel(own.ranks.width, columns, term, own.A + j * kNR, c.K, c.accumulate);
}

/// Columns `column`.. of dBt of stream s, which belong to part p; rows beyond the part's rank are zero.
template <class T>
void lora_dBt(const LoraGradient& c, const LoraRoom<T>& room, int64_t s, int p, int64_t column, int columns) {
  const int64_t length = c.N / c.gradients.streams();
  const auto& stream = c.gradients[size_t(s)];
  if (!stream.ranks.width) return;
  const PartRank own = stream.ranks.part[p];
  float* out = stream.Bt + column;
  if (own.rank) {
    pack_panel_nn(static_cast<const T*>(c.dy) + s * length * c.O + column, c.O, columns, length, room.panel);
    const Term<Panel<T>> term{room.u + own.first * length, length, room.panel, length, own.scale};
    multiply_panel(own.rank, columns, term, out, c.O, c.accumulate);
  }
  for (int64_t r = own.rank; !c.accumulate && r < stream.ranks.largest; r++)
    memset(out + r * c.O, 0, sizeof(float) * size_t(columns));
}

template <class T>
void lora_gradient(const LoraGradient& c) {
  const int64_t streams = c.gradients.streams(), length = c.N / streams;
  const size_t bytes = LoraRoom<T>(c, nullptr).bytes;
  const int threads = num_threads();
  char* base = static_cast<char*>(scratch(bytes * threads));
  int64_t panels = panel_count(c.K);
  for (int p = 0; p < c.part_count; p++) panels += panel_count(c.part_sizes[p]);
  TaskQueue queue(streams * panels);
  parallel(threads, streams * panels, [&](Team team) {
    const LoraRoom<T> room(c, base + bytes * team.rank);
    int64_t task = 0, claimed = -1;
    for (int64_t s = 0; s < streams; s++) {
      bool turned = false;
      const auto mine = [&] {
        if (claimed < task) claimed = queue.take(team.size, 1).begin;
        if (claimed != task++) return false;
        if (!turned) {
          const int64_t width = c.gradients[size_t(s)].ranks.width, from = s * length * c.low_width;
          transpose(static_cast<const T*>(c.dU) + from, c.low_width, length, width, room.dU, length);
          transpose(static_cast<const T*>(c.u) + from, c.low_width, length, width, room.u, length);
        }
        return turned = true;
      };
      for (int64_t j = 0; j < panel_count(c.K); j++)
        if (mine()) lora_dA(c, room, s, j);
      int64_t column = 0;
      for (int p = 0; p < c.part_count; column += c.part_sizes[p++])
        for (int64_t n = 0; n < c.part_sizes[p]; n += kNR)
          if (mine()) lora_dBt(c, room, s, p, column + n, int(smaller<int64_t>(kNR, c.part_sizes[p] - n)));
    }
  });
}

}  // namespace

extern const LoraGradientKernels lora_gradient_kernels = {
    [](const LoraGradient& c) { c.dtype == kF32 ? lora_gradient<float>(c) : lora_gradient<bf16>(c); },
};

}  // namespace dynadapt::DYN_ISA
