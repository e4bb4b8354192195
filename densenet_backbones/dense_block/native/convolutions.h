// 1x1 and 3x3 convolutions of maps in float32 on a CPU.
//
// Maps lie channels last. A 1x1 convolution is a matrix product of cells, which are normed and
// activated on the way into a thread's scratch memory. A 3x3 convolution is Winograd's F(2x2, 3x3),
// which multiplies 2.25 times less often than the definition does, and rounds no worse (Lavin and
// Gray, CVPR 2016, arXiv:1509.09308, section 4.1). F(4x4, 3x3) would multiply 4 times less often,
// but its errors in float32 are ten times as large.
//
// Matrix products run in blocks of kDepth channels (Goto and van de Geijn, 2008): a panel of
// weights stays in the first cache while it meets the rows, of which rows_for() at a time stay in
// registers.
//
// Weights come packed: for each block of kDepth rows, for each panel of `vectors` SIMD vectors of
// columns, the panel's rows one after another. Missing columns are zero.

#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16, kRegisters = 32;
#elif defined(__AVX__)
constexpr int kLanes = 8, kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kLanes = 4, kRegisters = 32;
#else
constexpr int kLanes = 4, kRegisters = 16;
#endif

constexpr int kDepth = 128;
// Rows of scratch memory lie a little apart, or they would compete for the same lines of the cache.
constexpr int kStride = kDepth + 16;
constexpr int kStrip = 96;  // cells normed at a time
constexpr int kTile = 2;    // side of what a tile gives
constexpr int kSide = 4;    // and of what it reads
constexpr int kPlaces = kSide * kSide;
constexpr int kTiles = 14;  // tiles transformed at a time

// Rows whose sums fit into the registers beside a row of a panel and one value of each row.
constexpr int rows_for(int vectors) { return std::min(14, (kRegisters - 1 - vectors) / vectors); }

using Vector = float __attribute__((vector_size(kLanes * sizeof(float))));
using Loose = float __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));

inline Vector load(const float* from) { return *reinterpret_cast<const Loose*>(from); }
inline void store(float* to, Vector x) { *reinterpret_cast<Loose*>(to) = x; }

// Written so that what is not a number stays so, as PyTorch's ReLU keeps it.
inline Vector clamp(Vector x, float ceiling) {
    const Vector zero = {}, top = zero + ceiling;
    x = zero > x ? zero : x;
    return top < x ? top : x;
}

inline float clamp(float x, float ceiling) {
    x = 0.0f > x ? 0.0f : x;
    return ceiling < x ? ceiling : x;
}

// What a product starts from and what becomes of it.
struct Around {
    const float* bias;  // starts from these columns; else from what is there, or from zero
    bool add;
    bool clamps;
    float ceiling;
};

template <int Rows, int Vectors>
void multiply_tile(int depth, const float* a, const float* b, float* c, int64_t c_stride,
                   const Around& around) {
    Vector sum[Rows][Vectors];
    for (int r = 0; r < Rows; ++r)
        for (int v = 0; v < Vectors; ++v) {
            if (around.bias)
                sum[r][v] = load(around.bias + v * kLanes);
            else if (around.add)
                sum[r][v] = load(c + r * c_stride + v * kLanes);
            else
                sum[r][v] = Vector{};
        }
    for (int k = 0; k < depth; ++k) {
        Vector column[Vectors];
        for (int v = 0; v < Vectors; ++v) column[v] = load(b + v * kLanes);
        for (int r = 0; r < Rows; ++r) {
            const Vector x = Vector{} + a[r * kStride + k];
            for (int v = 0; v < Vectors; ++v) sum[r][v] += x * column[v];
        }
        b += Vectors * kLanes;
    }
    for (int r = 0; r < Rows; ++r)
        for (int v = 0; v < Vectors; ++v) {
            Vector x = sum[r][v];
            if (around.clamps) x = clamp(x, around.ceiling);
            store(c + r * c_stride + v * kLanes, x);
        }
}

using MultiplyTile = void (*)(int, const float*, const float*, float*, int64_t, const Around&);

template <int Vectors, int... Row>
MultiplyTile multiply_tile_for(int rows, std::integer_sequence<int, Row...>) {
    static constexpr MultiplyTile all[] = {multiply_tile<Row + 1, Vectors>...};
    return all[rows - 1];
}

template <int Vectors>
MultiplyTile multiply_tile_for(int rows) {
    return multiply_tile_for<Vectors>(rows, std::make_integer_sequence<int, rows_for(Vectors)>());
}

MultiplyTile multiply_tile_for(int rows, int vectors) {
    switch (vectors) {
        case 1:
            return multiply_tile_for<1>(rows);
        case 2:
            return multiply_tile_for<2>(rows);
        case 3:
            return multiply_tile_for<3>(rows);
        default:
            return multiply_tile_for<4>(rows);
    }
}

