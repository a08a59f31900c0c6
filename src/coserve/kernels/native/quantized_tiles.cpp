// The products of quantized.cpp by AMX's tiles: the same roundings, integer sums and order of additions, so the same
// results to the bit, an order of magnitude faster where there are many rows.
//
// Tiles multiply 8-bit integers. Beside 8-bit weights activations have 15 bits: x = 256 * high + low, with a sum for
// each. Two panels are taken at a time, for as many sums as there are tiles. Panels of 8-bit weights are B as they lie;
// those of 4-bit weights are spread first.

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
constexpr int kNear = 1 << 20;       // bytes of rows that stay in a core's own cache
constexpr int kMostPairs = 16;       // that wait for the next chunk along k, beside more rows
constexpr int kPiece = 512;          // of a chunk of two panels of 8-bit weights, which the nearest cache holds
constexpr int kBlocks = 4;           // of 4-bit weights, whose sums wait to be scaled
constexpr int kLines = kDepth / kQuad;  // of B, in a chunk

// The rows of x, sixteen after sixteen, as tiles load them: of each step along k a tile, beside 8-bit weights one of
// high bytes before one of low bytes.
template <int Bits>
struct TileRows {
  static constexpr int kHalves = Bits == 8 ? 2 : 1;
  uint8_t* bytes;        // [count / 16, width / step, kHalves, height, step]
  float *scales, *sums;  // [count, blocks]; of scales one a row beside 8-bit weights
  int count, width, blocks, height, step;

  int bytes_of_tile() const { return height * step; }
  uint8_t* tile(int row, int k) const {
    return bytes + (int64_t(row / kTile) * (width / step) + k / step) * kHalves * bytes_of_tile();
  }
};

// Elements along k that are summed together.
template <int Bits>
struct Chunk {
  int first = 0, last = 0;
  Chunk next(const QuantizedMatrix& w) const {
    const int of_depth = std::min(w.width(), (last / kDepth + 1) * kDepth);
    return {last, Bits == 8 ? std::min(of_depth, (last / w.group + 1) * w.group) : of_depth};
  }
};

// What a thread works in.
struct alignas(64) Work {
  uint8_t b[kPair][kLines * kTileRow];  // a chunk's weights, of 4 bits
  int32_t sums[2][kPair * kBlocks][kTile * kTile];
  int32_t part[kPair][kMostRows * kPanel];  // of a chunk's sums, from its first pieces
  float total[kMostPairs][kPair][kMostRows * kPanel];
};

// ---- results --------------------------------------------------------------------------------------------------------

// Two panels' columns of y.
class Columns {
 public:
  Columns() = default;
  Columns(const Result& to, const QuantizedMatrix& w, const int (&panels)[kPair], bool streams)
      : to_(&to), of_(to.gated ? w.columns / 2 : w.columns), streams_(streams) {
    for (int p = 0; p < kPair; p++) {
      first_[p] = panels[p] * kPanel;
      mask_[p] = (1u << std::clamp(w.columns - first_[p], 0, kPanel)) - 1;
      bias_[p] = to.bias ? _mm512_maskz_loadu_ps(mask_[p], to.bias + first_[p]) : __m512{};
    }
  }

  // From a row's complete totals.
  INLINE_MEMBER void write(int row, const __m512 (&totals)[kPair], float scale) const {
    const int64_t at = int64_t(row) * of_;
    __m512 sums[kPair];
    UNROLL for (int p = 0; p < kPair; p++) sums[p] = _mm512_fmadd_ps(totals[p], _mm512_set1_ps(scale), bias_[p]);
    if (to_->gated) return put(at, 0, silu<16>(sums[0], to_->y) * sums[1]);
    UNROLL for (int p = 0; p < kPair; p++) {
      if (to_->residual) sums[p] += _mm512_maskz_loadu_ps(mask_[p], to_->residual + at + first_[p]);
      put(at, p, sums[p]);
    }
  }

