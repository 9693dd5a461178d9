// The C entry points of attention: arguments are checked here, and nowhere below.
#include "cpu/attention.h"

using namespace dynadapt;

namespace {

typedef long long ll;

constexpr uint32_t kFirstParams = offsetof(dynadapt_attention_params, window);  // before windows

struct WindowTensors {
  const DLTensor *mem_k, *mem_v, *mem_len, *slots, *cos, *sin;
};

void check_memory(const Op& op, const WindowTensors& t, DType dtype, int64_t kv_width, AttentionShape& s) {
  op.require(!t.mem_k == !t.mem_v && !t.mem_k == !t.mem_len,
             "mem_k, mem_v, mem_len are only partly given, accepted are all or none");
  if (!t.mem_k) return;
  const View k = op.tensor("mem_k", t.mem_k, {-1, -1, kv_width}, dtype);
  s.mem_k = k.data;
  s.mem_v = op.tensor("mem_v", t.mem_v, {k.size[0], k.size[1], kv_width}, dtype).data;
  s.mem_len = op.tensor("mem_len", t.mem_len, {k.size[0]}, kI32).as<int32_t>();
  s.memory_capacity = k.size[1];
  for (size_t i = 0; i < s.streams; i++) {
    const int32_t slot = s.slots[i];
    op.require(slot >= 0 && slot < k.size[0], "slots[%zu] is %d, accepted is 0 to %lld", i, slot, (ll)k.size[0] - 1);
    op.require(s.mem_len[slot] >= 0 && s.mem_len[slot] <= k.size[1], "mem_len[%d] is %d, accepted is 0 to %lld", slot,
               s.mem_len[slot], (ll)k.size[1]);
  }
}

void check_rotation(const Op& op, const WindowTensors& t, AttentionShape& s) {
  op.require(!t.cos == !t.sin, "%s is given without %s, accepted are both or none", t.cos ? "cos" : "sin", t.cos ? "sin" : "cos");
  if (!t.cos) return;
  op.require(s.head_dim % 2 == 0, "d is %zu, accepted is an even number where cos and sin are given", s.head_dim);
  const View cos = op.tensor("cos", t.cos, {-1, int64_t(s.head_dim) / 2}, kF32);
  s.cos = cos.as<float>();
  s.sin = op.tensor("sin", t.sin, {cos.size[0], int64_t(s.head_dim) / 2}, kF32).as<float>();
  for (size_t i = 0; i < s.streams; i++) {
    const int64_t window = int64_t(s.segment) + (s.mem_len ? s.mem_len[s.slots[i]] : 0);
    op.require(window <= cos.size[0], "cos has %lld positions, accepted is at least the window of stream %zu, %lld",
               (ll)cos.size[0], i, (ll)window);
  }
}

/// Everything but qkv and the outputs; N rows of the call's qkv.
AttentionShape check_shape(const Op& op, const WindowTensors& t, const dynadapt_attention_params& p, DType dtype, int64_t N) {
  AttentionShape s{};
  s.query_heads = p.query_heads;
  s.kv_heads = p.kv_heads;
  s.head_dim = p.head_dim;
  s.scale = op.finite("scale", p.scale);
  s.softcap = float(op.number("softcap", p.softcap, 0, 1e30));
  if (p.window) s.window = op.whole("window", p.window, 2, INT32_MAX);
  const View slots = op.tensor("slots", t.slots, {-1}, kI32);
  op.require(slots.size[0] >= 1 && N % slots.size[0] == 0,
             "slots has %lld entries for %lld rows, accepted is a divisor of the rows", (ll)slots.size[0], (ll)N);
  s.streams = slots.size[0];
  s.segment = N / slots.size[0];
  s.slots = slots.as<int32_t>();
  check_memory(op, t, dtype, int64_t(p.kv_heads) * p.head_dim, s);
  check_rotation(op, t, s);
  return s;
}

int64_t qkv_width(const Op& op, const dynadapt_attention_params& p) {
  op.require(p.query_heads >= 1 && p.kv_heads >= 1 && p.head_dim >= 1,
             "hq, hkv, d are %d, %d, %d, accepted is at least 1 of each", p.query_heads, p.kv_heads, p.head_dim);
  op.require(p.query_heads <= kMostHeads && p.kv_heads <= kMostHeads && p.head_dim <= kMostHeads,
             "hq, hkv, d are %d, %d, %d, accepted is at most %lld of each", p.query_heads, p.kv_heads, p.head_dim,
             (ll)kMostHeads);
  op.require(p.query_heads % p.kv_heads == 0, "hq is %d, accepted is a multiple of hkv, %d", p.query_heads, p.kv_heads);
  return (int64_t(p.query_heads) + 2 * int64_t(p.kv_heads)) * p.head_dim;
}

}  // namespace

extern "C" {

int dynadapt_attention_forward(const DLTensor* qkv, const DLTensor* mem_k, const DLTensor* mem_v, const DLTensor* mem_len,
                               const DLTensor* slots, const DLTensor* cos, const DLTensor* sin, const DLTensor* out,
                               const DLTensor* lse, const dynadapt_attention_params* params) {
  return guarded([&] {
    const Op op("attention_forward");
    const auto& p = op.params(params, kFirstParams);
    AttentionForward c{};
    const View in = op.tensor("qkv", qkv, {-1, qkv_width(op, p)}, kAct);
    c.shape = check_shape(op, {mem_k, mem_v, mem_len, slots, cos, sin}, p, in.dtype, in.size[0]);
    c.qkv = in.data;
    c.out = op.output("out", out, {in.size[0], int64_t(p.query_heads) * p.head_dim}, in.dtype).data;
    c.lse = op.output("lse", lse, {int64_t(c.shape.streams), p.query_heads, int64_t(c.shape.segment)}, kF32).as<float>();
    if (c.shape.segment) kernels<ByType<AttentionForwardKernels>>().of(in.dtype).run(c);
  });
}

int dynadapt_attention_backward(const DLTensor* dout, const DLTensor* qkv, const DLTensor* out, const DLTensor* lse,
                                const DLTensor* mem_k, const DLTensor* mem_v, const DLTensor* mem_len, const DLTensor* slots,
                                const DLTensor* cos, const DLTensor* sin, const DLTensor* dqkv,
                                const dynadapt_attention_params* params) {
  return guarded([&] {
    const Op op("attention_backward");
    const auto& p = op.params(params, kFirstParams);
    AttentionBackward c{};
    const int64_t width = qkv_width(op, p), out_width = int64_t(p.query_heads) * p.head_dim;
    const View in = op.tensor("qkv", qkv, {-1, width}, kAct);
    c.shape = check_shape(op, {mem_k, mem_v, mem_len, slots, cos, sin}, p, in.dtype, in.size[0]);
    c.qkv = in.data;
    c.dout = op.tensor("dout", dout, {in.size[0], out_width}, in.dtype).data;
    c.out = op.tensor("out", out, {in.size[0], out_width}, in.dtype).data;
    c.lse = op.tensor("lse", lse, {int64_t(c.shape.streams), p.query_heads, int64_t(c.shape.segment)}, kF32).as<float>();
    c.dqkv = op.output("dqkv", dqkv, {in.size[0], width}, in.dtype).data;
    if (c.shape.segment) kernels<ByType<AttentionBackwardKernels>>().of(in.dtype).run(c);
  });
}

}  // extern "C"
