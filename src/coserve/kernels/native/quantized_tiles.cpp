// The products of quantized.cpp by AMX's tiles: the same roundings, integer sums and order of additions, so the same
// results to the bit, an order of magnitude faster where there are many rows.
//
// Tiles multiply 8-bit integers. Beside 8-bit weights activations have 15 bits: x = 256 * high + low, with a sum for
// each. Two panels are taken at a time, for as many sums as there are tiles, and spread from the packed format to B's.

#include "quantized.h"
#include "tiles.h"

#ifdef AMX
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")

namespace {

#include "quantized_avx512.h"

constexpr int kFewest[2] = {4, 16};  // rows that tiles are worth it for, of 8- and 4-bit weights
constexpr int kQuad = 4;             // 8-bit integers in a word
constexpr int kPair = 2;             // panels at a time
constexpr int kMostRows = 256;       // that the weights are read for once
constexpr int kFewRows = 64;         // that stay in a core's own cache at their full length
constexpr int kMostPairs = 16;       // that wait for the next chunk along k, beside more rows
constexpr int kBlocks = 4;           // of 4-bit weights, whose sums wait to be scaled
constexpr int kLines = kDepth / kQuad;  // of B, in a chunk

// The rows of x. `high` and `low` have a tile's rows at a distance that spreads over the caches' sets.
struct TileRows {
  uint8_t *high, *low;   // [rows, stride]; low only beside 8-bit weights
  float *scales, *sums;  // [rows, blocks]; of scales one a row beside 8-bit weights
  int count, width, stride, blocks;
};

// What a thread works in.
struct alignas(64) Work {
  uint8_t b[kPair][kLines * kTileRow];  // a chunk's weights
  int32_t sums[2][kPair * kBlocks][kTile * kTile];
  float total[kMostPairs][kPair][kMostRows * kPanel];
};

// ---- weights: from panels to B's lines, each with four neighbours along k of the panel's sixteen columns ------------

INLINE __m512i line8(const uint8_t* w) {  // from pairs, [2, 16, 2], to [16, 4]
  alignas(64) static constexpr int16_t kOrder[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                     8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_permutexvar_epi16(_mm512_load_si512(kOrder), _mm512_loadu_si512(w));
}
// What comes kAhead bytes after these elements of two panels; what follows a panel's end is the next pair's.
template <int Bits>
INLINE const uint8_t* ahead_of(const Panel& panel, int64_t k, int width) {
  const int64_t at = k * kPanel * Bits / 8 + kAhead / kPair, end = int64_t(width) * kPanel * Bits / 8;
  return panel.data + (at < end ? at : at + end);
}

// A tile of B, and its share of what comes later; lines that are missing are zero.
template <int Bits, int Lines>
INLINE void spread(const uint8_t* w, int lines, uint8_t* b, const uint8_t* ahead) {
  constexpr int kBytes = kPanel * kQuad * Bits / 8;
  for (int i = 0; i < Lines; i++) {
    if (i * kBytes % 64 == 0) __builtin_prefetch(ahead + i * kBytes);
    const __m512i line = i >= lines ? __m512i{} : Bits == 8 ? line8(w + i * kBytes) : Avx512::quads(w + i * kBytes);
    _mm512_store_si512(b + i * kTileRow, line);
  }
}

// ---- sixteen rows against a chunk of two panels ---------------------------------------------------------------------

struct Place {  // in x, in its results, and in what follows the chunk
  const TileRows& x;
  int row, rows;    // at most sixteen
  int first, last;  // along k
  float* total[kPair];  // [rows, 16] for each panel
  const uint8_t* next[kPair];
  int lines;  // of them to ask for in a step
  int kept;   // as a mask: steps whose weights stay spread, for other rows
};

INLINE void ask(const Place& at, int step) {
  for (int p = 0; p < kPair; p++)
    for (int i = 0; i < at.lines; i++) __builtin_prefetch(at.next[p] + (step * at.lines + i) * 64);
}

// `Fresh`: the chunk comes from memory and is spread for these rows and those to come, which ask for the next chunk.
template <bool Mins, bool Fresh>
INLINE void dots8(const Place& at, const Panel* panels, Work& work) {
  const TileRows& x = at.x;
  const int lines = (at.last - at.first) / kQuad, steps = (lines + kTile - 1) / kTile;
  const int64_t stride = x.stride, start = at.row * stride + at.first;
  const uint8_t *high = x.high + start, *low = x.low + start;
  const auto spread_both = [&](int step) ALWAYS {
    for (int p = 0; p < kPair; p++)
      spread<8, kTile>(panels[p].data + int64_t(at.first) * kPanel + step * kTileBytes, lines - step * kTile,
                       work.b[p] + (step & at.kept) * kTileBytes,
                       ahead_of<8>(panels[p], at.first + step * kTileRow, x.width));
  };
  TILE_ZERO(0);
  TILE_ZERO(1);
  TILE_ZERO(2);
  TILE_ZERO(3);
  if constexpr (Fresh) spread_both(0);
  for (int step = 0; step < steps; step++, high += kTileRow, low += kTileRow) {
    if constexpr (!Fresh) ask(at, step);
    else if (step + 1 < steps) spread_both(step + 1);  // what has just been written cannot be read at once
    TILE_LOAD(6, work.b[0] + (step & at.kept) * kTileBytes, kTileRow);
    TILE_LOAD(4, high, stride);
    TILE_DOT("bssd", 0, 4, 6);
    TILE_LOAD(7, work.b[1] + (step & at.kept) * kTileBytes, kTileRow);
    TILE_DOT("bssd", 2, 4, 7);
    TILE_LOAD(5, low, stride);
    TILE_DOT("busd", 1, 5, 6);
    TILE_DOT("busd", 3, 5, 7);
  }
  TILE_STORE(0, work.sums[0][0]);
  TILE_STORE(1, work.sums[0][1]);
  TILE_STORE(2, work.sums[0][2]);
  TILE_STORE(3, work.sums[0][3]);
  for (int p = 0; p < kPair; p++) {
    const int group = at.first / panels[p].group * kPanel;
    const __m512 scale = Avx512::half_floats(panels[p].scales + group);
    const __m512 min = Mins ? Avx512::half_floats(panels[p].mins + group) : __m512{};
    const int32_t *of_high = work.sums[0][2 * p], *of_low = work.sums[0][2 * p + 1];
    for (int r = 0; r < at.rows; r++) {
      const __m512i high_sum = _mm512_slli_epi32(_mm512_load_si512(of_high + r * kTile), 8);
      const __m512i sum = _mm512_add_epi32(high_sum, _mm512_load_si512(of_low + r * kTile));
      __m512 total = Avx512::sum(_mm512_load_ps(at.total[p] + r * kPanel), Avx512::scaled({sum}, scale), 1.0f);
      if constexpr (Mins)
        for (int block = at.first / kBlockK; block < at.last / kBlockK; block++)
          total = Avx512::sum(total, min, x.sums[int64_t(at.row + r) * x.blocks + block]);
      _mm512_store_ps(at.total[p] + r * kPanel, total);
    }
  }
}

// The same for 4-bit weights, whose sums of 32 elements are scaled by themselves. The sums of `Blocks` of them, from k
// on.
template <bool Fresh, int Blocks>
INLINE void multiply4(const Place& at, const Panel* panels, int k, Work& work, int32_t (*sums)[kTile * kTile]) {
  constexpr int kLinesOfBlock = kBlockK / kQuad;
  constexpr int64_t kOther = sizeof work.b[0];
  const TileRows& x = at.x;
  const uint8_t* a = x.high + int64_t(at.row) * x.stride + k;
  uint8_t* const b = work.b[0] + (k - at.first) * (kTileRow / kQuad);
  if constexpr (Fresh)
    for (int p = 0; p < kPair; p++)
      spread<4, Blocks * kLinesOfBlock>(panels[p].data + int64_t(k) * (kPanel / 2), Blocks * kLinesOfBlock,
                                        b + p * kOther, ahead_of<4>(panels[p], k, x.width));
  UNROLL for (int i = 0; i < Blocks; i++) {
    if constexpr (!Fresh) ask(at, (k - at.first) / kBlockK + i);
    const uint8_t* lines = b + i * kLinesOfBlock * kTileRow;
    TILE_LOAD(6, lines, kTileRow);
    TILE_LOAD(7, lines + kOther, kTileRow);
    TILE_LOAD(4, a + i * kBlockK, x.stride);
    if (i % 2 == 0) {
      TILE_ZERO(0);
      TILE_ZERO(1);
      TILE_DOT("bsud", 0, 4, 6);
      TILE_DOT("bsud", 1, 4, 7);
      TILE_STORE(0, sums[i]);
      TILE_STORE(1, sums[kBlocks + i]);
    } else {
      TILE_ZERO(2);
      TILE_ZERO(3);
      TILE_DOT("bsud", 2, 4, 6);
      TILE_DOT("bsud", 3, 4, 7);
      TILE_STORE(2, sums[i]);
      TILE_STORE(3, sums[kBlocks + i]);
    }
  }
}

// And what they add to the totals.
template <bool Mins, int Blocks>
INLINE void scale4(const Place& at, const Panel* panels, int k, const int32_t (*sums)[kTile * kTile]) {
  const TileRows& x = at.x;
  for (int p = 0; p < kPair; p++) {
    __m512 scale[Blocks], min[Blocks];
    UNROLL for (int i = 0; i < Blocks; i++) {
      const int group = (k + i * kBlockK) / panels[p].group * kPanel;
      scale[i] = Avx512::half_floats(panels[p].scales + group);
      min[i] = Mins ? Avx512::half_floats(panels[p].mins + group) : Avx512::times(scale[i], -8.0f);
    }
    for (int r = 0; r < at.rows; r++) {
      const int64_t place = int64_t(at.row + r) * x.blocks + k / kBlockK;
      __m512 total = _mm512_load_ps(at.total[p] + r * kPanel);
      UNROLL for (int i = 0; i < Blocks; i++) {
        const __m512i sum = _mm512_load_si512(sums[p * kBlocks + i] + r * kTile);
        total = Avx512::sum(total, min[i], x.sums[place + i]);
        total = Avx512::sum(total, Avx512::scaled({sum}, scale[i]), x.scales[place + i]);
      }
      _mm512_store_ps(at.total[p] + r * kPanel, total);
    }
  }
}

template <bool Mins, bool Fresh>
INLINE void dots4(const Place& at, const Panel* panels, Work& work) {
  constexpr int kStep = kBlocks * kBlockK;
  const int whole = at.first + (at.last - at.first) / kStep * kStep;
  int turn = 0;
  if (whole > at.first) multiply4<Fresh, kBlocks>(at, panels, at.first, work, work.sums[turn]);
  for (int k = at.first; k < whole; k += kStep, turn = 1 - turn) {  // the next ones are multiplied meanwhile
    if (k + kStep < whole) multiply4<Fresh, kBlocks>(at, panels, k + kStep, work, work.sums[1 - turn]);
    scale4<Mins, kBlocks>(at, panels, k, work.sums[turn]);
  }
  for (int k = whole; k < at.last; k += kBlockK) {
    multiply4<Fresh, 1>(at, panels, k, work, work.sums[0]);
    scale4<Mins, 1>(at, panels, k, work.sums[0]);
  }
}

template <int Bits, bool Mins, bool Fresh>
INLINE void dots(const Place& at, const Panel* panels, Work& work) {
  if constexpr (Bits == 8) dots8<Mins, Fresh>(at, panels, work);
  else dots4<Mins, Fresh>(at, panels, work);
}

// ---- all rows against all panels ------------------------------------------------------------------------------------

// Two panels; where there is no second one, the first again.
struct Pair {
  Panel panels[kPair];
  Pair(const QuantizedMatrix& w, int64_t i)
      : panels{w.panel(2 * i), w.panel(std::min<int64_t>(2 * i + 1, w.panels() - 1))} {}
};

// Where the elements from `first` on end that are summed together.
template <int Bits>
INLINE int chunk_end(int first, const QuantizedMatrix& w) {
  const int end = std::min(w.width(), (first / kDepth + 1) * kDepth);
  return Bits == 8 ? std::min(end, (first / w.group + 1) * w.group) : end;
}

// `rows` from `row` on against a chunk: the first sixteen bring it near, the others ask for the next one, at `next`.
template <int Bits, bool Mins>
INLINE void chunk_product(const TileRows& x, int row, int rows, const Pair& pair, int first, int last,
                          float (*total)[kMostRows * kPanel], const Pair& next, int next_first, Work& work) {
  constexpr int kBytes = kPanel * Bits / 8, kStep = Bits == 8 ? kTileRow : kBlockK, kLinesOfStep = kStep * kBytes / 64;
  const int passes = (rows + kTile - 1) / kTile, steps = (last - first + kStep - 1) / kStep;
  const int lines = passes > 1 ? (kLinesOfStep + passes - 2) / (passes - 1) : 0;
  for (int pass = 0; pass < passes; pass++) {
    const int done = pass * kTile;
    Place at{x, row + done, std::min(kTile, rows - done), first, last, {}, {}, lines, passes > 1 ? -1 : 3};
    for (int p = 0; p < kPair; p++) {
      at.total[p] = total[p] + done * kPanel;
      at.next[p] = next.panels[p].data + int64_t(next_first) * kBytes + int64_t(pass - 1) * steps * lines * 64;
    }
    if (pass == 0) dots<Bits, Mins, true>(at, pair.panels, work);
    else dots<Bits, Mins, false>(at, pair.panels, work);
  }
}

// Rows [row, row + rows) of y from column `first` on, from the totals of some pairs: row by row, in long runs.
template <int Bits>
INLINE void finish(const TileRows& x, int row, int rows, const Work& work, int pairs, const QuantizedMatrix& w,
                   int first, const Result& to) {
  for (int r = 0; r < rows; r++) {
    const __m512 scale = _mm512_set1_ps(Bits == 8 ? x.scales[row + r] : 1.0f);
    const int64_t of_row = int64_t(row + r) * w.columns;
    for (int i = 0; i < pairs * kPair; i++) {
      const int column = first + i * kPanel, here = std::min(kPanel, w.columns - column);
      if (here <= 0) break;
      const __mmask16 mask = (1 << here) - 1;
      const __m512 bias = to.bias ? _mm512_maskz_loadu_ps(mask, to.bias + column) : __m512{};
      const __m512 total = _mm512_load_ps(work.total[i / kPair][i % kPair] + r * kPanel);
      __m512 sum = _mm512_fmadd_ps(total, scale, bias);
      if (to.residual) sum = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, to.residual + of_row + column), sum);
      _mm512_mask_storeu_ps(to.y + of_row + column, mask, sum);
    }
  }
}

