// One optimizer step for all learned parameters of all streams, in two launches whatever their number.
//
// 1. dynadapt_update_norm: sums of squares of each stream's gradient, chunk by chunk, in float64: a gradient of 1e30 has a
//    finite norm then, and is clipped like any other. One thread per stream also works out the bias corrections.
// 2. dynadapt_update_apply: every block adds up its stream's sums (at most 512 of them, from L2, always in the same order:
//    in place of a third launch or atomics), and then does everything else in one pass: clip, moments,
//    decay to the prior, master, working copy, zeroed gradient.
//
// Memory is all it costs. With Adam, decay and a bfloat16 copy an element reads 4 (norm) + 16 (grad, master, moments) bytes
// and writes 18; prior and prior_rate are read once for all streams if L2 holds them. The second kernel walks the chunks
// backwards: the end of the gradient is what the first has just left in L2.
//
// Rows are read 16 bytes at a time where each starts at a multiple of 16 bytes, which P divisible by 4 gives; else element
// by element, in the same order and with the same bits (-fmad=false: every fused multiply-add is written as one). Slots,
// learning rates and steps are read on the GPU, nothing is allocated and nothing waits, so a graph can capture the call.
// Not fused: the gradient itself is in memory, because the norm of all of it is needed before any of it can be used.
#include "cuda/update.h"

#include <cstdio>

#include <cuda_bf16.h>
#include <cuda_runtime.h>

namespace dynadapt::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kWidth = 4;   // elements of one 16-byte access
constexpr int kUnroll = 2;  // accesses in flight per tensor and thread
constexpr int kStride = kThreads * kWidth;
static_assert(kStride * kUnroll == kChunkUnit);

enum class Rule {
  kSgd,
  kMomentum,
  kAdam,
  kAdamNoFirst,
  kRms
};
enum class Copy {
  kNone,
  kF32,
  kBF16
};

/// The arguments of both kernels. Factors are rounded to float32 where elements are multiplied with them.
struct Arguments {
  Update op;
  int64_t slots, parameters, chunk;
  double* workspace;
  float momentum, beta1, beta2, rest1, rest2, eps, decay;  // rest: 1 - beta

  __device__ int64_t chunks() const { return gridDim.x; }
  __device__ double* stream_workspace() const { return workspace + blockIdx.y * (kHeader + chunks()); }
  __device__ StepHeader& header() const { return *reinterpret_cast<StepHeader*>(stream_workspace()); }
  __device__ double* sums() const { return stream_workspace() + kHeader; }
};

template <bool kVector>
__device__ __forceinline__ void load(float (&out)[kWidth], const float* row, int64_t i, int64_t end) {
  if constexpr (kVector) {
    const float4 v = i < end ? *reinterpret_cast<const float4*>(row + i) : float4{0, 0, 0, 0};
    out[0] = v.x, out[1] = v.y, out[2] = v.z, out[3] = v.w;
  } else {
#pragma unroll
    for (int k = 0; k < kWidth; ++k) out[k] = i + k < end ? row[i + k] : 0;
  }
}

template <bool kVector>
__device__ __forceinline__ void store(float* row, int64_t i, int64_t end, const float (&x)[kWidth]) {
  if constexpr (kVector) {
    if (i < end) *reinterpret_cast<float4*>(row + i) = float4{x[0], x[1], x[2], x[3]};
  } else {
#pragma unroll
    for (int k = 0; k < kWidth; ++k)
      if (i + k < end) row[i + k] = x[k];
  }
}

// Eight bytes a thread: a warp still writes whole lines, and eight elements a thread would double the registers.
template <bool kVector>
__device__ __forceinline__ void store(__nv_bfloat16* row, int64_t i, int64_t end, const float (&x)[kWidth]) {
  if constexpr (kVector) {
    struct alignas(8) Pack {
      __nv_bfloat162 low, high;
    };
    if (i < end) *reinterpret_cast<Pack*>(row + i) = {__floats2bfloat162_rn(x[0], x[1]), __floats2bfloat162_rn(x[2], x[3])};
  } else {
#pragma unroll
    for (int k = 0; k < kWidth; ++k)
      if (i + k < end) row[i + k] = __float2bfloat16_rn(x[k]);
  }
}

