// The products of quantized.cpp for one instruction set `M`, which does the work on a panel's sixteen columns.
//
// Included once for each, inside a namespace and under a pragma that lets the compiler use those instructions.

// A tile of `R` rows of x against a panel of 8-bit integers, along k from `first` to `last`, added to `total` [R, 16].
template <class M, int R, bool Mins>
INLINE void dots8(const Tile& x, const Panel& p, int first, int last, float* total, Ahead ahead) {
  for (int k = first, end; k < last; k = end) {
    const int group = k / p.group;
    end = std::min(last, (group + 1) * p.group);
    typename M::Sums sums[R] = {};
    const uint8_t* w = p.data + int64_t(k) * kPanel;
    const Word* words = x.words + int64_t(k) / 2 * R;
    for (int steps = (end - k) / 4; steps > 0; steps--) {
      ahead.fetch();
      UNROLL for (int pair = 0; pair < 2; pair++, w += 2 * kPanel, words += R) {
        const auto pairs = M::pairs(w);
        UNROLL for (int r = 0; r < R; r++) M::add_pairs(sums[r], pairs, words[r]);
      }
    }
    const auto scale = M::half_floats(p.scales + group * kPanel);
    UNROLL for (int r = 0; r < R; r++) M::add_sums(total + r * kPanel, sums[r], scale, 1.0f);
    if constexpr (Mins) {
      const auto min = M::half_floats(p.mins + group * kPanel);
      for (int block = k / kBlockK; block < end / kBlockK; block++)
        UNROLL for (int r = 0; r < R; r++) M::add_floats(total + r * kPanel, min, x.sums[int64_t(block) * R + r]);
    }
  }
}

// The same for 4-bit integers, which are summed 32 at a time; without mins, q has 8 added to it.
template <class M, int R, bool Mins>
INLINE void dots4(const Tile& x, const Panel& p, int first, int last, float* total, Ahead ahead) {
  const uint8_t* w = p.data + int64_t(first) * (kPanel / 2);
  const Word* words = x.words + int64_t(first) / 4 * R;
  for (int block = first / kBlockK; block < last / kBlockK; block++) {
    typename M::ShortSums sums[R] = {};
    for (int steps = kBlockK / 8; steps > 0; steps--) {
      ahead.fetch();
      UNROLL for (int quad = 0; quad < 2; quad++, w += 2 * kPanel, words += R) {
        const auto quads = M::quads(w);
        UNROLL for (int r = 0; r < R; r++) M::add_quads(sums[r], quads, words[r]);
      }
    }
    const int group = block * kBlockK / p.group * kPanel;
    const auto scale = M::half_floats(p.scales + group);
    const auto min = Mins ? M::half_floats(p.mins + group) : M::times(scale, -8.0f);
    UNROLL for (int r = 0; r < R; r++) {
      M::add_sums(total + r * kPanel, M::widened(sums[r]), scale, x.scales[int64_t(block) * R + r]);
      M::add_floats(total + r * kPanel, min, x.sums[int64_t(block) * R + r]);
    }
  }
}

template <class M, int Bits, bool Mins, int R>
INLINE void dots(const Tile& x, const Panel& p, int first, int last, float* total, Ahead ahead) {
  if (x.rows == R) {
    if constexpr (Bits == 8) dots8<M, R, Mins>(x, p, first, last, total, ahead);
    else dots4<M, R, Mins>(x, p, first, last, total, ahead);
  } else if constexpr (R > 1) {
    dots<M, Bits, Mins, R - 1>(x, p, first, last, total, ahead);
  }
}

// A panel's part of y. Its weights are taken from memory once for up to kGroup rows. `total`: kGroup * 16 floats.
template <class M, int Bits, bool Mins>
static void panel_product(const Rows& x, const Panel& p, const Result& to, float* total) {
  constexpr int bytes_of_k = Bits == 8 ? kPanel : kPanel / 2;
  for (int group = 0; group < x.count; group += kGroup) {
    const int rows = std::min(kGroup, x.count - group), tiles = x.tiles_of(rows);
    std::memset(total, 0, size_t(rows) * kPanel * sizeof(float));
    for (int first = 0; first < x.width; first += kDepth) {
      const int last = std::min(x.width, first + kDepth);
      const uint8_t *chunk = p.data + int64_t(first) * bytes_of_k, *next = p.data + int64_t(last) * bytes_of_k;
      for (int i = 0; i < tiles; i++) {  // the first brings the chunk near; each asks for its share of the next one
        const Tile tile = x.tile(group, rows, i);
        const Ahead ahead = tiles == 1 ? Ahead{chunk + kAhead, kStep} : Ahead{next + (next - chunk) * i / tiles, kStep / tiles};
        dots<M, Bits, Mins, M::kRows>(tile, p, first, last, total + (tile.row - group) * kPanel, ahead);
      }
    }
    const int columns = std::min(kPanel, to.columns - to.column);
    for (int r = 0; r < rows; r++) {
      float* y = to.y + int64_t(group + r) * to.columns + to.column;
      const float scale = Bits == 8 ? x.row_scales[group + r] : 1.0f;
      for (int c = 0; c < columns; c++) y[c] = total[r * kPanel + c] * scale + (to.bias ? to.bias[to.column + c] : 0.0f);
    }
  }
}
