// The C entry points of the head norm: arguments are checked here, and nowhere below.
#include "cpu/head_norm.h"

using namespace dynadapt;

namespace {

/// The pieces of a row that are normalised: heads, or all of a kind where q_weight has the elements of all query heads.
NormedPieces pieces_of(const Op& op, const dynadapt_head_norm_params& p, const DLTensor* q_weight) {
  op.require(p.query_heads >= 1 && p.kv_heads >= 1 && p.head_dim >= 1,
             "hq, hkv, d are %d, %d, %d, accepted is at least 1 of each", p.query_heads, p.kv_heads, p.head_dim);
  op.require(p.query_heads <= kMostHeads && p.kv_heads <= kMostHeads && p.head_dim <= kMostHeads,
             "hq, hkv, d are %d, %d, %d, accepted is at most %lld of each", p.query_heads, p.kv_heads, p.head_dim,
             (long long)kMostHeads);
  const bool together = p.query_heads > 1 && q_weight && q_weight->ndim == 1 && q_weight->shape &&
                        q_weight->shape[0] == int64_t(p.query_heads) * p.head_dim;
  return {size_t(p.query_heads), size_t(p.kv_heads), size_t(p.head_dim), together};
}

/// The two weights, both of the activations' dtype or both float32, which `wide` says.
void take_weights(const Op& op, const NormedPieces& pieces, const DLTensor* q_weight, const DLTensor* k_weight, DType dtype,
                  const void*& q, const void*& k, bool& wide) {
  const View query = op.tensor("q_weight", q_weight, {int64_t(pieces.query_width)}, dtype | kF32);
  q = query.data;
  k = op.tensor("k_weight", k_weight, {int64_t(pieces.key_width)}, query.dtype).data;
  wide = query.dtype == kF32;
}

}  // namespace

extern "C" {

int dynadapt_head_norm_forward(const DLTensor* qkv, const DLTensor* q_weight, const DLTensor* k_weight, const DLTensor* out,
                               const DLTensor* rstd, const dynadapt_head_norm_params* params) {
  return guarded([&] {
    const Op op("head_norm_forward");
    const auto& p = op.params(params);
    HeadNormForward c{};
    c.pieces = pieces_of(op, p, q_weight);
    const int64_t width = int64_t(c.pieces.row());
    const View in = op.tensor("qkv", qkv, {-1, width}, kAct);
    c.rows = in.size[0];
    c.eps = float(op.number("eps", p.eps, 0, 1e30));
    c.qkv = in.data;
    take_weights(op, c.pieces, q_weight, k_weight, in.dtype, c.q_weight, c.k_weight, c.wide_weights);
    c.out = op.output("out", out, {in.size[0], width}, in.dtype, Layout::contiguous, {"qkv"}).data;
    c.rstd = op.output("rstd", rstd, {in.size[0], int64_t(c.pieces.count())}, kF32).as<float>();
    if (c.rows) kernels<ByType<HeadNormKernels>>().of(in.dtype).forward(c);
  });
}

int dynadapt_head_norm_backward(const DLTensor* dout, const DLTensor* qkv, const DLTensor* q_weight, const DLTensor* k_weight,
                                const DLTensor* rstd, const DLTensor* dqkv, const DLTensor* dq_weight, const DLTensor* dk_weight,
                                const dynadapt_head_norm_params* params) {
  return guarded([&] {
    const Op op("head_norm_backward");
    const auto& p = op.params(params);
    HeadNormBackward c{};
    c.pieces = pieces_of(op, p, q_weight);
    const int64_t width = int64_t(c.pieces.row()), q = int64_t(c.pieces.query_width), k = int64_t(c.pieces.key_width);
    const View in = op.tensor("dout", dout, {-1, width}, kAct);
    const int64_t N = in.size[0];
    c.rows = N;
    c.dout = in.data;
    c.qkv = op.tensor("qkv", qkv, {N, width}, in.dtype).data;
    take_weights(op, c.pieces, q_weight, k_weight, in.dtype, c.q_weight, c.k_weight, c.wide_weights);
    c.rstd = op.tensor("rstd", rstd, {N, int64_t(c.pieces.count())}, kF32).as<float>();
    c.dqkv = op.output("dqkv", dqkv, {N, width}, in.dtype, Layout::contiguous, {"dout", "qkv"}).data;
    c.dq_weight = op.optional_output("dq_weight", dq_weight, {q}, kF32).as<float>();
    c.dk_weight = op.optional_output("dk_weight", dk_weight, {k}, kF32).as<float>();
    if (N) kernels<ByType<HeadNormKernels>>().of(in.dtype).backward(c);
  });
}

}  // extern "C"
