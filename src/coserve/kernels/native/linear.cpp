// Matrix products with float32 rows and weights in float32 or bfloat16: y = x W^T + bias + residual, and dx = dy W.
//
// All arithmetic is float32, so that a processor without bfloat16 instructions loses nothing but the widening, which
// hides behind the reads. Weights are read as they lie in the checkpoint, [out, in] by rows: nothing is packed at load.
//
// A row's sums run along k in an order that depends on k alone (lane by lane, in blocks of at most kDepth), whatever
// the number of rows: a request's numbers are the same, to the bit, alone or in any company.

#include "operations.h"
#include "parts.h"
#include "vectors.h"

namespace {

constexpr int kDepth = 1024;           // of a block along k: four rows of weights, widened, are 16 KiB
constexpr int kCache = 1 << 16;        // floats of x that stay in a core's own cache while weights pass by
constexpr int kPanel = 512;            // rows of weights that the backward packs at a time

typedef float Quad __attribute__((vector_size(16)));

// Weights are widened a chunk at a time: `parts` vectors. In 16-bit formats the first has the chunk's even elements and
// the second the odd ones, which takes one instruction each; rows of x are arranged likewise (`arrange`).
template <int L>
INLINE Vec<L> part_of(const float* chunk, int) {
  return load<L>(chunk);
}
template <int L>
INLINE Vec<L> part_of(const bf16* chunk, int part) {
  typename Lanes<L>::Words words;
  std::memcpy(&words, chunk, sizeof words);
  return (Vec<L>)(part ? words & 0xffff0000u : words << 16);
}
template <class T>
constexpr int kParts = sizeof(float) / sizeof(T);
template <int L, class T>
constexpr int kChunk = L * kParts<T>;

template <int L, class T>
INLINE void widen(const T* w, int n, float* out, int64_t ahead = 0) {  // n elements, with zeros up to a whole chunk
  int i = 0;
  for (; i + kChunk<L, T> <= n; i += kChunk<L, T>) {
    __builtin_prefetch(w + i + ahead);
    for (int part = 0; part < kParts<T>; part++) {
      Vec<L> v = part_of<L>(w + i, part);
      std::memcpy(out + i + part * L, &v, sizeof v);
    }
  }
  if (i < n) {
    T padded[kChunk<L, T>] = {};
    std::memcpy(padded, w + i, (n - i) * sizeof(T));
    for (int part = 0; part < kParts<T>; part++) {
      Vec<L> v = part_of<L>(padded, part);
      std::memcpy(out + i + part * L, &v, sizeof v);
    }
  }
}

template <int L, class T>
INLINE void arrange(const float* x, int n, float* out) {  // as `widen` does with weights
  constexpr int P = kParts<T>;
  int i = 0;
  for (; i + kChunk<L, T> <= n; i += kChunk<L, T>)
    for (int lane = 0; lane < L; lane++)
      for (int part = 0; part < P; part++) out[i + part * L + lane] = x[i + lane * P + part];
  if (i < n)
    for (int lane = 0; lane < L; lane++)
      for (int part = 0; part < P; part++) {
        const int from = i + lane * P + part;
        out[i + part * L + lane] = from < n ? x[from] : 0.0f;
      }
}

// The sums of four vectors, side by side.
template <int L>
INLINE Quad folded(Vec<L> v) {
  Quad parts[L / 4];
  std::memcpy(parts, &v, sizeof v);
  UNROLL for (int width = L / 8; width > 0; width /= 2)
    UNROLL for (int i = 0; i < width; i++) parts[i] += parts[i + width];
  return parts[0];
}
template <int L>
INLINE Quad sums(Vec<L> a, Vec<L> b, Vec<L> c, Vec<L> d) {
  Quad p = folded<L>(a), q = folded<L>(b), r = folded<L>(c), s = folded<L>(d);
  Quad pq = __builtin_shufflevector(p, q, 0, 4, 1, 5) + __builtin_shufflevector(p, q, 2, 6, 3, 7);
  Quad rs = __builtin_shufflevector(r, s, 0, 4, 1, 5) + __builtin_shufflevector(r, s, 2, 6, 3, 7);
  return __builtin_shufflevector(pq, rs, 0, 1, 4, 5) + __builtin_shufflevector(pq, rs, 2, 3, 6, 7);
}

// ---- y = x W^T ----------------------------------------------------------------------------------------------------

struct Product {
  const float* x;  // [rows, stride], arranged, and zero from `depth` on to the end of a chunk
  const float *bias, *residual;  // [columns], [rows, columns], or null
  float* y;  // [rows, columns]
  int rows, columns, depth, stride;
};

// `R` rows of x against `C` rows of w (4 or 2), along `n` elements; added to y, or, in the first block of k, written.
// `Stream`: w comes from memory. A core's own prefetcher stops at pages, so the next four rows are asked for here.
template <int L, int R, int C, bool Stream, class T>
INLINE void dots(const Product& p, int row, int column, int k, int n, const T* w, int64_t w_stride) {
  const float* x = p.x + int64_t(row) * p.stride + k;
  Vec<L> acc[R][C] = {};
  int i = 0;
  for (; i + kChunk<L, T> <= n; i += kChunk<L, T>) {
    if constexpr (Stream) UNROLL for (int c = 0; c < C; c++) __builtin_prefetch(w + (4 + c) * w_stride + i);
    UNROLL for (int part = 0; part < kParts<T>; part++) {
      if constexpr (C == 4) {  // few rows: they stay in registers, and those of w pass by
        Vec<L> a[R];
        UNROLL for (int r = 0; r < R; r++) a[r] = load<L>(x + int64_t(r) * p.stride + i + part * L);
        UNROLL for (int c = 0; c < C; c++) {
          Vec<L> b = part_of<L>(w + c * w_stride + i, part);
          UNROLL for (int r = 0; r < R; r++) acc[r][c] += a[r] * b;
        }
      } else {
        Vec<L> b[C];
        UNROLL for (int c = 0; c < C; c++) b[c] = part_of<L>(w + c * w_stride + i, part);
        UNROLL for (int r = 0; r < R; r++) {
          Vec<L> a = load<L>(x + int64_t(r) * p.stride + i + part * L);
          UNROLL for (int c = 0; c < C; c++) acc[r][c] += a * b[c];
        }
      }
    }
  }
  if (i < n) {
    float b[C][kChunk<L, T>];
    for (int c = 0; c < C; c++) widen<L>(w + c * w_stride + i, n - i, b[c]);
    UNROLL for (int part = 0; part < kParts<T>; part++)
      UNROLL for (int r = 0; r < R; r++) {
        Vec<L> a = load<L>(x + int64_t(r) * p.stride + i + part * L);
        UNROLL for (int c = 0; c < C; c++) acc[r][c] += a * load<L>(b[c] + part * L);
      }
  }
  UNROLL for (int r = 0; r < R; r++) {
    Quad s = sums<L>(acc[r][0], acc[r][1], acc[r][C - 2], acc[r][C - 1]);
    const int64_t at = int64_t(row + r) * p.columns + column;
    const int count = std::min(C, p.columns - column);
    for (int c = 0; c < count; c++) {
      const float sum = (k ? p.y[at + c] : p.bias ? p.bias[column + c] : 0.0f) + s[c];
      p.y[at + c] = p.residual && k + n >= p.depth ? p.residual[at + c] + sum : sum;
    }
  }
}

// All of a few rows, up to `R`, against four rows of w, which are read once.
template <int L, int R, int C, class T>
INLINE void dots_of_few(const Product& p, int row, int rows, int column, int k, int n, const T* w) {
  if (rows == R) {
    for (int c = 0; c < 4; c += C)
      dots<L, R, C, true>(p, row, column + c, k, n, w + int64_t(c) * p.depth, p.depth);
  } else if constexpr (R > 1) {
    dots_of_few<L, R - 1, C>(p, row, rows, column, k, n, w);
  }
}

// Rows [first, last) against four rows of w that stay in the nearest cache meanwhile.
template <int L, int R>
INLINE void dots_of_many(const Product& p, int first, int last, int column, int k, int n, const float* w) {
  int row = first;
  for (; row + R <= last; row += R) dots<L, R, 4, false>(p, row, column, k, n, w, kDepth);
  if constexpr (R > 1) {  // what is left over, in halves: the order along k is the same
    if (row < last) dots_of_many<L, R / 2>(p, row, last, column, k, n, w);
  }
}

// Columns [first, last) of y; `first` is a multiple of four. `scratch`: 4 * kDepth floats.
template <int L, int R, class T>
INLINE void product(const Product& p, const T* weight, int first, int last, float* scratch) {
  const int blocks = (p.depth + kDepth - 1) / kDepth;
  const int depth = ((p.depth + blocks - 1) / blocks + 31) / 32 * 32;
  for (int k = 0; k < p.depth; k += depth) {
    const int n = std::min(depth, p.depth - k), whole = (n + kChunk<L, T> - 1) / kChunk<L, T> * kChunk<L, T>;
    const int group = std::max(2 * R, kCache / n / R * R);
    for (int row = 0; row < p.rows; row += group) {
      const int rows = std::min(group, p.rows - row);
      for (int column = first; column < last; column += 4) {
        const T* w = weight + int64_t(column) * p.depth + k;
        const int count = std::min(4, last - column);
        if (count == 4 && rows <= R) {
          dots_of_few<L, R, 4>(p, row, rows, column, k, n, w);
        } else if (count == 4 && rows <= 2 * R) {
          dots_of_few<L, 2 * R, 2>(p, row, rows, column, k, n, w);
        } else {  // widened once for all rows; rows of w that are missing are zero
          for (int c = 0; c < 4; c++) {
            if (c < count) widen<L>(w + int64_t(c) * p.depth, n, scratch + c * kDepth, int64_t(4) * p.depth);
            else std::memset(scratch + c * kDepth, 0, whole * sizeof(float));
          }
          dots_of_many<L, R>(p, row, row + rows, column, k, whole, scratch);
        }
      }
    }
  }
}

// ---- dx = dy W ----------------------------------------------------------------------------------------------------

struct Transposed {
  const float* dy;  // [rows, columns]
  float* dx;  // [rows, depth]
  int rows, columns, depth;
};

// `R` rows of dx, `4 L` of its columns, over `n` rows of weights that lie widened in `packed` [n, 4 L].
template <int L, int R, class T>
INLINE void axpys(const Transposed& t, int row, int column, int k, int n, const float* packed) {
  const float* dy = t.dy + int64_t(row) * t.columns + column;
  Vec<L> acc[R][4] = {};
  for (int i = 0; i < n; i++) {
    Vec<L> a[R];
    UNROLL for (int r = 0; r < R; r++) a[r] = Vec<L>{} + dy[int64_t(r) * t.columns + i];
    UNROLL for (int c = 0; c < 4; c++) {
      Vec<L> b = load<L>(packed + (int64_t(i) * 4 + c) * L);
      UNROLL for (int r = 0; r < R; r++) acc[r][c] += a[r] * b;
    }
  }
  constexpr int P = kParts<T>;
  UNROLL for (int r = 0; r < R; r++) {
    float parts[4 * L], in_order[4 * L];
    std::memcpy(parts, acc[r], sizeof parts);
    for (int chunk = 0; chunk < 4 * L; chunk += P * L)
      for (int lane = 0; lane < L; lane++)
        for (int part = 0; part < P; part++) in_order[chunk + lane * P + part] = parts[chunk + part * L + lane];
    float* dx = t.dx + int64_t(row + r) * t.depth + k;
    const int width = std::min(4 * L, t.depth - k);
    for (int i = 0; i < width; i++) dx[i] = (column ? dx[i] : 0.0f) + in_order[i];
  }
}

template <int L, int R, class T>
INLINE void axpys_of_rows(const Transposed& t, int first, int column, int k, int n, const float* packed) {
  int row = first;
  for (; row + R <= t.rows; row += R) axpys<L, R, T>(t, row, column, k, n, packed);
  if constexpr (R > 1) {
    if (row < t.rows) axpys_of_rows<L, R / 2, T>(t, row, column, k, n, packed);
  }
}

// Columns [k, k + 4 L) of dx. `scratch`: kPanel * 4 * L floats.
template <int L, int R, class T>
INLINE void transposed(const Transposed& t, const T* weight, int k, float* scratch) {
  const int width = std::min(4 * L, t.depth - k);
  if (width < 4 * L) std::memset(scratch, 0, size_t(kPanel) * 4 * L * sizeof(float));
  for (int column = 0; column < t.columns; column += kPanel) {
    const int n = std::min(kPanel, t.columns - column);
    for (int i = 0; i < n; i++) widen<L>(weight + int64_t(column + i) * t.depth + k, width, scratch + int64_t(i) * 4 * L);
    axpys_of_rows<L, R, T>(t, 0, column, k, n, scratch);
  }
}

// ---- one function for each processor and weight format -------------------------------------------------------------

template <int L>
constexpr int kRows = L == 16 ? 6 : L == 8 ? 3 : 2;  // of x at a time: as many sums as there are registers for

#define INSTANTIATE(T, S)                                                                                          \
  LEVELS(arrange_##S, (const float* x, int n, float* out), arrange<L, T>(x, n, out))                               \
  LEVELS(product_##S, (const Product& p, const T* w, int first, int last, float* scratch),                         \
         product<L, kRows<L>>(p, w, first, last, scratch))                                                         \
  LEVELS(transposed_##S, (const Transposed& t, const T* w, int k, float* scratch),                                 \
         transposed<L, kRows<L>>(t, w, k, scratch))
INSTANTIATE(float, f32)
INSTANTIATE(bf16, bf16)
#undef INSTANTIATE

template <class T>
struct Kernels {
  void (*arrange)(const float*, int, float*);
  void (*product)(const Product&, const T*, int, int, float*);
  void (*transposed)(const Transposed&, const T*, int, float*);
  int lanes = level() >= avx512 ? 16 : level() == avx2 ? 8 : 4;
};
INLINE Kernels<float> kernels_for(const float*) {
  return {CHOOSE(arrange_f32), CHOOSE(product_f32), CHOOSE(transposed_f32)};
}
INLINE Kernels<bf16> kernels_for(const bf16*) {
  return {CHOOSE(arrange_bf16), CHOOSE(product_bf16), CHOOSE(transposed_bf16)};
}

template <class T>
void run_product(const float* x, const T* weight, const float* bias, const float* residual, float* y, int rows,
                 int columns, int depth) {
  static const Kernels<T> kernels = kernels_for(weight);
  static thread_local std::vector<float> arranged;
  const int chunk = kernels.lanes * kParts<T>, stride = (depth + chunk - 1) / chunk * chunk;
  Product p{x, bias, residual, y, rows, columns, depth, stride};
  if (kParts<T> > 1 || stride != depth) {
    if (arranged.size() < size_t(rows) * stride) arranged.resize(size_t(rows) * stride);
    float* to = arranged.data();
    p.x = to;
#pragma omp parallel for schedule(static) if (int64_t(rows) * depth > kWorthThreads)
    for (int row = 0; row < rows; row++) kernels.arrange(x + int64_t(row) * depth, depth, to + int64_t(row) * stride);
  }
  const Parts parts((columns + 3) / 4, int64_t(rows) * columns * depth);
#pragma omp parallel for schedule(dynamic) if (parts.count > 1)
  for (int part = 0; part < parts.count; part++) {
    const int first = int(parts.begin(part)) * 4, last = int(parts.end(part)) * 4;
    kernels.product(p, weight, first, std::min(last, columns), scratch_floats(4 * kDepth));
  }
}

template <class T>
void run_transposed(const Transposed& t, const T* weight) {
  static const Kernels<T> kernels = kernels_for(weight);
  const int64_t work = int64_t(t.rows) * t.columns * t.depth;
  const int width = 4 * kernels.lanes, parts = (t.depth + width - 1) / width;
#pragma omp parallel for schedule(dynamic) if (parts > 1 && work > kWorthThreads)
  for (int part = 0; part < parts; part++)
    kernels.transposed(t, weight, part * width, scratch_floats(size_t(kPanel) * width));
}

}  // namespace

// The exported functions, once for each weight format. Everything is contiguous; `bias` and `residual` may be null.
#define EXPORT(T, S)                                                                                               \
  extern "C" void coserve_linear_##S(const float* x, const T* weight, const float* bias, const float* residual,    \
                                     float* y, int rows, int columns, int depth) {                                 \
    run_product(x, weight, bias, residual, y, rows, columns, depth);                                               \
  }                                                                                                                \
  extern "C" void coserve_linear_input_gradient_##S(const float* dy, const T* weight, float* dx, int rows,         \
                                                    int columns, int depth) {                                      \
    run_transposed(Transposed{dy, dx, rows, columns, depth}, weight);                                              \
  }
EXPORT(float, f32)
EXPORT(bf16, bf16)
