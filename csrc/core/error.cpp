#include "core/error.h"

#include <cstdarg>
#include <cstdio>

namespace dynadapt {

namespace {
thread_local std::string last_error;
}

int fail(int code, const std::string& text) noexcept {
  constexpr size_t kMost = 4096;  // a text may repeat a name from a file, of any length
  try {
    size_t size = text.size();
    if (size > kMost)
      for (size = kMost; (text[size] & 0xc0) == 0x80;) size--;  // not within a character
    last_error.assign(text, 0, size);
  } catch (...) {
    last_error.clear();
  }
  return code;
}

std::string format(const char* pattern, ...) {
  va_list args;
  va_start(args, pattern);
  char text[1024];
  vsnprintf(text, sizeof text, pattern, args);
  va_end(args);
  return text;
}

}  // namespace dynadapt

extern "C" const char* dynadapt_last_error(void) { return dynadapt::last_error.c_str(); }

extern "C" int dynadapt_abi_version(void) { return DYNADAPT_ABI_VERSION; }