// Pairs [begin, end). Beside many rows, which do not stay in the cache at their full length, several at each chunk.
template <int Bits, bool Mins>
void pairs_product(const TileRows& x, const QuantizedMatrix& w, const Result& to, int begin, int end, Work& work) {
  const Tiles tiles(Bits == 8 ? kTile : kBlockK / kQuad);
  for (int row = 0; row < x.count; row += kMostRows) {
    const int rows = std::min(kMostRows, x.count - row);
    const int most = rows > kFewRows ? kMostPairs : 1;
    for (int from = begin; from < end; from += most) {
      const int count = std::min(most, end - from);
      for (int i = 0; i < count; i++)
        for (int p = 0; p < kPair; p++) std::memset(work.total[i][p], 0, size_t(rows) * kPanel * sizeof(float));
      for (int first = 0, last; first < x.width; first = last) {
        last = chunk_end<Bits>(first, w);
        for (int i = 0; i < count; i++) {
          const bool ends = i + 1 == count;
          chunk_product<Bits, Mins>(x, row, rows, Pair(w, from + i), first, last, work.total[i],
                                    Pair(w, ends ? from : from + i + 1), ends ? last : first, work);
        }
      }
      finish<Bits>(x, row, rows, work, count, w, from * kPair * kPanel, to);
    }
  }
}

