// Errors inside the library are exceptions; `guarded` turns them into a code and a text at the C boundary.
#pragma once

#include <new>
#include <stdexcept>
#include <string>

#include "dynadapt/dynadapt.h"

namespace dynadapt {

/// An argument that can't be served; the text names the op, the argument, its value and what is accepted.
struct Invalid : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

/// A file that can't be written; the text names it and the reason.
struct FileError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Keeps `text` as this thread's dynadapt_last_error() and returns `code`.
int fail(int code, const std::string& text) noexcept;

/// printf into a std::string.
[[gnu::format(printf, 1, 2)]] std::string format(const char* pattern, ...);

/// Runs `body` and returns 0, or the error code of what it threw.
template <class Body>
int guarded(Body&& body) noexcept {
  try {
    body();
    return DYNADAPT_OK;
  } catch (const Invalid& error) {
    return fail(DYNADAPT_INVALID, error.what());
  } catch (const FileError& error) {
    return fail(DYNADAPT_IO, error.what());
  } catch (const std::bad_alloc&) {
    return fail(DYNADAPT_OUT_OF_MEMORY, "out of memory");  // short enough to need none
  } catch (const std::exception& error) {
    return fail(DYNADAPT_INTERNAL, error.what());
  } catch (...) {
    return fail(DYNADAPT_INTERNAL, "an exception of unknown type");
  }
}

}  // namespace dynadapt
