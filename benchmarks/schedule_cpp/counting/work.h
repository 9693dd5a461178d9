// What the counting forms of the kernels' helpers add up: the work of the member of a team that is running.
#pragma once

#include <cstdint>

namespace dynadapt::counting {

struct Work {
  double flops = 0;      // of products, with columns rounded up to what a tile computes
  double accesses = 0;   // elements that are loaded or stored outside products
  double functions = 0;  // elements of exponentials

  void operator+=(const Work& other) {
    flops += other.flops;
    accesses += other.accesses;
    functions += other.functions;
  }
};

/// Of the member that runs now.
inline thread_local Work* mine = nullptr;

/// The member that runs now is about to take a task: those that are behind it come first.
void yield();

/// The body of a region begins or ends in the member of this rank.
void enter(int rank);
void leave(int rank);

/// A queue of this many tasks was made.
void queue(int64_t tasks);

/// One call of `parallel`, while it lives.
struct Region {
  Region(const char* body, int threads);
  ~Region();
};

}  // namespace dynadapt::counting
