// The C entry point of the optimizer step: arguments are checked here, and nowhere below.
#include "cpu/update.h"

using namespace dynadapt;

namespace {

/// Stream slots: within the buffers and each only once, or -1.
void check_slots(const Op& op, const View& slots, int64_t limit) {
  const int32_t* values = slots.as<int32_t>();
  for (int64_t i = 0; i < slots.size[0]; i++) {
    op.require(values[i] >= -1 && values[i] < limit, "slots[%lld] is %d, accepted is 0 to %lld, or -1", (long long)i, values[i],
               (long long)limit - 1);
    if (values[i] < 0) continue;
    for (int64_t j = 0; j < i; j++)
      op.require(values[i] != values[j], "slots[%lld] and slots[%lld] are both %d, accepted is each slot once", (long long)j,
                 (long long)i, values[i]);
  }
}

UpdateKind kind_of(const Op& op, int32_t kind) {
  std::string accepted;
  int32_t count = 0;
  for (const char* name : kUpdateKinds) accepted += format("%s%d (%s)", count ? ", " : "", count, name), count++;
  op.require(kind >= 0 && kind < count, "kind is %d, accepted is %s", kind, accepted.c_str());
  return UpdateKind(kind);
}

/// What the step computes with: numbers for which every kind of step is defined.
void check_numbers(const Op& op, const dynadapt_update_params& p, Update& c) {
  constexpr double kLargest = 1e300;
  c.decay = op.number("decay", p.decay, 0, 1);
  c.clip = op.number("clip", p.clip, 0, __builtin_inf());
  c.beta1 = op.number("beta1", p.beta1, 0, 1);
  c.beta2 = op.number("beta2", p.beta2, 0, 1);
  c.eps = op.number("eps", p.eps, 0, kLargest);
  c.weight_decay = op.number("weight_decay", p.weight_decay, 0, kLargest);
  c.momentum = op.number("momentum", p.momentum, 0, 1);
}

/// The state that this kind of step reads must be there.
void check_state(const Op& op, const Update& c) {
  const UpdateState state = state_of(c.kind, c.beta1, c.momentum);
  op.require(!state.second || c.second, "second is missing, a tensor is needed for adam and adamw");
  const bool sgd = c.kind == UpdateKind::kSgd;
  op.require(!state.first || c.first, "first is missing, a tensor is needed where %s is %g", sgd ? "momentum" : "beta1",
             sgd ? c.momentum : c.beta1);
  op.require(c.kind != UpdateKind::kRms || c.stat, "stat is missing, a tensor is needed for rms");
  op.require(c.decay == 0 || c.prior, "prior is missing, a tensor is needed where decay is %g", c.decay);
}

}  // namespace

extern "C" int dynadapt_update(const DLTensor* master, const DLTensor* grad, const DLTensor* first, const DLTensor* second,
                               const DLTensor* prior, const DLTensor* stat, const DLTensor* working, const DLTensor* slots,
                               const DLTensor* lr, const DLTensor* step, const DLTensor* norms, const DLTensor* skipped,
                               const DLTensor* prior_rate, const dynadapt_update_params* params) {
  return guarded([&] {
    const Op op("update");
    const auto& p = op.params(params, offsetof(dynadapt_update_params, rate_factor));
    Update c{};
    c.kind = kind_of(op, p.kind);
    const View main = op.output("master", master, {-1, -1}, kF32);
    const int64_t count = main.size[0], P = main.size[1];
    const View which = op.tensor("slots", slots, {-1}, kI32);
    check_slots(op, which, count);
    const int64_t S = which.size[0];
    const View copy = op.optional_output("working", working, {count, P}, kAct);
    c.streams = S;
    c.parameters = P;
    c.slots = which.as<int32_t>();
    c.master = main.as<float>();
    c.grad = op.output("grad", grad, {count, P}, kF32).as<float>();
    c.first = op.optional_output("first", first, {count, P}, kF32).as<float>();
    c.second = op.optional_output("second", second, {count, P}, kF32).as<float>();
    const bool own = prior && prior->ndim == 2;
    c.prior = (own ? op.optional("prior", prior, {count, P}, kF32) : op.optional("prior", prior, {P}, kF32)).as<float>();
    c.prior_stride = own ? size_t(P) : 0;
    c.prior_rate = op.optional("prior_rate", prior_rate, {P}, kF32).as<float>();
    c.rate_factor = op.optional("rate_factor", p.rate_factor, {P}, kF32).as<float>();
    c.stat = op.optional("stat", stat, {P}, kF32).as<float>();
    c.working = copy.data;
    c.lr = op.tensor("lr", lr, {count}, kF32).as<float>();
    c.step = op.output("step", step, {count}, kI32).as<int32_t>();
    c.norms = op.output("norms", norms, {S}, kF32).as<float>();
    c.skipped = op.output("skipped", skipped, {S}, kI32).as<int32_t>();
    check_numbers(op, p, c);
    check_state(op, c);
    const DType act = copy ? copy.dtype : kF32;
    if (S) kernels<ByType<UpdateKernels>>().of(act).update(c);
  });
}
