// The C entry points of the linear cross-entropy.
#include "cpu/cross_entropy.h"

#include <cstddef>
#include <vector>

using namespace dynadapt;

namespace {

typedef long long ll;

/// Checks what both entry points share: h [N, H], the head, targets and weights.
struct Scored {
  View h, targets, weights;
  Scored(const Op& op, const DLTensor* h_tensor, const dynadapt_matrix* head, const DLTensor* targets_tensor,
         const DLTensor* weights_tensor) {
    op.held("head", head);
    h = op.tensor("h", h_tensor, {-1, head->columns}, head->dtype);
    targets = op.tensor("targets", targets_tensor, {h.size[0]}, kI64);
    weights = op.optional("weights", weights_tensor, {h.size[0]}, kF32);
    for (int64_t n = 0; n < h.size[0]; n++)
      op.require(targets.as<int64_t>()[n] < head->rows, "targets[%lld] is %lld, accepted is up to %lld (or negative: not scored)",
                 (ll)n, (ll)targets.as<int64_t>()[n], (ll)head->rows - 1);
  }
};

void check_floats(const Op& op, const dynadapt_matrix* head) {
  op.require(head->storage != MatrixStorage::int8,
             "head is stored as int8, which does not learn; accepted are float32 and bfloat16");
}

/// A soft-cap, 0 for none.
float check_softcap(const Op& op, float softcap) { return float(op.number("softcap", softcap, 0, 1e30)); }

void score(const Op& op, const DLTensor* h, const dynadapt_matrix* head, const DLTensor* targets, const DLTensor* weights,
           const DLTensor* nll, const DLTensor* lse, const DLTensor* dh, float softcap) {
  const Scored s(op, h, head, targets, weights);
  const int64_t N = s.h.size[0], H = head->columns;
  const View out = op.output("nll", nll, {N}, kF32), norm = op.output("lse", lse, {N}, kF32);
  const View gradient = op.optional_output("dh", dh, {N, H}, s.h.dtype);
  if (N)
    kernels<CrossEntropyKernels>().score({s.h.dtype, N, H, s.h.data, head, s.targets.as<int64_t>(), s.weights.as<float>(),
                                          out.as<float>(), norm.as<float>(), gradient.data, softcap});
}

/// The slots [N] of rows: each of an adapter that is there, those of one side by side.
const int32_t* check_row_slots(const Op& op, const DLTensor* tensor, int64_t N, int64_t adapters) {
  const View slots = op.tensor("slots", tensor, {N}, kI32);
  const int32_t* of = op.indices32("slots", slots, 0, adapters);
  std::vector<bool> left(adapters);
  for (int64_t n = 1; n < N; n++) {
    if (of[n] == of[n - 1]) continue;
    left[of[n - 1]] = true;
    op.require(!left[of[n]], "slots[%lld] is %d, which rows before others have; accepted are rows of one adapter side by side",
               (ll)n, of[n]);
  }
  return of;
}

/// What reads an adapter's Bt: Bt, slots, u of N rows.
HeadAdapters check_adapters(const Op& op, const DLTensor* Bt_tensor, const DLTensor* slots, float scale, DType dtype, int64_t V,
                            int64_t N) {
  HeadAdapters a;
  const View Bt = op.tensor("Bt", Bt_tensor, {-1, -1, V}, dtype, Layout::slots);
  op.require(Bt.size[1] >= 1, "Bt has rank 0, accepted is at least 1");
  a.rank = Bt.size[1];
  a.scale = op.finite("scale", scale);
  a.Bt = Bt.data;
  a.Bt_stride = Bt.stride[0];
  a.slots = check_row_slots(op, slots, N, Bt.size[0]);
  return a;
}

}  // namespace