/// The sum over the block in thread 0, always in the same order.
__device__ double block_sum(double value) {
  __shared__ double parts[kThreads / 32];
#pragma unroll
  for (int lanes = 16; lanes; lanes /= 2) value += __shfl_down_sync(0xffffffffu, value, lanes);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  double total = 0;
  if (threadIdx.x == 0) {
#pragma unroll
    for (int warp = 0; warp < kThreads / 32; ++warp) total += parts[warp];
  }
  return total;
}

/// grid (chunks, streams): the block's sum of squares.
template <bool kVector>
__global__ void __launch_bounds__(kThreads) dynadapt_update_norm(const __grid_constant__ Arguments a) {
  const int32_t slot = a.op.slots[blockIdx.y];
  if (slot < 0 || slot >= a.slots) return;
  const float* grad = a.op.grad + slot * a.parameters;
  const int64_t begin = blockIdx.x * a.chunk, end = min(begin + a.chunk, a.parameters);
  double sums[kUnroll] = {};
#pragma unroll 2
  for (int64_t i = begin + threadIdx.x * kWidth; i < end; i += kUnroll * kStride) {
    float g[kUnroll][kWidth];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) load<kVector>(g[u], grad, i + u * kStride, end);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u)
#pragma unroll
      for (int k = 0; k < kWidth; ++k) sums[u] = fma(double(g[u][k]), double(g[u][k]), sums[u]);
  }
  const double total = block_sum(sums[0] + sums[1]);
  if (threadIdx.x == 0) a.sums()[blockIdx.x] = total;

  // The second kernel counts the step up while its blocks still need it: they read this copy.
  if (blockIdx.x == 0 && threadIdx.x == 32) {
    const bool adam = a.op.kind == UpdateKind::kAdam || a.op.kind == UpdateKind::kAdamW;
    const int32_t step = a.op.step[slot];
    StepHeader header{1, 1, step};
    if (adam) {
      header.first = 1 / (1 - pow(a.op.beta1, double(step + 1)));
      header.second = 1 / (1 - pow(a.op.beta2, double(step + 1)));
    }
    a.header() = header;
  }
}

/// A stream's scalars for this step.
struct Step {
  bool moves;         // false: the gradient is not finite
  float gradient;     // factor that clips it
  float rate;         // learning rate, with the first moment's bias correction
  float correction;   // the second moment's bias correction
  float weight_rate;  // learning rate times weight decay
};

/// Thread 0, which knows the squared norm: the step's scalars, and what the stream reports.
__device__ Step begin(const Arguments& a, int32_t slot, double squares) {
  const StepHeader header = a.header();
  const double norm = sqrt(squares), lr = a.op.lr[slot];
  const bool finite = isfinite(norm);
  if (blockIdx.x == 0) {
    a.op.norms[blockIdx.y] = float(norm);
    a.op.skipped[blockIdx.y] = !finite;
    if (finite) a.op.step[slot] = int32_t(header.step) + 1;
  }
  const double ratio = a.op.clip > 0 ? a.op.clip / (norm + 1e-6) : 1.0;
  return {finite, float(ratio < 1 ? ratio : 1.0), float(lr * header.first), float(header.second),
          a.op.kind == UpdateKind::kAdamW ? float(lr * a.op.weight_decay) : 0.0f};
}

/// One access of every tensor that the rule reads.
struct Elements {
  float grad[kWidth], master[kWidth], first[kWidth], second[kWidth], prior[kWidth], rate[kWidth];
};

/// The rows of one stream.
struct Rows {
  float *master, *grad, *first, *second;
};

template <Rule kRule>
__device__ __forceinline__ float direction(const Arguments& a, const Step& s, Elements& e, int k) {
  float g = e.grad[k] * s.gradient;
  if constexpr (kRule == Rule::kSgd) return s.rate * g;
  if constexpr (kRule == Rule::kMomentum) {
    e.first[k] = fmaf(a.momentum, e.first[k], g);
    return s.rate * e.first[k];
  }
  if constexpr (kRule == Rule::kRms) return s.rate * g / (e.second[k] + a.eps);  // second holds the statistics
  e.second[k] = fmaf(a.beta2, e.second[k], a.rest2 * g * g);
  if constexpr (kRule == Rule::kAdam) g = e.first[k] = fmaf(a.beta1, e.first[k], a.rest1 * g);
  return fmaf(s.weight_rate, e.master[k], s.rate * g / (sqrtf(e.second[k] * s.correction) + a.eps));
}

