// Paged attention: each query to the cached keys of its own sequence, read block by block where they lie.
//
// Online softmax (Milakov & Gimelshein, 2018), sixteen keys at a time from the first one on, whatever else is computed
// beside it: see rows.cpp on why.

#include "vectors.h"

namespace {

struct AttentionArgs {
  int heads, kv_heads, dim, window;  // window: keys a query sees, itself included; 0 = all
  int64_t q_stride;
  float scale;
};

struct Tile {  // consecutive rows of one segment
  int32_t row, rows, position, table;
};

// Scores of one query against a block's keys [dim, 16] -> score [16]; only [first, last) are seen.
template <int L>
INLINE void score_block(const float* q, const float* keys, int first, int last, int dim, float* score) {
  constexpr int N = kBlock / L;
  Vec<L> part[4][N] = {};
  for (int d = 0; d < dim; d += 4)
    UNROLL for (int c = 0; c < 4; c++)
      UNROLL for (int i = 0; i < N; i++) part[c][i] += load<L>(keys + (d + c) * kBlock + i * L) * q[d + c];
  UNROLL for (int i = 0; i < N; i++) store<L>(score + i * L, (part[0][i] + part[1][i]) + (part[2][i] + part[3][i]));
  for (int j = 0; j < first; j++) score[j] = -1e30f;
  for (int j = last; j < kBlock; j++) score[j] = -1e30f;  // slots not written yet may hold anything, even NaN
}

// Adds a block's keys [dim, 16] and values [16, dim], of which [first, last) are seen, to one query's result so far.
template <int L>
INLINE void attend_block(const float* q, const float* keys, const float* values, int first, int last, int dim, float* acc,
                         float& max, float& total) {
  constexpr int N = kBlock / L;
  float weight[kBlock];
  score_block<L>(q, keys, first, last, dim, weight);
  float top = max;
  UNROLL for (int i = 0; i < N; i++) {
    const float here = largest<L>(load<L>(weight + i * L));
    top = here > top ? here : top;
  }
  const float correction = exp_negative<L>(Vec<L>{} + (max - top))[0];
  total *= correction;
  UNROLL for (int i = 0; i < N; i++) {
    Vec<L> e = exp_negative<L>(load<L>(weight + i * L) - top);
    store<L>(weight + i * L, e);
    total += sum<L>(e);
  }
  max = top;
  for (int d = 0; d < dim; d += 4 * kBlock) {
    const int lanes = std::min(4 * N, (dim - d) / L);
    Vec<L> o[4 * N];
    for (int c = 0; c < lanes; c++) o[c] = load<L>(acc + d + c * L) * correction;
    if (lanes == 4 * N) {
      for (int j = first; j < last; j++)
        UNROLL for (int c = 0; c < 4 * N; c++) o[c] += load<L>(values + j * dim + d + c * L) * weight[j];
    } else {
      for (int j = first; j < last; j++)
        for (int c = 0; c < lanes; c++) o[c] += load<L>(values + j * dim + d + c * L) * weight[j];
    }
    for (int c = 0; c < lanes; c++) store<L>(acc + d + c * L, o[c]);
  }
}

// A block's keys or values as float32: where they lie, or widened into `scratch`.
template <int L>
INLINE const float* widened(const float* block, int, float*) {
  return block;
}
template <int L>
INLINE const float* widened(const bf16* block, int n, float* scratch) {
  for (int i = 0; i < n; i += L) store<L>(scratch + i, load<L>(block + i));
  return scratch;
}

template <int L, class T>
INLINE void attend_tile(const Tile& tile, int kv_head, const T* q, const T* k_cache, const T* v_cache, const int32_t* tables,
                        T* out, const AttentionArgs& a, float* scratch) {
  const int group = a.heads / a.kv_heads, queries = tile.rows * group, dim = a.dim;
  float* qs = scratch;
  float* acc = qs + queries * dim;
  float* wide_keys = acc + queries * dim;
  float* wide_values = wide_keys + dim * kBlock;
  float* max = wide_values + dim * kBlock;
  float* total = max + queries;
  for (int i = 0; i < queries; i++) {
    const T* src = q + (tile.row + i / group) * a.q_stride + (kv_head * group + i % group) * dim;
    for (int d = 0; d < dim; d += L) store<L>(qs + i * dim + d, load<L>(src + d) * a.scale);
    for (int d = 0; d < dim; d += L) store<L>(acc + i * dim + d, Vec<L>{});
    max[i] = -1e29f;  // above the mask's value, so that a masked key weighs nothing
    total[i] = 0;
  }
  const int end = tile.position + tile.rows;  // keys the last row sees
  const int oldest = a.window > 0 ? std::max(0, tile.position - a.window + 1) : 0;
  for (int b = oldest / kBlock; b * kBlock < end; b++) {
    const int64_t base = (int64_t(tables[tile.table + b]) * a.kv_heads + kv_head) * dim * kBlock;
    const float* keys = widened<L>(k_cache + base, dim * kBlock, wide_keys);
    const float* values = widened<L>(v_cache + base, dim * kBlock, wide_values);
    for (int i = 0; i < queries; i++) {
      const int position = tile.position + i / group;
      const int last = std::min(kBlock, position + 1 - b * kBlock);
      const int first = a.window > 0 ? std::max(0, position - a.window + 1 - b * kBlock) : 0;
      if (first < last) attend_block<L>(qs + i * dim, keys, values, first, last, dim, acc + i * dim, max[i], total[i]);
    }
  }
  for (int i = 0; i < queries; i++) {
    T* dst = out + ((tile.row + i / group) * int64_t(a.heads) + kv_head * group + i % group) * dim;
    const float scale = 1.0f / total[i];
    for (int d = 0; d < dim; d += L) store<L>(dst + d, load<L>(acc + i * dim + d) * scale);
  }
}

#define INSTANTIATE(T, S)                                                                                             \
  LEVELS(attend_##S,                                                                                                  \
         (const Tile& tile, int head, const T* q, const T* k, const T* v, const int32_t* tables, T* out,              \
          const AttentionArgs& a, float* scratch),                                                                    \
         attend_tile<L>(tile, head, q, k, v, tables, out, a, scratch))
INSTANTIATE(float, f32)
INSTANTIATE(bf16, bf16)
#undef INSTANTIATE

}  // namespace

// dim is a multiple of 16; `max_rows`: the rows of the largest tile.
#define EXPORT(T, S)                                                                                                  \
  extern "C" void coserve_paged_attention_##S(const T* q, int64_t q_stride, const T* k_cache, const T* v_cache,       \
                                              const Tile* tiles, int num_tiles, const int32_t* tables, T* out,        \
                                              int max_rows, int heads, int kv_heads, int dim, int window,             \
                                              float scale) {                                                          \
    static const auto run = CHOOSE(attend_##S);                                                                       \
    const AttentionArgs a{heads, kv_heads, dim, window, q_stride, scale};                                             \
    const size_t queries = size_t(max_rows) * (heads / kv_heads);                                                     \
    const size_t need = queries * (2 * dim + 2) + 2 * dim * kBlock;                                                   \
    const int items = num_tiles * kv_heads;                                                                           \
    _Pragma("omp parallel for schedule(dynamic) if (items > 1)") for (int i = 0; i < items; i++)                      \
        run(tiles[i / kv_heads], i % kv_heads, q, k_cache, v_cache, tables, out, a, scratch_floats(need));            \
  }
EXPORT(float, f32)
EXPORT(bf16, bf16)
