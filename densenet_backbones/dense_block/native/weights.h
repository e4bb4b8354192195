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

// Where the weight of a channel and a column lies among packed ones: see convolutions.h.
inline int64_t packed_place(int64_t channel, int64_t column, int64_t channels, int64_t columns,
                            int64_t panel) {
    const int64_t from = channel / kDepth * kDepth;
    const int64_t depth = std::min<int64_t>(kDepth, channels - from);
    return from * columns + (column / panel * depth + channel - from) * panel + column % panel;
}

// Loads the weights of `kLanes` columns from `column` on, of which there may be fewer.
inline Vector load_columns(const Kernel& k, const float* from, int64_t column, int64_t outputs) {
    const int64_t count = std::min<int64_t>(kLanes, outputs - column);
    if (k.output == 1 && count == kLanes) return load(from + column);
    Vector x = {};
    for (int64_t i = 0; i < count; ++i) x[i] = from[(column + i) * k.output];
    return x;
}

// Winograd's transform of three values of a kernel to four of a tile, in one dimension: G g of
// Lavin and Gray, arXiv:1509.09308, section 4.1.
inline void spread_kernel(const Vector* g, int step, Vector* u, int u_step) {
    const Vector ends = 0.5f * (g[0] + g[2 * step]), middle = 0.5f * g[step];
    u[0] = g[0];
    u[u_step] = ends + middle;
    u[2 * u_step] = ends - middle;
    u[3 * u_step] = g[2 * step];
}

// The adjoint: from the gradients of a tile's four values to those of a kernel's three, G^T u.
inline void gather_kernel(const Vector* u, int u_step, Vector* g, int step) {
    const Vector sum = 0.5f * (u[u_step] + u[2 * u_step]);
    g[0] = u[0] + sum;
    g[step] = 0.5f * (u[u_step] - u[2 * u_step]);
    g[2 * step] = sum + u[3 * u_step];
}

// Packs channels [c, last) of kLanes columns of a 1x1 kernel; reads channels in a row.
inline void pack_square(const Kernel& kernel, int64_t c, int64_t last, int64_t column,
                        int64_t outputs, float* to, int64_t panel) {
    for (int64_t i = 0; i < kLanes; ++i) {
        const float* from = kernel.data + (column + i) * kernel.output;
        const bool there = column + i < outputs;
        for (int64_t j = c; j < last; ++j)
            to[(j - c) * panel + i] = there ? from[j * kernel.channel] : 0.0f;
    }
}

// Packs this thread's part of the channels: a 1x1 kernel as it is, a 3x3 one transformed, G g G^T,
// by place within a tile.
void pack(const Kernel& kernel, int64_t side, int64_t outputs, int64_t channels, int64_t columns,
          int64_t panel, float* packed, const Team& team) {
    if (side == 1 && kernel.output != 1) {
        const int64_t last = team.last(channels);
        for (int64_t c = team.first(channels), next; c < last; c = next) {
            next = std::min({last, (c / kDepth + 1) * kDepth, c + kLanes});
            for (int64_t n = 0; n < columns; n += kLanes)
                pack_square(kernel, c, next, n, outputs,
                            packed + packed_place(c, n, channels, columns, panel), panel);
        }
        return;
    }
    for (int64_t c = team.first(channels); c < team.last(channels); ++c) {
        const float* from = kernel.data + c * kernel.channel;
        for (int64_t n = 0; n < columns; n += kLanes) {
            float* to = packed + packed_place(c, n, channels, columns, panel);
            if (side == 1) {
                store(to, load_columns(kernel, from, n, outputs));
                continue;
            }
            // Down the columns of the kernel, then across.
            Vector g[9], half[kSide * 3], u[kPlaces];
            for (int i = 0; i < 9; ++i)
                g[i] = load_columns(kernel, from + i / 3 * kernel.row + i % 3 * kernel.column, n,
                                    outputs);
            for (int i = 0; i < 3; ++i) spread_kernel(g + i, 3, half + i, 3);
            for (int i = 0; i < kSide; ++i) spread_kernel(half + 3 * i, 1, u + kSide * i, 1);
            for (int i = 0; i < kPlaces; ++i) store(to + i * channels * columns, u[i]);
        }
    }
}

}  // namespace
