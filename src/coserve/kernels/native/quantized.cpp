// Products of float32 rows with matrices of 8- or 4-bit integers. The format, and what is done to the rows on their way
// in, are those of quantized.py.
//
// Sixteen of the matrix's rows ("columns" here: of the result) lie interleaved in a panel, so that a vector of sums has
// one of each, and panels are read from the first byte to the last. Sums are of integers, and exact: in 8 bits along at
// most kDepth elements, then scaled and added as floats, in an order that does not depend on the number of rows.

#include "operations.h"
#include "quantized.h"

#ifdef AVX2
#include <immintrin.h>
#endif

namespace {

constexpr int kStep = 64;  // bytes of weights in a step of the inner loops

// Some of a batch's rows, interleaved: of every word, block scale and block sum there is one for each row in turn.
struct Tile {
  Word* words;    // [width / 2 or width / 4, rows]
  float* scales;  // [width / 32, rows], for 4-bit weights
  float* sums;    // [width / 32, rows]: of the activations; for 4-bit weights times their scale
  int row, rows;
};

// The rows of x in groups of kGroup, each cut into tiles of nearly one size, at most `most`.
struct Rows {
  Word* words;
  float *scales, *sums;
  float* row_scales;  // [count], for 8-bit weights
  int count, width, words_of_row, most;

  int tiles_of(int rows) const { return (rows + most - 1) / most; }
  Tile tile(int group, int rows, int i) const {
    const int tiles = tiles_of(rows), begin = rows * i / tiles, end = rows * (i + 1) / tiles, row = group + begin;
    const int64_t blocks = int64_t(row) * (width / kBlockK);
    return {words + int64_t(row) * words_of_row, scales + blocks, sums + blocks, row, end - begin};
  }
};

struct Columns {  // sixteen from the first on, or as many as there are
  int first, of;
};

struct Ahead {  // where to read next, and how fast to go on
  const uint8_t* at;
  int pace;
  INLINE_MEMBER void fetch() {
    __builtin_prefetch(at);
    at += pace;
  }
};

float half_float(uint16_t bits) {
  const uint32_t sign = uint32_t(bits & 0x8000) << 16, rest = bits & 0x7fff;
  uint32_t word = (rest << 13) + (112u << 23);  // normal numbers
  if (rest >= 0x7c00) word = (rest << 13) | 0x7f800000u;
  float value;
  std::memcpy(&value, &word, sizeof value);
  if (rest < 0x400) value = float(rest) * 5.9604645e-8f;  // 2^-24
  return sign ? -value : value;
}

// ---- rows on their way in -----------------------------------------------------------------------------------------

// Rounds n floats, with zeros up to `padded` (a multiple of 32), to `levels` steps of their largest; returns the step,
// which is no number if one of them is none.
template <int L, class T>
INLINE float round_all(const float* x, int n, int padded, float levels, T* out) {
  Vec<L> top = {}, bad = {};
  const int whole = n / L * L;
  const Vec<L> rest = load_tail<L>(x + whole, n - whole);
  const auto see = [&](Vec<L> v) __attribute__((always_inline)) {
    const Vec<L> size = v < 0.0f ? -v : v;
    top = size > top ? size : top;
    bad += v * 0.0f;
  };
  for (int i = 0; i < whole; i += L) see(load<L>(x + i));
  see(rest);
  const float most = largest<L>(top), inverse = most > 1e-30f ? levels / most : 0.0f;
  const auto put = [&](int i, Vec<L> v) __attribute__((always_inline)) {
    typedef T Out __attribute__((vector_size(L * sizeof(T))));
    const Vec<L> shifted = v * inverse + 12582912.0f;  // 1.5 * 2^23: the sum is rounded to a whole number
    const Out q = __builtin_convertvector(__builtin_convertvector(shifted - 12582912.0f, typename Lanes<L>::Ints), Out);
    std::memcpy(out + i, &q, sizeof q);
  };
  for (int i = 0; i < whole; i += L) put(i, load<L>(x + i));
  if (whole < padded) {
    std::memset(out + whole, 0, (padded - whole) * sizeof(T));
    put(whole, rest);
  }
  return most / levels + sum<L>(bad);
}
template <class T>
INLINE float sum_of_block(const T* values) {
  int32_t sum = 0;
  for (int i = 0; i < kBlockK; i++) sum += values[i];
  return float(sum);
}
template <int L>
INLINE void round8(const float* x, int n, int width, int16_t* values, float* scale, float* sums) {
  *scale = round_all<L>(x, n, width, 16383.0f, values);
  for (int b = 0; sums && b < width / kBlockK; b++) sums[b] = sum_of_block(values + b * kBlockK);
}
template <int L>
INLINE void round4(const float* x, int n, int width, int8_t* values, float* scales, float* sums) {
  for (int b = 0; b < width / kBlockK; b++) {
    const int at = b * kBlockK;
    scales[b] = round_all<L>(x + at, std::min(kBlockK, n - at), kBlockK, 127.0f, values + at);
    sums[b] = scales[b] * sum_of_block(values + at);
  }
}
LEVELS(round8, (const float* x, int n, int width, int16_t* values, float* scale, float* sums),
       round8<L>(x, n, width, values, scale, sums))
LEVELS(round4, (const float* x, int n, int width, int8_t* values, float* scales, float* sums),
       round4<L>(x, n, width, values, scales, sums))

}  // namespace

