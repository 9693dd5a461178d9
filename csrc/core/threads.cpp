#include "core/threads.h"

#include <omp.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "core/error.h"

namespace dynadapt {

namespace {

std::atomic<int> chosen_threads{0};  // 0: nothing was set

int environment_threads() {
  const char* text = std::getenv("DYNADAPT_NUM_THREADS");
  if (!text || !*text) return 0;
  char* end = nullptr;
  const long value = std::strtol(text, &end, 10);
  if (*end || value < 1 || value > 4096)
    throw Invalid(format("DYNADAPT_NUM_THREADS is \"%s\", accepted is a whole number from 1 to 4096", text));
  return int(value);
}

struct Block {
  void* data = nullptr;
  size_t size = 0;
  ~Block() { std::free(data); }
};

}  // namespace

int num_threads() {
  if (const int chosen = chosen_threads.load(std::memory_order_relaxed)) return chosen;
  static const int environment = environment_threads();
  return environment > 0 ? environment : omp_get_max_threads();
}

void* scratch(size_t bytes) {
  thread_local Block block;
  if (bytes > block.size) {
    std::free(block.data);
    block.size = 0;
    const size_t rounded = (bytes + (size_t(1) << 16) - 1) >> 16 << 16;
    block.data = std::aligned_alloc(64, rounded);
    if (!block.data) throw std::bad_alloc();
    block.size = rounded;
  }
  return block.data;
}

}  // namespace dynadapt

extern "C" int dynadapt_num_threads(void) {
  int threads = 0;
  if (dynadapt::guarded([&] { threads = dynadapt::num_threads(); }) != DYNADAPT_OK) return -1;
  return threads;
}

extern "C" int dynadapt_set_num_threads(int threads) {
  return dynadapt::guarded([&] {
    if (threads < 0 || threads > 4096)
      throw dynadapt::Invalid(dynadapt::format("set_num_threads: threads is %d, accepted is 1 to 4096, or 0 to unset", threads));
    dynadapt::chosen_threads.store(threads, std::memory_order_relaxed);
  });
}
