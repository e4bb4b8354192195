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

// Loads the weights of `kLanes` columns from `column` on, of which there may be fewer.
inline Vector load_columns(const Kernel& k, const float* from, int64_t column, int64_t outputs) {
    const int64_t count = std::min<int64_t>(kLanes, outputs - column);
    if (k.output == 1 && count == kLanes) return load(from + column);
    Vector x = {};
    for (int64_t i = 0; i < count; ++i) x[i] = from[(column + i) * k.output];
    return x;
}

// Packs rows of words [first, last) of kLanes columns of a 1x1 kernel; reads channels in a row.
template <typename T>
void pack_square(const Kernel& kernel, int64_t first, int64_t last, int64_t channels,
                 int64_t column, int64_t outputs, float* to, int64_t panel) {
    T* values = reinterpret_cast<T*>(to);
    for (int64_t i = 0; i < kLanes; ++i) {
        const float* from = kernel.data + (column + i) * kernel.output;
        for (int64_t c = first * kPack<T>; c < last * kPack<T>; ++c) {
            const bool there = column + i < outputs && c < channels;
            const int64_t row = c / kPack<T> - first;
            put(values + (row * panel + i) * kPack<T> + c % kPack<T>,
                there ? from[c * kernel.channel] : 0.0f);
        }
    }
}

// Packs a vector of columns of a row of words: of a 1x1 kernel (Tile is 0) as it is, of a 3x3 one
// transformed, G g G^T, each place within a tile so many floats behind the one before.
template <int Tile, typename T>
void pack_row(const Kernel& kernel, int64_t row, int64_t outputs, int64_t channels, int64_t column,
              float* to, int64_t place_stride) {
    constexpr int kSide = Tile + kShared, kPlaces = Tile == 0 ? 1 : places_of(Tile);
    Vector u[kPlaces][kPack<T>] = {};
    for (int i = 0; i < kPack<T> && row * kPack<T> + i < channels; ++i) {
        const float* from = kernel.data + (row * kPack<T> + i) * kernel.channel;
        if constexpr (Tile == 0) {
            u[0][i] = load_columns(kernel, from, column, outputs);
        } else {
            // Down the columns of the kernel, then across.
            Vector g[9], half[kSide * 3], own[kPlaces];
            for (int k = 0; k < 9; ++k)
                g[k] = load_columns(kernel, from + k / 3 * kernel.row + k % 3 * kernel.column,
                                    column, outputs);
            for (int k = 0; k < 3; ++k) Transform<Tile>::spread_kernel(g + k, 3, half + k, 3);
            for (int k = 0; k < kSide; ++k)
                Transform<Tile>::spread_kernel(half + 3 * k, 1, own + kSide * k, 1);
            for (int k = 0; k < kPlaces; ++k) u[k][i] = own[k];
        }
    }
    for (int k = 0; k < kPlaces; ++k) store(to + k * place_stride, join<T>(u[k]));
}

// Packs this thread's part of the rows of words, of a 3x3 kernel by place within a tile, of which
// `tile` is the side; 0 of a 1x1 kernel.
template <typename T>
void pack(const Kernel& kernel, int tile, int64_t outputs, int64_t channels, int64_t columns,
          int64_t panel, float* packed, const Team& team) {
    const int64_t rows = words<T>(channels), last = team.last(rows);
    if (tile == 0 && kernel.output != 1) {
        for (int64_t row = team.first(rows), next; row < last; row = next) {
            next = std::min({last, (row / kDepth + 1) * kDepth, row + kLanes});
            for (int64_t n = 0; n < columns; n += kLanes)
                pack_square<T>(kernel, row, next, channels, n, outputs,
                               packed + packed_place(row, n, rows, columns, panel), panel);
        }
        return;
    }
    const auto pack_some = tile == 4 ? pack_row<4, T> : tile == 2 ? pack_row<2, T> : pack_row<0, T>;
    for (int64_t row = team.first(rows); row < last; ++row)
        for (int64_t n = 0; n < columns; n += kLanes)
            pack_some(kernel, row, outputs, channels, n,
                      packed + packed_place(row, n, rows, columns, panel), rows * columns);
}

}  // namespace
