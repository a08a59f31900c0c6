// Paged attention: each query to the cached keys of its own sequence, read block by block where they lie.
//
// Online softmax (Milakov & Gimelshein, 2018), 64 keys at a time from the first one on, whatever else is computed
// beside it: see rows.cpp on why. A few queries read keys and values together; each sums in the order that it would
// have alone.

#include "operations.h"

namespace {

struct AttentionArgs {
  int heads, kv_heads, dim, window;  // window: keys a query sees, itself included; 0 = all
  int64_t q_stride;
  float scale;
};

constexpr int kSpan = 4;                  // blocks whose keys are weighed together
constexpr int kKeys = kSpan * kBlock;
constexpr float kMasked = -1e30f;         // a score that weighs nothing
template <int L>
constexpr int kQueries = L == 16 ? 4 : 2;  // at a time: as many sums as there are registers for
template <int L>
constexpr int kScored = L == 16 ? 2 : 1;  // blocks at a time: a query's element is read for all of their keys

// Some of a span's keys, counted from its first one.
struct Range {
  int first, last;
};

// Where a span's blocks lie, and the next span's. Nothing follows them in memory for a processor to foresee: while keys
// are scored, the values that they weigh are asked for, and while those are added, the next keys.
template <class T>
struct Span {
  const T *keys[kSpan], *values[kSpan], *next_keys[kSpan];
};

// Queries [Q, dim] against B blocks' keys [dim, 16] -> scores [Q, kKeys]. `values`: the blocks'.
template <int L, int Q, int B, class T>
INLINE void score_blocks(const float* q, const T* const* keys, const T* const* values, int dim, float* scores) {
  constexpr int N = kBlock / L;
  Vec<L> even[Q][B * N] = {}, odd[Q][B * N] = {};
  for (int d = 0; d < dim; d += 2) {
    Vec<L> a[B * N], b[B * N];
    UNROLL for (int i = 0; i < B * N; i++) {
      const T* at = keys[i / N] + d * kBlock + i % N * L;
      a[i] = load<L>(at), b[i] = load<L>(at + kBlock);
    }
    UNROLL for (int i = 0; i < B; i++) {
      __builtin_prefetch(values[i] + d * kBlock);
      __builtin_prefetch(values[i] + (d + 1) * kBlock);
    }
    UNROLL for (int c = 0; c < Q; c++) {
      const Vec<L> first = Vec<L>{} + q[c * dim + d], second = Vec<L>{} + q[c * dim + d + 1];
      UNROLL for (int i = 0; i < B * N; i++) {
        even[c][i] += a[i] * first;
        odd[c][i] += b[i] * second;
      }
    }
  }
  UNROLL for (int c = 0; c < Q; c++)
    UNROLL for (int i = 0; i < B * N; i++) store<L>(scores + c * kKeys + i * L, even[c][i] + odd[c][i]);
}

// The scores of one query in blocks that begin at `blocks.first`, of which it sees `seen`, become weights; returns what
// its result so far is worth beside them.
template <int L>
INLINE float weigh(float* scores, Range blocks, Range seen, float& max, float& total) {
  for (int j = blocks.first; j < std::min(seen.first, blocks.last); j++) scores[j] = kMasked;
  for (int j = std::max(seen.last, blocks.first); j < blocks.last; j++) scores[j] = kMasked;
  Vec<L> tops = load<L>(scores + blocks.first), sums = {};
  for (int j = blocks.first + L; j < blocks.last; j += L) {
    const Vec<L> here = load<L>(scores + j);
    tops = here > tops ? here : tops;
  }
  const float top = std::max(max, largest<L>(tops)), correction = exp_negative<L>(Vec<L>{} + (max - top))[0];
  for (int j = blocks.first; j < blocks.last; j += L) {
    const Vec<L> weights = exp_negative<L>(load<L>(scores + j) - top);
    store<L>(scores + j, weights);
    sums += weights;
  }
  max = top;
  total = total * correction + sum<L>(sums);
  return correction;
}

// Adds what keys of a span, which all Q queries see, weigh of its values (by block: [16, dim]) to results [Q, dim], `C`
// vectors from d on.
template <int L, int Q, int C, class T>
INLINE void add_some(const Span<T>& span, Range keys, const float* weights, float* results, int d, int dim) {
  Vec<L> sums[Q][C];
  UNROLL for (int q = 0; q < Q; q++)
    UNROLL for (int c = 0; c < C; c++) sums[q][c] = load<L>(results + q * dim + d + c * L);
  for (int j = keys.first; j < keys.last; j++) {
    const int at = j % kBlock * dim + d;
    const T *value = span.values[j / kBlock] + at, *next = span.next_keys[j / kBlock] + at;
    Vec<L> v[C];
    UNROLL for (int c = 0; c < C; c++) {
      v[c] = load<L>(value + c * L);
      __builtin_prefetch(next + c * L);
    }
    UNROLL for (int q = 0; q < Q; q++)
      UNROLL for (int c = 0; c < C; c++) sums[q][c] += v[c] * weights[q * kKeys + j];
  }
  UNROLL for (int q = 0; q < Q; q++)
    UNROLL for (int c = 0; c < C; c++) store<L>(results + q * dim + d + c * L, sums[q][c]);
}
template <int L, int Q, class T>
INLINE void add_values(const Span<T>& span, Range keys, const float* weights, float* results, int dim) {
  if (keys.first >= keys.last) return;
  int d = 0;
  for (; d + 4 * L <= dim; d += 4 * L) add_some<L, Q, 4>(span, keys, weights, results, d, dim);
  for (; d < dim; d += L) add_some<L, Q, 1>(span, keys, weights, results, d, dim);
}

// Queries and their results so far: [queries, dim]; max, total [queries].
struct Queries {
  float *q, *results, *max, *total;
  int count, group, dim, position, window;  // `group` of them stand at one position

