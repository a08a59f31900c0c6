// CPU kernels of the inference path, on raw pointers: no link against PyTorch, and no OpenMP runtime of their own
// (the symbols resolve to the one that PyTorch has loaded, so there is one pool of threads).
//
// Every row is computed in an order that depends on nothing but its own position: a request's numbers are the same,
// to the bit, alone or in any company. So: no -ffast-math, no reduction whose order depends on the batch.
//
// Vectors are the compiler's (GCC, Clang): sixteen floats, which it splits where the processor has shorter registers.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define DISPATCH __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define DISPATCH
#endif
#define INLINE static inline __attribute__((always_inline))

namespace {

constexpr int kBlock = 16;  // tokens in a KV block, and floats in a vector

typedef float Vec __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));

struct bf16 {
  uint16_t bits;
};

INLINE Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
INLINE Vec load(const bf16* p) {
  Halves h;
  std::memcpy(&h, p, sizeof h);
  return (Vec)(__builtin_convertvector(h, Words) << 16);
}
INLINE void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }
INLINE Halves halves(Vec v) {  // round to nearest, ties to even
  Words u = (Words)v;
  u += 0x7fff + ((u >> 16) & 1);
  return __builtin_convertvector(u >> 16, Halves);
}
INLINE void store(bf16* p, Vec v) {
  Halves h = halves(v);
  std::memcpy(p, &h, sizeof h);
}
INLINE Vec rounded(Vec v, const float*) { return v; }
INLINE Vec rounded(Vec v, const bf16*) { return (Vec)(__builtin_convertvector(halves(v), Words) << 16); }

// The first n < 16 elements; the rest are zero.
template <class T>
INLINE Vec load_tail(const T* p, int n) {
  T padded[kBlock] = {};
  std::memcpy(padded, p, n * sizeof(T));
  return load(padded);
}
template <class T>
INLINE void store_tail(T* p, Vec v, int n) {
  T padded[kBlock];
  store(padded, v);
  std::memcpy(p, padded, n * sizeof(T));
}

// exp(x) for x <= 0, to about 1e-7 relative; zero below -87.
INLINE Vec exp_negative(Vec x) {
  Vec clamped = x < -87.0f ? Vec{} - 87.0f : x;
  Ints n = __builtin_convertvector(clamped * 1.44269504f - 0.5f, Ints);  // towards zero: to nearest, for x <= 0
  Vec f = __builtin_convertvector(n, Vec);
  Vec r = clamped - f * 0.693359375f + f * 2.12194440e-4f;
  Vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  Vec scaled = p * (Vec)((n + 127) << 23);
  return x < -87.0f ? Vec{} : scaled;
}

INLINE float sum(Vec v) {
  float t[kBlock];
  store(t, v);
  for (int i = 0; i < 8; i++) t[i] += t[i + 8];
  for (int i = 0; i < 4; i++) t[i] += t[i + 4];
  return (t[0] + t[2]) + (t[1] + t[3]);
}
INLINE float largest(Vec v) {
  float t[kBlock];
  store(t, v);
  for (int i = 0; i < 8; i++) t[i] = t[i] > t[i + 8] ? t[i] : t[i + 8];
  for (int i = 0; i < 4; i++) t[i] = t[i] > t[i + 4] ? t[i] : t[i + 4];
  float a = t[0] > t[2] ? t[0] : t[2], b = t[1] > t[3] ? t[1] : t[3];
  return a > b ? a : b;
}

template <class T>
INLINE void norm_row(const T* x, const T* weight, T* out, int n, float eps) {
  Vec squares = {};
  int i = 0;
  for (; i + kBlock <= n; i += kBlock) squares += load(x + i) * load(x + i);
  if (i < n) squares += load_tail(x + i, n - i) * load_tail(x + i, n - i);
  float scale = 1.0f / std::sqrt(sum(squares) / n + eps);
  for (i = 0; i + kBlock <= n; i += kBlock) store(out + i, rounded(load(x + i) * scale, x) * load(weight + i));
  if (i < n) store_tail(out + i, rounded(load_tail(x + i, n - i) * scale, x) * load_tail(weight + i, n - i), n - i);
}

