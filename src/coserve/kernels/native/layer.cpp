// A decoder layer in one call. Its operations are those of the other files, one after the other as decoder.py has them,
// so its numbers are the same to the bit; what is saved is the way from Python into each of them, which takes as long
// as the smaller ones, and a tensor for each result.

#include "operations.h"

#include <omp.h>

namespace {

struct Matrix {  // [columns, depth]; as kernels/layer.py has them, like all that follows
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
  // Elements a row that are worked in: an input of a product, and what comes out, twice.
  int room() const { return hidden() + std::max(qkv.columns + attended(), gate_up.columns + down.depth); }
};

struct Rows {  // see PagedLayout
  const int32_t *positions, *slots, *tables;
  const RowTile* tiles;
  const float *cos, *sin;
  void *keys, *values;  // of this layer
  int count, tile_count, rows_of_tile;
};

template <class T>
struct Operations;
#define OPERATIONS(T, S)                                              \
  template <>                                                         \
  struct Operations<T> {                                              \
    static constexpr auto norm = coserve_rms_norm_##S;                \
    static constexpr auto silu_and_mul = coserve_silu_and_mul_##S;    \
    static constexpr auto add = coserve_add_##S;                      \
    static constexpr auto rope_and_store = coserve_rope_and_store_##S; \
    static constexpr auto attention = coserve_paged_attention_##S;    \
  };
OPERATIONS(float, f32)
OPERATIONS(bf16, bf16)
#undef OPERATIONS

void product(const float* x, const Matrix& m, float* y, int rows) {
  const float* bias = static_cast<const float*>(m.bias);
  if (m.bits == 32) coserve_linear_f32(x, static_cast<const float*>(m.data), bias, y, rows, m.columns, m.depth);
  else if (m.bits == 16) coserve_linear_bf16(x, static_cast<const bf16*>(m.data), bias, y, rows, m.columns, m.depth);
  else coserve_linear_quantized(x, static_cast<const uint8_t*>(m.data), m.scales, m.mins, bias, y, m.bits, m.group,
                                rows, m.columns, m.depth);
}
void product(const bf16* x, const Matrix& m, bf16* y, int rows) {
  coserve_linear_bf16_rows(x, static_cast<const bf16*>(m.data), static_cast<const bf16*>(m.bias), y, rows, m.columns,
                           m.depth);
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

// x [rows, hidden] -> out, likewise. `work`: room() elements a row.
template <class T>
void run(const Layer& l, const Rows& rows, const T* x, T* out, T* work) {
  using Do = Operations<T>;
  const auto norm = [](const void* weight) { return static_cast<const T*>(weight); };
  T *keys = static_cast<T*>(rows.keys), *values = static_cast<T*>(rows.values);
  const int64_t n = rows.count, hidden = l.hidden();
  T *input = work, *wide = input + n * hidden;
  Stopwatch watch;

  T *qkv = wide, *attended = qkv + n * l.qkv.columns;
  Do::norm(x, norm(l.input_norm), input, n, hidden, l.eps);
  watch.lap(kSmall);
  product(input, l.qkv, qkv, n);
  watch.lap(kProducts);
  Do::rope_and_store(qkv, norm(l.q_norm), norm(l.k_norm), rows.cos, rows.sin, rows.positions, rows.slots, keys, values,
                     n, l.heads, l.kv_heads, l.dim, l.eps);
  watch.lap(kSmall);
  Do::attention(qkv, l.qkv.columns, keys, values, rows.tiles, rows.tile_count, rows.tables, attended, rows.rows_of_tile,
                l.heads, l.kv_heads, l.dim, l.window, l.scale);
  watch.lap(kAttention);
  T* h = input;
  product(attended, l.o, h, n);
  watch.lap(kProducts);
  Do::add(x, h, n * hidden);

  T *gate_up = wide, *activated = gate_up + n * l.gate_up.columns;
  Do::norm(h, norm(l.post_norm), out, n, hidden, l.eps);
  watch.lap(kSmall);
  product(out, l.gate_up, gate_up, n);
  watch.lap(kProducts);
  Do::silu_and_mul(gate_up, activated, n, l.down.depth);
  watch.lap(kSmall);
  product(activated, l.down, out, n);
  watch.lap(kProducts);
  Do::add(h, out, n * hidden);
  watch.lap(kSmall);
}

}  // namespace

extern "C" int coserve_layer_room(const Layer* layer) { return layer->room(); }
extern "C" const double* coserve_layer_seconds() { return seconds; }
extern "C" void coserve_layer_f32(const Layer* layer, const Rows* rows, const float* x, float* out, float* work) {
  run(*layer, *rows, x, out, work);
}
extern "C" void coserve_layer_bf16(const Layer* layer, const Rows* rows, const bf16* x, bf16* out, bf16* work) {
  run(*layer, *rows, x, out, work);
}
