// Passes of a thread over its cells and tiles of a dense block in training: see training_block.cpp.

#pragma once

#include <limits>

#include "block_memory.h"
#include "unit_passes.h"

namespace {

template <typename T>
void pack_kernel(const Kernel& kernel, int64_t tile, int64_t outputs, int64_t channels,
                 float* packed, const Team& team) {
    const Columns columns(outputs);
    pack<T>(kernel, static_cast<int>(tile), outputs, channels, columns.count,
            columns.vectors * kLanes, packed, team);
}

// The 1x1 convolution of a thread's cells, strip by strip, with sums of what it makes.
template <typename T>
void squeeze(const TrainedBlock& block, const TrainedLayer& layer, int64_t channels,
             const Affine& affine, const float* weight, T* narrow, const Own& own,
             const Team& team, bool sums) {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    const int64_t cells = block.cells();
    const Columns columns(layer.bottleneck);
    const Maps<T> x = block.maps(block.data<T>(), block.total);
    const Maps<T> out = block.maps(narrow, columns.count);
    const Pointwise product = {affine.scale,  affine.shift,    weight,    own.zeros, channels,
                               columns.panels, columns.vectors, kInfinity, false,     false};
    if (sums) own.narrow_sums.clear(columns.count);
    for (int64_t cell = team.first(cells), stop; cell < team.last(cells); cell = stop) {
        stop = std::min(cell + kStrip, team.last(cells));
        pointwise(x, product, out, cell, stop, own.scratch);
        for (int64_t i = cell; sums && i < stop; ++i)
            for (int64_t c = 0; c < columns.count; c += kLanes) {
                const Vector value = load(narrow + i * columns.count + c);
                add_to(own.narrow_sums, c, value, value);
            }
    }
}

template <typename T>
void copy_input(const TrainedBlock& block, const Own& own, const Team& team) {
    own.sums.clear(whole_vectors(block.channels));
    for (int64_t i = team.first(block.cells()); i < team.last(block.cells()); ++i) {
        const T* from = static_cast<const T*>(block.x) + i * block.x_stride;
        std::copy_n(from, block.channels, block.data<T>() + i * block.total);
        for_vectors(block.channels, [&](int64_t c, int count) {
            const Vector value = load_some(from + c, count);
            add_to(own.sums, c, value, value);
        });
    }
}

// A vector of factors of a cell's new maps: what dropping out leaves of them.
Vector factors(const TrainedLayer& layer, int64_t cell, int64_t c, int count) {
    Bytes bytes = {};
    std::memcpy(&bytes, layer.stays + cell * layer.growth + c, count);
    return __builtin_convertvector(bytes, Vector) * static_cast<float>(layer.factor);
}

// The gradient of channels once all layers that read them have added theirs, by a thread's cells.
template <typename T, typename Made>
void finish(const TrainedBlock& block, const Linear& linear, int64_t channel, int64_t channels,
            Made* out, int64_t stride, const Team& team) {
    const float *constant = linear.constant + channel, *slope = linear.slope + channel;
    for (int64_t i = team.first(block.cells()); i < team.last(block.cells()); ++i) {
        const T* gradient = block.gradients<T>() + i * block.total + channel;
        const T* x = block.data<T>() + i * block.total + channel;
        for_vectors(channels, [&](int64_t c, int count) {
            const Vector taken = load_some(constant + c, count) +
                                 load_some(slope + c, count) * load_some(x + c, count);
            store_some(out + i * stride + c, load_some(gradient + c, count) - taken, count);
        });
    }
}

// The gradient of a layer's 3x3, by a thread's cells, and what it sums up to: its bias's.
template <typename T>
void finish_new(const TrainedBlock& block, const TrainedLayer& layer, const Shared& shared,
                int64_t channels, const Own& own, const Team& team) {
    const int64_t stride = whole_vectors(layer.growth);
    finish<T>(block, shared.linear, channels, layer.growth, shared.gradient, stride, team);
    if (layer.of_bias) std::fill_n(own.bias_sums, layer.growth, 0.0);
    if (!layer.stays && !layer.of_bias) return;
    for (int64_t i = team.first(block.cells()); i < team.last(block.cells()); ++i) {
        float* to = shared.gradient + i * stride;
        for_vectors(layer.growth, [&](int64_t c, int count) {
            if (layer.stays) store_some(to + c, load_some(to + c, count) *
                                                    factors(layer, i, c, count), count);
            for (int64_t n = c; layer.of_bias && n < c + count; ++n) own.bias_sums[n] += to[n];
        });
    }
}

// Finishes the gradient of a thread's bottleneck maps, and lays it out: no other layer reads them.
template <typename T>
void finish_narrow(const TrainedBlock& block, const TrainedLayer& layer, const Shared& shared,
                   const T* narrow, const Affine& affine, const Linear& linear,
                   const Laid<T>& laid, const Team& team) {
    const int64_t stride = whole_vectors(layer.bottleneck), cells = block.cells();
    const int64_t last = team.last(cells);
    for (int64_t start = laid.first, stop; start < last; start = stop) {
        stop = std::min<int64_t>(start + laid.kGroup, last);
        for (int64_t i = start; i < stop; ++i) {
            prefetch(narrow + (i + kAhead) * stride, static_cast<int>(stride));
            for_vectors(layer.bottleneck, [&](int64_t c, int count) {
                const Vector masked = load(shared.narrow_gradient +
                                           (c / kDepth * cells + i) * kStride + c % kDepth);
                const Vector taken = load_some(linear.constant + c, count) +
                                     load_some(linear.slope + c, count) *
                                         load(narrow + i * stride + c);
                store(laid.place(i, c), load_some(affine.scale + c, count) * masked - taken);
            });
        }
        laid.turn_group(start, stop);
    }
}

// Back through a 3x3 of `inner` channels: this thread's tiles of the gradient of what it reads, for
// `use`, and its part of the sums that make the weight's gradient.
template <typename T, typename Use>
void convolve_back(const TrainedBlock& block, const TrainedLayer& layer, const Shared& shared,
                   const Maps<T>& maps, int64_t inner, const Own& own, const Team& team,
                   const Use& use) {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    const Maps<float> gradient = block.maps(shared.gradient, whole_vectors(layer.growth));
    const Columns columns(inner);
    const Conv back = {nullptr,        nullptr,         shared.back.second, own.zeros,
                       layer.growth,   inner,           columns.panels,     columns.vectors,
                       kInfinity,      kTilesAtOnce<T>};
    const int64_t first = team.first(block.tiles()), last = team.last(block.tiles());
    with_tile<T>(block.tile, [&](auto side) {
        winograd<side, T>(gradient, back, first, last, own.scratch, use);
    });
    if (!layer.of_kernel2) return;
    const Conv conv = {own.affine.scale, own.affine.shift, nullptr, nullptr, inner,
                       layer.growth,     0,                0,       kInfinity};
    with_tile<T>(block.tile, [&](auto side) {
        winograd_back<side, T>(maps, conv, gradient, first, last, own.of_weight2, own.scratch);
    });
}

// Back through the 3x3 of a layer without bottleneck, into the gradients of all maps that it reads.
template <typename T>
void convolve_whole_back(const TrainedBlock& block, const TrainedLayer& layer,
                         const Shared& shared, int64_t channels, const Own& own,
                         const Team& team) {
    own.sums.clear(whole_vectors(channels));
    QuickSums sums(own.sums, own.few, whole_vectors(channels));
    T* buffer = block.data<T>();
    convolve_back(block, layer, shared, block.maps(buffer, block.total), channels, own, team,
                  [&](int64_t cell, int64_t c, int count, const Vector& value) {
                      const int64_t at = cell * block.total + c;
                      const Vector x = load_some(buffer + at, count);
                      const Vector scale = load(own.affine.scale + c);
                      const Vector masked =
                          mask(x, scale, load(own.affine.shift + c), value);
                      T* to = block.gradients<T>() + at;
                      sums.add(c, masked, x);
                      store_some(to, load_some(to, count) + scale * masked, count);
                  });
}

// Back through the 3x3 to the bottleneck's gradient, masked.
template <typename T>
void expand_back(const TrainedBlock& block, const TrainedLayer& layer, const Shared& shared,
                 T* narrow, const Own& own, const Team& team) {
    const int64_t stride = whole_vectors(layer.bottleneck);
    own.narrow_sums.clear(stride);
    QuickSums sums(own.narrow_sums, own.few, stride);
    convolve_back(block, layer, shared, block.maps(narrow, stride), layer.bottleneck, own, team,
                  [&](int64_t cell, int64_t c, int, const Vector& value) {
                      if (c == 0)
                          prefetch(narrow + (cell + kAhead) * stride, static_cast<int>(stride));
                      // Behind the last channel, values are zero, whatever the scale is there.
                      const Vector x = load(narrow + cell * stride + c);
                      const Vector masked = mask(x, load(own.affine.scale + c),
                                                 load(own.affine.shift + c), value);
                      sums.add(c, masked, x);
                      store(shared.narrow_gradient +
                                (c / kDepth * block.cells() + cell) * kStride + c % kDepth,
                            masked);
                  });
}

}  // namespace
