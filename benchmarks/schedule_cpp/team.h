// A team of threads that are simulated: each member runs until it takes a task or waits, and the member with the least work behind it is next.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "counting/work.h"

namespace dynadapt::counting {

/// What turns work into time, for the order in which members take tasks and for the time of a region.
struct Rates {
  double flops = 1, accesses = 1, functions = 1;  // a second, of one thread
  double barrier = 0, member = 0;  // seconds that a start or a barrier costs, and for each member of the team besides
  double seconds(const Work& work) const { return work.flops / flops + work.accesses / accesses + work.functions / functions; }
};
extern Rates rates;

/// All calls of `parallel` by one kernel.
struct Total {
  int64_t regions = 0, barriers = 0, tasks = 0;
  int64_t members = 0;  // of all teams
  Work work;
  double busy = 0;        // seconds of work of all members
  double longest = 0;     // seconds of the longest member, barrier by barrier
  double seconds = 0;     // and the cost of starting and of waiting
  double shares[2] = {};  // busy seconds of the first two members
};

/// By the kernel's name. Work outside of any region is under "one thread".
extern std::map<std::string, Total> totals;
void clear();
/// "forward(LinearForward)" in the name that the compiler gives to a `parallel` of a body of
/// dynadapt::NAMESPACE::{anonymous}::forward<float>(const LinearForward&)::<lambda...
std::string kernel_of(const std::string& parallel);
/// Takes over what the calling thread has done outside of regions.
void settle();

}  // namespace dynadapt::counting