extern "C" {

int dynadapt_cross_entropy(const DLTensor* h, const dynadapt_matrix* head, const DLTensor* targets, const DLTensor* weights,
                           const DLTensor* nll, const DLTensor* lse, const DLTensor* dh) {
  return guarded([&] { score(Op("cross_entropy"), h, head, targets, weights, nll, lse, dh, 0); });
}

int dynadapt_softcapped_cross_entropy(const DLTensor* h, const dynadapt_matrix* head, const DLTensor* targets,
                                      const DLTensor* weights, const DLTensor* nll, const DLTensor* lse, const DLTensor* dh,
                                      const dynadapt_cross_entropy_params* params) {
  return guarded([&] {
    const Op op("softcapped_cross_entropy");
    const auto& p = op.params(params);
    op.require(p.scale == 0, "scale is %g, accepted is 0: there is no adapter", double(p.scale));
    score(op, h, head, targets, weights, nll, lse, dh, check_softcap(op, p.softcap));
  });
}

int dynadapt_distillation(const DLTensor* h, const dynadapt_matrix* head, const DLTensor* targets, const DLTensor* ids,
                          const DLTensor* logp, const DLTensor* weights, const DLTensor* nll, const DLTensor* lse,
                          const DLTensor* kl, const DLTensor* dh, const dynadapt_cross_entropy_params* params) {
  return guarded([&] {
    const Op op("distillation");
    const auto& p = op.params(params);
    op.require(p.scale == 0, "scale is %g, accepted is 0: there is no adapter", double(p.scale));
    const Scored s(op, h, head, targets, weights);
    const int64_t N = s.h.size[0], H = head->columns;
    const View teacher = op.tensor("ids", ids, {N, -1}, kI64);
    const int64_t K = teacher.size[1];
    op.require(K > 0, "ids has shape [%lld, 0], accepted is at least 1 token a row", (ll)N);
    for (int64_t i = 0; i < N * K; i++)
      op.require(teacher.as<int64_t>()[i] < head->rows, "ids[%lld, %lld] is %lld, accepted is up to %lld (or negative: none)",
                 (ll)(i / K), (ll)(i % K), (ll)teacher.as<int64_t>()[i], (ll)head->rows - 1);
    const View known = op.tensor("logp", logp, {N, K}, kF32);
    const View out = op.output("nll", nll, {N}, kF32), norm = op.output("lse", lse, {N}, kF32);
    const View loss = op.output("kl", kl, {N}, kF32);
    const View gradient = op.optional_output("dh", dh, {N, H}, s.h.dtype);
    if (N)
      kernels<CrossEntropyKernels>().score({s.h.dtype, N, H, s.h.data, head, s.targets.as<int64_t>(), s.weights.as<float>(),
                                            out.as<float>(), norm.as<float>(), gradient.data, check_softcap(op, p.softcap), K,
                                            teacher.as<int64_t>(), known.as<float>(), loss.as<float>()});
  });
}

int dynadapt_adapted_cross_entropy(const DLTensor* h, const dynadapt_matrix* head, const DLTensor* A, const DLTensor* Bt,
                                   const DLTensor* slots, const DLTensor* targets, const DLTensor* weights, const DLTensor* u,
                                   const DLTensor* nll, const DLTensor* lse, const DLTensor* dh, const DLTensor* dU,
                                   const dynadapt_cross_entropy_params* params) {
  return guarded([&] {
    const Op op("adapted_cross_entropy");
    const auto& p = op.params(params);
    const Scored s(op, h, head, targets, weights);
    const int64_t N = s.h.size[0], H = head->columns;
    CrossEntropy c{s.h.dtype, N, H, s.h.data, head, s.targets.as<int64_t>(), s.weights.as<float>(), nullptr, nullptr, nullptr};
    c.softcap = check_softcap(op, p.softcap);
    c.adapters = check_adapters(op, Bt, slots, p.scale, s.h.dtype, head->rows, N);
    const int64_t R = c.adapters.rank;
    const View own = op.tensor("A", A, {Bt->shape[0], R, H}, s.h.dtype, Layout::slots);
    c.adapters.A = own.data;
    c.adapters.A_stride = own.stride[0];
    c.adapters.u = op.output("u", u, {N, R}, s.h.dtype).data;
    c.nll = op.output("nll", nll, {N}, kF32).as<float>();
    c.lse = op.output("lse", lse, {N}, kF32).as<float>();
    c.dh = op.optional_output("dh", dh, {N, H}, s.h.dtype).data;
    c.adapters.dU = op.optional_output("dU", dU, {N, R}, s.h.dtype).data;
    op.require(!c.dh || c.adapters.dU || !N, "dh is given without dU, accepted are both, dU alone, or none");
    if (N) kernels<CrossEntropyKernels>().score(c);
  });
}

int dynadapt_adapted_cross_entropy_gradient(const DLTensor* h, const dynadapt_matrix* head, const DLTensor* Bt,
                                            const DLTensor* slots, const DLTensor* targets, const DLTensor* weights,
                                            const DLTensor* lse, const DLTensor* u, const DLTensor* dU, const DLTensor* dA,
                                            const DLTensor* dBt, const dynadapt_gradient_params* params) {
  return guarded([&] {
    const Op op("adapted_cross_entropy_gradient");
    const auto& p = op.params(params);
    const Scored s(op, h, head, targets, weights);
    check_floats(op, head);
    const int64_t N = s.h.size[0], H = head->columns;
    CrossEntropyGradient c{s.h.dtype, N, H, s.h.data, head, s.targets.as<int64_t>(), s.weights.as<float>(), nullptr, 0, false};
    c.softcap = check_softcap(op, p.softcap);
    c.accumulate = p.accumulate;
    c.adapters = check_adapters(op, Bt, slots, p.scale, s.h.dtype, head->rows, N);
    const int64_t R = c.adapters.rank;
    c.lse = op.tensor("lse", lse, {N}, kF32).as<float>();
    c.adapters.u = op.tensor("u", u, {N, R}, s.h.dtype).data;
    c.adapters.dU = op.tensor("dU", dU, {N, R}, s.h.dtype).data;
    const View a = op.output("dA", dA, {Bt->shape[0], R, H}, kF32, Layout::slots);
    const View b = op.output("dBt", dBt, {Bt->shape[0], R, head->rows}, kF32, Layout::slots);
    c.dA = a.as<float>();
    c.dA_stride = a.stride[0];
    c.dBt = b.as<float>();
    c.dBt_stride = b.stride[0];
    if (N) kernels<CrossEntropyGradientKernels>().adapters(c);
  });
}

int dynadapt_cross_entropy_weight_gradient(const DLTensor* h, const dynadapt_matrix* head, const DLTensor* targets,
                                           const DLTensor* weights, const DLTensor* lse, const DLTensor* dW,
                                           const dynadapt_gradient_params* params) {
  return guarded([&] {
    const Op op("cross_entropy_weight_gradient");
    const auto& p = op.params(params, offsetof(dynadapt_gradient_params, softcap));
    const Scored s(op, h, head, targets, weights);
    check_floats(op, head);
    const int64_t N = s.h.size[0], H = head->columns;
    const View norm = op.tensor("lse", lse, {N}, kF32);
    const View out = op.output("dW", dW, {head->rows, H}, kF32);
    op.require(p.scale == 0, "scale is %g, accepted is 0: there is no adapter", double(p.scale));
    kernels<CrossEntropyGradientKernels>().weight({s.h.dtype, N, H, s.h.data, head, s.targets.as<int64_t>(),
                                                   s.weights.as<float>(), norm.as<float>(), check_softcap(op, p.softcap),
                                                   bool(p.accumulate), out.as<float>()});
  });
}

}  // extern "C"
