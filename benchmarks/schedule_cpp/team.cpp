#include "team.h"

#include <ucontext.h>

#include <algorithm>
#include <memory>

#include "core/threads.h"

namespace dynadapt {

namespace counting {

namespace {

constexpr size_t kStack = size_t(1) << 20;

struct Member {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  Work work;
  double since = 0, clock = 0;  // seconds of work at the last barrier, and now
  bool waits = false, done = false;
};

/// The team that runs; empty outside of a region.
struct Simulated {
  std::vector<Member> members;
  ucontext_t caller;
  int running = -1;
  void (*body)(const void*, dynadapt::Team) = nullptr;
  const void* argument = nullptr;
} simulated;

Work serial;
Total* region = nullptr;
int64_t queued = 0;

void to_scheduler() { swapcontext(&simulated.members[size_t(simulated.running)].context, &simulated.caller); }

void start() {
  const int rank = simulated.running;
  simulated.body(simulated.argument, dynadapt::Team{rank, int(simulated.members.size())});
  simulated.members[size_t(rank)].done = true;
  to_scheduler();
}

double overhead() { return rates.barrier + rates.member * double(simulated.members.size()); }

/// The members go on together.
void meet() {
  double longest = 0;
  for (Member& m : simulated.members) longest = std::max(longest, m.clock - m.since);
  region->longest += longest;
  region->seconds += longest + overhead();
  double latest = 0;
  for (const Member& m : simulated.members) latest = std::max(latest, m.clock);
  for (Member& m : simulated.members) {
    m.since = m.clock = latest;
    m.waits = false;
  }
}

}  // namespace

void clear() {
  totals.clear();
  serial = {};
  queued = 0;
  mine = &serial;
}

void settle() {
  Total& total = totals["one thread"];
  total.work += serial;
  const double seconds = rates.seconds(serial);
  total.busy += seconds;
  total.longest += seconds;
  total.seconds += seconds;
  serial = {};
}

void queue(int64_t tasks) { queued += tasks; }

void yield() {
  if (simulated.running < 0) return;
  to_scheduler();
}

void enter(int) {}
void leave(int) {}

Region::Region(const char* body, int) {
  settle();
  region = &totals[kernel_of(body)];
  region->regions++;
  region->tasks += queued;
  queued = 0;
}

Region::~Region() {
  if (serial.flops || serial.accesses || serial.functions) {  // a team of one
    const double seconds = rates.seconds(serial);
    region->work += serial;
    region->busy += seconds;
    region->longest += seconds;
    region->seconds += seconds;
    region->shares[0] += seconds;
    region->members++;
    serial = {};
  }
  region = nullptr;
}

}  // namespace counting

using namespace counting;

void Team::barrier() const {
  if (size == 1) return;
  simulated.members[size_t(simulated.running)].waits = true;
  to_scheduler();
}

void run_team(int threads, void (*body)(const void*, Team), const void* context) {
  auto& members = simulated.members;
  members = std::vector<Member>(size_t(threads));
  simulated.body = body;
  simulated.argument = context;
  for (Member& m : members) {
    m.stack.reset(new char[kStack]);
    getcontext(&m.context);
    m.context.uc_stack.ss_sp = m.stack.get();
    m.context.uc_stack.ss_size = kStack;
    m.context.uc_link = nullptr;
    makecontext(&m.context, start, 0);
  }
  region->members += threads;
  std::vector<double> busy(size_t(threads), 0.0);
  for (;;) {
    Member* next = nullptr;
    for (Member& m : members)
      if (!m.waits && !m.done && (!next || m.clock < next->clock)) next = &m;
    if (!next) {  // they are at a barrier, or at the end
      const bool at_barrier = std::any_of(members.begin(), members.end(), [](const Member& m) { return m.waits; });
      for (size_t i = 0; i < members.size(); i++) busy[i] += members[i].clock - members[i].since;
      meet();
      if (!at_barrier) break;
      region->barriers++;
      continue;
    }
    simulated.running = int(next - members.data());
    mine = &next->work;
    swapcontext(&simulated.caller, &next->context);
    next->clock += rates.seconds(next->work);
    region->work += next->work;
    next->work = {};
  }
  for (const double seconds : busy) region->busy += seconds;
  for (size_t i = 0; i < busy.size() && i < 2; i++) region->shares[i] += busy[i];
  simulated.running = -1;
  members.clear();
  mine = &serial;
}

}  // namespace dynadapt
