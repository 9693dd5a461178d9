#include "bindings/tensor.h"

namespace dynadapt::bindings {

namespace {

void cross_entropy(py::object h, const PackedMatrix& head, py::object targets, py::object weights, py::object nll, py::object lse,
                   py::object dh) {
  const char* op = "cross_entropy";
  const Tensor th(op, "h", h), tt(op, "targets", targets), tw(op, "weights", weights), tn(op, "nll", nll), tl(op, "lse", lse),
      td(op, "dh", dh);
  run([&] { return dynadapt_cross_entropy(th, head.get(), tt, tw, tn, tl, td); });
}

void cross_entropy_weight_gradient(py::object h, const PackedMatrix& head, py::object targets, py::object weights, py::object lse,
                                   py::object dW, bool accumulate) {
  const char* op = "cross_entropy_weight_gradient";
  const Tensor th(op, "h", h), tt(op, "targets", targets), tw(op, "weights", weights), tl(op, "lse", lse), td(op, "dW", dW);
  const dynadapt_gradient_params params{sizeof params, accumulate};
  run([&] { return dynadapt_cross_entropy_weight_gradient(th, head.get(), tt, tw, tl, td, &params); });
}

}  // namespace

void bind_cross_entropy(py::module_& module) {
  using py::arg;
  module.def("cross_entropy", &cross_entropy, arg("h"), arg("head"), arg("targets"), arg("weights"), arg("nll"), arg("lse"),
             arg("dh"), "Per-token NLL and its gradient; see dynadapt.ops.cross_entropy");
  module.def("cross_entropy_weight_gradient", &cross_entropy_weight_gradient, arg("h"), arg("head"), arg("targets"),
             arg("weights"), arg("lse"), arg("dW"), arg("accumulate"), "Gradient of the head; see dynadapt.ops.cross_entropy");
}

}  // namespace dynadapt::bindings
