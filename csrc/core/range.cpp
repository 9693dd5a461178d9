// NVTX comes as headers alone and calls whatever profiler is attached; without one a range is a test of a null pointer.
#include "core/range.h"

#include <cstdlib>
#include <cstring>

#include "core/error.h"

#if defined(DYN_NVTX)
#include <nvtx3/nvToolsExt.h>
#endif

namespace dynadapt {

namespace {

/// Whether DYNADAPT_NVTX asks for ranges.
bool asked() {
  const char* text = std::getenv("DYNADAPT_NVTX");
  if (!text || !*text || !std::strcmp(text, "0")) return false;
  if (!std::strcmp(text, "1")) return true;
  throw Invalid(format("DYNADAPT_NVTX is \"%s\", accepted is 0 or 1", text));
}

bool on() {
  static const bool is_on = asked();
  return is_on;
}

#if defined(DYN_NVTX)
nvtxDomainHandle_t domain() {
  static const nvtxDomainHandle_t handle = nvtxDomainCreateA("dynadapt");
  return handle;
}

void push(const char* name) {
  nvtxEventAttributes_t event{};
  event.version = NVTX_VERSION;
  event.size = NVTX_EVENT_ATTRIB_STRUCT_SIZE;
  event.messageType = NVTX_MESSAGE_TYPE_ASCII;
  event.message.ascii = name;
  nvtxDomainRangePushEx(domain(), &event);
}

void pop() { nvtxDomainRangePop(domain()); }
constexpr bool kBuilt = true;
#else
void push(const char*) {}
void pop() {}
constexpr bool kBuilt = false;
#endif

}  // namespace

NamedRange::NamedRange(const char* name) : open_(on()) {
  if (open_) push(name);
}

NamedRange::~NamedRange() {
  if (open_) pop();
}

}  // namespace dynadapt

extern "C" int dynadapt_nvtx(void) {
  bool ranges = false;
  const int code = dynadapt::guarded([&] {
    if (!dynadapt::kBuilt)
      throw dynadapt::Invalid("built without NVTX: nvtx3/nvToolsExt.h, which comes with CUDA, was not found");
    ranges = dynadapt::on();
    if (!ranges) throw dynadapt::Invalid("DYNADAPT_NVTX is not 1");
  });
  return code == DYNADAPT_OK && ranges;
}
