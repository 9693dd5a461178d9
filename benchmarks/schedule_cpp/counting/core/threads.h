// csrc/core/threads.h with a report of every parallel region, and of every task that is taken. How threads share the work is its code.
#pragma once

#include "work.h"

#define TaskQueue PlainTaskQueue
#define parallel plain_parallel
#include_next "core/threads.h"
#undef TaskQueue
#undef parallel

namespace dynadapt {

class TaskQueue : public PlainTaskQueue {
 public:
  explicit TaskQueue(int64_t count) : PlainTaskQueue(count) { counting::queue(count); }
  Range take(int threads, int64_t most = INT64_MAX) {
    counting::yield();
    return PlainTaskQueue::take(threads, most);
  }
};

template <class Body>
void parallel(int threads, int64_t most, const Body& body) {
  const counting::Region region(__PRETTY_FUNCTION__, threads);
  plain_parallel(threads, most, [&](Team team) {
    counting::enter(team.rank);
    body(team);
    counting::leave(team.rank);
  });
}

}  // namespace dynadapt
