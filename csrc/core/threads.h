// Teams of threads and scratch memory.
//
// Parallel loops run on a pool of our own: a step has hundreds of short ones, and an OpenMP runtime lets its
// threads either sleep between them (each loop then costs two wake-ups, about 60 us on a virtual machine) or spin
// (then a thread that shares its core with another stalls the team for milliseconds). The pool's threads spin for a
// short while and only as long as they keep no member of their own team from running. The number of threads still
// follows OpenMP's setting for the calling thread, so that torch.set_num_threads limits our loops too.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dynadapt {

/// Threads a call may use now. Another thread may change it at any time: a kernel that sizes anything by it reads it once and
/// gives that number to `parallel`.
int num_threads();

/// Items [begin, end).
struct Range {
  int64_t begin, end;
};

/// One thread's place in a team.
struct Team {
  int rank;
  int size;

  /// Waits for all threads of the team.
  void barrier() const;

  /// This thread's part [begin, end) of `count` items; parts differ by at most one item.
  Range share(int64_t count) const { return {count * rank / size, count * (rank + 1) / size}; }
};

/// Hands out `count` tasks to a team in runs that get shorter towards the end, so that a thread which the
/// machine holds up takes fewer and nobody waits for it long.
class TaskQueue {
 public:
  explicit TaskQueue(int64_t count) : count_(count) {}

  /// The next run for one of `threads` threads, not longer than `most`; empty when all is taken.
  Range take(int threads, int64_t most = INT64_MAX) {
    int64_t begin = __atomic_load_n(&next_, __ATOMIC_RELAXED), length;
    do {
      length = (count_ - begin) / (2 * threads);
      length = length < 1 ? 1 : length > most ? most : length;
      if (begin >= count_) return {count_, count_};
    } while (!__atomic_compare_exchange_n(&next_, &begin, begin + length, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return {begin, begin + length};
  }

 private:
  int64_t count_;
  alignas(64) int64_t next_ = 0;
};

/// Runs body(context, Team) on `threads` threads, or on the caller alone where the pool serves another caller.
void run_team(int threads, void (*body)(const void* context, Team team), const void* context);

/// Runs body(Team) on up to `threads` threads, and no more than `most`. The body must not throw.
template <class Body>
void parallel(int threads, int64_t most, const Body& body) {
  if (most < threads) threads = int(most);
  if (threads <= 1) return body(Team{0, 1});
  run_team(threads, [](const void* context, Team team) { (*static_cast<const Body*>(context))(team); }, &body);
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
