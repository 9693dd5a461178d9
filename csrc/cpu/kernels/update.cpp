// One optimizer step for all learned parameters of all streams. Two passes over memory, the least there can be: the
// squared norm of each stream's gradient, then everything else (clip, moments, decay to the prior, master, working
// copy, zeroed gradient) element by element. Both walk blocks of fixed size, so that threads never change a sum.
#include "cpu/update.h"

#include <cmath>

#include "cpu/kernels/lib/rows.h"

namespace dynadapt::DYN_ISA {
namespace {

constexpr size_t kBlock = 16384;  // parameters

typedef float HalfVec __attribute__((vector_size(kWidth * 2)));
typedef double Wide __attribute__((vector_size(kWidth * 4)));

// Sum of squares of a block, in float64.
double squared_norm(const float* x, size_t n) {
  constexpr size_t half = kWidth / 2;
  Wide sums[4] = {};
  size_t i = 0;
  for (; i + 4 * half <= n; i += 4 * half) {
    for (size_t k = 0; k < 4; ++k) {
      HalfVec v;
      memcpy(&v, x + i + k * half, sizeof v);
      const Wide w = __builtin_convertvector(v, Wide);
      sums[k] += w * w;
    }
  }
  const Wide total = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  double out = 0;
  for (size_t k = 0; k < half; ++k) out += total[k];
  for (; i < n; ++i) out += double(x[i]) * x[i];
  return out;
}

// A stream's scalars for this step.
struct Step {
  bool skipped;
  float gradient;                                          // factor that clips the gradient
  float rate;                                              // learning rate, with the first moment's bias correction
  float correction;                                        // the second moment's bias correction
  float weight_rate;                                       // learning rate times weight decay
  float momentum, beta1, beta2, rest1, rest2, eps, decay;  // rest: 1 - beta
};

// Reads a stream's learning rate and counts its step, once the norm of its gradient is known.
Step begin(const Update& a, size_t stream, double norm) {
  const int32_t slot = a.slots[stream];
  a.norms[stream] = float(norm);
  a.skipped[stream] = !std::isfinite(norm);
  Step out{};
  out.skipped = a.skipped[stream];
  if (out.skipped || slot < 0) return out;
  const int32_t step = ++a.step[slot];
  const double lr = a.lr[slot];
  const double ratio = a.clip > 0 ? a.clip / (norm + 1e-6) : 1.0;
  out.gradient = float(ratio < 1 ? ratio : 1.0);
  out.rate = float(lr);
  out.momentum = float(a.momentum);
  out.beta1 = float(a.beta1);
  out.beta2 = float(a.beta2);
  out.rest1 = float(1 - a.beta1);
  out.rest2 = float(1 - a.beta2);
  out.eps = float(a.eps);
  out.decay = float(a.decay);
  if (a.kind == UpdateKind::kAdam || a.kind == UpdateKind::kAdamW) {
    out.rate = float(lr / (1 - std::pow(a.beta1, step)));
    out.correction = float(1 / (1 - std::pow(a.beta2, step)));
  }
  if (state_of(a.kind, a.beta1, a.momentum).decays) out.weight_rate = float(lr * a.weight_decay);
  return out;
}

struct Sgd {
  template <class Part>
  static inline vfloat direction(const Update& a, const Step& s, size_t at, size_t, vfloat g, Part part) {
    if (s.momentum != 0) {
      g += s.momentum * load(a.first + at, part);
      store(a.first + at, g, part);
    }
    return s.rate * g;
  }
};

struct Adam {
  template <class Part>
  static inline vfloat direction(const Update& a, const Step& s, size_t at, size_t, vfloat g, Part part) {
    const vfloat second = s.beta2 * load(a.second + at, part) + s.rest2 * g * g;
    store(a.second + at, second, part);
    if (s.beta1 != 0) {
      g = s.beta1 * load(a.first + at, part) + s.rest1 * g;
      store(a.first + at, g, part);
    }
    return s.rate * g / (square_root(second * s.correction) + s.eps) + s.weight_rate * load(a.master + at, part);
  }
};

struct Lion {
  template <class Part>
  static inline vfloat direction(const Update& a, const Step& s, size_t at, size_t, vfloat g, Part part) {
    vfloat c = g;
    if (s.beta1 != 0) {
      const vfloat first = load(a.first + at, part);
      c = s.beta1 * first + s.rest1 * g;
      store(a.first + at, s.beta2 * first + s.rest2 * g, part);
    }
    return (c > 0 ? splat(s.rate) : vfloat{}) - (c < 0 ? splat(s.rate) : vfloat{}) + s.weight_rate * load(a.master + at, part);
  }
};

struct Rms {
  template <class Part>
  static inline vfloat direction(const Update& a, const Step& s, size_t, size_t i, vfloat g, Part part) {
    return s.rate * g / (load(a.stat + i, part) + s.eps);
  }
};

// The arguments come by value: a store into the buffers then can't be one into them.
template <class T, class Kind, bool kFactors>
void update_block(const Update a, const Step s, size_t slot, size_t first, size_t n) {
  const size_t row = slot * a.parameters;
  T* working = static_cast<T*>(a.working);
  for_vectors(n, [&](size_t k, auto part) {
    const size_t i = first + k, at = row + i;
    vfloat master = load(a.master + at, part);
    vfloat d = Kind::direction(a, s, at, i, load(a.grad + at, part) * s.gradient, part);
    if (kFactors) d *= load(a.rate_factor + i, part);
    if (s.decay != 0) {
      vfloat rate = splat(s.decay);
      if (a.prior_rate) rate *= load(a.prior_rate + i, part);
      master += rate * (load(a.prior + slot * a.prior_stride + i, part) - master);
    }
    master -= d;
    store(a.master + at, master, part);
    if (working) store(working + at, master, part);
    store(a.grad + at, vfloat{}, part);
  });
}

template <class T, class Kind, bool kFactors>
void update_all(const Update& a) {
  const int64_t blocks = (a.parameters + kBlock - 1) / kBlock, count = blocks * a.streams;
  Arena measure;
  measure.take<double>(count);
  measure.take<Step>(a.streams);
  Arena arena(scratch(measure.used()));
  double* squares = arena.take<double>(count);
  Step* steps = arena.take<Step>(a.streams);
  const auto length = [&](int64_t b) { return a.parameters - b * kBlock < kBlock ? a.parameters - b * kBlock : kBlock; };
  parallel(num_threads(), count, [&](Team team) {
    const auto share = team.share(count);
    for (int64_t item = share.begin; item < share.end; ++item) {
      const int64_t b = item % blocks, slot = a.slots[item / blocks];
      squares[item] = slot < 0 ? 0 : squared_norm(a.grad + slot * a.parameters + b * kBlock, length(b));
    }
    team.barrier();
    if (team.rank == 0) {
      for (size_t stream = 0; stream < a.streams; ++stream) {
        double total = 0;
        for (int64_t b = 0; b < blocks; ++b) total += squares[stream * blocks + b];
        steps[stream] = begin(a, stream, std::sqrt(total));
      }
    }
    team.barrier();
    for (int64_t item = share.begin; item < share.end; ++item) {
      const int64_t b = item % blocks, stream = item / blocks, slot = a.slots[stream];
      if (slot < 0) continue;
      if (steps[stream].skipped)
        memset(a.grad + slot * a.parameters + b * kBlock, 0, length(b) * sizeof(float));
      else
        update_block<T, Kind, kFactors>(a, steps[stream], slot, b * kBlock, length(b));
    }
  });
}

template <class T, class Kind>
void update_by(const Update& a) {
  return a.rate_factor ? update_all<T, Kind, true>(a) : update_all<T, Kind, false>(a);
}

template <class T>
void update(const Update& a) {
  switch (a.kind) {
    case UpdateKind::kSgd:
      return update_by<T, Sgd>(a);
    case UpdateKind::kAdam:
    case UpdateKind::kAdamW:
      return update_by<T, Adam>(a);
    case UpdateKind::kRms:
      return update_by<T, Rms>(a);
    case UpdateKind::kLion:
      return update_by<T, Lion>(a);
  }
}

}  // namespace

const ByType<UpdateKernels> update_kernels = {{update<float>}, {update<bf16>}};

}  // namespace dynadapt::DYN_ISA
