// The C entry points of the linear cross-entropy.
#include "cpu/cross_entropy.h"

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

}  // namespace

extern "C" {

int dynadapt_cross_entropy(const DLTensor* h, const dynadapt_matrix* head, const DLTensor* targets, const DLTensor* weights,
                           const DLTensor* nll, const DLTensor* lse, const DLTensor* dh) {
  return guarded([&] {
    const Op op("cross_entropy");
    const Scored s(op, h, head, targets, weights);
    const int64_t N = s.h.size[0], H = head->columns;
    const View out = op.output("nll", nll, {N}, kF32), norm = op.output("lse", lse, {N}, kF32);
    const View gradient = op.optional_output("dh", dh, {N, H}, s.h.dtype);
    if (N)
      kernels<CrossEntropyKernels>().score({s.h.dtype, N, H, s.h.data, head, s.targets.as<int64_t>(), s.weights.as<float>(),
                                            out.as<float>(), norm.as<float>(), gradient.data});
  });
}

int dynadapt_distillation(const DLTensor* h, const dynadapt_matrix* head, const DLTensor* targets, const DLTensor* ids,
                          const DLTensor* logp, const DLTensor* weights, const DLTensor* nll, const DLTensor* lse,
                          const DLTensor* kl, const DLTensor* dh) {
  return guarded([&] {
    const Op op("distillation");
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
                                            out.as<float>(), norm.as<float>(), gradient.data, K, teacher.as<int64_t>(),
                                            known.as<float>(), loss.as<float>()});
  });
}

int dynadapt_cross_entropy_weight_gradient(const DLTensor* h, const dynadapt_matrix* head, const DLTensor* targets,
                                           const DLTensor* weights, const DLTensor* lse, const DLTensor* dW,
                                           const dynadapt_gradient_params* params) {
  return guarded([&] {
    const Op op("cross_entropy_weight_gradient");
    const auto& p = op.params(params);
    const Scored s(op, h, head, targets, weights);
    op.require(head->storage != MatrixStorage::int8,
               "head is stored as int8, which does not learn; accepted are float32 and bfloat16");
    const int64_t N = s.h.size[0], H = head->columns;
    const View norm = op.tensor("lse", lse, {N}, kF32);
    const View out = op.output("dW", dW, {head->rows, H}, kF32);
    kernels<CrossEntropyKernels>().weight_gradient({s.h.dtype, N, H, s.h.data, head, s.targets.as<int64_t>(),
                                                    s.weights.as<float>(), norm.as<float>(), out.as<float>(),
                                                    bool(p.accumulate)});
  });
}

}  // extern "C"
