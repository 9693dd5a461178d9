// The C entry points of the embedding: arguments are checked here, and nowhere below.
#include "cpu/embedding.h"

using namespace dynadapt;

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

}  // extern "C"