template <class T>
INLINE Vec silu(Vec g, const T* like) {
  Vec e = exp_negative(g < 0.0f ? g : -g);  // exp(-|g|)
  Vec top = g < 0.0f ? e : Vec{} + 1.0f;
  return rounded(g * top / (e + 1.0f), like);
}

template <class T>
INLINE void silu_row(const T* gate, const T* up, T* out, int n) {
  int i = 0;
  for (; i + kBlock <= n; i += kBlock) store(out + i, silu(load(gate + i), gate) * load(up + i));
  if (i < n) store_tail(out + i, silu(load_tail(gate + i, n - i), gate) * load_tail(up + i, n - i), n - i);
}

template <class T>
INLINE void rotate(T* head, const float* cos, const float* sin, int half) {
  int i = 0;
  for (; i + kBlock <= half; i += kBlock) {
    Vec a = load(head + i), b = load(head + half + i), c = load(cos + i), s = load(sin + i);
    store(head + i, a * c - b * s);
    store(head + half + i, b * c + a * s);
  }
  if (int rest = half - i; rest > 0) {
    Vec a = load_tail(head + i, rest), b = load_tail(head + half + i, rest);
    Vec c = load_tail(cos + i, rest), s = load_tail(sin + i, rest);
    store_tail(head + i, a * c - b * s, rest);
    store_tail(head + half + i, b * c + a * s, rest);
  }
}

struct RopeArgs {
  int heads, kv_heads, dim;
  float eps;
};

template <class T>
INLINE void rope_row(T* row, const T* q_norm, const T* k_norm, const float* cos, const float* sin, int slot, T* k_cache,
                     T* v_cache, const RopeArgs& a) {
  for (int h = 0; h < a.heads + a.kv_heads; h++) {
    T* head = row + h * a.dim;
    const T* norm = h < a.heads ? q_norm : k_norm;
    if (norm) norm_row(head, norm, head, a.dim, a.eps);
    rotate(head, cos, sin, a.dim / 2);
  }
  int64_t block = slot / kBlock, offset = slot % kBlock;
  for (int h = 0; h < a.kv_heads; h++) {
    const T* k = row + (a.heads + h) * a.dim;
    const T* v = row + (a.heads + a.kv_heads + h) * a.dim;
    int64_t base = (block * a.kv_heads + h) * a.dim * kBlock;
    for (int d = 0; d < a.dim; d++) k_cache[base + d * kBlock + offset] = k[d];  // keys lie transposed in a block
    std::memcpy(v_cache + base + offset * a.dim, v, a.dim * sizeof(T));
  }
}

struct AttentionArgs {
  int heads, kv_heads, dim, window;  // window: keys a query sees, itself included; 0 = all
  int64_t q_stride;
  float scale;
};

struct Tile {  // consecutive rows of one segment
  int32_t row, rows, position, table;
};

// One query against the keys of one block, held as float32: keys [dim][16], values [16][dim].
// Online softmax (Milakov & Gimelshein, 2018), a block of sixteen keys at a time from the first one on.
INLINE void attend_block(const float* q, const float* keys, const float* values, int first, int last, int dim, float* acc,
                         float& max, float& total) {
  Vec part[4] = {};
  for (int d = 0; d < dim; d += 4)
    for (int c = 0; c < 4; c++) part[c] += load(keys + (d + c) * kBlock) * q[d + c];
  Vec score = (part[0] + part[1]) + (part[2] + part[3]);
  const Ints lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  score = (lane >= first) & (lane < last) ? score : Vec{} - 1e30f;
  float top = largest(score);
  top = top > max ? top : max;
  float correction = exp_negative(Vec{} + (max - top))[0];
  score = exp_negative(score - top);
  max = top;
  total = total * correction + sum(score);
  float weight[kBlock];
  store(weight, score);
  for (int d = 0; d < dim; d += 4 * kBlock) {
    const int lanes = dim - d < 4 * kBlock ? (dim - d) / kBlock : 4;
    Vec o[4];
    for (int c = 0; c < lanes; c++) o[c] = load(acc + d + c * kBlock) * correction;
    for (int j = 0; j < kBlock; j++)
      for (int c = 0; c < lanes; c++) o[c] += load(values + j * dim + d + c * kBlock) * weight[j];
    for (int c = 0; c < lanes; c++) store(acc + d + c * kBlock, o[c]);
  }
}