void round_row(const float* x, int n, int width, int16_t* values, float* scale, float* sums) {
  static const auto run = CHOOSE(round8);
  run(x, n, width, values, scale, sums);
}
void round_row(const float* x, int n, int width, int8_t* values, float* scales, float* sums) {
  static const auto run = CHOOSE(round4);
  run(x, n, width, values, scales, sums);
}

namespace {

template <class T>
void interleave(const T* from, int n, T* to, int rows) {
  for (int i = 0; i < n; i++) to[int64_t(i) * rows] = from[i];
}

// 8-bit weights are widened where they lie, every second of a word: activations are paired likewise.
void pair_every_second(int16_t* values, int n) {
  for (int i = 0; i < n; i += 4) std::swap(values[i + 1], values[i + 2]);
}

// Fills a tile with rows of x [., depth].
void fill(const Rows& rows, const Tile& tile, int bits, const float* x, int depth) {
  const int blocks = rows.width / kBlockK;
  float* scales = scratch_floats(size_t(2) * blocks + rows.words_of_row);
  float* sums = scales + blocks;
  Word* words = reinterpret_cast<Word*>(sums + blocks);
  for (int r = 0; r < tile.rows; r++) {
    const float* from = x + int64_t(tile.row + r) * depth;
    if (bits == 8) {
      int16_t* values = reinterpret_cast<int16_t*>(words);
      round_row(from, depth, rows.width, values, rows.row_scales + tile.row + r, sums);
      pair_every_second(values, rows.width);
    } else {
      round_row(from, depth, rows.width, reinterpret_cast<int8_t*>(words), scales, sums);
      interleave(scales, blocks, tile.scales + r, tile.rows);
    }
    interleave(sums, blocks, tile.sums + r, tile.rows);
    interleave(words, rows.words_of_row, tile.words + r, tile.rows);
  }
}

// ---- one product for each instruction set ---------------------------------------------------------------------------

typedef void (*PanelProduct)(const Rows&, const Panel&, const Result&, Columns, float*);

namespace plain_kernel {
#include "quantized_kernel.h"
struct Plain {
  static constexpr int kRows8 = 2, kRows4 = 2, kTwoChains = 0;
  struct Sums {
    int32_t v[kPanel];
  };
  using ShortSums = Sums;
  struct Floats {
    float v[kPanel];
  };
  static float fused(float a, float b, float c) { return a * b + c; }
  static const uint8_t* pairs(const uint8_t* w, bool odd) { return w + odd; }
  static const uint8_t* quads(const uint8_t* w) { return w; }
  static void add_pairs(Sums& s, const uint8_t* w, Word word) {
    int16_t x[2];
    std::memcpy(x, &word, sizeof word);
    for (int c = 0; c < kPanel; c++) s.v[c] += int8_t(w[4 * c]) * x[0] + int8_t(w[4 * c + 2]) * x[1];
  }
  static void add_quads(Sums& s, const uint8_t* w, Word word) {
    int8_t x[4];
    std::memcpy(x, &word, sizeof word);
    for (int c = 0; c < kPanel / 2; c++)
      for (int i = 0; i < 4; i++) {
        s.v[c] += (w[4 * c + i] & 15) * x[i];
        s.v[c + kPanel / 2] += (w[4 * c + i] >> 4) * x[i];
      }
  }
  static Sums widened(const Sums& s) { return s; }
  static Floats half_floats(const uint16_t* p) {
    Floats f;
    for (int c = 0; c < kPanel; c++) f.v[c] = half_float(p[c]);
    return f;
  }
  static Floats times(const Floats& f, float by) {
    Floats out;
    for (int c = 0; c < kPanel; c++) out.v[c] = f.v[c] * by;
    return out;
  }
  static void add_sums(float* total, const Sums& s, const Floats& scale) {
    for (int c = 0; c < kPanel; c++) total[c] += float(s.v[c]) * scale.v[c];
  }
  static void add_block(float* total, const Sums& s, const Floats& scale, float by, const Floats& min, float sum) {
    for (int c = 0; c < kPanel; c++) total[c] += min.v[c] * sum + float(s.v[c]) * scale.v[c] * by;
  }
  static void add_floats(float* total, const Floats& f, float by) {
    for (int c = 0; c < kPanel; c++) total[c] += f.v[c] * by;
  }
};
}  // namespace plain_kernel

#ifdef AVX2
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
namespace avx2_kernel {
#include "quantized_kernel.h"
struct Avx2 {
  static constexpr int kRows8 = 6, kRows4 = 5, kTwoChains = 0;  // as many sums as there are registers for
  struct Sums {  // of columns 0 to 7, and 8 to 15
    __m256i a, b;
  };
  using ShortSums = Sums;  // 16-bit: two for each column
  struct Floats {
    __m256 a, b;
  };
  static INLINE_MEMBER float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
  static INLINE_MEMBER __m256i half(const uint8_t* w, bool odd) {
    const __m256i v = _mm256_loadu_si256((const __m256i*)w);
    return _mm256_srai_epi16(odd ? v : _mm256_slli_epi16(v, 8), 8);
  }
  static INLINE_MEMBER Sums pairs(const uint8_t* w, bool odd) { return {half(w, odd), half(w + 32, odd)}; }
  static INLINE_MEMBER void add_pairs(Sums& s, const Sums& w, Word x) {
    const __m256i v = _mm256_set1_epi32(x);
    s.a = _mm256_add_epi32(s.a, _mm256_madd_epi16(w.a, v));
    s.b = _mm256_add_epi32(s.b, _mm256_madd_epi16(w.b, v));
    in_turn(s);
  }
  // One row after the other: left to itself, the compiler multiplies for all of them first and runs out of registers.
  static INLINE_MEMBER void in_turn(Sums& s) { asm volatile("" : "+x"(s.a), "+x"(s.b)); }
  static INLINE_MEMBER Sums quads(const uint8_t* w) {
    const __m256i v = _mm256_loadu_si256((const __m256i*)w), low = _mm256_set1_epi8(15);
    return {_mm256_and_si256(v, low), _mm256_and_si256(_mm256_srli_epi16(v, 4), low)};
  }
  // At most 15 * 127 * 2 in each of the eight additions to a 16-bit sum: less than 2^15.
  static INLINE_MEMBER void add_quads(ShortSums& s, const Sums& w, Word x) {
    const __m256i v = _mm256_set1_epi32(x);
    s.a = _mm256_add_epi16(s.a, _mm256_maddubs_epi16(w.a, v));
    s.b = _mm256_add_epi16(s.b, _mm256_maddubs_epi16(w.b, v));
    in_turn(s);
  }
  static INLINE_MEMBER Sums widened(const ShortSums& s) {
    const __m256i ones = _mm256_set1_epi16(1);
    return {_mm256_madd_epi16(s.a, ones), _mm256_madd_epi16(s.b, ones)};
  }
  static INLINE_MEMBER Floats half_floats(const uint16_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)))};
  }
  static INLINE_MEMBER Floats times(const Floats& f, float by) {
    return {_mm256_mul_ps(f.a, _mm256_set1_ps(by)), _mm256_mul_ps(f.b, _mm256_set1_ps(by))};
  }
  static INLINE_MEMBER Floats scaled(const Sums& s, const Floats& scale) {
    return {_mm256_mul_ps(_mm256_cvtepi32_ps(s.a), scale.a), _mm256_mul_ps(_mm256_cvtepi32_ps(s.b), scale.b)};
  }
  static INLINE_MEMBER Floats sum(const Floats& a, const Floats& b, float by) {
    const __m256 v = _mm256_set1_ps(by);
    return {_mm256_fmadd_ps(b.a, v, a.a), _mm256_fmadd_ps(b.b, v, a.b)};
  }
  static INLINE_MEMBER Floats load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static INLINE_MEMBER void store(float* p, const Floats& f) {
    _mm256_storeu_ps(p, f.a);
    _mm256_storeu_ps(p + 8, f.b);
  }
  static INLINE_MEMBER void add_sums(float* total, const Sums& s, const Floats& scale) {
    add_floats(total, scaled(s, scale), 1.0f);
  }
  static INLINE_MEMBER void add_floats(float* total, const Floats& f, float by) { store(total, sum(load(total), f, by)); }
  static INLINE_MEMBER void add_block(float* total, const Sums& s, const Floats& scale, float by, const Floats& min, float x) {
    store(total, sum(sum(load(total), min, x), scaled(s, scale), by));
  }
};
}  // namespace avx2_kernel
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
namespace avx512_kernel {
#include "quantized_kernel.h"
#include "quantized_avx512.h"
}  // namespace avx512_kernel
#pragma GCC pop_options
#endif

