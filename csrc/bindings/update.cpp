#include "core/update.h"
#include "bindings/kind.h"
#include "bindings/tensor.h"

namespace dynadapt::bindings {

namespace {

typedef const py::object& Object;

/// A tensor that is an attribute of the state, kept alive with its view.
struct Field {
  const py::object object;
  const Tensor tensor;
  Field(Object state, const char* name) : object(state.attr(name)), tensor("update", name, object) {}
};

void update(Object state, Object rule, Object slots, Object lr, Object norms, Object skipped) {
  const char* op = "update";
  const auto number = [&](const char* name) { return rule.attr(name).cast<double>(); };
  const Field rate_factor(state, "rate_factor");
  const dynadapt_update_params params{sizeof params,      kind_of(op, rule.attr("kind"), kUpdateKinds),
                                      number("decay"),    number("clip"),
                                      number("beta1"),    number("beta2"),
                                      number("eps"),      number("weight_decay"),
                                      number("momentum"), rate_factor.tensor};
  const Field master(state, "master"), grad(state, "grad"), first(state, "first"), second(state, "second"), prior(state, "prior"),
      stat(state, "stat"), working(state, "working"), step(state, "step"), prior_rate(state, "prior_rate");
  const Tensor tslots(op, "slots", slots), tlr(op, "lr", lr), tnorms(op, "norms", norms), tskipped(op, "skipped", skipped);
  run([&] {
    return dynadapt_update(master.tensor, grad.tensor, first.tensor, second.tensor, prior.tensor, stat.tensor, working.tensor,
                           tslots, tlr, step.tensor, tnorms, tskipped, prior_rate.tensor, &params);
  });
}

}  // namespace

void bind_update(py::module_& module) {
  using py::arg;
  module.def("update", &update, arg("state"), arg("rule"), arg("slots"), arg("lr"), arg("norms"), arg("skipped"),
             "One optimizer step of several streams; see dynadapt.ops.update.");
  py::list kinds;
  for (const char* name : kUpdateKinds) kinds.append(name);
  module.attr("UPDATE_KINDS") = py::tuple(kinds);  // in the order of the C ABI's enumeration
}

}  // namespace dynadapt::bindings
