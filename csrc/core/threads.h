// Teams of threads and scratch memory.
//
// All parallel loops of the library run through `parallel`, with the number of threads as an OpenMP
// clause: omp_set_num_threads belongs to the process, not to us.
#pragma once

#include <omp.h>

#include <cstddef>
#include <cstdint>

namespace dynadapt {

/// Threads a call may use now.
int num_threads();

/// One thread's place in a team.
struct Team {
  int rank;
  int size;

  /// Waits for all threads of the team.
  void barrier() const {
    if (size > 1) {
#pragma omp barrier
    }
  }

  /// This thread's part [begin, end) of `count` items; parts differ by at most one item.
  struct Range {
    int64_t begin, end;
  };
  Range share(int64_t count) const {
    return {count * rank / size, count * (rank + 1) / size};
  }
};

/// Runs body(Team) on up to `most` threads (fewer where the runtime gives fewer). The body must not throw.
template <class Body>
void parallel(int64_t most, const Body& body) {
  int threads = num_threads();
  if (most < threads) threads = int(most);
  if (threads <= 1) {
    body(Team{0, 1});
    return;
  }
#pragma omp parallel num_threads(threads)
  body(Team{omp_get_thread_num(), omp_get_num_threads()});
}

/// Scratch of the calling thread, 64-byte aligned, kept and grown between calls. One user at a time:
/// a later call may move it. Throws std::bad_alloc.
void* scratch(size_t bytes);

/// Hands out 64-byte aligned pieces of one scratch block. Use twice: once on null to measure, once to carve.
class Arena {
 public:
  explicit Arena(void* base = nullptr) : base_(static_cast<char*>(base)) {}
  template <class T>
  T* take(size_t count) {
    char* piece = base_ ? base_ + used_ : nullptr;
    used_ += (count * sizeof(T) + 63) / 64 * 64;
    return reinterpret_cast<T*>(piece);
  }
  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

}  // namespace dynadapt