struct Product {
  PanelProduct run[2][2];  // [4 bits, not 8][with mins]
  int rows[2];             // of a tile, at most
};
#define PRODUCT(SPACE, M)                                                                        \
  Product {                                                                                      \
    {{SPACE::panel_product<SPACE::M, 8, false>, SPACE::panel_product<SPACE::M, 8, true>},        \
     {SPACE::panel_product<SPACE::M, 4, false>, SPACE::panel_product<SPACE::M, 4, true>}},       \
        {SPACE::M::kRows8, SPACE::M::kRows4}                                                     \
  }
Product product_of_this_processor() {
#ifdef AVX2
  if (level() >= avx512 && __builtin_cpu_supports("avx512vnni")) return PRODUCT(avx512_kernel, Avx512);
  if (level() != plain && __builtin_cpu_supports("f16c")) return PRODUCT(avx2_kernel, Avx2);
#endif
  return PRODUCT(plain_kernel, Plain);
}

void product_by_vectors(const float* x, const QuantizedMatrix& w, const Result& to, int rows) {
  static const Product product = product_of_this_processor();
  static thread_local std::vector<float> memory;
  const int64_t width = w.width(), blocks = width / kBlockK, words = width * (w.bits == 8 ? 2 : 1) / 4;
  const size_t need = size_t(rows) * (words + 2 * blocks + 1);
  if (memory.size() < need) memory.resize(need);
  Rows in;
  in.words = reinterpret_cast<Word*>(memory.data());
  in.scales = memory.data() + rows * words;
  in.sums = in.scales + rows * blocks;
  in.row_scales = in.sums + rows * blocks;
  in.count = rows, in.width = int(width), in.words_of_row = int(words), in.most = product.rows[w.bits == 4];
  const int tiles_of_group = in.tiles_of(kGroup), groups_of_rows = (rows + kGroup - 1) / kGroup;
#pragma omp parallel for schedule(static) if (int64_t(rows) * w.depth > kWorthThreads)
  for (int i = 0; i < groups_of_rows * tiles_of_group; i++) {
    const int group = i / tiles_of_group * kGroup, here = std::min(kGroup, rows - group);
    if (i % tiles_of_group < in.tiles_of(here)) fill(in, in.tile(group, here, i % tiles_of_group), w.bits, x, w.depth);
  }
  const PanelProduct run = product.run[w.bits == 4][w.mins != nullptr];
  const Parts parts(w.panels(), int64_t(rows) * w.columns * w.depth);
#pragma omp parallel for schedule(dynamic) if (parts.count > 1)
  for (int part = 0; part < parts.count; part++) {
    float* total = scratch_floats(size_t(kGroup) * kPanel);
    for (int64_t i = parts.begin(part); i < parts.end(part); i++)
      run(in, w.panel(i), to, {int(i * kPanel), w.columns}, total);
  }
}

}  // namespace

