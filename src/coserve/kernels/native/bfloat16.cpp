// Products of bfloat16 rows with bfloat16 weights, y = x W^T + bias + residual, on processors that multiply them as they
// are: by AMX's tiles, or by AVX-512's dot products. Sums are float32, and rounded before the residual is added, as by
// itself. Weights are never packed.
//
// A row's sums run along k in an order that depends on k alone: see linear.cpp.

#include "operations.h"
#include "parts.h"
#include "tiles.h"
#include "vectors.h"

#ifdef AVX2
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")

namespace {

struct Bf16Matrix {  // [columns, depth], and what is added to its product
  const bf16 *w, *bias, *residual;
  int columns, depth;
};

INLINE __m512i load_some(const bf16* p, int n) {  // at most 32; the rest is zero
  return _mm512_maskz_loadu_epi16(n >= 32 ? ~0u : (1u << n) - 1, p);
}

INLINE __m512 widened(__m256i v) { return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16); }

INLINE float float_of(bf16 v) {
  const uint32_t word = uint32_t(v.bits) << 16;
  float value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

INLINE bf16 rounded(float v) {
  const __m128bh vector = _mm_cvtneps_pbh(_mm_set_ss(v));
  bf16 first;
  std::memcpy(&first, &vector, sizeof first);
  return first;
}

// ---- by dot products: a few rows of x against four of W, each pair of rows in a vector of sums ----------------------

constexpr int kRows = 6;
constexpr int kColumns = 4;

template <int R>
INLINE void dots_of_rows(const bf16* x, const Bf16Matrix& m, int column, const bf16* residual, bf16* y) {
  const bf16* w = m.w + int64_t(column) * m.depth;
  const int columns = std::min(kColumns, m.columns - column);
  __m512 sums[R][kColumns] = {};
  for (int k = 0; k < m.depth; k += 32) {
    __m512bh b[kColumns];
    UNROLL for (int c = 0; c < kColumns; c++) {
      const bf16* from = w + int64_t(std::min(c, columns - 1)) * m.depth + k;
      __builtin_prefetch(from + int64_t(kColumns) * m.depth);
      b[c] = (__m512bh)load_some(from, m.depth - k);
    }
    UNROLL for (int r = 0; r < R; r++) {
      const __m512bh a = (__m512bh)load_some(x + int64_t(r) * m.depth + k, m.depth - k);
      UNROLL for (int c = 0; c < kColumns; c++) sums[r][c] = _mm512_dpbf16_ps(sums[r][c], a, b[c]);
    }
  }
  UNROLL for (int r = 0; r < R; r++) UNROLL for (int c = 0; c < kColumns; c++) {
    if (c == columns) break;
    const float bias = m.bias ? float_of(m.bias[column + c]) : 0.0f;
    bf16* to = y + int64_t(r) * m.columns + column + c;
    *to = rounded(sum<16>((Vec<16>)sums[r][c]) + bias);
    if (residual) *to = rounded(float_of(residual[to - y]) + float_of(*to));
  }
}
template <int R>
INLINE void dots_of_few(const bf16* x, int rows, const Bf16Matrix& m, int column, const bf16* residual, bf16* y) {
  if (rows == R) dots_of_rows<R>(x, m, column, residual, y);
  else if constexpr (R > 1) dots_of_few<R - 1>(x, rows, m, column, residual, y);
}

void product_by_dots(const bf16* x, const Bf16Matrix& m, bf16* y, int rows) {
  const Parts parts((m.columns + kColumns - 1) / kColumns, int64_t(rows) * m.columns * m.depth);
#pragma omp parallel for schedule(dynamic) if (parts.count > 1)
  for (int part = 0; part < parts.count; part++)
    for (int strip = int(parts.begin(part)); strip < parts.end(part); strip++)
      for (int row = 0; row < rows; row += kRows) {
        const int64_t at = int64_t(row) * m.columns;
        dots_of_few<kRows>(x + int64_t(row) * m.depth, std::min(kRows, rows - row), m, strip * kColumns,
                           m.residual ? m.residual + at : nullptr, y + at);
      }
}

// ---- by tiles: W's rows are A as they lie in the checkpoint, pairs of x are B, and what comes out is y transposed ----

#ifdef AMX

constexpr int kElements = 2 * kTile;      // elements of a row in a tile
constexpr int kStep = 2 * kTile;       // rows of W, and of x, at a time: as many sums as there are tiles
constexpr int kDepth = 512;            // of a block along k: kStep rows of W stay in the nearest cache
constexpr int kPart = 256;             // rows of W whose sums wait for the next block along k
constexpr int kPageSteps = 64;         // along k, in which a row of W fills a page of memory, 4 KiB
constexpr int kMostRows = 512;         // of x, that W is read for once
INLINE int steps_of(const Bf16Matrix& m) { return (m.depth + kElements - 1) / kElements; }

// What a thread works in.
struct alignas(64) Work {
  bf16 w[kStep][kDepth + kElements];  // rows of W, at a distance that spreads over the cache's sets
  float sums[kPart / kTile][kMostRows / kTile][kTile * kTile];  // of W's rows and x's
};

// ---- sixteen vectors of sixteen words, turned over ------------------------------------------------------------------

INLINE void transpose(__m512i (&rows)[kTile]) {
  UNROLL for (int width = 1; width < kTile; width *= 2) {
    alignas(64) int32_t low[kTile], high[kTile];
    UNROLL for (int i = 0; i < kTile; i++) {
      low[i] = i & width ? kTile + i - width : i;
      high[i] = i & width ? kTile + i : i + width;
    }
    const __m512i to_low = _mm512_load_si512(low), to_high = _mm512_load_si512(high);
    UNROLL for (int i = 0; i < kTile; i++) {
      if (i & width) continue;
      const __m512i a = rows[i], b = rows[i + width];
      rows[i] = _mm512_permutex2var_epi32(a, to_low, b);
      rows[i + width] = _mm512_permutex2var_epi32(a, to_high, b);
    }
  }
}

// ---- rows of x, as B: [tiles of rows, steps, 16 pairs, 16 rows] -----------------------------------------------------

void pack_rows(const bf16* x, int rows, int depth, int tile, int steps, bf16* to) {
  const int here = std::min(kTile, rows - tile * kTile);
  for (int step = 0; step < steps; step++) {
    __m512i pairs[kTile];
    UNROLL for (int r = 0; r < kTile; r++) {
      const bf16* from = x + int64_t(tile * kTile + std::min(r, here - 1)) * depth + step * kElements;
      pairs[r] = r < here ? load_some(from, depth - step * kElements) : __m512i{};
    }
    transpose(pairs);
    bf16* out = to + (int64_t(tile) * steps + step) * (kTileBytes / 2);
    UNROLL for (int r = 0; r < kTile; r++) _mm512_store_si512(out + r * kElements, pairs[r]);
  }
}

// ---- products of tiles ----------------------------------------------------------------------------------------------

// Rows of W, where they lie or copied.
struct Weights {
  const bf16* at;
  int64_t stride;
};

// What the memory is asked for meanwhile: a share of the next rows of W at each step, row by row, so that the
// processor's own prefetcher follows.
struct Ahead {
  const bf16* next = nullptr;
  int64_t stride = 0;  // elements
  int lines = 0;       // of the cache, in a row
  int first = 0;       // at step 0, of all rows' lines
  int share = 0;       // at each step
  INLINE_MEMBER void ask(int step) const {
    if (!share) return;
    const int at = first + step * share;
    int row = at / lines, line = at % lines;
    for (int i = 0; i < share; i++) {
      __builtin_prefetch(next + row * stride + line * kElements, 0, 2);
      if (++line == lines) line = 0, row++;
    }
  }
};

// 32 rows of W against one or two tiles of x along `steps`; `sums` of the second sixteen rows lie `other` floats on.
template <int XTiles>
INLINE void dots(const Weights& w, const bf16* x, int64_t x_tile, int steps, bool first, float* sums, int64_t other,
                 const Ahead& ahead) {
  float* const of_second = sums + other;
  if (first) {
    TILE_ZERO(0);
    TILE_ZERO(1);
    if constexpr (XTiles == 2) {
      TILE_ZERO(2);
      TILE_ZERO(3);
    }
  } else {
    TILE_LOAD(0, sums, kTileRow);
    TILE_LOAD(1, of_second, kTileRow);
    if constexpr (XTiles == 2) {
      TILE_LOAD(2, sums + kTile * kTile, kTileRow);
      TILE_LOAD(3, of_second + kTile * kTile, kTileRow);
    }
  }
  for (int step = 0; step < steps; step++) {
    ahead.ask(step);
    const bf16* a = w.at + step * kElements;
    TILE_LOAD(6, x + step * (kTileBytes / 2), kTileRow);
    TILE_LOAD(4, a, w.stride * 2);
    TILE_DOT("bf16ps", 0, 4, 6);
    TILE_LOAD(5, a + kTile * w.stride, w.stride * 2);
    TILE_DOT("bf16ps", 1, 5, 6);
    if constexpr (XTiles == 2) {
      TILE_LOAD(7, x + x_tile + step * (kTileBytes / 2), kTileRow);
      TILE_DOT("bf16ps", 2, 4, 7);
      TILE_DOT("bf16ps", 3, 5, 7);
    }
  }
  TILE_STORE(0, sums);
  TILE_STORE(1, of_second);
  if constexpr (XTiles == 2) {
    TILE_STORE(2, sums + kTile * kTile);
    TILE_STORE(3, of_second + kTile * kTile);
  }
}

// W's rows [row, row + 32) along a block from k on, with zeros where there are none.
INLINE void copy_rows(const Bf16Matrix& m, int row, int k, int steps, Work& work) {
  for (int r = 0; r < kStep; r++)
    for (int step = 0; step < steps; step++) {
      const int at = k + step * kElements;
      const bf16* from = m.w + int64_t(std::min(row + r, m.columns - 1)) * m.depth + at;
      _mm512_storeu_si512(work.w[r] + step * kElements, load_some(from, row + r < m.columns ? m.depth - at : 0));
    }
}

// y's columns [column, column + 16) of sixteen rows, or as many as there are.
INLINE void finish(const Bf16Matrix& m, const float* sums, int row, int rows, int column, bf16* y) {
  __m512i turned[kTile];
  UNROLL for (int i = 0; i < kTile; i++) turned[i] = _mm512_load_si512(sums + i * kTile);
  transpose(turned);
  const int here = std::min(kTile, m.columns - column);
  const __mmask16 mask = (1 << here) - 1;
  __m512 bias = {};
  if (m.bias) bias = widened(_mm256_maskz_loadu_epi16(mask, m.bias + column));
  UNROLL for (int r = 0; r < kTile; r++) {
    if (r >= rows) break;
    const int64_t at = int64_t(row + r) * m.columns + column;
    __m256i sum = (__m256i)_mm512_cvtneps_pbh(_mm512_add_ps((__m512)turned[r], bias));
    if (m.residual) {
      const __m512 residual = widened(_mm256_maskz_loadu_epi16(mask, m.residual + at));
      sum = (__m256i)_mm512_cvtneps_pbh(_mm512_add_ps(residual, widened(sum)));
    }
    _mm256_mask_storeu_epi16(y + at, mask, sum);
  }
}

// W's rows [first, last), whole strips of whole tiles, against up to 32 rows of x: each strip from end to end, a few
// pages of memory at a time.
void few_rows(const Bf16Matrix& m, const bf16* packed, int rows, int first, int last, bf16* y, Work& work) {
  const int steps = steps_of(m), blocks = (steps + kPageSteps - 1) / kPageSteps;
  const int64_t x_tile = int64_t(steps) * (kTileBytes / 2);
  float (*sums)[kTile * kTile] = work.sums[0];
  const auto ahead_of = [&](int column, int block) ALWAYS {  // all of a block, in as many steps as it has
    const int step = steps * block / blocks, here = steps * (block + 1) / blocks - step;
    return Ahead{m.w + int64_t(column) * m.depth + step * kElements, m.depth, here, 0, column < last ? kStep : 0};
  };
  for (int step = 0; step < steps / blocks; step++) ahead_of(first, 0).ask(step);
  for (int column = first; column < last; column += kStep) {
    for (int block = 0; block < blocks; block++) {
      const int step = steps * block / blocks, here = steps * (block + 1) / blocks - step;
      const Weights w{m.w + int64_t(column) * m.depth + step * kElements, m.depth};
      const Ahead ahead = block + 1 < blocks ? ahead_of(column, block + 1) : ahead_of(column + kStep, 0);
      const bf16* x = packed + step * (kTileBytes / 2);
      if (rows > kTile) dots<2>(w, x, x_tile, here, block == 0, sums[0], 2 * kTile * kTile, ahead);
      else dots<1>(w, x, x_tile, here, block == 0, sums[0], 2 * kTile * kTile, ahead);
    }
    for (int half = 0; half < 2; half++)
      for (int row = 0; row < rows; row += kTile)
        finish(m, sums[2 * half + row / kTile], row, std::min(kTile, rows - row), column + half * kTile, y);
  }
}

// Rows [begin, end) of W, at most kPart, against up to kMostRows of x from `row` on: W a block along k at a time, each
// copied into the nearest cache and taken past all of x.
void many_rows(const Bf16Matrix& m, const bf16* x, int row, int rows, int begin, int end, bf16* y, Work& work) {
  const int steps = steps_of(m), tiles = (rows + kTile - 1) / kTile, passes = (tiles + 1) / 2;
  const int64_t x_tile = int64_t(steps) * (kTileBytes / 2), other = sizeof work.sums[0] / sizeof(float);
  const bf16* packed = x + int64_t(row / kTile) * x_tile;
  const Weights w{work.w[0], kDepth + kElements};
  for (int step = 0; step < steps; step += kDepth / kElements) {
    const int here = std::min(kDepth / kElements, steps - step), k = step * kElements;
    for (int column = begin; column < end; column += kStep) {
      copy_rows(m, column, k, here, work);
      const bool ends = column + kStep >= end;
      const bf16* next = m.w + (ends ? int64_t(begin) * m.depth + k + kDepth : int64_t(column + kStep) * m.depth + k);
      for (int pass = 0; pass < passes; pass++) {
        const int tile = 2 * pass, share = (kStep + passes - 1) / passes;
        const Ahead ahead{next, m.depth, here, pass * share * here, share};
        float* sums = work.sums[(column - begin) / kTile][tile];
        const bf16* tile_x = packed + tile * x_tile + int64_t(step) * (kTileBytes / 2);
        if (tile + 1 < tiles) dots<2>(w, tile_x, x_tile, here, step == 0, sums, other, ahead);
        else dots<1>(w, tile_x, x_tile, here, step == 0, sums, other, ahead);
      }
    }
  }
  for (int column = begin; column < std::min(end, m.columns); column += kTile)
    for (int tile = 0; tile < tiles; tile++)
      finish(m, work.sums[(column - begin) / kTile][tile], row + tile * kTile, std::min(kTile, rows - tile * kTile),
             column, y);
}

void product_by_tiles(const bf16* x, const Bf16Matrix& m, bf16* y, int rows) {
  static thread_local Aligned memory;
  const int steps = steps_of(m), tiles = (rows + kTile - 1) / kTile;
  bf16* packed = memory.of<bf16>(size_t(tiles) * steps * (kTileBytes / 2));
#pragma omp parallel for schedule(static) if (int64_t(rows) * m.depth > kWorthThreads)
  for (int tile = 0; tile < tiles; tile++) pack_rows(x, rows, m.depth, tile, steps, packed);
  const Parts parts((m.columns + kStep - 1) / kStep, int64_t(rows) * m.columns * m.depth);
#pragma omp parallel for schedule(dynamic) if (parts.count > 1)
  for (int part = 0; part < parts.count; part++) {
    if (parts.begin(part) == parts.end(part)) continue;
    static thread_local Aligned own;
    Work& work = *own.of<Work>(1);
    const Tiles registers;
    int first = int(parts.begin(part)) * kStep;
    const int last = int(parts.end(part)) * kStep;
    if (rows <= kStep && m.depth % kElements == 0) {
      const int whole = std::min(last, m.columns / kStep * kStep);
      few_rows(m, packed, rows, first, whole, y, work);
      first = std::max(first, whole);
    }
    for (int row = 0; row < rows; row += kMostRows)
      for (int begin = first; begin < last; begin += kPart)
        many_rows(m, packed, row, std::min(kMostRows, rows - row), begin, std::min(last, begin + kPart), y, work);
  }
}

#endif  // AMX

}  // namespace

#pragma GCC pop_options

// Whether this processor multiplies in bfloat16; else rows are widened, and linear.cpp's products taken.
extern "C" int coserve_multiplies_bfloat16() {
  return level() >= amx || (level() >= avx512 && __builtin_cpu_supports("avx512bf16"));
}

// Where it does. Everything is contiguous; `bias` and `residual` may be null.
extern "C" void coserve_linear_bf16_rows(const bf16* x, const bf16* w, const bf16* bias, const bf16* residual, bf16* y,
                                        int rows, int columns, int depth) {
  const Bf16Matrix m{w, bias, residual, columns, depth};
#ifdef AMX
  if (level() >= amx && rows && depth) return product_by_tiles(x, m, y, rows);
#endif
  product_by_dots(x, m, y, rows);
}
#else
extern "C" int coserve_multiplies_bfloat16() { return 0; }
extern "C" void coserve_linear_bf16_rows(const bf16*, const bf16*, const bf16*, const bf16*, bf16*, int, int, int) {}
#endif
