// The same counts from the real pool and its threads, where what a member has done does not decide who takes the next task.
#include <mutex>

#include "team.h"

namespace dynadapt::counting {

namespace {

Work serial;
thread_local Work own;
Total* region = nullptr;
int64_t queued = 0;
std::mutex lock;

}  // namespace

void clear() {
  totals.clear();
  serial = {};
  queued = 0;
  mine = &serial;
}

void settle() { serial = {}; }
void queue(int64_t tasks) { queued += tasks; }
void yield() {}

void enter(int) {
  own = {};
  mine = &own;
}

void leave(int rank) {
  const std::lock_guard<std::mutex> held(lock);
  region->work += own;
  region->busy += rates.seconds(own);
  region->members++;
  if (rank < 2) region->shares[rank] += rates.seconds(own);
  if (rank == 0) mine = &serial;
}

Region::Region(const char* body, int) {
  region = &totals[kernel_of(body)];
  region->regions++;
  region->tasks += queued;
  queued = 0;
}

Region::~Region() {}

}  // namespace dynadapt::counting
