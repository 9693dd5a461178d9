#include "core/cuda.h"

#include <dlfcn.h>

#include "core/check.h"

namespace dynadapt::cuda {

namespace {

struct Found {
  const Library* library = nullptr;
  std::string why;
};

std::string beside_this_library() {
  Dl_info info{};
  if (!dladdr(reinterpret_cast<void*>(&beside_this_library), &info) || !info.dli_fname) return kLibraryFile;
  const std::string path = info.dli_fname;
  const size_t slash = path.rfind('/');
  return (slash == std::string::npos ? "" : path.substr(0, slash + 1)) + kLibraryFile;
}

Found find() {
  void* handle = dlopen(beside_this_library().c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) {
    const char* text = dlerror();
    return {nullptr, format("%s is not there (%s); build where CMake finds nvcc, with -DDYNADAPT_CUDA=ON", kLibraryFile,
                            text ? text : "no reason given")};
  }
  const auto entry = reinterpret_cast<const Library* (*)()>(dlsym(handle, kLibrarySymbol));
  const Library* library = entry ? entry() : nullptr;
  if (!library || library->abi_version != DYNADAPT_ABI_VERSION)
    return {nullptr, format("%s is of another version than libdynadapt.so; build both together", kLibraryFile)};
  char text[256] = "";
  if (library->device_count(text, sizeof text) < 1) return {nullptr, format("%s finds no CUDA device (%s)", kLibraryFile, text)};
  return {library, ""};
}

}  // namespace

const Library* library(std::string* why) {
  static const Found found = find();
  if (why) *why = found.why;
  return found.library;
}

}  // namespace dynadapt::cuda

extern "C" int dynadapt_cuda_available(void) {
  bool there = false;
  const int code = dynadapt::guarded([&] {
    std::string why;
    there = dynadapt::cuda::library(&why) != nullptr;
    if (!there) throw dynadapt::Invalid(why);
  });
  return code == DYNADAPT_OK && there;
}

extern "C" int64_t dynadapt_cuda_update_workspace(int64_t streams, int64_t parameters) {
  int64_t elements = -1;
  dynadapt::guarded([&] {
    const dynadapt::Op op("cuda_update_workspace");
    elements = dynadapt::cuda::update_workspace(op.whole("streams", streams, 0, dynadapt::kMostElements),
                                                op.whole("parameters", parameters, 0, dynadapt::kMostElements));
  });
  return elements;
}