template <class T>
INLINE void attend_tile(const Tile& tile, int kv_head, const T* q, const T* k_cache, const T* v_cache, const int32_t* tables,
                        T* out, const AttentionArgs& a, float* scratch) {
  const int group = a.heads / a.kv_heads, queries = tile.rows * group, dim = a.dim;
  float* qs = scratch;
  float* acc = qs + queries * dim;
  float* keys = acc + queries * dim;
  float* values = keys + dim * kBlock;
  float* max = values + dim * kBlock;
  float* total = max + queries;
  for (int i = 0; i < queries; i++) {
    const T* src = q + (tile.row + i / group) * a.q_stride + (kv_head * group + i % group) * dim;
    for (int d = 0; d < dim; d += kBlock) store(qs + i * dim + d, load(src + d) * a.scale);
    for (int d = 0; d < dim; d += kBlock) store(acc + i * dim + d, Vec{});
    max[i] = -1e29f;  // above the mask's value, so that a masked key weighs nothing
    total[i] = 0;
  }
  const int end = tile.position + tile.rows;  // keys the last row sees
  const int oldest = a.window > 0 && tile.position - a.window + 1 > 0 ? tile.position - a.window + 1 : 0;
  for (int b = oldest / kBlock; b * kBlock < end; b++) {
    int64_t base = (int64_t(tables[tile.table + b]) * a.kv_heads + kv_head) * dim * kBlock;
    for (int i = 0; i < dim * kBlock; i += kBlock) store(keys + i, load(k_cache + base + i));
    for (int i = 0; i < dim * kBlock; i += kBlock) store(values + i, load(v_cache + base + i));
    // Slots that this segment has not written yet may hold anything, even NaN; times zero they must stay zero.
    if (end - b * kBlock < kBlock)
      for (int i = (end - b * kBlock) * dim; i < dim * kBlock; i += kBlock) store(values + i, Vec{});
    for (int i = 0; i < queries; i++) {
      int position = tile.position + i / group;
      int last = position + 1 - b * kBlock;
      int first = a.window > 0 ? position - a.window + 1 - b * kBlock : 0;
      if (last <= 0 || first >= kBlock) continue;
      attend_block(qs + i * dim, keys, values, first, last, dim, acc + i * dim, max[i], total[i]);
    }
  }
  for (int i = 0; i < queries; i++) {
    T* dst = out + ((tile.row + i / group) * int64_t(a.heads) + kv_head * group + i % group) * dim;
    float scale = 1.0f / total[i];
    for (int d = 0; d < dim; d += kBlock) store(dst + d, load(acc + i * dim + d) * scale);
  }
}

#define INSTANTIATE(T, S)                                                                                             \
  DISPATCH void norm_row_##S(const T* x, const T* w, T* o, int n, float eps) { norm_row(x, w, o, n, eps); }           \
  DISPATCH void silu_row_##S(const T* g, const T* u, T* o, int n) { silu_row(g, u, o, n); }                           \
  DISPATCH void rope_row_##S(T* row, const T* qn, const T* kn, const float* c, const float* s, int slot, T* k, T* v,  \
                             const RopeArgs& a) {                                                                     \
    rope_row(row, qn, kn, c, s, slot, k, v, a);                                                                       \
  }                                                                                                                   \
  DISPATCH void attend_tile_##S(const Tile& t, int h, const T* q, const T* k, const T* v, const int32_t* tab, T* o,   \
                                const AttentionArgs& a, float* s) {                                                   \
    attend_tile(t, h, q, k, v, tab, o, a, s);                                                                         \
  }
INSTANTIATE(float, f32)
INSTANTIATE(bf16, bf16)
#undef INSTANTIATE

float* scratch_floats(size_t n) {
  static thread_local std::vector<float> buffer;
  if (buffer.size() < n) buffer.resize(n);
  return buffer.data();
}

