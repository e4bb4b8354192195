// Weights as PyTorch holds them, and the way to the packed ones that products read.

#pragma once

#include "convolutions.h"

namespace {

// A convolution's weight as PyTorch holds it: (outputs, channels, side, side), by floats between
// neighbours. Negative ones turn a kernel round.
struct Kernel {
    const float* data;
    int64_t output, channel, row, column;
};

// Where the word of a row and a column lies among packed ones: see products.h.
inline int64_t packed_place(int64_t row, int64_t column, int64_t rows, int64_t columns,
                            int64_t panel) {
    const int64_t from = row / kDepth * kDepth;
    const int64_t depth = std::min<int64_t>(kDepth, rows - from);
    return from * columns + (column / panel * depth + row - from) * panel + column % panel;
}

// Loads weights of `kLanes` outputs from `output` on, a vector for each of as many channels from
// `channel` on; of either there may be fewer, and the others are zero.
inline void load_square(const Kernel& k, const float* from, int64_t output, int64_t outputs,
                        int64_t channel, int64_t channels, Vector* made) {
    const int64_t rows = std::clamp<int64_t>(outputs - output, 0, kLanes);
    const int64_t count = std::min<int64_t>(kLanes, channels - channel);
    from += output * k.output + channel * k.channel;
    for (int64_t i = 0; i < kLanes; ++i) made[i] = Vector{};
    if (k.output == 1) {
        for (int64_t i = 0; i < count; ++i)
            made[i] = load_some(from + i * k.channel, static_cast<int>(rows));
    } else if (k.channel == 1) {
        for (int64_t j = 0; j < rows; ++j)
            made[j] = load_some(from + j * k.output, static_cast<int>(count));
        turn(made);
    } else {
        for (int64_t i = 0; i < count; ++i)
            for (int64_t j = 0; j < rows; ++j) made[i][j] = from[j * k.output + i * k.channel];
    }
}

// Packs `kLanes` channels, from `channel` on, of a vector of columns: of a 1x1 kernel (Tile is 0) as
// they are, of a 3x3 one transformed, G g G^T, by place within a tile; rows of words [first, last).
template <int Tile, typename T>
void pack_square(const Kernel& kernel, int64_t channel, int64_t first, int64_t last,
                 int64_t outputs, int64_t channels, int64_t column, int64_t columns, int64_t panel,
                 float* packed) {
    constexpr int kSide = Tile + kShared, kPlaces = Tile == 0 ? 1 : places_of(Tile);
    constexpr int kTaps = Tile == 0 ? 1 : 9;
    const int64_t rows = words<T>(channels);
    Vector taps[kTaps][kLanes];
    for (int k = 0; k < kTaps; ++k)
        load_square(kernel, kernel.data + k / 3 * kernel.row + k % 3 * kernel.column, column,
                    outputs, channel, channels, taps[k]);
    for (int64_t row = first; row < last; ++row) {
        Vector u[kPlaces][kPack<T>];
        for (int i = 0; i < kPack<T>; ++i) {
            const int64_t c = row * kPack<T> + i - channel;
            if constexpr (Tile == 0) {
                u[0][i] = taps[0][c];
            } else {
                // Down the columns of the kernel, then across.
                Vector g[kTaps], half[kSide * 3], own[kPlaces];
                for (int k = 0; k < kTaps; ++k) g[k] = taps[k][c];
                for (int k = 0; k < 3; ++k) Transform<Tile>::spread_kernel(g + k, 3, half + k, 3);
                for (int k = 0; k < kSide; ++k)
                    Transform<Tile>::spread_kernel(half + 3 * k, 1, own + kSide * k, 1);
                for (int k = 0; k < kPlaces; ++k) u[k][i] = own[k];
            }
        }
        float* to = packed + packed_place(row, column, rows, columns, panel);
        for (int k = 0; k < kPlaces; ++k) store(to + k * rows * columns, join<T>(u[k]));
    }
}

// Packs this thread's part of the rows of words, of a 3x3 kernel by place within a tile, of which
// `tile` is the side; 0 of a 1x1 kernel.
template <typename T>
void pack(const Kernel& kernel, int tile, int64_t outputs, int64_t channels, int64_t columns,
          int64_t panel, float* packed, const Team& team) {
    constexpr int kRows = kLanes / kPack<T>;
    const int64_t rows = words<T>(channels), last = team.last(rows);
    const auto pack_some =
        tile == 4 ? pack_square<4, T> : tile == 2 ? pack_square<2, T> : pack_square<0, T>;
    for (int64_t row = team.first(rows); row < last; row += kRows)
        for (int64_t n = 0; n < columns; n += kLanes)
            pack_some(kernel, row * kPack<T>, row, std::min(row + kRows, last), outputs, channels,
                      n, columns, panel, packed);
}

}  // namespace