// c = a * b, of `rows` x `depth` and `depth` x `panels` * `vectors` * kLanes.
void multiply(int rows, int depth, const float* a, const float* b, int panels, int vectors,
              float* c, int64_t c_stride, const Around& around) {
    const int most = rows_for(vectors), groups = (rows + most - 1) / most;
    const int columns = vectors * kLanes;
    for (int p = 0; p < panels; ++p) {
        Around here = around;
        if (here.bias) here.bias += p * columns;
        for (int g = 0; g < groups; ++g) {
            const int first = rows * g / groups, count = rows * (g + 1) / groups - first;
            const MultiplyTile tile = multiply_tile_for(count, vectors);
            tile(depth, a + first * kStride, b, c + first * c_stride + p * columns, c_stride, here);
        }
        b += depth * columns;
    }
}

struct Maps {
    float* data;
    int64_t images, height, width, stride;  // floats between cells
    int64_t rows;  // that there is memory for: of all images, or of the last ones made
};

constexpr int kAhead = 16;  // cells

inline void prefetch(const float* from, int count) {
    for (int i = 0; i < count; i += 16) __builtin_prefetch(from + i, 0, 2);
}

// clamp(scale * x + shift) of a cell's channels
inline void norm_cell(const float* x, const float* scale, const float* shift, int channels,
                      float ceiling, float* out) {
    int c = 0;
    for (; c + kLanes <= channels; c += kLanes)
        store(out + c, clamp(load(x + c) * load(scale + c) + load(shift + c), ceiling));
    for (; c < channels; ++c) out[c] = clamp(x[c] * scale[c] + shift[c], ceiling);
}

// The mean of the normed 2x2 cells from x on
inline void norm_four(const float* x, int64_t right, int64_t down, const float* scale,
                      const float* shift, int channels, float ceiling, float* out) {
    const float* four[] = {x, x + right, x + down, x + right + down};
    int c = 0;
    for (; c + kLanes <= channels; c += kLanes) {
        Vector sum = {};
        for (const float* cell : four)
            sum += clamp(load(cell + c) * load(scale + c) + load(shift + c), ceiling);
        store(out + c, sum * 0.25f);
    }
    for (; c < channels; ++c) {
        float sum = 0;
        for (const float* cell : four) sum += clamp(cell[c] * scale[c] + shift[c], ceiling);
        out[c] = sum * 0.25f;
    }
}

struct Pointwise {
    const float *scale, *shift;  // (channels,)
    const float *weight, *bias;  // packed; (panels * vectors * kLanes,)
    int64_t channels, panels, vectors;
    float ceiling;
    bool clamps, pools;
};

// Cells [first, last) of the output, which has packed columns.
void pointwise(const Maps& x, const Pointwise& p, const Maps& out, int64_t first, int64_t last,
               float* scratch) {
    const int64_t columns = out.stride, room = out.rows * out.width;
    for (int64_t start = first, stop; start < last; start = stop) {
        stop = std::min({start + kStrip, last, (start / room + 1) * room});
        const int count = static_cast<int>(stop - start);
        for (int64_t from = 0; from < p.channels; from += kDepth) {
            const int depth = static_cast<int>(std::min<int64_t>(kDepth, p.channels - from));
            for (int i = 0; i < count; ++i) {
                const int64_t cell = start + i;
                float* to = scratch + i * kStride;
                if (!p.pools) {
                    // Rows of a prefix lie apart, which the processor does not foresee.
                    prefetch(x.data + (cell + kAhead) * x.stride + from, depth);
                    norm_cell(x.data + cell * x.stride + from, p.scale + from, p.shift + from,
                              depth, p.ceiling, to);
                    continue;
                }
                const int64_t column = cell % out.width, row = cell / out.width % out.height;
                const int64_t image = cell / out.width / out.height;
                const int64_t corner = (image * x.height + 2 * row) * x.width + 2 * column;
                norm_four(x.data + corner * x.stride + from, x.stride, x.width * x.stride,
                          p.scale + from, p.shift + from, depth, p.ceiling, to);
            }
            const bool begins = from == 0, ends = from + depth == p.channels;
            multiply(count, depth, scratch, p.weight + from * columns, static_cast<int>(p.panels),
                     static_cast<int>(p.vectors), out.data + start % room * columns, columns,
                     {begins ? p.bias : nullptr, true, p.clamps && ends, p.ceiling});
        }
    }
}

// One-dimensional transforms, of values `step` apart: of four read, and of four products to two.
// Interpolation points 0, 1, -1 and infinity.
inline void spread(const Vector* d, int step, Vector* out) {
    const Vector d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step];
    out[0] = d0 - d2;
    out[step] = d1 + d2;
    out[2 * step] = d2 - d1;
    out[3 * step] = d1 - d3;
}

inline void gather(const Vector* m, int step, Vector* out, int out_step) {
    const Vector m0 = m[0], m1 = m[step], m2 = m[2 * step], m3 = m[3 * step];
    out[0] = m0 + m1 + m2;
    out[out_step] = m1 - m2 - m3;
}

struct Conv {
    const float *scale, *shift;  // norm what is read, where given
    const float *weight, *bias;  // by place within a tile, packed; (panels * vectors * kLanes,)
    int64_t channels, growth, panels, vectors;
    float ceiling;
};