// ---- rows on their way in -------------------------------------------------------------------------------------------

INLINE void split(const int16_t* values, int n, uint8_t* high, uint8_t* low) {
  for (int i = 0; i < n; i++) high[i] = uint8_t(values[i] >> 8), low[i] = uint8_t(values[i]);
}

void round_rows(const float* x, int depth, int bits, TileRows& to) {
#pragma omp parallel for schedule(static) if (int64_t(to.count) * depth > kWorthThreads)
  for (int r = 0; r < to.count; r++) {
    static thread_local std::vector<int16_t> values;
    const int64_t at = int64_t(r) * to.stride, blocks = int64_t(r) * to.blocks;
    const float* from = x + int64_t(r) * depth;
    if (bits == 8) {
      if (values.size() < size_t(to.width)) values.resize(to.width);
      round_row(from, depth, to.width, values.data(), to.scales + r, to.sums + blocks);
      split(values.data(), to.width, to.high + at, to.low + at);
    } else {
      round_row(from, depth, to.width, reinterpret_cast<int8_t*>(to.high + at), to.scales + blocks, to.sums + blocks);
    }
  }
}

}  // namespace

bool worth_tiles(int bits, int rows) { return rows >= kFewest[bits == 4] && level() >= amx; }

void product_by_tiles(const float* x, const QuantizedMatrix& w, const Result& to, int rows) {
  static thread_local Aligned bytes, floats;
  TileRows in;
  in.count = rows, in.width = w.width(), in.blocks = in.width / kBlockK;
  in.stride = (in.width + 2 * kTileRow - 1) / kTileRow * kTileRow;
  const size_t all = size_t(rows + kTile - 1) / kTile * kTile * in.stride;
  in.high = bytes.of<uint8_t>(2 * all), in.low = in.high + all;
  in.sums = floats.of<float>(size_t(rows) * (2 * in.blocks + 1)), in.scales = in.sums + size_t(rows) * in.blocks;
  round_rows(x, w.depth, w.bits, in);
  const auto run = w.bits == 8 ? w.mins ? pairs_product<8, true> : pairs_product<8, false>
                               : w.mins ? pairs_product<4, true> : pairs_product<4, false>;
  const Parts parts((w.panels() + 1) / kPair, int64_t(rows) * w.columns * w.depth);
#pragma omp parallel for schedule(dynamic) if (parts.count > 1)
  for (int part = 0; part < parts.count; part++) {
    if (parts.begin(part) == parts.end(part)) continue;
    static thread_local Aligned work;
    run(in, w, to, int(parts.begin(part)), int(parts.end(part)), *work.of<Work>(1));
  }
}

#pragma GCC pop_options
#else
bool worth_tiles(int, int) { return false; }
void product_by_tiles(const float*, const QuantizedMatrix&, const Result&, int) {}
#endif
