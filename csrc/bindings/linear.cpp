#include <vector>

#include "bindings/tensor.h"

namespace dynadapt::bindings {

namespace {

/// The handles of a Python list of PackedMatrix.
std::vector<const dynadapt_matrix*> matrices(const char* op, py::handle parts) {
  std::vector<const dynadapt_matrix*> handles;
  for (py::handle part : parts) {
    if (!py::isinstance<PackedMatrix>(part))
      throw py::value_error(std::string(op) + ": parts has a " + Py_TYPE(part.ptr())->tp_name + ", accepted is PackedMatrix");
    handles.push_back(part.cast<const PackedMatrix&>().get());
  }
  return handles;
}

void linear_forward(py::object x, py::object parts, py::object bias, py::object A, py::object Bt, py::object slots, float scale,
                    py::object u, py::object y) {
  const char* op = "linear_forward";
  const auto handles = matrices(op, parts);
  const Tensor tx(op, "x", x), tb(op, "bias", bias), tA(op, "A", A), tBt(op, "Bt", Bt), ts(op, "slots", slots), tu(op, "u", u),
      ty(op, "y", y);
  const dynadapt_linear_params params{sizeof params, scale};
  run([&] { return dynadapt_linear_forward(tx, handles.data(), int32_t(handles.size()), tb, tA, tBt, ts, tu, ty, &params); });
}

void linear_backward(py::object dy, py::object parts, py::object A, py::object Bt, py::object slots, float scale, py::object dU,
                     py::object dx) {
  const char* op = "linear_backward";
  const auto handles = matrices(op, parts);
  const Tensor tdy(op, "dy", dy), tA(op, "A", A), tBt(op, "Bt", Bt), ts(op, "slots", slots), tdU(op, "dU", dU), tdx(op, "dx", dx);
  const dynadapt_linear_params params{sizeof params, scale};
  run([&] { return dynadapt_linear_backward(tdy, handles.data(), int32_t(handles.size()), tA, tBt, ts, tdU, tdx, &params); });
}

}  // namespace

void bind_linear(py::module_& module) {
  using py::arg;
  module.def("linear_forward", &linear_forward, arg("x"), arg("parts"), arg("bias"), arg("A"), arg("Bt"), arg("slots"),
             arg("scale"), arg("u"), arg("y"), "y = x W^T + bias + scale (x A^T) Bt; see dynadapt.ops.linear");
  module.def("linear_backward", &linear_backward, arg("dy"), arg("parts"), arg("A"), arg("Bt"), arg("slots"), arg("scale"),
             arg("dU"), arg("dx"), "dU = scale dy Bt^T, dx = dy W + dU A; see dynadapt.ops.linear");
}

}  // namespace dynadapt::bindings
