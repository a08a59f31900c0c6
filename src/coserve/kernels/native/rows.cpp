// Norms, activation, and RoPE with the KV write, and the gradients of the three: each row by itself.
//
// The kernels here and in the other files work on raw pointers: no link against PyTorch, and no OpenMP runtime of their
// own (the symbols resolve to the one that PyTorch has loaded, so there is one pool of threads). Every row is computed
// in an order that depends on nothing but its own position: a request's numbers are the same, to the bit, alone or in
// any company. So: no -ffast-math, no reduction whose order depends on the batch.

#include "operations.h"

#include <cmath>

namespace {

template <int L, class T>
INLINE void norm_row(const T* x, const T* weight, T* out, int n, float eps) {
  Vec<L> squares = {};
  int i = 0;
  for (; i + L <= n; i += L) squares += load<L>(x + i) * load<L>(x + i);
  if (i < n) squares += load_tail<L>(x + i, n - i) * load_tail<L>(x + i, n - i);
  const float scale = 1.0f / std::sqrt(sum<L>(squares) / n + eps);
  for (i = 0; i + L <= n; i += L) store<L>(out + i, rounded<L>(load<L>(x + i) * scale, x) * load<L>(weight + i));
  if (i < n) {
    const int rest = n - i;
    Vec<L> scaled = rounded<L>(load_tail<L>(x + i, rest) * scale, x);
    store_tail<L>(out + i, scaled * load_tail<L>(weight + i, rest), rest);
  }
}

// The gradient of x: with r = 1 / rms and u = g * weight,  dx = r * (u - x * r^2 * mean(u * x)).
template <int L, class T>
INLINE void norm_gradient_row(const T* x, const T* weight, const T* g, T* dx, int n, float eps) {
  Vec<L> squares = {}, products = {};
  int i = 0;
  for (; i + L <= n; i += L) {
    Vec<L> v = load<L>(x + i);
    squares += v * v;
    products += load<L>(g + i) * load<L>(weight + i) * v;
  }
  const int rest = n - i;
  if (rest) {
    Vec<L> v = load_tail<L>(x + i, rest);
    squares += v * v;
    products += load_tail<L>(g + i, rest) * load_tail<L>(weight + i, rest) * v;
  }
  const float r = 1.0f / std::sqrt(sum<L>(squares) / n + eps), along = r * r * sum<L>(products) / n;
  for (i = 0; i + L <= n; i += L)
    store<L>(dx + i, (load<L>(g + i) * load<L>(weight + i) - load<L>(x + i) * along) * r);
  if (rest) {
    Vec<L> u = load_tail<L>(g + i, rest) * load_tail<L>(weight + i, rest);
    store_tail<L>(dx + i, (u - load_tail<L>(x + i, rest) * along) * r, rest);
  }
}

template <int L, class T>
INLINE void silu_row(const T* gate, const T* up, T* out, int n) {
  int i = 0;
  for (; i + L <= n; i += L) store<L>(out + i, silu<L>(load<L>(gate + i), gate) * load<L>(up + i));
  if (i < n) {
    const int rest = n - i;
    store_tail<L>(out + i, silu<L>(load_tail<L>(gate + i, rest), gate) * load_tail<L>(up + i, rest), rest);
  }
}

// Gradients of gate and up. With s the sigmoid of gate:  silu' = s * (1 + gate * (1 - s)).
template <int L>
INLINE void silu_gradient(Vec<L> gate, Vec<L> up, Vec<L> g, Vec<L>& d_gate, Vec<L>& d_up) {
  Vec<L> e = exp_negative<L>(gate < 0.0f ? gate : -gate);
  Vec<L> s = (gate < 0.0f ? e : Vec<L>{} + 1.0f) / (e + 1.0f);
  d_up = g * gate * s;
  d_gate = g * up * s * (gate * (1.0f - s) + 1.0f);
}
template <int L, class T>
INLINE void silu_gradient_row(const T* x, const T* g, T* dx, int n) {  // x, dx: gate [n], then up [n]
  Vec<L> d_gate, d_up;
  int i = 0;
  for (; i + L <= n; i += L) {
    silu_gradient<L>(load<L>(x + i), load<L>(x + n + i), load<L>(g + i), d_gate, d_up);
    store<L>(dx + i, d_gate);
    store<L>(dx + n + i, d_up);
  }
  if (const int rest = n - i) {
    silu_gradient<L>(load_tail<L>(x + i, rest), load_tail<L>(x + n + i, rest), load_tail<L>(g + i, rest), d_gate, d_up);
    store_tail<L>(dx + i, d_gate, rest);
    store_tail<L>(dx + n + i, d_up, rest);
  }
}

template <int L, class T>
INLINE void rotate(T* head, const float* cos, const float* sin, int half) {
  int i = 0;
  for (; i + L <= half; i += L) {
    Vec<L> a = load<L>(head + i), b = load<L>(head + half + i), c = load<L>(cos + i), s = load<L>(sin + i);
    store<L>(head + i, a * c - b * s);
    store<L>(head + half + i, b * c + a * s);
  }
  if (int rest = half - i; rest > 0) {
    Vec<L> a = load_tail<L>(head + i, rest), b = load_tail<L>(head + half + i, rest);
    Vec<L> c = load_tail<L>(cos + i, rest), s = load_tail<L>(sin + i, rest);
    store_tail<L>(head + i, a * c - b * s, rest);
    store_tail<L>(head + half + i, b * c + a * s, rest);
  }
}

template <int L, class T>
INLINE void rotate_row(T* row, const float* cos, const float* sin, int heads, int dim) {
  for (int h = 0; h < heads; h++) rotate<L>(row + h * dim, cos, sin, dim / 2);
}

struct RopeArgs {
  int heads, kv_heads, dim;
  float eps;
};

template <int L, class T>
INLINE void rope_row(T* row, const T* q_norm, const T* k_norm, const float* cos, const float* sin, int slot, T* k_cache,
                     T* v_cache, const RopeArgs& a) {
  for (int h = 0; h < a.heads + a.kv_heads; h++) {
    T* head = row + h * a.dim;
    const T* norm = h < a.heads ? q_norm : k_norm;
    if (norm) norm_row<L>(head, norm, head, a.dim, a.eps);
    rotate<L>(head, cos, sin, a.dim / 2);
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

#define INSTANTIATE(T, S)                                                                                             \
  LEVELS(norm_##S, (const T* x, const T* w, T* out, int n, float eps), norm_row<L>(x, w, out, n, eps))                \
  LEVELS(silu_##S, (const T* gate, const T* up, T* out, int n), silu_row<L>(gate, up, out, n))                        \
  LEVELS(norm_gradient_##S, (const T* x, const T* w, const T* g, T* dx, int n, float eps),                            \
         norm_gradient_row<L>(x, w, g, dx, n, eps))                                                                   \
  LEVELS(silu_gradient_##S, (const T* x, const T* g, T* dx, int n), silu_gradient_row<L>(x, g, dx, n))                \
  LEVELS(rotate_##S, (T * row, const float* cos, const float* sin, int heads, int dim),                               \
         rotate_row<L>(row, cos, sin, heads, dim))                                                                    \
  LEVELS(rope_##S,                                                                                                    \
         (T * row, const T* q_norm, const T* k_norm, const float* cos, const float* sin, int slot, T* k, T* v,        \
          const RopeArgs& a),                                                                                         \
         rope_row<L>(row, q_norm, k_norm, cos, sin, slot, k, v, a))
INSTANTIATE(float, f32)
INSTANTIATE(bf16, bf16)
#undef INSTANTIATE

}  // namespace

// The exported functions, once for each element type. Sizes are in elements; rows are contiguous.
#define EXPORT(T, S)                                                                                                  \
  extern "C" void coserve_rms_norm_##S(const T* x, const T* weight, T* out, int rows, int n, float eps) {             \
    static const auto run = CHOOSE(norm_##S);                                                                         \
    _Pragma("omp parallel for if (int64_t(rows) * n > 8192)") for (int r = 0; r < rows; r++)                          \
        run(x + int64_t(r) * n, weight, out + int64_t(r) * n, n, eps);                                                \
  }                                                                                                                   \
  extern "C" void coserve_silu_and_mul_##S(const T* x, T* out, int rows, int n) {                                     \
    static const auto run = CHOOSE(silu_##S);                                                                         \
    _Pragma("omp parallel for if (int64_t(rows) * n > 8192)") for (int r = 0; r < rows; r++)                          \
        run(x + int64_t(r) * 2 * n, x + int64_t(r) * 2 * n + n, out + int64_t(r) * n, n);                             \
  }                                                                                                                   \
  extern "C" void coserve_rms_norm_gradient_##S(const T* x, const T* weight, const T* g, T* dx, int rows, int n,      \
                                                float eps) {                                                          \
    static const auto run = CHOOSE(norm_gradient_##S);                                                                \
    _Pragma("omp parallel for if (int64_t(rows) * n > 32768)") for (int r = 0; r < rows; r++)                         \
        run(x + int64_t(r) * n, weight, g + int64_t(r) * n, dx + int64_t(r) * n, n, eps);                             \
  }                                                                                                                   \
  extern "C" void coserve_silu_and_mul_gradient_##S(const T* x, const T* g, T* dx, int rows, int n) {                 \
    static const auto run = CHOOSE(silu_gradient_##S);                                                                \
    _Pragma("omp parallel for if (int64_t(rows) * n > 16384)") for (int r = 0; r < rows; r++)                         \
        run(x + int64_t(r) * 2 * n, g + int64_t(r) * n, dx + int64_t(r) * 2 * n, n);                                  \
  }                                                                                                                   \
  extern "C" void coserve_rotate_##S(T* x, const float* cos, const float* sin, int rows, int heads, int dim) {        \
    static const auto run = CHOOSE(rotate_##S);                                                                       \
    _Pragma("omp parallel for if (int64_t(rows) * heads * dim > 32768)") for (int r = 0; r < rows; r++)               \
        run(x + int64_t(r) * heads * dim, cos + int64_t(r) * (dim / 2), sin + int64_t(r) * (dim / 2), heads, dim);    \
  }                                                                                                                   \
  extern "C" void coserve_rope_and_store_##S(T* qkv, const T* q_norm, const T* k_norm, const float* cos,              \
                                             const float* sin, const int32_t* positions, const int32_t* slots,        \
                                             T* k_cache, T* v_cache, int rows, int heads, int kv_heads, int dim,      \
                                             float eps) {                                                             \
    static const auto run = CHOOSE(rope_##S);                                                                         \
    const RopeArgs a{heads, kv_heads, dim, eps};                                                                      \
    const int64_t stride = int64_t(heads + 2 * kv_heads) * dim;                                                       \
    _Pragma("omp parallel for if (rows * stride > 8192)") for (int r = 0; r < rows; r++)                              \
        run(qkv + r * stride, q_norm, k_norm, cos + int64_t(positions[r]) * (dim / 2),                                \
            sin + int64_t(positions[r]) * (dim / 2), slots[r], k_cache, v_cache, a);                                  \
  }
EXPORT(float, f32)
EXPORT(bf16, bf16)
