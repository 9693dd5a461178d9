#include <pybind11/stl.h>

#include <vector>

#include "bindings/tensor.h"

namespace dynadapt::bindings {

namespace {

void lora_gradient(py::object dy, py::object x, py::object u, py::object dU, std::vector<int64_t> part_sizes, float scale,
                   py::object slots, py::object dA, py::object dBt, bool accumulate) {
  const char* op = "lora_gradient";
  const Tensor tdy(op, "dy", dy), tx(op, "x", x), tu(op, "u", u), tdU(op, "dU", dU), ts(op, "slots", slots), tdA(op, "dA", dA),
      tdBt(op, "dBt", dBt);
  const dynadapt_lora_gradient_params params{sizeof params, scale, accumulate, int32_t(part_sizes.size()), part_sizes.data()};
  run([&] { return dynadapt_lora_gradient(tdy, tx, tu, tdU, ts, tdA, tdBt, &params); });
}

void weight_gradient(py::object dy, py::object x, py::object rows, py::object dW, bool accumulate) {
  const char* op = "weight_gradient";
  const Tensor tdy(op, "dy", dy), tx(op, "x", x), tr(op, "rows", rows), tdW(op, "dW", dW);
  const dynadapt_gradient_params params{sizeof params, accumulate};
  run([&] { return dynadapt_weight_gradient(tdy, tx, tr, tdW, &params); });
}

void row_scores(py::object dy, py::object x, py::object out) {
  const char* op = "row_scores";
  const Tensor tdy(op, "dy", dy), tx(op, "x", x), to(op, "out", out);
  run([&] { return dynadapt_row_scores(tdy, tx, to); });
}

void bias_gradient(py::object dy, py::object db) {
  const char* op = "bias_gradient";
  const Tensor tdy(op, "dy", dy), tdb(op, "db", db);
  run([&] { return dynadapt_bias_gradient(tdy, tdb); });
}

}  // namespace

void bind_gradient(py::module_& module) {
  using py::arg;
  module.def("lora_gradient", &lora_gradient, arg("dy"), arg("x"), arg("u"), arg("dU"), arg("part_sizes"), arg("scale"),
             arg("slots"), arg("dA"), arg("dBt"), arg("accumulate"),
             "dA = dU^T x, dBt_p = scale u_p^T dy_p; see dynadapt.ops.linear");
  module.def("weight_gradient", &weight_gradient, arg("dy"), arg("x"), arg("rows"), arg("dW"), arg("accumulate"),
             "dW = dy[:, rows]^T x; see dynadapt.ops.weight_gradient");
  module.def("row_scores", &row_scores, arg("dy"), arg("x"), arg("out"),
             "sqrt(sum_m dy[m]^2 |x_m|^2); see dynadapt.ops.weight_gradient");
  module.def("bias_gradient", &bias_gradient, arg("dy"), arg("db"), "db += column sums of dy; see dynadapt.ops.bias_gradient");
}

}  // namespace dynadapt::bindings
