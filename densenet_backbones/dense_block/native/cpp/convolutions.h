// 1x1 and 3x3 convolutions of maps on a CPU, with norm and ReLU on the way in.
//
// Maps lie channels last. A 1x1 convolution is a matrix product of cells, which are normed and
// activated on the way into a thread's scratch memory. A 3x3 convolution is Winograd's, in tiles of
// 2x2 cells, F(2x2, 3x3), which multiplies 2.25 times less often than the definition does and rounds
// no worse, or of 4x4, which multiplies 4 times less often (Lavin and Gray, CVPR 2016,
// arXiv:1509.09308, section 4). Norms and transforms are float32 whatever the maps are.

#pragma once

#include <omp.h>

#include "norms.h"
#include "winograd.h"

namespace {

constexpr int kStrip = 96;      // cells normed at a time
// Tiles transformed at a time: groups of as many rows as products keep in registers.
constexpr int kTiles = kRegisters >= 32 ? rows_for(2) : 3 * rows_for(2);
constexpr int kManyTiles = 56;  // where what they meet does not stay in a cache
constexpr int64_t kWeightBytes = 512 * 1024;  // of transformed weights that stay there

// Tiles at a time of a convolution of so many channels and packed columns.
inline int tiles_of(int64_t channels, int64_t columns, int tile) {
    return places_of(tile) * channels * columns * 4 > kWeightBytes ? kManyTiles : kTiles;
}

// The size of as few parts as there can be of at most so many, the last of which is not much smaller.
inline int64_t split_evenly(int64_t count, int64_t most) {
    const int64_t parts = std::max<int64_t>(1, (count + most - 1) / most);
    return (count + parts - 1) / parts;
}

// Maps of all images, a row of values for each cell, or the first channels of wider rows.
template <typename T>
struct Maps {
    T* data;
    int64_t images, height, width, stride;  // values between cells
    int64_t rows;  // that there is memory for: of all images, or of the last ones made
};

// A 1x1 convolution of clamp(scale * x + shift), or with `pools` of its 2x2 means.
struct Pointwise {
    const float *scale, *shift;  // (channels,)
    const float *weight, *bias;  // packed; (panels * vectors * kLanes,)
    int64_t channels, panels, vectors;
    float ceiling;
    bool clamps, pools;
};

// Makes cells [first, last) of the output of a 1x1 convolution, which has packed columns.
template <typename T>
void pointwise(const Maps<T>& x, const Pointwise& p, const Maps<T>& out, int64_t first,
               int64_t last, float* scratch) {
    const int64_t columns = out.stride, room = out.rows * out.width;
    T* normed = reinterpret_cast<T*>(scratch);
    const Tiles<T> tiles;
    float* sums = scratch + kStrip * kStride;
    for (int64_t start = first, stop; start < last; start = stop) {
        // A strip of cells at a time, cut where the memory of the output begins anew.
        stop = std::min({start + kStrip, last, (start / room + 1) * room});
        const int count = static_cast<int>(stop - start);
        for (int64_t from = 0; from < p.channels; from += kDepth * kPack<T>) {
            const int64_t rest = p.channels - from;
            const int depth = static_cast<int>(std::min<int64_t>(kDepth * kPack<T>, rest));
            // Norm and activate a block of channels of the strip into scratch memory.
            for (int i = 0; i < count; ++i) {
                const int64_t cell = start + i;
                T* to = normed + i * kStride * kPack<T>;
                if (!p.pools) {
                    // Rows of a prefix lie apart, which the processor does not foresee.
                    prefetch(x.data + (cell + kAhead) * x.stride + from, depth);
                    norm_cell(x.data + cell * x.stride + from, p.scale + from, p.shift + from,
                              depth, p.ceiling, to);
                    continue;
                }
                // A pooled cell reads the 2x2 cells from its corner on.
                const int64_t column = cell % out.width, row = cell / out.width % out.height;
                const int64_t image = cell / out.width / out.height;
                const int64_t corner = (image * x.height + 2 * row) * x.width + 2 * column;
                norm_four(x.data + corner * x.stride + from, x.stride, x.width * x.stride,
                          p.scale + from, p.shift + from, depth, p.ceiling, to);
            }
            // Add the block's product to the sums; the last block writes them to the output.
            T* to = depth == rest ? out.data + start % room * columns : nullptr;
            multiply<T>(count, static_cast<int>(words<T>(depth)), scratch,
                        p.weight + words<T>(from) * columns, static_cast<int>(p.panels),
                        static_cast<int>(p.vectors), sums, columns,
                        {from == 0 ? p.bias : nullptr, true, to, columns, p.ceiling, p.clamps});
        }
    }
}

// A 3x3 convolution with a border of zeros, of clamp(scale * x + shift) where there is a scale.
struct Conv {
    const float *scale, *shift;  // norm what is read, where given
    const float *weight, *bias;  // by place within a tile, packed; (panels * vectors * kLanes,)
    int64_t channels, growth, panels, vectors;
    float ceiling;
    int tiles = kTiles;  // at a time
};

// Hands a condition to `use` as a constant, so that loops inside are compiled for each.
template <typename Use>
void with_constant(bool condition, const Use& use) {
    condition ? use(std::true_type()) : use(std::false_type());
}

// Transforms neighbouring tiles of the input, B^T d B, to v[place][tile][channel]. Two columns of a
// tile are the first two of the next, and are read, normed and transformed downwards once.
template <int Tile, typename T, typename Made>
void transform_in(const Maps<T>& x, const Conv& conv, int64_t image, int64_t top, int64_t left,
                  int tiles, int64_t from, int depth, Made* v, int64_t tile_stride,
                  int64_t place_stride) {
    constexpr int kSide = Tile + kShared;
    // Addresses of all cells that the tiles read. Beyond the edge of the image zeros are read, where no
    // norm would make others of them, which spares a question a load.
    static constexpr T kBorder[kDepth * kPack<T>] = {};
    const T* const border = conv.scale ? nullptr : kBorder;
    const T* cells[Tile * kManyTiles + kShared][kSide];
    for (int r = 0; r < kSide; ++r) {
        const int64_t row = top + r - 1, place = (image * x.height + row) % x.rows * x.width;
        for (int s = 0; s < Tile * tiles + kShared; ++s) {
            const int64_t column = left + s - 1;
            const bool inside = row >= 0 && row < x.height && column >= 0 && column < x.width;
            cells[s][r] = inside ? x.data + (place + column) * x.stride + from : border;
        }
    }
    // Of the channels from c on. Whether they fill a vector, and are normed, is part of the code.
    const auto transform = [&](int c, auto whole, auto normed) {
        const int count = whole ? kLanes : depth - c;
        const Vector scale = normed ? load_some(conv.scale + from + c, count) : Vector{};
        const Vector shift = normed ? load_some(conv.shift + from + c, count) : Vector{};
        // Reads, norms and transforms a column of cells downwards; the border stays zero.
        const auto read_column = [&](const T* const* column, Vector* half) {
            Vector d[kSide];
            for (int r = 0; r < kSide; ++r) {
                d[r] = Vector{};
                if (normed && !column[r]) continue;
                d[r] = whole ? load(column[r] + c) : load_part(column[r] + c, count);
                if (normed) d[r] = clamp(d[r] * scale + shift, conv.ceiling);
            }
            Transform<Tile>::spread(d, half);
        };
        Vector half[kSide][kSide];  // by column
        for (int s = 0; s < kShared; ++s) read_column(cells[s], half[s]);
        // Then across: new columns of a tile, beside the two that it shares with the last one.
        for (int i = 0; i < tiles; ++i) {
            for (int s = kShared; s < kSide; ++s) read_column(cells[Tile * i + s], half[s]);
            Made* to = v + i * tile_stride + c;
            for (int r = 0; r < kSide; ++r) {
                Vector d[kSide], out[kSide];
                for (int s = 0; s < kSide; ++s) d[s] = half[s][r];
                Transform<Tile>::spread(d, out);
                // A tile's stride leaves room behind the last channels.
                for (int s = 0; s < kSide; ++s) store(to + (r * kSide + s) * place_stride, out[s]);
            }
            for (int s = 0; s < kShared; ++s) std::copy_n(half[s + Tile], kSide, half[s]);
        }
    };
    for (int c = 0; c < depth; c += kLanes)
        with_constant(depth - c >= kLanes, [&](auto whole) {
            with_constant(conv.scale != nullptr, [&](auto normed) { transform(c, whole, normed); });
        });
}

// Transforms the products of a tile to its results, A^T m A, adds the bias, and hands each to `use`,
// with its cell, the first of its channels, and how many there are of it.
template <int Tile, typename Use>
void transform_out(const float* m, int64_t place_stride, const Conv& conv, int64_t height,
                   int64_t width, int64_t image, int64_t top, int64_t left, const Use& use) {
    constexpr int kSide = Tile + kShared, kPlaces = places_of(Tile);
    for (int64_t c = 0; c < conv.growth; c += kLanes) {
        const int count = static_cast<int>(std::min<int64_t>(kLanes, conv.growth - c));
        Vector d[kPlaces], half[Tile * kSide], y[Tile * Tile];
        for (int i = 0; i < kPlaces; ++i) d[i] = load(m + i * place_stride + c);
        for (int i = 0; i < kSide; ++i) Transform<Tile>::gather(d + i, kSide, half + i, kSide);
        for (int i = 0; i < Tile; ++i)
            Transform<Tile>::gather(half + i * kSide, 1, y + i * Tile, 1);
        const Vector bias = load(conv.bias + c);
        // Tiles at the edge of a map have fewer results.
        const int64_t bottom = std::min<int64_t>(Tile, height - top);
        const int64_t right = std::min<int64_t>(Tile, width - left);
        for (int64_t r = 0; r < bottom; ++r)
            for (int64_t s = 0; s < right; ++s)
                use((image * height + top + r) * width + left + s, c, count,
                    y[r * Tile + s] + bias);
    }
}

// Makes tiles [first, last), counted over all images, of a 3x3 convolution, for `use`: see above.
// Products are of T, maps may be of another type.
template <int Tile, typename T, typename Read, typename Use>
void winograd(const Maps<Read>& x, const Conv& conv, int64_t first, int64_t last, float* scratch,
              const Use& use) {
    constexpr int kPlaces = places_of(Tile);
    const int64_t rows = tiles_along(x.height, Tile), across = tiles_along(x.width, Tile);
    const int64_t columns = conv.panels * conv.vectors * kLanes;
    float* m = scratch + kPlaces * conv.tiles * kStride;
    T* v = reinterpret_cast<T*>(scratch);
    const Tiles<T> tiles;
    // Of one place, also where fewer tiles are left.
    const int64_t v_stride = conv.tiles * kStride, m_stride = conv.tiles * columns;
    // Of bfloat16, products take whole tiles, of which even parts would leave more unfilled.
    const int64_t most = kPack<T> == 1 ? split_evenly(last - first, conv.tiles) : conv.tiles;
    for (int64_t start = first; start < last; start += most) {
        const int count = static_cast<int>(std::min(most, last - start));
        for (int64_t from = 0; from < conv.channels; from += kDepth * kPack<T>) {
            const int64_t rest = conv.channels - from;
            const int depth = static_cast<int>(std::min<int64_t>(kDepth * kPack<T>, rest));
            // Transform the input, runs of tiles of one row of one image at a time.
            for (int i = 0, some; i < count; i += some) {
                const int64_t tile = start + i, column = tile % across;
                some = static_cast<int>(std::min<int64_t>(count - i, across - column));
                transform_in<Tile>(x, conv, tile / across / rows, tile / across % rows * Tile,
                                   column * Tile, some, from, depth, v + i * kStride * kPack<T>,
                                   kStride * kPack<T>, v_stride * kPack<T>);
            }
            // One product of matrices for each place within a tile, summed over channels.
            const int64_t behind = words<T>(conv.channels), before = words<T>(from);
            for (int place = 0; place < kPlaces; ++place)
                multiply<T>(count, static_cast<int>(words<T>(depth)), scratch + place * v_stride,
                            conv.weight + (place * behind + before) * columns,
                            static_cast<int>(conv.panels), static_cast<int>(conv.vectors),
                            m + place * m_stride, columns,
                            {nullptr, from > 0, nullptr, 0, 0.0f, false});
        }
        // Transform the sums back to maps.
        for (int i = 0; i < count; ++i) {
            const int64_t tile = start + i;
            transform_out<Tile>(m + i * columns, m_stride, conv, x.height, x.width,
                                tile / across / rows, tile / across % rows * Tile,
                                tile % across * Tile, use);
        }
    }
}

// Likewise, into maps.
template <int Tile, typename T>
void winograd(const Maps<T>& x, const Conv& conv, const Maps<T>& out, int64_t first, int64_t last,
              float* scratch) {
    winograd<Tile, T>(x, conv, first, last, scratch,
                      [&](int64_t cell, int64_t c, int count, const Vector& value) {
                          store_some(out.data + cell * out.stride + c, value, count);
                      });
}

// A thread among those that work together: each takes a part of what there is to do.
struct Team {
    int thread, threads;
    float* scratch;  // of this thread

    // This thread's part of 0 .. count
    int64_t first(int64_t count) const { return count * thread / threads; }
    int64_t last(int64_t count) const { return count * (thread + 1) / threads; }
};

inline Team this_thread(float* scratch = nullptr, int64_t scratch_size = 0) {
    const int thread = omp_get_thread_num();
    return {thread, omp_get_num_threads(), scratch + thread * scratch_size};
}

}  // namespace