  // Whether it is better not to read memory, and to displace other things in the caches, where y will lie.
  static bool stream(const Result& to, int rows, const QuantizedMatrix& w) {
    const bool aligned = w.columns % kPanel == 0 && reinterpret_cast<uintptr_t>(to.y) % 64 == 0;
    return aligned && int64_t(rows) * w.columns > kNear / 4;
  }

 private:
  INLINE_MEMBER void put(int64_t at, int p, __m512 sum) const {
    if (streams_ && mask_[p]) _mm512_stream_ps(to_->y + at + first_[p], sum);
    else _mm512_mask_storeu_ps(to_->y + at + first_[p], mask_[p], sum);
  }

  const Result* to_;
  int of_;
  bool streams_;
  int first_[kPair];
  __mmask16 mask_[kPair];
  __m512 bias_[kPair];
};

// ---- sixteen rows against a chunk of two panels ---------------------------------------------------------------------

// Two panels: neighbours, or one of gates and that of what they gate. Where their number is odd, the last one's
// neighbour is itself, and not written.
struct Pair {
  int at[kPair];
  Panel panels[kPair];
  Pair() = default;
  Pair(const QuantizedMatrix& w, int i, bool gated) : at{gated ? i : 2 * i, gated ? i + w.panels() / 2 : 2 * i + 1} {
    for (int p = 0; p < kPair; p++) panels[p] = w.panel(at[p] < w.panels() ? at[p] : at[0]);
  }
};

struct Place {  // in x, in its results, and in what follows the chunk
  int row, rows;        // at most sixteen
  float* total[kPair];  // [rows, 16] for each panel
  int32_t* part[kPair];
  const uint8_t *here[kPair], *next[kPair];  // what to ask memory for, from `turn` on of the next chunk
  int turn;                                  // a step
  int lines, most;                           // in a step, and by chunk
};

INLINE void ask(const Place& at, int step) {
  const uint8_t* const* from = step < at.turn ? at.here : at.next;
  for (int line = step * at.lines; line < std::min(at.most, (step + 1) * at.lines); line++)
    for (int p = 0; p < kPair; p++) __builtin_prefetch(from[p] + line * kTileRow);
}

// The sums of high and low bytes, left in the tiles.
INLINE void multiply8(const TileRows<8>& x, const Place& at, const Chunk<8>& chunk, const Panel* panels) {
  const int tile = x.bytes_of_tile(), steps = (chunk.last - chunk.first) / x.step;
  const uint8_t* a = x.tile(at.row, chunk.first);
  const uint8_t* b[kPair];
  for (int p = 0; p < kPair; p++) b[p] = panels[p].data + int64_t(chunk.first) * kPanel;
  TILE_ZERO(0);
  TILE_ZERO(1);
  TILE_ZERO(2);
  TILE_ZERO(3);
  for (int step = 0; step < steps; step++, a += 2 * tile) {
    ask(at, step);
    TILE_LOAD(6, b[0] + step * x.step * kPanel, kTileRow);
    TILE_LOAD(4, a, x.step);
    TILE_DOT("bssd", 0, 4, 6);
    TILE_LOAD(7, b[1] + step * x.step * kPanel, kTileRow);
    TILE_DOT("bssd", 2, 4, 7);
    TILE_LOAD(5, a + tile, x.step);
    TILE_DOT("busd", 1, 5, 6);
    TILE_DOT("busd", 3, 5, 7);
  }
}

// What sixteen rows have left in the tiles is scaled while the next rows' products fill them.
template <bool Mins>
class Sums8 {
 public:
  Sums8(const TileRows<8>& x, Work& work) : x_(x), work_(work) {}

  // `piece`: what the tiles have of the chunk.
  void take(const Place& at, const Chunk<8>& piece, const Chunk<8>& chunk, const Pair& pair, const Columns& columns) {
    scale();
    turn_ = 1 - turn_;
    TILE_STORE(0, work_.sums[turn_][0]);
    TILE_STORE(1, work_.sums[turn_][1]);
    TILE_STORE(2, work_.sums[turn_][2]);
    TILE_STORE(3, work_.sums[turn_][3]);
    at_ = at, piece_ = piece, chunk_ = chunk, pair_ = pair, columns_ = columns;
  }