extern "C" int coserve_packing() { return 3; }  // of matrices; as native/__init__.py has it

// y [rows, columns] = x [rows, depth] W^T + bias + residual, of a packed W. `mins`, `bias` and `residual` may be null.
extern "C" void coserve_linear_quantized(const float* x, const uint8_t* data, const uint16_t* scales,
                                         const uint16_t* mins, const float* bias, const float* residual, float* y,
                                         int bits, int group, int rows, int columns, int depth) {
  const QuantizedMatrix w{data, scales, mins, bits, group, columns, depth};
  (worth_tiles(bits, rows) ? product_by_tiles : product_by_vectors)(x, w, {bias, residual, y}, rows);
}

bool gated_linear_quantized(const float* x, const uint8_t* data, const uint16_t* scales, const uint16_t* mins,
                            const float* bias, float* y, int bits, int group, int rows, int columns, int depth) {
  const QuantizedMatrix w{data, scales, mins, bits, group, columns, depth};
  if (!worth_tiles(bits, rows) || !tiles_gate(w)) return false;
  product_by_tiles(x, w, {bias, nullptr, y, true}, rows);
  return true;
}

// The matrix itself, in float32 [rows, columns].
extern "C" void coserve_dequantize(const uint8_t* data, const uint16_t* scales, const uint16_t* mins, float* out, int bits,
                                   int group, int rows, int columns) {
  const int64_t width = (columns + kBlockK - 1) / kBlockK * kBlockK, groups = (columns + group - 1) / group;
#pragma omp parallel for schedule(static)
  for (int row = 0; row < rows; row++) {
    const int64_t panel = row / kPanel, c = row % kPanel, half = c % (kPanel / 2);
    const uint8_t* from = data + panel * width * kPanel * bits / 8;
    for (int g = 0; g < groups; g++) {
      const int64_t at = (panel * groups + g) * kPanel + c;
      const float scale = half_float(scales[at]), min = mins ? half_float(mins[at]) : bits == 4 ? -8 * scale : 0;
      for (int k = g * group; k < std::min(columns, (g + 1) * group); k++) {
        const int byte = bits == 8 ? from[(k / 4 * kPanel + c) * 4 + k % 4] : from[(k / 4 * (kPanel / 2) + half) * 4 + k % 4];
        const int q = bits == 8 ? int8_t(byte) : c == half ? byte & 15 : byte >> 4;
        out[int64_t(row) * columns + k] = float(q) * scale + min;
      }
    }
  }
}
