// Norms, activations, embedding and the read-out for Python.
#include "bindings/kind.h"
#include "bindings/tensor.h"

namespace dynadapt::bindings {

namespace {

typedef const py::object& Object;

int32_t norm_kind(const char* op, Object kind) { return kind_of(op, kind, {"rms", "layer"}); }
int32_t activation_kind(const char* op, Object kind) { return kind_of(op, kind, {"swiglu", "gelu_tanh", "gelu"}); }

void norm_forward(Object x, Object delta, Object weight, Object bias, float eps, Object kind, Object res, Object y, Object stat) {
  const char* op = "norm_forward";
  const dynadapt_norm_params params{sizeof params, norm_kind(op, kind), eps};
  const Tensor tx(op, "x", x), td(op, "delta", delta), tw(op, "weight", weight), tb(op, "bias", bias), tr(op, "res", res),
      ty(op, "y", y), ts(op, "stat", stat);
  run([&] { return dynadapt_norm_forward(tx, td, tw, tb, tr, ty, ts, &params); });
}

void norm_backward(Object dy, Object res, Object weight, Object stat, Object kind, Object dres, Object dx, Object dweight,
                   Object dbias, Object bias, Object y) {
  const char* op = "norm_backward";
  const dynadapt_norm_params params{sizeof params, norm_kind(op, kind), 0.0f};
  const Tensor tdy(op, "dy", dy), tr(op, "res", res), tw(op, "weight", weight), ts(op, "stat", stat), td(op, "dres", dres),
      tdx(op, "dx", dx), tdw(op, "dweight", dweight), tdb(op, "dbias", dbias), tb(op, "bias", bias), ty(op, "y", y);
  run([&] { return dynadapt_norm_backward(tdy, tr, tw, ts, td, tdx, tdw, tdb, tb, ty, &params); });
}

void head_norm_forward(Object qkv, Object q_weight, Object k_weight, float eps, int hq, int hkv, int d, Object out, Object rstd) {
  const char* op = "head_norm_forward";
  const dynadapt_head_norm_params params{sizeof params, hq, hkv, d, eps};
  const Tensor tqkv(op, "qkv", qkv), tq(op, "q_weight", q_weight), tk(op, "k_weight", k_weight), to(op, "out", out),
      tr(op, "rstd", rstd);
  run([&] { return dynadapt_head_norm_forward(tqkv, tq, tk, to, tr, &params); });
}

void head_norm_backward(Object dout, Object qkv, Object q_weight, Object k_weight, Object rstd, int hq, int hkv, int d,
                        Object dqkv, Object dq_weight, Object dk_weight) {
  const char* op = "head_norm_backward";
  const dynadapt_head_norm_params params{sizeof params, hq, hkv, d, 0.0f};
  const Tensor tdo(op, "dout", dout), tqkv(op, "qkv", qkv), tq(op, "q_weight", q_weight), tk(op, "k_weight", k_weight),
      tr(op, "rstd", rstd), td(op, "dqkv", dqkv), tdq(op, "dq_weight", dq_weight), tdk(op, "dk_weight", dk_weight);
  run([&] { return dynadapt_head_norm_backward(tdo, tqkv, tq, tk, tr, td, tdq, tdk, &params); });
}

void activation_forward(Object h, Object kind, Object y) {
  const char* op = "activation_forward";
  const dynadapt_activation_params params{sizeof params, activation_kind(op, kind)};
  const Tensor th(op, "h", h), ty(op, "y", y);
  run([&] { return dynadapt_activation_forward(th, ty, &params); });
}

void activation_backward(Object dy, Object h, Object kind, Object dh, Object y) {
  const char* op = "activation_backward";
  const dynadapt_activation_params params{sizeof params, activation_kind(op, kind)};
  const Tensor tdy(op, "dy", dy), th(op, "h", h), tdh(op, "dh", dh), ty(op, "y", y);
  run([&] { return dynadapt_activation_backward(tdy, th, tdh, ty, &params); });
}

void embedding_forward(Object tokens, Object table, Object position_table, Object positions, Object out) {
  const char* op = "embedding_forward";
  const Tensor tt(op, "tokens", tokens), ttab(op, "table", table), tpt(op, "position_table", position_table),
      tp(op, "positions", positions), to(op, "out", out);
  run([&] { return dynadapt_embedding_forward(tt, ttab, tpt, tp, to); });
}

void embedding_backward(Object tokens, Object dout, Object dtable) {
  const char* op = "embedding_backward";
  const Tensor tt(op, "tokens", tokens), td(op, "dout", dout), tdt(op, "dtable", dtable);
  run([&] { return dynadapt_embedding_backward(tt, td, tdt); });
}

void linear_mse(Object h, Object weight, Object bias, Object target, Object weights, Object pred, Object loss, Object dh,
                Object dweight, Object dbias) {
  const char* op = "linear_mse";
  const Tensor th(op, "h", h), tw(op, "weight", weight), tb(op, "bias", bias), tt(op, "target", target),
      tws(op, "weights", weights), tp(op, "pred", pred), tl(op, "loss", loss), tdh(op, "dh", dh), tdw(op, "dweight", dweight),
      tdb(op, "dbias", dbias);
  run([&] { return dynadapt_linear_mse(th, tw, tb, tt, tws, tp, tl, tdh, tdw, tdb); });
}

}  // namespace

void bind_elementwise(py::module_& module) {
  using py::arg;
  module.def("norm_forward", &norm_forward, arg("x"), arg("delta"), arg("weight"), arg("bias"), arg("eps"), arg("kind"),
             arg("res"), arg("y"), arg("stat"), "res = x + delta, y = norm(res); see dynadapt.ops.norm");
  module.def("norm_backward", &norm_backward, arg("dy"), arg("res"), arg("weight"), arg("stat"), arg("kind"), arg("dres"),
             arg("dx"), arg("dweight"), arg("dbias"), arg("bias") = py::none(), arg("y") = py::none(),
             "Gradient of norm_forward; see dynadapt.ops.norm");
  module.def("head_norm_forward", &head_norm_forward, arg("qkv"), arg("q_weight"), arg("k_weight"), arg("eps"), arg("hq"),
             arg("hkv"), arg("d"), arg("out"), arg("rstd"), "RMS norm of query and key heads; see dynadapt.ops.head_norm");
  module.def("head_norm_backward", &head_norm_backward, arg("dout"), arg("qkv"), arg("q_weight"), arg("k_weight"), arg("rstd"),
             arg("hq"), arg("hkv"), arg("d"), arg("dqkv"), arg("dq_weight"), arg("dk_weight"),
             "Gradient of head_norm_forward; see dynadapt.ops.head_norm");
  module.def("activation_forward", &activation_forward, arg("h"), arg("kind"), arg("y"), "See dynadapt.ops.activation");
  module.def("activation_backward", &activation_backward, arg("dy"), arg("h"), arg("kind"), arg("dh"), arg("y") = py::none(),
             "Gradient of activation_forward; see dynadapt.ops.activation");
  module.def("embedding_forward", &embedding_forward, arg("tokens"), arg("table"), arg("position_table"), arg("positions"),
             arg("out"), "See dynadapt.ops.embedding");
  module.def("embedding_backward", &embedding_backward, arg("tokens"), arg("dout"), arg("dtable"),
             "dtable += dout at the tokens' rows; see dynadapt.ops.embedding");
  module.def("linear_mse", &linear_mse, arg("h"), arg("weight"), arg("bias"), arg("target"), arg("weights"), arg("pred"),
             arg("loss"), arg("dh"), arg("dweight"), arg("dbias"), "See dynadapt.ops.linear_mse");
}

}  // namespace dynadapt::bindings
