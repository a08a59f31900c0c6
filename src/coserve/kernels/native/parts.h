// How a product is shared among the threads.

#pragma once

#include <cstdint>

#include <omp.h>

constexpr int64_t kWorthThreads = 1 << 16;  // multiplications, or elements to prepare: with fewer, one thread is faster

// Parts of `units` of work, for threads to take in turn: a thread that another program holds up takes fewer. They get
// smaller towards the end, so that nobody waits long for the last one.
class Parts {
 public:
  Parts(int64_t units, int64_t multiplications)
      : count(multiplications > kWorthThreads ? kRounds * omp_get_max_threads() : 1),
        units_(units),
        threads_(omp_get_max_threads()) {}

  const int count;
  int64_t begin(int part) const {
    if (count == 1) return part * units_;
    const int64_t round = part / threads_, before = kBefore[round], each = kBefore[round + 1] - before;
    return units_ * (threads_ * before + part % threads_ * each) / (threads_ * kBefore[kRounds]);
  }
  int64_t end(int part) const { return begin(part + 1); }

 private:
  static constexpr int kRounds = 7;
  static constexpr int kBefore[] = {0, 8, 16, 24, 28, 30, 31, 32, 32};  // of the work, in 32nds
  const int64_t units_;
  const int threads_;
};