// Blocks that share a multiprocessor: with three, six tensors times kUnroll accesses do not fit the registers.
template <Rule kRule, bool kDecay>
constexpr int kBlocks = kRule == Rule::kAdam && kDecay ? 2 : 3;

/// grid (chunks, streams): everything but the norm, for one chunk of a stream's row.
template <Rule kRule, bool kDecay, Copy kCopy, bool kVector>
__global__ void __launch_bounds__(kThreads, kBlocks<kRule, kDecay>) dynadapt_update_apply(const __grid_constant__ Arguments a) {
  constexpr bool kAdam = kRule == Rule::kAdam || kRule == Rule::kAdamNoFirst;
  constexpr bool kFirst = kRule == Rule::kAdam || kRule == Rule::kMomentum;
  const int32_t slot = a.op.slots[blockIdx.y];
  if (slot < 0 || slot >= a.slots) {  // -1: at rest. Anything else is no slot, and the report says so.
    if (blockIdx.x == 0 && threadIdx.x == 0) {
      a.op.norms[blockIdx.y] = slot == -1 ? 0.0f : __int_as_float(0x7fc00000);
      a.op.skipped[blockIdx.y] = slot != -1;
    }
    return;
  }
  double squares = 0;
  for (int64_t i = threadIdx.x; i < a.chunks(); i += kThreads) squares += a.sums()[i];
  squares = block_sum(squares);
  __shared__ Step shared;
  if (threadIdx.x == 0) shared = begin(a, slot, squares);
  __syncthreads();
  const Step s = shared;

  const int64_t row = slot * a.parameters;
  const Rows rows{a.op.master + row, a.op.grad + row, a.op.first + row, a.op.second + row};
  const int64_t start = (a.chunks() - 1 - blockIdx.x) * a.chunk, end = min(start + a.chunk, a.parameters);
  const float zeros[kWidth] = {};
  if (!s.moves) {
    for (int64_t i = start + threadIdx.x * kWidth; i < end; i += kStride) store<kVector>(rows.grad, i, end, zeros);
    return;
  }
  for (int64_t i = start + threadIdx.x * kWidth; i < end; i += kUnroll * kStride) {
    Elements e[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t at = i + u * kStride;
      load<kVector>(e[u].grad, rows.grad, at, end);
      load<kVector>(e[u].master, rows.master, at, end);
      if constexpr (kFirst) load<kVector>(e[u].first, rows.first, at, end);
      if constexpr (kAdam) load<kVector>(e[u].second, rows.second, at, end);
      if constexpr (kRule == Rule::kRms) load<kVector>(e[u].second, a.op.stat, at, end);
      if constexpr (kDecay) {
        load<kVector>(e[u].prior, a.op.prior, at, end);
        if (a.op.prior_rate) load<kVector>(e[u].rate, a.op.prior_rate, at, end);
      }
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t at = i + u * kStride;
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        const float d = direction<kRule>(a, s, e[u], k);
        if constexpr (kDecay) {
          const float rate = a.op.prior_rate ? a.decay * e[u].rate[k] : a.decay;
          e[u].master[k] = fmaf(rate, e[u].prior[k] - e[u].master[k], e[u].master[k]);
        }
        e[u].master[k] -= d;
      }
      store<kVector>(rows.master, at, end, e[u].master);
      if constexpr (kFirst) store<kVector>(rows.first, at, end, e[u].first);
      if constexpr (kAdam) store<kVector>(rows.second, at, end, e[u].second);
      if constexpr (kCopy == Copy::kF32) store<kVector>(static_cast<float*>(a.op.working) + row, at, end, e[u].master);
      if constexpr (kCopy == Copy::kBF16) store<kVector>(static_cast<__nv_bfloat16*>(a.op.working) + row, at, end, e[u].master);
      store<kVector>(rows.grad, at, end, zeros);
    }
  }
}

using Kernel = void (*)(Arguments);

