// The thread pool alone: several callers at once while another thread changes how many threads they may use, creation by
// whoever is first, forks in between. Ends with 0 where every loop did all of its work; ThreadSanitizer says the rest.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "core/threads.h"
#include "dynadapt/dynadapt.h"

using namespace dynadapt;

namespace {

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "%s\n", what);
  std::_Exit(1);
}

/// What every op does: scratch for a team, a part for each thread, a barrier, then tasks off a queue.
void loop(int64_t items) {
  const int threads = num_threads();
  int64_t* sums = static_cast<int64_t*>(scratch(threads * 4096 * sizeof(int64_t)));
  std::vector<int64_t> first(items), second(items);
  TaskQueue queue(items);
  parallel(threads, items, [&](Team team) {
    if (team.size > threads) fail("a team larger than its scratch");
    for (int i = 0; i < 4096; i++) sums[team.rank * 4096 + i] = team.rank;
    const Range share = team.share(items);
    for (int64_t i = share.begin; i < share.end; i++) first[i] = i;
    team.barrier();
    for (Range r = queue.take(team.size); r.begin < r.end; r = queue.take(team.size))
      for (int64_t i = r.begin; i < r.end; i++) second[i] = first[items - 1 - i];
    for (int i = 0; i < 4096; i++)
      if (sums[team.rank * 4096 + i] != team.rank) fail("another thread's scratch was written");
  });
  for (int64_t i = 0; i < items; i++)
    if (second[i] != items - 1 - i) fail("a task was lost");
}

/// A sanitizer's allocator has locks of its own, which a child inherits as other threads held them: there, forks wait until the
/// callers are done, and the pool's threads with them.
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr bool kForkLast = true;
#else
constexpr bool kForkLast = false;
#endif

/// A forked child starts with a pool of its own, whatever the parent's threads were doing.
void fork_and_loop() {
  const pid_t child = fork();
  if (child == 0) {
#if defined(__SANITIZE_THREAD__)
    dynadapt_set_num_threads(1);  // ThreadSanitizer can't follow threads that a child of several threads starts
#endif
    for (int i = 0; i < 3; i++) loop(500);
    std::_Exit(0);
  }
  int status = 0;
  if (waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != 0) fail("a forked child failed");
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 100;
  std::atomic<bool> stop{false};
  std::thread changer([&] {
    for (unsigned i = 0; !stop; i++) dynadapt_set_num_threads(i % 8), std::this_thread::yield();
  });
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 3; caller++)
    callers.emplace_back([&, caller] {
      for (int i = 0; i < rounds; i++) {
        loop(100 + (i * 37 + caller * 11) % 900);
        if (dynadapt_set_num_threads(-1 - caller) != DYNADAPT_INVALID) fail("a wrong count was taken");
        char expected[64];
        std::snprintf(expected, sizeof expected, "set_num_threads: threads is %d,", -1 - caller);
        if (std::string_view(dynadapt_last_error()).find(expected) != 0) fail("an error text of another thread");
      }
    });
  const int forks = 1 + rounds / 25;
  for (int i = 0; i < forks && !kForkLast; i++) fork_and_loop();
  for (std::thread& caller : callers) caller.join();
  stop = true;
  changer.join();
  for (int i = 0; i < forks && kForkLast; i++) fork_and_loop();
  std::puts("done");
}
