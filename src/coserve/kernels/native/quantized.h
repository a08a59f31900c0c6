// What the products with quantised matrices share: how a matrix lies in memory, and how rows are rounded on their way
// in.

#pragma once

#include "parts.h"
#include "vectors.h"

constexpr int kPanel = 16;
constexpr int kBlockK = 32;   // elements of 4-bit weights that are summed as integers
constexpr int kDepth = 1024;  // of 8-bit ones: 1024 * 128 * 16383 < 2^31
constexpr int kGroup = 128;   // rows that a panel is taken through the caches for
constexpr int kAhead = 4096;  // bytes between what is used and what is asked of the memory

typedef int32_t Word;  // two 16-bit or four 8-bit activations, neighbours along k

struct Panel {
  const uint8_t* data;
  const uint16_t *scales, *mins;  // float16 [groups, 16]
  int group;
};

struct QuantizedMatrix {  // [columns, depth]
  const uint8_t* data;
  const uint16_t *scales, *mins;  // no mins in symmetric formats
  int bits, group, columns, depth;

  int width() const { return (depth + kBlockK - 1) / kBlockK * kBlockK; }
  int panels() const { return (columns + kPanel - 1) / kPanel; }
  Panel panel(int64_t i) const {
    const int64_t at = i * ((depth + group - 1) / group) * kPanel;
    return {data + i * width() * kPanel * bits / 8, scales + at, mins ? mins + at : nullptr, group};
  }
};

// A row of `n` elements, with zeros up to `width`: its values, for each block of 32 the scale (one for all beside 8-bit
// weights) and the sum (beside 4-bit weights times the scale; beside 8-bit ones `sums` may be null).
void round_row(const float* x, int n, int width, int16_t* values, float* scale, float* sums);
void round_row(const float* x, int n, int width, int8_t* values, float* scales, float* sums);

struct Result {  // bias and residual may be null
  const float *bias, *residual;  // [columns], [rows, columns]
  float* y;                      // [rows, columns]
  bool gated = false;  // y [rows, columns / 2] is silu of the first half of the columns times the second half
};

// Where the processor has AMX: y = x [rows, depth] W^T + bias + residual, the same to the bit as without.
bool worth_tiles(int bits, int rows);
bool tiles_gate(const QuantizedMatrix& w);  // whether results can be gated
void product_by_tiles(const float* x, const QuantizedMatrix& w, const Result& to, int rows);
