#include "bindings/tensor.h"

namespace dynadapt::bindings {

namespace {

typedef const py::object& Object;

void attention_forward(Object qkv, Object mem_k, Object mem_v, Object mem_len, Object slots, Object cos, Object sin, int hq,
                       int hkv, int d, float scale, Object out, Object lse) {
  const char* op = "attention_forward";
  const dynadapt_attention_params params{sizeof params, hq, hkv, d, scale};
  const Tensor tqkv(op, "qkv", qkv), tk(op, "mem_k", mem_k), tv(op, "mem_v", mem_v), tl(op, "mem_len", mem_len),
      ts(op, "slots", slots), tc(op, "cos", cos), tsin(op, "sin", sin), to(op, "out", out), tlse(op, "lse", lse);
  run([&] { return dynadapt_attention_forward(tqkv, tk, tv, tl, ts, tc, tsin, to, tlse, &params); });
}

void attention_backward(Object dout, Object qkv, Object out, Object lse, Object mem_k, Object mem_v, Object mem_len, Object slots,
                        Object cos, Object sin, int hq, int hkv, int d, float scale, Object dqkv) {
  const char* op = "attention_backward";
  const dynadapt_attention_params params{sizeof params, hq, hkv, d, scale};
  const Tensor tdo(op, "dout", dout), tqkv(op, "qkv", qkv), to(op, "out", out), tlse(op, "lse", lse), tk(op, "mem_k", mem_k),
      tv(op, "mem_v", mem_v), tl(op, "mem_len", mem_len), ts(op, "slots", slots), tc(op, "cos", cos), tsin(op, "sin", sin),
      td(op, "dqkv", dqkv);
  run([&] { return dynadapt_attention_backward(tdo, tqkv, to, tlse, tk, tv, tl, ts, tc, tsin, td, &params); });
}

}  // namespace

void bind_attention(py::module_& module) {
  using py::arg;
  module.def("attention_forward", &attention_forward, arg("qkv"), arg("mem_k"), arg("mem_v"), arg("mem_len"), arg("slots"),
             arg("cos"), arg("sin"), arg("hq"), arg("hkv"), arg("d"), arg("scale"), arg("out"), arg("lse"),
             "Causal attention over [memory; segment]; see dynadapt.ops.attention");
  module.def("attention_backward", &attention_backward, arg("dout"), arg("qkv"), arg("out"), arg("lse"), arg("mem_k"),
             arg("mem_v"), arg("mem_len"), arg("slots"), arg("cos"), arg("sin"), arg("hq"), arg("hkv"), arg("d"), arg("scale"),
             arg("dqkv"), "Gradient of attention_forward, none for memory; see dynadapt.ops.attention");
}

}  // namespace dynadapt::bindings