  // Adds the last ones to their totals; with a row's last chunk these are complete, and go to their columns.
  void scale() const {
    if (piece_.last < chunk_.last) return keep();
    const __mmask16 before = chunk_.first > 0 ? -1 : 0;
    const bool complete = chunk_.last == x_.width;
    __m512 scales[kPair], mins[kPair], totals[kPair];
    for (int p = 0; p < kPair && at_.rows > 0; p++) {
      const int64_t group = chunk_.first / pair_.panels[p].group * kPanel;
      scales[p] = Avx512::half_floats(pair_.panels[p].scales + group);
      mins[p] = Mins ? Avx512::half_floats(pair_.panels[p].mins + group) : __m512{};
    }
    for (int r = 0; r < at_.rows; r++) {
      const int row = at_.row + r;
      UNROLL for (int p = 0; p < kPair; p++) {
        const __m512i sum = this->sum(p, r);
        totals[p] = _mm512_maskz_load_ps(before, at_.total[p] + r * kPanel);
        totals[p] = Avx512::sum(totals[p], Avx512::scaled({sum}, scales[p]), 1.0f);
        if constexpr (Mins)
          for (int block = chunk_.first / kBlockK; block < chunk_.last / kBlockK; block++)
            totals[p] = Avx512::sum(totals[p], mins[p], x_.sums[int64_t(row) * x_.blocks + block]);
        if (!complete) _mm512_store_ps(at_.total[p] + r * kPanel, totals[p]);
      }
      if (complete) columns_.write(row, totals, x_.scales[row]);
    }
  }

 private:
  void keep() const {
    for (int p = 0; p < kPair; p++)
      for (int r = 0; r < at_.rows; r++) _mm512_store_si512(at_.part[p] + r * kPanel, sum(p, r));
  }
  INLINE_MEMBER __m512i sum(int p, int r) const {
    const __mmask16 before = piece_.first > chunk_.first ? -1 : 0;
    const __m512i high = _mm512_load_si512(work_.sums[turn_][2 * p] + r * kTile);
    const __m512i low = _mm512_load_si512(work_.sums[turn_][2 * p + 1] + r * kTile);
    const __m512i part = _mm512_maskz_load_epi32(before, at_.part[p] + r * kPanel);
    return _mm512_add_epi32(_mm512_add_epi32(_mm512_slli_epi32(high, 8), low), part);
  }

  const TileRows<8>& x_;
  Work& work_;
  int turn_ = 0;
  Place at_ = {};
  Chunk<8> piece_, chunk_;
  Pair pair_;
  Columns columns_;
};

// The same for 4-bit weights, whose sums of 32 elements are scaled by themselves.

// What comes kAhead bytes after these elements of two panels; what follows a panel's end is the next pair's.
INLINE const uint8_t* ahead_of(const Panel& panel, int64_t k, int width) {
  const int64_t at = k * (kPanel / 2) + kAhead / kPair, end = int64_t(width) * (kPanel / 2);
  return panel.data + (at < end ? at : at + end);
}

// Lines of B, each with four neighbours along k of the panel's sixteen columns, and their share of what comes later.
template <int Lines>
INLINE void spread(const uint8_t* w, uint8_t* b, const uint8_t* ahead) {
  constexpr int kBytes = kPanel * kQuad / 2;
  for (int i = 0; i < Lines; i++) {
    if (i * kBytes % 64 == 0) __builtin_prefetch(ahead + i * kBytes);
    _mm512_store_si512(b + i * kTileRow, Avx512::quads(w + i * kBytes));
  }
}

