// The only thing that libdynadapt_cuda.so exports: a table of functions. libdynadapt.so, which checks all arguments,
// loads it on the first call with a GPU tensor, so that everything else works where there is no CUDA at all.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/update.h"

namespace dynadapt::cuda {

/// Where a call runs and the memory it may use.
struct Launch {
  int device;
  void* stream;       // cudaStream_t
  double* workspace;  // as many elements as the op asks for, with any content
};

struct Library {
  int abi_version;
  /// The number of GPUs; 0 with the reason in `text`.
  int (*device_count)(char* text, size_t size);
  /// Queues an optimizer step; `slots` counts the rows of its buffers. False with the reason in `text`.
  bool (*update)(const Update& update, int64_t slots, bool bf16, const Launch& launch, char* text, size_t size);
};

constexpr const char* kLibraryFile = "libdynadapt_cuda.so";
constexpr const char* kLibrarySymbol = "dynadapt_cuda_library";

// A stream's gradient is summed in at most kMostChunks parts of equal size. The size depends on the number of
// parameters alone: neither the GPU nor the other streams change an order of summation.
constexpr int64_t kMostChunks = 512;
constexpr int64_t kChunkUnit = 2048;  // one pass of a thread block

constexpr int64_t update_chunk(int64_t parameters) {
  const int64_t least = (parameters + kMostChunks - 1) / kMostChunks;
  const int64_t units = (least + kChunkUnit - 1) / kChunkUnit;
  return (units ? units : 1) * kChunkUnit;
}

constexpr int64_t update_chunks(int64_t parameters) {
  const int64_t chunk = update_chunk(parameters), chunks = (parameters + chunk - 1) / chunk;
  return chunks ? chunks : 1;
}

/// What the first kernel leaves for the second, in front of the stream's sums of squares.
struct StepHeader {
  double first, second;  // bias corrections of the two moments
  int64_t step;          // before this update
};

constexpr int64_t kHeader = sizeof(StepHeader) / sizeof(double);

constexpr int64_t update_workspace(int64_t streams, int64_t parameters) {
  return streams * (kHeader + update_chunks(parameters));
}

}  // namespace dynadapt::cuda
