// A decoder's layers in one call. Their operations are those of the other files, one after the other as decoder.py has
// them, so the numbers are the same to the bit; what is saved is the way from Python into each of them, which takes
// longer than the smaller ones, and a tensor for each result.

#include "operations.h"

#include <omp.h>

namespace {

struct Matrix {  // [columns, depth]; as kernels/layers.py has them, like all that follows
  const void *data, *bias;
  const uint16_t *scales, *mins;   // of integers
  int bits, group, columns, depth;  // 32 and 16 bits are float32 and bfloat16
};

struct Layer {
  Matrix qkv, o, gate_up, down;
  const void *input_norm, *post_norm, *q_norm, *k_norm;
  int heads, kv_heads, dim, window;
  float eps, scale;

  int hidden() const { return qkv.depth; }
  int attended() const { return o.depth; }
  // Elements a row that are worked in: the residual, a norm, and beside them what a half of the layer makes.
  int room() const { return 2 * hidden() + std::max(qkv.columns + attended(), gate_up.columns + down.depth); }
};

struct Rows {  // see PagedLayout
  const int32_t *positions, *slots, *tables;
  const RowTile* tiles;
  const float *cos, *sin;
  int count, tile_count, rows_of_tile;
};

template <class T>
struct Operations;
#define OPERATIONS(T, S)                                              \
  template <>                                                         \
  struct Operations<T> {                                              \
    static constexpr auto norm = coserve_rms_norm_##S;                \
    static constexpr auto silu_and_mul = coserve_silu_and_mul_##S;    \
    static constexpr auto rope_and_store = coserve_rope_and_store_##S; \
    static constexpr auto attention = coserve_paged_attention_##S;    \
  };
OPERATIONS(float, f32)
OPERATIONS(bf16, bf16)
#undef OPERATIONS

template <class T>
const T* as(const void* data) {
  return static_cast<const T*>(data);
}

void product(const float* x, const Matrix& m, const float* residual, float* y, int rows) {
  const float* bias = as<float>(m.bias);
  if (m.bits == 32) coserve_linear_f32(x, as<float>(m.data), bias, residual, y, rows, m.columns, m.depth);
  else if (m.bits == 16) coserve_linear_bf16(x, as<bf16>(m.data), bias, residual, y, rows, m.columns, m.depth);
  else coserve_linear_quantized(x, as<uint8_t>(m.data), m.scales, m.mins, bias, residual, y, m.bits, m.group, rows,
                                m.columns, m.depth);
}
void product(const bf16* x, const Matrix& m, const bf16* residual, bf16* y, int rows) {
  coserve_linear_bf16_rows(x, as<bf16>(m.data), as<bf16>(m.bias), residual, y, rows, m.columns, m.depth);
}

template <class T>
bool gated_product(const T*, const Matrix&, T*, int) {
  return false;
}
bool gated_product(const float* x, const Matrix& m, float* y, int rows) {
  return m.bits < 16 && gated_linear_quantized(x, as<uint8_t>(m.data), m.scales, m.mins, as<float>(m.bias), y, m.bits,
                                               m.group, rows, m.columns, m.depth);
}

// Where the time goes, since the library was loaded: for benchmarks/step_time.py.
enum Part { kProducts, kAttention, kSmall, kPartsOfLayer };
double seconds[kPartsOfLayer];
class Stopwatch {
 public:
  void lap(Part part) {
    const double now = omp_get_wtime();
    seconds[part] += now - since_;
    since_ = now;
  }

 private:
  double since_ = omp_get_wtime();
};

// x [rows, hidden], in place. `work`: room() elements a row.
template <class T>
void run(const Layer& l, const Rows& rows, T* keys, T* values, T* x, T* work) {
  using Do = Operations<T>;
  const int n = rows.count, hidden = l.hidden();
  T *h = work, *normed = h + int64_t(n) * hidden, *wide = normed + int64_t(n) * hidden;
  Stopwatch watch;

  T *qkv = wide, *attended = qkv + int64_t(n) * l.qkv.columns;
  Do::norm(x, as<T>(l.input_norm), normed, n, hidden, l.eps);
  watch.lap(kSmall);
  product(normed, l.qkv, nullptr, qkv, n);
  watch.lap(kProducts);
  Do::rope_and_store(qkv, as<T>(l.q_norm), as<T>(l.k_norm), rows.cos, rows.sin, rows.positions, rows.slots, keys,
                     values, n, l.heads, l.kv_heads, l.dim, l.eps);
  watch.lap(kSmall);
  Do::attention(qkv, l.qkv.columns, keys, values, rows.tiles, rows.tile_count, rows.tables, attended,
                rows.rows_of_tile, l.heads, l.kv_heads, l.dim, l.window, l.scale);
  watch.lap(kAttention);
  product(attended, l.o, x, h, n);
  watch.lap(kProducts);

  T *gate_up = wide, *activated = gate_up + int64_t(n) * l.gate_up.columns;
  Do::norm(h, as<T>(l.post_norm), normed, n, hidden, l.eps);
  watch.lap(kSmall);
  if (!gated_product(normed, l.gate_up, activated, n)) {
    product(normed, l.gate_up, nullptr, gate_up, n);
    watch.lap(kProducts);
    Do::silu_and_mul(gate_up, activated, n, l.down.depth);
    watch.lap(kSmall);
  }
  product(activated, l.down, h, x, n);
  watch.lap(kProducts);
}

template <class T>
void run_all(const Layer* layers, int count, const Rows& rows, T* const* keys, T* const* values, T* x, T* work) {
  for (int i = 0; i < count; i++) run(layers[i], rows, keys[i], values[i], x, work);
}

}  // namespace

extern "C" int coserve_layers_room(const Layer* layers, int count) {
  int most = 0;
  for (int i = 0; i < count; i++) most = std::max(most, layers[i].room());
  return most;
}
extern "C" const double* coserve_layers_seconds() { return seconds; }
extern "C" void coserve_layers_f32(const Layer* layers, int count, const Rows* rows, float* const* keys,
                                   float* const* values, float* x, float* work) {
  run_all(layers, count, *rows, keys, values, x, work);
}
extern "C" void coserve_layers_bf16(const Layer* layers, int count, const Rows* rows, bf16* const* keys,
                                    bf16* const* values, bf16* x, bf16* work) {
  run_all(layers, count, *rows, keys, values, x, work);
}
