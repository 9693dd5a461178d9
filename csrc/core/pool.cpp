// The thread pool behind `parallel`.
//
// A caller posts a job by raising the ticket of each worker it wants; they run it and count `running` down.
// Waiting means spinning for up to kSpins, then sleeping on the word that will change. A thread does not spin on
// a core where another member of the team was last seen: that one may be what it waits for.
#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <new>
#include <system_error>
#include <thread>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "core/threads.h"

namespace dynadapt {

namespace {

using Word = std::atomic<uint32_t>;

constexpr int kSpins = 4000;  // of about 50 ns: longer than what usually lies between two loops of a step
constexpr int kMaxThreads = 1024;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb" ::: "memory");  // yield does nothing on most of them; this waits about as long as x86's pause
#endif
}

void sleep_on(Word& word, uint32_t value) {
#if defined(__linux__)
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
#else
  word.wait(value);
#endif
}

void wake_all(Word& word) {
#if defined(__linux__)
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0);
#else
  word.notify_all();
#endif
}

int current_core() {
#if defined(__linux__)
  return sched_getcpu();
#else
  return -1;
#endif
}

/// What the team knows of one of its threads.
struct Member {
  alignas(64) Word ticket{0};  // raised by the caller: a job is there
  std::atomic<bool> asleep{false};
  std::atomic<int> core{-1};  // where it was last seen
};

struct Pool {
  std::atomic<bool> busy{false};
  int workers = 0;  // started; changed only by the caller that holds `busy`

  void (*body)(const void*, Team) = nullptr;
  const void* context = nullptr;
  std::atomic<int> size{0};

  alignas(64) Word running{0};
  alignas(64) Word arrived{0};
  alignas(64) Word generation{0};
  alignas(64) std::atomic<int> sleepers{0};  // on `running` or `generation`
  Member members[kMaxThreads];

  bool shares_core(int rank, int here) const {
    const int count = size.load(std::memory_order_relaxed);
    for (int r = 0; here >= 0 && r < count; r++)
      if (r != rank && members[r].core.load(std::memory_order_relaxed) == here) return true;
    return false;
  }

  void note_core(int rank) { members[rank].core.store(current_core(), std::memory_order_relaxed); }

  /// Spins until `word` is no longer `value`; false where it is time to sleep instead.
  bool spin(const Word& word, uint32_t value, int rank) {
    for (int i = 0; i < kSpins; i++) {
      if (word.load(std::memory_order_acquire) != value) return true;
      if (i % 64 == 0) {
        note_core(rank);
        if (shares_core(rank, members[rank].core.load(std::memory_order_relaxed))) return false;
      }
      pause();
    }
    return false;
  }

  /// Waits until `word` (running or generation) is no longer `value`.
  void wait(Word& word, uint32_t value, int rank) {
    if (spin(word, value, rank)) return;
    sleepers.fetch_add(1);
    while (word.load() == value) sleep_on(word, value);
    sleepers.fetch_sub(1);
    note_core(rank);
  }

  /// Wakes whoever sleeps on `word`, which has just been changed.
  void announce(Word& word) {
    if (sleepers.load() > 0) wake_all(word);
  }

  void work(int rank) {
    Member& me = members[rank];
    for (uint32_t seen = 0;; seen++) {
      if (!spin(me.ticket, seen, rank)) {
        me.asleep.store(true);
        while (me.ticket.load() == seen) sleep_on(me.ticket, seen);
        me.asleep.store(false);
        note_core(rank);
      }
      body(context, Team{rank, size.load(std::memory_order_relaxed)});
      if (running.fetch_sub(1) == 1) announce(running);
    }
  }

  /// Starts workers until there are `wanted`, or as many as the system gives.
  void grow(int wanted) {
    while (workers < wanted) {
      try {
        std::thread([this, rank = workers + 1] { work(rank); }).detach();
      } catch (const std::system_error&) {
        return;
      }
      workers++;
    }
  }

  void run(int threads, void (*job)(const void*, Team), const void* job_context) {
    grow(threads - 1);
    const int count = threads < workers + 1 ? threads : workers + 1;
    body = job;
    context = job_context;
    size.store(count, std::memory_order_relaxed);
    running.store(uint32_t(count - 1), std::memory_order_relaxed);
    note_core(0);
    for (int r = 1; r < count; r++) {
      members[r].ticket.fetch_add(1);
      if (members[r].asleep.load()) wake_all(members[r].ticket);
    }
    job(job_context, Team{0, count});
    for (uint32_t left; (left = running.load(std::memory_order_acquire)) != 0;) wait(running, left, 0);
  }

  void barrier(int rank, int count) {
    const uint32_t now = generation.load();
    if (arrived.fetch_add(1) + 1 == uint32_t(count)) {
      arrived.store(0);
      generation.fetch_add(1);
      announce(generation);
    } else {
      wait(generation, now, rank);
    }
  }
};

// Never destroyed: workers sleep in it until the process ends. Not a static of a function: a fork while another thread makes
// it would leave the child with a lock that nobody releases.
std::atomic<Pool*> the_pool{nullptr};

// A forked child has no workers, and its caller's job may have been half done: it starts anew.
[[gnu::constructor]] void renew_in_children() {
  pthread_atfork(nullptr, nullptr, [] { the_pool.store(nullptr); });
}

/// Null where there is no memory for one.
Pool* pool() {
  Pool* there = the_pool.load(std::memory_order_acquire);
  if (there) return there;
  Pool* made = new (std::nothrow) Pool;
  if (!made || the_pool.compare_exchange_strong(there, made)) return made;
  delete made;  // another caller was first
  return there;
}

}  // namespace

void Team::barrier() const {
  if (size > 1) the_pool.load(std::memory_order_acquire)->barrier(rank, size);
}

void run_team(int threads, void (*body)(const void*, Team), const void* context) {
  Pool* const team = pool();
  if (!team || team->busy.exchange(true)) return body(context, Team{0, 1});
  team->run(threads < kMaxThreads ? threads : kMaxThreads, body, context);
  team->busy.store(false);
}

}  // namespace dynadapt
