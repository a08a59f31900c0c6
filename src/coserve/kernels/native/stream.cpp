// A plain streaming read: the memory bandwidth that everything else is measured against.

#include "vectors.h"

namespace {

template <int L>
INLINE void read_words(const uint64_t* words, int64_t count, uint64_t* result) {
  using Words = typename Lanes<L>::Words;
  constexpr int N = 16 / L;  // vectors of a cache line
  Words part[N] = {};
  int64_t i = 0;
  for (; i + 64 <= count; i += 64)
    for (int line = 0; line < 8; line++) {
      __builtin_prefetch(words + i + 512 + 8 * line);  // 4 KiB ahead: a core's own prefetcher stops at pages
      UNROLL for (int c = 0; c < N; c++) {
        Words v;
        std::memcpy(&v, words + i + 8 * line + c * L / 2, sizeof v);
        part[c] ^= v;
      }
    }
  uint64_t all = 0;
  for (; i < count; i++) all ^= words[i];
  for (int c = 0; c < N; c++)
    for (int j = 0; j < L; j++) all ^= part[c][j];
  *result = all;
}
LEVELS(read, (const uint64_t* words, int64_t count, uint64_t* result), read_words<L>(words, count, result))

}  // namespace

// Reads a buffer once, on all threads; the result keeps the compiler from leaving the read out.
extern "C" uint64_t coserve_stream_read(const uint64_t* words, int64_t count) {
  static const auto run = CHOOSE(read);
  uint64_t all = 0;
  const int64_t chunk = 1 << 16;
#pragma omp parallel for schedule(static) reduction(^ : all)
  for (int64_t i = 0; i < count; i += chunk) {
    uint64_t one;
    run(words + i, std::min(chunk, count - i), &one);
    all ^= one;
  }
  return all;
}
