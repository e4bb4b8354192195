// Backward passes of 1x1 and 3x3 convolutions with norm and ReLU on the way in: what they need of
// the normed map is made on the way, strip by strip, and never kept.
//
// The gradient of a 3x3 weight is the adjoint of Winograd's convolution (see winograd.h): of a
// tile's gradients and its input, transformed by A and B^T, the products at each of its places are
// summed over all tiles, and transformed by G^T at the end.

#pragma once

#include "strips.h"

namespace {

constexpr int kSome = 64;    // channels of a 3x3's weight gradient at a time
constexpr int kApart = 16;   // floats between places, which else share lines of the cache

// The way back through a 1x1 convolution of relu(scale * x + shift).
template <typename T>
struct PointwiseBack {
    const float *scale, *shift;  // (channels,)
    const float* weight;         // packed: `outputs` deep, `channels` wide, in panels of kWide
    int64_t channels, outputs;
    // Of the convolution's output: blocks of kDepth words of outputs, of each a row of kStride by
    // cell.
    const float* gradient;
    int64_t cells;        // in a block
    const float* turned;  // of bfloat16 the same once more: see Laid
    float* of_weight;     // (outputs, wide_columns(channels)) of this thread, where asked for
    T* total;             // rows that the masked gradient is added to, times the scale
    int64_t stride;
};

template <typename T>
int64_t pointwise_back_floats() {
    return 2 * kBackCells<T> * kStride;
}

// Masks a few vectors of channels of a strip's gradients, uses them, and sums them up. Of the last
// vector there may be only `last` channels.
template <int Vectors, typename T>
void mask_strip(const PointwiseBack<T>& p, const float* made, const T* x, int64_t x_stride,
                int64_t cell, int count, int64_t channel, int last, const Sums& sums) {
    Vector sum[Vectors] = {}, weighted[Vectors] = {}, scale[Vectors], shift[Vectors];
    for (int v = 0; v < Vectors; ++v) {
        scale[v] = load_some(p.scale + channel + v * kLanes, last);
        shift[v] = load_some(p.shift + channel + v * kLanes, last);
    }
    T* to = p.total + cell * p.stride + channel;
    for (int i = 0; i < count; ++i) {
        for (int v = 0; v < Vectors; ++v) {
            const int c = v * kLanes;
            const Vector value = load_some(x + c, last);
            const Vector y = mask(value, scale[v], shift[v], load(made + c));
            sum[v] += y;
            weighted[v] += y * value;
            store_some(to + c, load_some(to + c, last) + scale[v] * y, last);
        }
        made += kStride, x += x_stride, to += p.stride;
    }
    for (int v = 0; v < Vectors; ++v) {
        add_to(sums.first + channel + v * kLanes, __builtin_convertvector(sum[v], Wide));
        add_to(sums.second + channel + v * kLanes, __builtin_convertvector(weighted[v], Wide));
    }
}

// Goes back through cells [first, last), and sums up, by channel, the masked gradient and that
// weighted by x.
template <typename T>
void pointwise_back(const PointwiseBack<T>& p, const T* x, int64_t x_stride, int64_t first,
                    int64_t last, const Sums& sums, float* scratch) {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    constexpr int kBlock = kDepth * kPack<T>;
    float *normed = scratch, *made = scratch + kBackCells<T> * kStride;
    const int64_t wide = wide_columns(p.channels);
    const Tiles<T> tiles;
    sums.clear(whole_vectors(p.channels));
    if (p.of_weight && first == last) std::fill_n(p.of_weight, p.outputs * wide, 0.0f);
    // Few channels at a time, whose weights and gradients of weights stay in the second cache.
    for (int64_t from = 0; from < p.channels; from += kDepth) {
        const int depth = static_cast<int>(std::min<int64_t>(kDepth, p.channels - from));
        const int panels = static_cast<int>(wide_columns(depth) / (kWide * kLanes));
        const float* turned = p.turned;
        for (int64_t cell = first; cell < last; cell += kBackCells<T>) {
            const int count = static_cast<int>(std::min<int64_t>(kBackCells<T>, last - cell));
            const T* read = x + cell * x_stride + from;
            const int rows = write_strip<T>(count, depth, normed, [&](int i, int64_t c, int some) {
                if (c == 0) {
                    prefetch(read + (i + kAhead) * x_stride, depth);
                    // Read and written at the end.
                    prefetch(p.total + (cell + i) * p.stride + from, depth);
                }
                const Vector scale = load_some(p.scale + from + c, some);
                const Vector shift = load_some(p.shift + from + c, some);
                return clamp(load_some(read + i * x_stride + c, some) * scale + shift, kInfinity);
            });
            for (int64_t o = 0; o < p.outputs; o += kBlock) {
                const int some = static_cast<int>(std::min<int64_t>(kBlock, p.outputs - o));
                const float* gradient = p.gradient + (o / kBlock * p.cells + cell) * kStride;
                if (p.of_weight)
                    add_product<T>(some, depth, rows, gradient, turned + o * kStride, normed,
                                   p.of_weight + o * wide + from, wide, cell > first);
                const int deep = static_cast<int>(words<T>(some));
                multiply<T>(count, deep, gradient, p.weight + words<T>(o) * wide + from * deep,
                            panels, kWide, made, kStride,
                            {nullptr, o > 0, nullptr, 0, 0.0f, false});
            }
            int c = 0;
            for (; c + 2 * kLanes <= depth; c += 2 * kLanes)
                mask_strip<2>(p, made + c, read + c, x_stride, cell, count, from + c, kLanes, sums);
            for (; c < depth; c += kLanes)
                mask_strip<1>(p, made + c, read + c, x_stride, cell, count, from + c,
                              std::min(kLanes, depth - c), sums);
            if (turned) turned += p.outputs * kStride;
        }
    }
}

// Adds up this thread's part of the rows of all threads' weight gradients, `apart` floats from one
// another.
inline void add_up_pointwise(const float* sums, int64_t apart, int64_t outputs, int64_t channels,
                             const Kernel& strides, float* of_weight, const Team& team) {
    const int64_t stride = wide_columns(channels);
    for (int64_t o = team.first(outputs); o < team.last(outputs); ++o)
        for (int64_t c = 0; c < channels; ++c) {
            float sum = 0.0f;
            for (int t = 0; t < team.threads; ++t) sum += sums[apart * t + o * stride + c];
            of_weight[o * strides.output + c * strides.channel] = sum;
        }
}

// Transforms a tile of a gradient with as many channels as `stride` leaves room for.
template <int Tile>
void transform_gradient(const Maps<float>& gradient, int64_t channels, int64_t image,
                        int64_t top, int64_t left, float* m, int64_t place_stride) {
    constexpr int kSide = Tile + kShared, kPlaces = places_of(Tile);
    for (int64_t c = 0; c < channels; c += kLanes) {
        const int count = static_cast<int>(std::min<int64_t>(kLanes, channels - c));
        Vector y[Tile * Tile] = {}, half[kSide * Tile], out[kPlaces];
        for (int r = 0; r < Tile && top + r < gradient.height; ++r)
            for (int s = 0; s < Tile && left + s < gradient.width; ++s) {
                const int64_t row = image * gradient.height + top + r;
                const float* from =
                    gradient.data + (row * gradient.width + left + s) * gradient.stride + c;
                y[r * Tile + s] = load_some(from, count);
            }
        for (int s = 0; s < Tile; ++s)
            Transform<Tile>::spread_gradient(y + s, Tile, half + s, Tile);
        for (int r = 0; r < kSide; ++r)
            Transform<Tile>::spread_gradient(half + r * Tile, 1, out + r * kSide, 1);
        for (int i = 0; i < kPlaces; ++i) store(m + i * place_stride + c, out[i]);
    }
}

// Tiles of a 3x3's weight gradient at a time: in bfloat16, pairs that are whole tiles of products.
template <typename T>
constexpr int kBackTiles = kPack<T> == 1 ? kManyTiles : 64;

template <typename T>
int64_t winograd_back_floats(int64_t outputs, int64_t tile) {
    const int64_t places = places_of(static_cast<int>(tile)), wide = whole_vectors(outputs);
    const int64_t floats = places * (kBackTiles<T> * (kSome + wide) + 2 * kApart);
    if (kPack<T> == 1) return floats;
    return floats + places * (wide + kLanes) * kStride + kBackTiles<T> / kPack<T> * kSome;
}

// Turns the transformed gradients of some tiles to words of two of them, (outputs, kStride).
template <typename T>
void turn_tiles(const float* m, int64_t wide, int count, float* turned) {
    for (int64_t c = 0; c < wide; c += kLanes)
        for (int i = 0; i < count; i += kPack<T> * kLanes) {
            Vector rows[kLanes];
            for (int n = 0; n < kLanes; ++n) {
                Vector parts[kPack<T>] = {};
                for (int k = 0; k < kPack<T>; ++k)
                    if (const int tile = i + kPack<T> * n + k; tile < count)
                        parts[k] = load(m + tile * wide + c);
                rows[n] = join<T>(parts);
            }
            turn(rows);
            for (int n = 0; n < kLanes; ++n)
                store(turned + (c + n) * kStride + i / kPack<T>, rows[n]);
        }
}

// Joins transformed input of some tiles to words of two of them, in panels of kWide vectors.
template <typename T>
void join_tiles(const float* v, int depth, int count, int pairs, float* joined) {
    constexpr int kPanel = kWide * kLanes;
    for (int i = 0; i < pairs; ++i)
        for (int c = 0; c < wide_columns(depth); c += kLanes) {
            Vector parts[kPack<T>] = {};
            for (int k = 0; k < kPack<T>; ++k)
                if (const int tile = kPack<T> * i + k; tile < count && c < depth)
                    parts[k] = load(v + tile * kSome + c);
            store(joined + (c / kPanel * pairs + i) * kPanel + c % kPanel, join<T>(parts));
        }
}

// Sums up, over tiles [first, last), the transformed gradients of a 3x3 convolution's weight:
// (places, outputs, wide_columns(channels)). Products are of T.
template <int Tile, typename T>
void winograd_back(const Maps<T>& x, const Conv& conv, const Maps<float>& gradient, int64_t first,
                   int64_t last, float* sums, float* scratch) {
    constexpr int kMost = kBackTiles<T>, kPlaces = places_of(Tile);
    const int64_t rows = tiles_along(x.height, Tile), across = tiles_along(x.width, Tile);
    const int64_t outputs = conv.growth, wide = whole_vectors(outputs);
    const int64_t stride = wide_columns(conv.channels);
    const int64_t m_stride = kMost * wide + kApart, v_stride = kMost * kSome + kApart;
    float *m = scratch, *v = scratch + kPlaces * m_stride;
    float *turned = v + kPlaces * v_stride, *joined = turned + kPlaces * (wide + kLanes) * kStride;
    const Tiles<T> tiles;
    if (first == last) std::fill_n(sums, kPlaces * outputs * stride, 0.0f);
    for (int64_t start = first; start < last; start += kMost) {
        const int count = static_cast<int>(std::min<int64_t>(kMost, last - start));
        for (int i = 0; i < count; ++i) {
            const int64_t tile = start + i;
            transform_gradient<Tile>(gradient, outputs, tile / across / rows,
                                     tile / across % rows * Tile, tile % across * Tile,
                                     m + i * wide, m_stride);
        }
        for (int place = 0; kPack<T> > 1 && place < kPlaces; ++place)
            turn_tiles<T>(m + place * m_stride, wide, count, turned + place * wide * kStride);
        for (int64_t from = 0; from < conv.channels; from += kSome) {
            const int depth = static_cast<int>(std::min<int64_t>(kSome, conv.channels - from));
            for (int i = 0, some; i < count; i += some) {
                const int64_t tile = start + i, column = tile % across;
                some = static_cast<int>(
                    std::min<int64_t>({count - i, across - column, kTiles}));
                transform_in<Tile>(x, conv, tile / across / rows, tile / across % rows * Tile,
                                   column * Tile, some, from, depth, v + i * kSome, kSome,
                                   v_stride);
            }
            for (int place = 0; place < kPlaces; ++place) {
                const float* of_place = v + place * v_stride;
                float* to = sums + place * outputs * stride + from;
                if constexpr (kPack<T> == 1) {
                    correlate(static_cast<int>(outputs), depth, count, m + place * m_stride, wide,
                              of_place, kSome, to, stride, start > first);
                } else {
                    const int pairs = (count + 1) / 2;
                    join_tiles<T>(of_place, depth, count, pairs, joined);
                    multiply<T>(static_cast<int>(outputs), pairs, turned + place * wide * kStride,
                                joined, static_cast<int>(wide_columns(depth) / (kWide * kLanes)),
                                kWide, to, stride,
                                {nullptr, start > first, nullptr, 0, 0.0f, false});
                }
            }
        }
    }
}

// Adds up all threads' sums, `apart` floats from one another, and transforms this thread's part of
// the outputs to the gradient of the weight, G^T u G.
template <int Tile>
void add_up_winograd(const float* sums, int64_t apart, int64_t outputs, int64_t channels,
                     const Kernel& strides, float* of_weight, const Team& team) {
    constexpr int kSide = Tile + kShared, kPlaces = places_of(Tile);
    const int64_t stride = wide_columns(channels), place_stride = outputs * stride;
    for (int64_t o = team.first(outputs); o < team.last(outputs); ++o)
        for (int64_t c = 0; c < channels; c += kLanes) {
            const int count = static_cast<int>(std::min<int64_t>(kLanes, channels - c));
            Vector u[kPlaces] = {}, half[kSide * 3], g[9];
            for (int t = 0; t < team.threads; ++t)
                for (int i = 0; i < kPlaces; ++i)
                    u[i] += load(sums + apart * t + i * place_stride + o * stride + c);
            for (int i = 0; i < kSide; ++i)
                Transform<Tile>::gather_kernel(u + kSide * i, 1, half + 3 * i, 1);
            for (int i = 0; i < 3; ++i) Transform<Tile>::gather_kernel(half + i, 3, g + i, 3);
            for (int i = 0; i < 9; ++i) {
                float* to = of_weight + o * strides.output + c * strides.channel +
                            i / 3 * strides.row + i % 3 * strides.column;
                if (strides.channel == 1)
                    store_part(to, g[i], count);
                else
                    for (int j = 0; j < count; ++j) to[j * strides.channel] = g[i][j];
            }
        }
}

}  // namespace
