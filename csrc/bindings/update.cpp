#include "bindings/kind.h"
#include "bindings/tensor.h"

#include <pybind11/stl.h>

namespace dynadapt::bindings {

namespace {

typedef const py::object& Object;

void update(Object kind, Object master, Object grad, Object first, Object second, Object prior, Object stat, Object working,
            Object slots, Object lr, Object step, double decay, double clip, double beta1, double beta2, double eps,
            double weight_decay, double momentum, Object norms, Object skipped, Object prior_rate) {
  const char* op = "update";
  const dynadapt_update_params params{
      sizeof params, kind_of(op, kind, {"sgd", "adam", "adamw", "rms"}), decay, clip, beta1, beta2, eps, weight_decay, momentum};
  const Tensor tm(op, "master", master), tg(op, "grad", grad), tf(op, "first", first), ts(op, "second", second),
      tp(op, "prior", prior), tst(op, "stat", stat), tw(op, "working", working), tsl(op, "slots", slots), tlr(op, "lr", lr),
      tstep(op, "step", step), tn(op, "norms", norms), tsk(op, "skipped", skipped), tpr(op, "prior_rate", prior_rate);
  run([&] { return dynadapt_update(tm, tg, tf, ts, tp, tst, tw, tsl, tlr, tstep, tn, tsk, tpr, &params); });
}

}  // namespace

void bind_update(py::module_& module) {
  using py::arg;
  module.def("update", &update, arg("kind"), arg("master"), arg("grad"), arg("first"), arg("second"), arg("prior"), arg("stat"),
             arg("working"), arg("slots"), arg("lr"), arg("step"), arg("decay"), arg("clip"), arg("beta1"), arg("beta2"),
             arg("eps"), arg("weight_decay"), arg("momentum"), arg("norms"), arg("skipped"), arg("prior_rate") = py::none(),
             "One optimizer step of several streams; see dynadapt.ops.update.");
}

}  // namespace dynadapt::bindings
