// The C entry points of the embedding: arguments are checked here, and nowhere below.
#include "cpu/embedding.h"

#include "cpu/low_rank.h"

using namespace dynadapt;

namespace {

/// What both ways read. `width`: of a row.
void check_adapted(const Op& op, AdaptedEmbedding& c, DType dtype, const DLTensor* tokens, const DLTensor* A, const DLTensor* Bt,
                   const DLTensor* slots, float scale) {
  const View b = op.tensor("Bt", Bt, {-1, -1, c.width}, dtype, Layout::slots);
  op.require(b.size[1] >= 1, "Bt has rank 0, accepted is at least 1");
  const View a = op.tensor("A", A, {b.size[0], b.size[1], -1}, dtype, Layout::slots);
  const View own = op.tensor("slots", slots, {-1}, kI32);
  c.streams = own.size[0];
  op.require(c.streams >= 1 && c.rows % c.streams == 0, "slots has %lld entries for %lld rows, accepted is a divisor of the rows",
             (long long)c.streams, (long long)c.rows);
  c.slots = op.indices32("slots", own, 0, b.size[0]);
  c.rank = b.size[1];
  c.vocabulary = a.size[2];
  c.tokens = op.indices64("tokens", op.tensor("tokens", tokens, {c.rows}, kI64), 0, c.vocabulary);
  c.A = a.data;
  c.A_stride = a.stride[0];
  c.Bt = b.data;
  c.Bt_stride = b.stride[0];
  c.scale = op.finite("scale", scale);
}

}  // namespace

extern "C" {

int dynadapt_embedding_forward(const DLTensor* tokens, const DLTensor* table, const DLTensor* position_table,
                               const DLTensor* positions, const DLTensor* out) {
  return guarded([&] {
    const Op op("embedding_forward");
    op.require(!position_table == !positions, "%s is given without %s, accepted are both or none",
               positions ? "positions" : "position_table", positions ? "position_table" : "positions");
    EmbeddingForward c{};
    const View rows = op.tensor("table", table, {-1, -1}, kAct);
    const View token = op.tensor("tokens", tokens, {-1}, kI64);
    const int64_t N = token.size[0], H = rows.size[1];
    c.rows = N;
    c.width = H;
    c.table = rows.data;
    c.tokens = op.indices64("tokens", token, 0, rows.size[0]);
    if (positions) {
      const View table_of_positions = op.tensor("position_table", position_table, {-1, H}, rows.dtype);
      c.position_table = table_of_positions.data;
      c.positions = op.indices64("positions", op.tensor("positions", positions, {N}, kI64), 0, table_of_positions.size[0]);
    }
    c.out = op.output("out", out, {N, H}, rows.dtype).data;
    if (N) kernels<ByType<EmbeddingKernels>>().of(rows.dtype).forward(c);
  });
}

int dynadapt_embedding_backward(const DLTensor* tokens, const DLTensor* dout, const DLTensor* dtable) {
  return guarded([&] {
    const Op op("embedding_backward");
    EmbeddingBackward c{};
    const View in = op.tensor("dout", dout, {-1, -1}, kAct);
    const View table = op.output("dtable", dtable, {-1, in.size[1]}, kF32);
    c.rows = in.size[0];
    c.width = in.size[1];
    c.dout = in.data;
    c.tokens = op.indices64("tokens", op.tensor("tokens", tokens, {in.size[0]}, kI64), 0, table.size[0]);
    c.dtable = table.as<float>();
    if (c.rows) kernels<ByType<EmbeddingKernels>>().of(in.dtype).backward(c);
  });
}

int dynadapt_adapted_embedding_forward(const DLTensor* tokens, const DLTensor* A, const DLTensor* Bt, const DLTensor* slots,
                                       const DLTensor* out, const dynadapt_adapted_embedding_params* params) {
  return guarded([&] {
    const Op op("adapted_embedding_forward");
    const auto& p = op.params(params);
    AdaptedEmbeddingForward c{};
    const View to = op.output("out", out, {-1, -1}, kAct);
    c.rows = to.size[0];
    c.width = to.size[1];
    c.out = to.data;
    check_adapted(op, c, to.dtype, tokens, A, Bt, slots, p.scale);
    if (c.rows) kernels<ByType<EmbeddingKernels>>().of(to.dtype).adapted_forward(c);
  });
}

int dynadapt_adapted_embedding_backward(const DLTensor* tokens, const DLTensor* dout, const DLTensor* A, const DLTensor* Bt,
                                        const DLTensor* slots, const DLTensor* dA, const DLTensor* dBt,
                                        const dynadapt_adapted_embedding_params* params) {
  return guarded([&] {
    const Op op("adapted_embedding_backward");
    const auto& p = op.params(params);
    AdaptedEmbeddingBackward c{};
    const View in = op.tensor("dout", dout, {-1, -1}, kAct);
    c.rows = in.size[0];
    c.width = in.size[1];
    c.dout = in.data;
    check_adapted(op, c, in.dtype, tokens, A, Bt, slots, p.scale);
    check_own_slots(op, op.tensor("slots", slots, {-1}, kI32), Bt->shape[0], c.rows);
    const View a = op.output("dA", dA, {Bt->shape[0], c.rank, c.vocabulary}, kF32, Layout::slots);
    const View b = op.output("dBt", dBt, {Bt->shape[0], c.rank, c.width}, kF32, Layout::slots);
    c.dA = a.as<float>();
    c.dA_stride = a.stride[0];
    c.dBt = b.as<float>();
    c.dBt_stride = b.stride[0];
    c.accumulate = p.accumulate;
    kernels<ByType<EmbeddingKernels>>().of(in.dtype).adapted_backward(c);
  });
}

}  // extern "C"
