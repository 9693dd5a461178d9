// Named ranges for NVIDIA's profilers.
#pragma once

namespace dynadapt {

/// An NVTX range in the domain "dynadapt" while it lives, on the thread that made it; nothing unless DYNADAPT_NVTX is 1.
/// Throws Invalid where that variable is neither 0 nor 1.
class NamedRange {
 public:
  explicit NamedRange(const char* name);
  ~NamedRange();
  NamedRange(const NamedRange&) = delete;
  NamedRange& operator=(const NamedRange&) = delete;

 private:
  bool open_;
};

}  // namespace dynadapt