  Range seen(int query, int span) const {  // may begin below 0 and end beyond kKeys
    const int at = position + query / group - span * kKeys;
    return {window > 0 ? at + 1 - window : 0, at + 1};
  }
};

// Q queries against a span. Keys that all of them see are read once; those that only some see, by each of these.
template <int L, int Q, class T>
INLINE void attend_span(const Queries& all, int query, int number, const Span<T>& span) {
  const Range low = all.seen(query, number), high = all.seen(query + Q - 1, number);
  const Range any{std::max(0, low.first), std::min(kKeys, high.last)};
  if (any.first >= any.last) return;
  const Range blocks{any.first / kBlock * kBlock, (any.last + kBlock - 1) / kBlock * kBlock};
  Range common{std::max(0, high.first), std::min(kKeys, low.last)};
  if (common.first >= common.last) common = {kKeys, kKeys};
  float scores[Q * kKeys];
  const int dim = all.dim;
  float *q = all.q + query * dim, *results = all.results + query * dim;
  int j = blocks.first;
  for (; j + kScored<L> * kBlock <= blocks.last; j += kScored<L> * kBlock)
    score_blocks<L, Q, kScored<L>>(q, span.keys + j / kBlock, span.values + j / kBlock, dim, scores + j);
  for (; j < blocks.last; j += kBlock)
    score_blocks<L, Q, 1>(q, span.keys + j / kBlock, span.values + j / kBlock, dim, scores + j);
  for (int c = 0; c < Q; c++) {
    const Range seen = all.seen(query + c, number);
    float *weights = scores + c * kKeys, *result = results + c * dim;
    const float correction = weigh<L>(weights, blocks, seen, all.max[query + c], all.total[query + c]);
    for (int d = 0; d < dim; d += L) store<L>(result + d, load<L>(result + d) * correction);
    const Range before{std::max(0, seen.first), std::min(seen.last, common.first)};
    add_values<L, 1>(span, before, weights, result, dim);
  }
  add_values<L, Q>(span, common, scores, results, dim);
  for (int c = 0; c < Q; c++) {
    const Range after{common.last, std::min(all.seen(query + c, number).last, kKeys)};
    add_values<L, 1>(span, after, scores + c * kKeys, results + c * dim, dim);
  }
}
template <int L, int Q, class T>
INLINE void attend_spans(const Queries& all, int query, int number, const Span<T>& span) {
  for (; query + Q <= all.count; query += Q) attend_span<L, Q>(all, query, number, span);
  if constexpr (Q > 1) {  // what is left over, in halves
    if (query < all.count) attend_spans<L, Q / 2>(all, query, number, span);
  }
}

template <int L, class T>
INLINE void attend_tile(const RowTile& tile, int kv_head, const T* q, const T* k_cache, const T* v_cache,
                        const int32_t* tables, T* out, const AttentionArgs& a, float* scratch) {
  const int group = a.heads / a.kv_heads, count = tile.rows * group, dim = a.dim;
  float *qs = scratch, *results = qs + count * dim, *max = results + count * dim, *total = max + count;
  const Queries queries{qs, results, max, total, count, group, dim, tile.position, a.window};
  for (int i = 0; i < count; i++) {
    const T* src = q + (tile.row + i / group) * a.q_stride + (kv_head * group + i % group) * dim;
    for (int d = 0; d < dim; d += L) store<L>(qs + i * dim + d, load<L>(src + d) * a.scale);
    for (int d = 0; d < dim; d += L) store<L>(results + i * dim + d, Vec<L>{});
    max[i] = kMasked / 10;  // above it, so that a masked key weighs nothing
    total[i] = 0;
  }
  const int end = tile.position + tile.rows;  // keys the last row sees
  const int oldest = a.window > 0 ? std::max(0, tile.position - a.window + 1) : 0;
  const auto place = [&](int block) ALWAYS {
    const int visible = std::max(oldest / kBlock, std::min(block, (end - 1) / kBlock));  // others are not read
    return (int64_t(tables[tile.table + visible]) * a.kv_heads + kv_head) * dim * kBlock;
  };
  for (int number = oldest / kKeys; number * kKeys < end; number++) {
    Span<T> span;
    for (int i = 0; i < kSpan; i++) {
      const int64_t here = place(number * kSpan + i);
      span.keys[i] = k_cache + here, span.values[i] = v_cache + here;
      span.next_keys[i] = k_cache + place((number + 1) * kSpan + i);
    }
    attend_spans<L, kQueries<L>>(queries, 0, number, span);
  }
  for (int i = 0; i < count; i++) {
    T* dst = out + ((tile.row + i / group) * int64_t(a.heads) + kv_head * group + i % group) * dim;
    const float scale = 1.0f / total[i];
    for (int d = 0; d < dim; d += L) store<L>(dst + d, load<L>(results + i * dim + d) * scale);
  }
}

#define INSTANTIATE(T, S)                                                                                             \
  LEVELS(attend_##S,                                                                                                  \
         (const RowTile& tile, int head, const T* q, const T* k, const T* v, const int32_t* tables, T* out,              \
          const AttentionArgs& a, float* scratch),                                                                    \
         attend_tile<L>(tile, head, q, k, v, tables, out, a, scratch))
INSTANTIATE(float, f32)
INSTANTIATE(bf16, bf16)
#undef INSTANTIATE

}  // namespace

// dim is a multiple of 16; `max_rows`: the rows of the largest tile.
#define EXPORT(T, S)                                                                                                  \
  extern "C" void coserve_paged_attention_##S(const T* q, int64_t q_stride, const T* k_cache, const T* v_cache,       \
                                              const RowTile* tiles, int num_tiles, const int32_t* tables, T* out,        \
                                              int max_rows, int heads, int kv_heads, int dim, int window,             \
                                              float scale) {                                                          \
    static const auto run = CHOOSE(attend_##S);                                                                       \
    const AttentionArgs a{heads, kv_heads, dim, window, q_stride, scale};                                             \
    const size_t queries = size_t(max_rows) * (heads / kv_heads);                                                     \
    const size_t need = queries * (2 * dim + 2);                                                   \
    const int items = num_tiles * kv_heads;                                                                           \
    _Pragma("omp parallel for schedule(dynamic) if (items > 1)") for (int i = 0; i < items; i++)                      \
        run(tiles[i / kv_heads], i % kv_heads, q, k_cache, v_cache, tables, out, a, scratch_floats(need));            \
  }
EXPORT(float, f32)
EXPORT(bf16, bf16)