template <Rule kRule, bool kDecay, Copy kCopy>
Kernel apply_kernel(bool vector) {
  return vector ? dynadapt_update_apply<kRule, kDecay, kCopy, true> : dynadapt_update_apply<kRule, kDecay, kCopy, false>;
}

template <Rule kRule, bool kDecay>
Kernel apply_kernel(Copy copy, bool vector) {
  switch (copy) {
    case Copy::kNone:
      return apply_kernel<kRule, kDecay, Copy::kNone>(vector);
    case Copy::kF32:
      return apply_kernel<kRule, kDecay, Copy::kF32>(vector);
    default:
      return apply_kernel<kRule, kDecay, Copy::kBF16>(vector);
  }
}

template <Rule kRule>
Kernel apply_kernel(bool decay, Copy copy, bool vector) {
  return decay ? apply_kernel<kRule, true>(copy, vector) : apply_kernel<kRule, false>(copy, vector);
}

Kernel apply_kernel(const Update& op, Copy copy, bool vector) {
  const bool decay = op.decay != 0;
  switch (op.kind) {
    case UpdateKind::kSgd:
      return op.momentum != 0 ? apply_kernel<Rule::kMomentum>(decay, copy, vector)
                              : apply_kernel<Rule::kSgd>(decay, copy, vector);
    case UpdateKind::kRms:
      return apply_kernel<Rule::kRms>(decay, copy, vector);
    default:
      return op.beta1 != 0 ? apply_kernel<Rule::kAdam>(decay, copy, vector)
                           : apply_kernel<Rule::kAdamNoFirst>(decay, copy, vector);
  }
}

/// Whether every row of every tensor can be read 16 bytes at a time.
bool aligned(const Update& op) {
  const void* wide[] = {op.master, op.grad, op.first, op.second, op.prior, op.prior_rate, op.stat, op.working};
  for (const void* pointer : wide)
    if (reinterpret_cast<uintptr_t>(pointer) % 16) return false;
  return op.parameters % kWidth == 0;
}

/// Makes `device` current for as long as it lives.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    error_ = cudaGetDevice(&before_);
    if (error_ == cudaSuccess && before_ != device) {
      error_ = cudaSetDevice(device);
      changed_ = error_ == cudaSuccess;
    }
  }
  ~OnDevice() {
    if (changed_) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  cudaError_t error() const { return error_; }

 private:
  int before_ = 0;
  bool changed_ = false;
  cudaError_t error_;
};

cudaError_t launch_both(const Update& op, int64_t slots, bool bf16, const Launch& launch) {
  const OnDevice on(launch.device);
  if (on.error() != cudaSuccess) return on.error();
  const int64_t parameters = op.parameters;
  Arguments a{op,
              slots,
              parameters,
              update_chunk(parameters),
              launch.workspace,
              float(op.momentum),
              float(op.beta1),
              float(op.beta2),
              float(1 - op.beta1),
              float(1 - op.beta2),
              float(op.eps),
              float(op.decay)};
  const bool vector = aligned(op);
  const Kernel norm = vector ? dynadapt_update_norm<true> : dynadapt_update_norm<false>;
  const Kernel apply = apply_kernel(op, !op.working ? Copy::kNone : bf16 ? Copy::kBF16 : Copy::kF32, vector);
  const dim3 grid(unsigned(update_chunks(parameters)), unsigned(op.streams));
  const auto stream = static_cast<cudaStream_t>(launch.stream);
  void* arguments[] = {&a};
  const cudaError_t error = cudaLaunchKernel(reinterpret_cast<const void*>(norm), grid, kThreads, arguments, 0, stream);
  return error != cudaSuccess ? error
                              : cudaLaunchKernel(reinterpret_cast<const void*>(apply), grid, kThreads, arguments, 0, stream);
}

}  // namespace

bool update(const Update& op, int64_t slots, bool bf16, const Launch& launch, char* text, size_t size) {
  const cudaError_t error = launch_both(op, slots, bf16, launch);
  if (error == cudaSuccess) return true;
  cudaGetLastError();  // it has been reported: the next call starts clean
  snprintf(text, size, "%s on cuda:%d: %s", cudaGetErrorName(error), launch.device, cudaGetErrorString(error));
  return false;
}

}  // namespace dynadapt::cuda