inline Vector load_part(const float* from, int count) {
    Vector x = {};
    std::memcpy(&x, from, count * sizeof(float));
    return x;
}

// One tile of the input, transformed, to v[place][kStride].
void transform_in(const Maps& x, const Conv& conv, int64_t image, int64_t top, int64_t left,
                  int64_t from, int depth, float* v, int64_t place_stride) {
    const float* cells[kPlaces];
    for (int r = 0; r < kSide; ++r) {
        const int64_t row = top + r - 1, place = (image * x.height + row) % x.rows * x.width;
        for (int c = 0; c < kSide; ++c) {
            const int64_t column = left + c - 1;
            const bool inside = row >= 0 && row < x.height && column >= 0 && column < x.width;
            cells[r * kSide + c] = inside ? x.data + (place + column) * x.stride + from : nullptr;
        }
    }
    for (int c = 0; c < depth; c += kLanes) {
        const int count = std::min(kLanes, depth - c);
        Vector d[kPlaces], half[kPlaces];
        if (count == kLanes && !conv.scale) {
            for (int i = 0; i < kPlaces; ++i) d[i] = cells[i] ? load(cells[i] + c) : Vector{};
        } else {
            const Vector scale = conv.scale ? load_part(conv.scale + from + c, count) : Vector{};
            const Vector shift = conv.scale ? load_part(conv.shift + from + c, count) : Vector{};
            for (int i = 0; i < kPlaces; ++i) {
                d[i] = cells[i] ? load_part(cells[i] + c, count) : Vector{};
                if (cells[i] && conv.scale) d[i] = clamp(d[i] * scale + shift, conv.ceiling);
            }
        }
        for (int i = 0; i < kSide; ++i) spread(d + i, kSide, half + i);
        for (int i = 0; i < kSide; ++i) spread(half + i * kSide, 1, d + i * kSide);
        // kStride leaves room behind the last channels.
        for (int i = 0; i < kPlaces; ++i) store(v + i * place_stride + c, d[i]);
    }
}

void transform_out(const float* m, int64_t place_stride, const Conv& conv, const Maps& out,
                   int64_t image, int64_t top, int64_t left) {
    for (int64_t c = 0; c < conv.growth; c += kLanes) {
        const int64_t count = std::min<int64_t>(kLanes, conv.growth - c);
        Vector d[kPlaces], half[kTile * kSide], y[kTile * kTile];
        for (int i = 0; i < kPlaces; ++i) d[i] = load(m + i * place_stride + c);
        for (int i = 0; i < kSide; ++i) gather(d + i, kSide, half + i, kSide);
        for (int i = 0; i < kTile; ++i) gather(half + i * kSide, 1, y + i * kTile, 1);
        const Vector bias = load(conv.bias + c);
        const int64_t bottom = std::min<int64_t>(kTile, out.height - top);
        const int64_t right = std::min<int64_t>(kTile, out.width - left);
        for (int64_t r = 0; r < bottom; ++r)
            for (int64_t s = 0; s < right; ++s) {
                const Vector value = y[r * kTile + s] + bias;
                float* to = out.data + c +
                            ((image * out.height + top + r) * out.width + left + s) * out.stride;
                if (count == kLanes)
                    store(to, value);
                else
                    std::memcpy(to, &value, count * sizeof(float));
            }
    }
}

// Tiles [first, last), counted over all images.
void winograd(const Maps& x, const Conv& conv, const Maps& out, int64_t first, int64_t last,
              float* scratch) {
    const int64_t rows = (x.height + kTile - 1) / kTile, across = (x.width + kTile - 1) / kTile;
    const int64_t columns = conv.panels * conv.vectors * kLanes;
    float* v = scratch;
    float* m = v + kPlaces * kTiles * kStride;
    // Of one place, also where fewer tiles are left.
    const int64_t v_stride = kTiles * kStride, m_stride = kTiles * columns;
    for (int64_t start = first; start < last; start += kTiles) {
        const int count = static_cast<int>(std::min<int64_t>(kTiles, last - start));
        for (int64_t from = 0; from < conv.channels; from += kDepth) {
            const int depth = static_cast<int>(std::min<int64_t>(kDepth, conv.channels - from));
            for (int i = 0; i < count; ++i) {
                const int64_t tile = start + i;
                transform_in(x, conv, tile / across / rows, tile / across % rows * kTile,
                             tile % across * kTile, from, depth, v + i * kStride, v_stride);
            }
            for (int place = 0; place < kPlaces; ++place)
                multiply(count, depth, v + place * v_stride,
                         conv.weight + (place * conv.channels + from) * columns,
                         static_cast<int>(conv.panels), static_cast<int>(conv.vectors),
                         m + place * m_stride, columns, {nullptr, from > 0, false, 0.0f});
        }
        for (int i = 0; i < count; ++i) {
            const int64_t tile = start + i;
            transform_out(m + i * columns, m_stride, conv, out, tile / across / rows,
                          tile / across % rows * kTile, tile % across * kTile);
        }
    }
}

// A thread among those that work together.
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