// The sums of `Blocks` of them, from k on. `Fresh`: the chunk comes from memory and is spread for these rows and those
// to come, which ask for the next chunk.
template <bool Fresh, int Blocks>
INLINE void multiply4(const TileRows<4>& x, const Place& at, const Chunk<4>& chunk, const Panel* panels, int k,
                      Work& work, int32_t (*sums)[kTile * kTile]) {
  constexpr int kLinesOfBlock = kBlockK / kQuad;
  constexpr int64_t kOther = sizeof work.b[0];
  const int step = (k - chunk.first) / kBlockK;
  const uint8_t* a = x.tile(at.row, k);
  uint8_t* const b = work.b[0] + step * kLinesOfBlock * kTileRow;
  if constexpr (Fresh)
    for (int p = 0; p < kPair; p++)
      spread<Blocks * kLinesOfBlock>(panels[p].data + int64_t(k) * (kPanel / 2), b + p * kOther,
                                     ahead_of(panels[p], k, x.width));
  UNROLL for (int i = 0; i < Blocks; i++) {
    if constexpr (!Fresh) ask(at, step + i);
    const uint8_t* lines = b + i * kLinesOfBlock * kTileRow;
    TILE_LOAD(6, lines, kTileRow);
    TILE_LOAD(7, lines + kOther, kTileRow);
    TILE_LOAD(4, a + i * x.bytes_of_tile(), kBlockK);
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
INLINE void scale4(const TileRows<4>& x, const Place& at, const Panel* panels, int k,
                   const int32_t (*sums)[kTile * kTile]) {
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

struct Sums4 {  // are scaled at once
  Sums4(const TileRows<4>&, Work&) {}
  void scale() const {}
};

template <bool Mins, bool Fresh>
INLINE void dots4(const TileRows<4>& x, const Place& at, const Chunk<4>& chunk, const Panel* panels, Work& work) {
  constexpr int kSome = kBlocks * kBlockK;
  const int whole = chunk.first + (chunk.last - chunk.first) / kSome * kSome;
  int turn = 0;
  if (whole > chunk.first) multiply4<Fresh, kBlocks>(x, at, chunk, panels, chunk.first, work, work.sums[turn]);
  for (int k = chunk.first; k < whole; k += kSome, turn = 1 - turn) {  // the next ones are multiplied meanwhile
    if (k + kSome < whole) multiply4<Fresh, kBlocks>(x, at, chunk, panels, k + kSome, work, work.sums[1 - turn]);
    scale4<Mins, kBlocks>(x, at, panels, k, work.sums[turn]);
  }
  for (int k = whole; k < chunk.last; k += kBlockK) {
    multiply4<Fresh, 1>(x, at, chunk, panels, k, work, work.sums[0]);
    scale4<Mins, 1>(x, at, panels, k, work.sums[0]);
  }
}

// ---- all rows against all panels ------------------------------------------------------------------------------------

// What the rows from `row` on, sixteen after sixteen, do at a chunk. If they are but sixteen, they ask memory for what
// comes kAhead bytes later; more of them ask in turn for the next chunk, unless they spread this one.
template <int Bits>
struct Passes {
  static constexpr int kSilent = Bits == 4 ? 1 : 0;
  const TileRows<Bits>& x;
  const Chunk<Bits>& chunk;
  const Pair& pair;
  const Chunk<Bits>& after;
  const Pair& next;
  float (*total)[kMostRows * kPanel];
  int row, rows;

  int count() const { return (rows + kTile - 1) / kTile; }
  Place place(int pass, const Chunk<Bits>& piece) const {
    const int done = pass * kTile, steps = (piece.last - piece.first) / x.step;
    const int asks = (count() - kSilent) * ((chunk.last - chunk.first) / x.step);
    Place at = {};
    at.row = row + done, at.rows = std::min(kTile, rows - done);
    for (int p = 0; p < kPair; p++) at.total[p] = total[p] + done * kPanel;
    if (asks == 0) return at;
    const int all = bytes(after.last - after.first) / kTileRow, ahead = kAhead / kPair / bytes(x.step);
    at.lines = (all + asks - 1) / asks;
    const int before = ((piece.first - chunk.first) / x.step * count() + (pass - kSilent) * steps) * at.lines;
    at.most = std::max(0, all - before);
    for (int p = 0; p < kPair; p++) at.next[p] = next.panels[p].data + bytes(after.first) + before * kTileRow;
    if (count() > 1) return at;
    at.lines = bytes(x.step) / kTileRow, at.most = steps * at.lines, at.turn = std::max(0, steps - ahead);
    for (int p = 0; p < kPair; p++) {
      at.here[p] = pair.panels[p].data + bytes(chunk.first + ahead * x.step);
      at.next[p] -= at.turn * bytes(x.step);
    }
    return at;
  }

 private:
  static int64_t bytes(int k) { return int64_t(k) * kPanel * Bits / 8; }
};

template <bool Mins>
INLINE void chunk_product(const Passes<8>& passes, const Columns& columns, Work& work, Sums8<Mins>& sums) {
  const auto& chunk = passes.chunk;
  const int most = passes.count() > 1 ? kPiece : kDepth;
  for (Chunk<8> piece{chunk.first, chunk.first}; piece.last < chunk.last;) {
    piece = {piece.last, std::min(piece.last + most, chunk.last)};
    for (int pass = 0; pass < passes.count(); pass++) {
      Place at = passes.place(pass, piece);
      for (int p = 0; p < kPair; p++) at.part[p] = work.part[p] + pass * kTile * kPanel;
      multiply8(passes.x, at, piece, passes.pair.panels);
      sums.take(at, piece, chunk, passes.pair, columns);
    }
  }
}
template <bool Mins>
INLINE void chunk_product(const Passes<4>& passes, const Columns& columns, Work& work, Sums4&) {
  const Panel* panels = passes.pair.panels;
  const auto& x = passes.x;
  if (passes.chunk.first == 0)
    for (int p = 0; p < kPair; p++) std::memset(passes.total[p], 0, size_t(passes.rows) * kPanel * sizeof(float));
  for (int pass = 0; pass < passes.count(); pass++) {
    const Place at = passes.place(pass, passes.chunk);
    if (pass == 0) dots4<Mins, true>(x, at, passes.chunk, panels, work);
    else dots4<Mins, false>(x, at, passes.chunk, panels, work);
    if (passes.chunk.last < x.width) continue;
    for (int r = 0; r < at.rows; r++) {
      const __m512 totals[kPair] = {_mm512_load_ps(at.total[0] + r * kPanel), _mm512_load_ps(at.total[1] + r * kPanel)};
      columns.write(at.row + r, totals, 1.0f);
    }
  }
}

// Pairs [begin, end). Rows that do not stay in the cache at their full length meet several pairs at each chunk.
template <int Bits, bool Mins>
void pairs_product(const TileRows<Bits>& x, const QuantizedMatrix& w, const Result& to, int begin, int end,
                   Work& work) {
  const Tiles tiles(x.step / kQuad, x.height);
  const auto start = Chunk<Bits>().next(w);
  const bool streams = Columns::stream(to, x.count, w);
  std::conditional_t<Bits == 8, Sums8<Mins>, Sums4> sums(x, work);
  for (int row = 0; row < x.count; row += kMostRows) {
    const int rows = std::min(kMostRows, x.count - row);
    const int most = x.tile(rows, 0) - x.tile(0, 0) <= kNear ? 1 : kMostPairs;
    for (int from = begin; from < end; from += most) {
      const int until = std::min(from + most, end);
      for (auto chunk = start, after = start; chunk.first < x.width; chunk = after) {
        after = chunk.next(w);
        const bool last = after.first == x.width;
        for (int i = from; i < until; i++) {
          const bool ends = i + 1 == until;
          const Pair pair(w, i, to.gated), next(w, ends && !last ? from : i + 1, to.gated);
          const auto& then = !ends ? chunk : last ? start : after;
          const Passes<Bits> passes{x, chunk, pair, then, next, work.total[i - from], row, rows};
          chunk_product<Mins>(passes, Columns(to, w, pair.at, streams), work, sums);
        }
      }
    }
  }
  sums.scale();
  if (streams) _mm_sfence();
}

// ---- rows on their way in -------------------------------------------------------------------------------------------

INLINE void split(const int16_t* values, int n, uint8_t* high, uint8_t* low) {
  for (int i = 0; i < n; i++) high[i] = uint8_t(values[i] >> 8), low[i] = uint8_t(values[i]);
}

void round_into(const float* from, const QuantizedMatrix& w, int row, const TileRows<8>& to) {
  static thread_local std::vector<int16_t> values;
  if (values.size() < size_t(to.width)) values.resize(to.width);
  float* sums = w.mins ? to.sums + int64_t(row) * to.blocks : nullptr;
  round_row(from, w.depth, to.width, values.data(), to.scales + row, sums);
  for (int k = 0; k < to.width; k += to.step) {
    uint8_t* high = to.tile(row, k) + row % kTile * to.step;
    split(values.data() + k, to.step, high, high + to.bytes_of_tile());
  }
}
void round_into(const float* from, const QuantizedMatrix& w, int row, const TileRows<4>& to) {
  static thread_local std::vector<int8_t> values;
  if (values.size() < size_t(to.width)) values.resize(to.width);
  const int64_t blocks = int64_t(row) * to.blocks;
  round_row(from, w.depth, to.width, values.data(), to.scales + blocks, to.sums + blocks);
  for (int k = 0; k < to.width; k += kBlockK)
    std::memcpy(to.tile(row, k) + row % kTile * kBlockK, values.data() + k, kBlockK);
}

template <int Bits>
TileRows<Bits> rounded(const float* x, const QuantizedMatrix& w, int rows) {
  static thread_local Aligned bytes, floats;
  TileRows<Bits> to;
  to.count = rows, to.width = w.width(), to.blocks = to.width / kBlockK, to.height = std::min(rows, kTile);
  to.step = Bits == 8 && w.group % kTileRow == 0 && to.width % kTileRow == 0 ? kTileRow : kBlockK;
  to.bytes = bytes.of<uint8_t>(size_t(rows + kTile - 1) / kTile * to.height * to.width * to.kHalves);
  to.sums = floats.of<float>(size_t(rows) * (2 * to.blocks + 1)), to.scales = to.sums + size_t(rows) * to.blocks;
#pragma omp parallel for schedule(static) if (int64_t(rows) * w.depth > kWorthThreads)
  for (int r = 0; r < rows; r++) round_into(x + int64_t(r) * w.depth, w, r, to);
  return to;
}

// ---- the whole product ----------------------------------------------------------------------------------------------

template <int Bits, bool Mins>
void product(const float* x, const QuantizedMatrix& w, const Result& to, int rows) {
  const TileRows<Bits> in = rounded<Bits>(x, w, rows);
  const Parts parts((w.panels() + 1) / kPair, int64_t(rows) * w.columns * w.depth);
#pragma omp parallel for schedule(dynamic) if (parts.count > 1)
  for (int part = 0; part < parts.count; part++) {
    if (parts.begin(part) == parts.end(part)) continue;
    static thread_local Aligned work;
    pairs_product<Bits, Mins>(in, w, to, int(parts.begin(part)), int(parts.end(part)), *work.of<Work>(1));
  }
}

}  // namespace

bool tiles_gate(const QuantizedMatrix& w) { return w.columns % (kPair * kPanel) == 0; }
bool worth_tiles(int bits, int rows) { return rows >= kFewest[bits == 4] && level() >= amx; }

void product_by_tiles(const float* x, const QuantizedMatrix& w, const Result& to, int rows) {
  const auto run = w.bits == 8 ? w.mins ? product<8, true> : product<8, false>
                               : w.mins ? product<4, true> : product<4, false>;
  run(x, w, to, rows);
}

#pragma GCC pop_options
#else
bool tiles_gate(const QuantizedMatrix&) { return false; }
bool worth_tiles(int, int) { return false; }
void product_by_tiles(const float*, const QuantizedMatrix&, const Result&, int) {}
#endif
