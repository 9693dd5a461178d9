// The table that libdynadapt.so asks for, and whether this machine has a GPU to run it on.
#include "cuda/library.h"

#include <cstdio>

#include <cuda_runtime_api.h>

#include "cuda/update.h"
#include "dynadapt/dynadapt.h"

namespace dynadapt::cuda {

namespace {

int device_count(char* text, size_t size) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess && count > 0) return count;
  snprintf(text, size, "%s", error == cudaSuccess ? "the driver lists none" : cudaGetErrorString(error));
  return 0;
}

const Library table = {DYNADAPT_ABI_VERSION, device_count, update};

}  // namespace

}  // namespace dynadapt::cuda

extern "C" DYNADAPT_API const dynadapt::cuda::Library* dynadapt_cuda_library() { return &dynadapt::cuda::table; }