DISPATCH uint64_t read_words(const uint64_t* words, int64_t count) {
  typedef uint64_t Quads __attribute__((vector_size(64)));
  Quads part[8] = {};
  int64_t i = 0;
  for (; i + 64 <= count; i += 64)
    for (int c = 0; c < 8; c++) {
      __builtin_prefetch(words + i + 512 + 8 * c);  // 4 KiB ahead: a core's own prefetcher stops at pages
      Quads v;
      std::memcpy(&v, words + i + 8 * c, sizeof v);
      part[c] ^= v;
    }
  uint64_t all = 0;
  for (; i < count; i++) all ^= words[i];
  for (int c = 0; c < 8; c++)
    for (int j = 0; j < 8; j++) all ^= part[c][j];
  return all;
}

}  // namespace

// The exported functions, once for each element type. Sizes are in elements; rows are contiguous unless a stride is given.
#define EXPORT(T, S)                                                                                                  \
  extern "C" void coserve_rms_norm_##S(const T* x, const T* weight, T* out, int rows, int n, float eps) {             \
    _Pragma("omp parallel for if (int64_t(rows) * n > 65536)") for (int r = 0; r < rows; r++)                         \
        norm_row_##S(x + int64_t(r) * n, weight, out + int64_t(r) * n, n, eps);                                       \
  }                                                                                                                   \
  extern "C" void coserve_silu_and_mul_##S(const T* x, T* out, int rows, int n) {                                     \
    _Pragma("omp parallel for if (int64_t(rows) * n > 32768)") for (int r = 0; r < rows; r++)                         \
        silu_row_##S(x + int64_t(r) * 2 * n, x + int64_t(r) * 2 * n + n, out + int64_t(r) * n, n);                    \
  }                                                                                                                   \
  extern "C" void coserve_rope_and_store_##S(T* qkv, const T* q_norm, const T* k_norm, const float* cos,              \
                                             const float* sin, const int32_t* positions, const int32_t* slots,        \
                                             T* k_cache, T* v_cache, int rows, int heads, int kv_heads, int dim,      \
                                             float eps) {                                                             \
    RopeArgs a{heads, kv_heads, dim, eps};                                                                            \
    int64_t stride = int64_t(heads + 2 * kv_heads) * dim;                                                             \
    _Pragma("omp parallel for if (rows * stride > 32768)") for (int r = 0; r < rows; r++)                             \
        rope_row_##S(qkv + r * stride, q_norm, k_norm, cos + int64_t(positions[r]) * (dim / 2),                       \
                     sin + int64_t(positions[r]) * (dim / 2), slots[r], k_cache, v_cache, a);                         \
  }                                                                                                                   \
  extern "C" void coserve_paged_attention_##S(const T* q, int64_t q_stride, const T* k_cache, const T* v_cache,       \
                                              const Tile* tiles, int num_tiles, const int32_t* tables, T* out,        \
                                              int max_rows, int heads, int kv_heads, int dim, int window,             \
                                              float scale) {                                                          \
    AttentionArgs a{heads, kv_heads, dim, window, q_stride, scale};                                                   \
    size_t queries = size_t(max_rows) * (heads / kv_heads);                                                           \
    size_t need = queries * (2 * dim + 2) + 2 * dim * kBlock;                                                         \
    int items = num_tiles * kv_heads;                                                                                 \
    _Pragma("omp parallel for schedule(dynamic) if (items > 1)") for (int i = 0; i < items; i++)                      \
        attend_tile_##S(tiles[i / kv_heads], i % kv_heads, q, k_cache, v_cache, tables, out, a, scratch_floats(need)); \
  }
EXPORT(float, f32)
EXPORT(bf16, bf16)

// Reads a buffer once, on all threads; the result keeps the compiler from leaving the read out.
extern "C" uint64_t coserve_stream_read(const uint64_t* words, int64_t count) {
  uint64_t all = 0;
  const int64_t chunk = 1 << 16;
#pragma omp parallel for schedule(static) reduction(^ : all)
  for (int64_t i = 0; i < count; i += chunk) all ^= read_words(words + i, count - i < chunk ? count - i : chunk);
  return all;
}
