// 1x1 and 3x3 convolutions of maps on a CPU, in float32 or, where the processor multiplies them,
// bfloat16. Sums are float32 in either case, as are norms and the transforms of 3x3 convolutions.
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
// Matrices are made of words of 32 bits, each a float32 or a pair of neighbouring bfloat16: of one
// cell, and in weights of one column. Depths, and strides of scratch memory, are in words.
//
// Weights come packed: for each block of kDepth rows of words, for each panel of `vectors` SIMD
// vectors of columns, the panel's rows one after another. Missing columns are zero, and so is the
// second of a pair that has none.

#pragma once

#include <omp.h>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

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

// By copying, which compilers turn into one instruction that asks for no alignment.
inline Vector load(const float* from) {
    Vector x;
    std::memcpy(&x, from, sizeof(x));
    return x;
}

inline void store(float* to, Vector x) { std::memcpy(to, &x, sizeof(x)); }

// Not added to zero, which would take the sign from -0 and so is an instruction of its own.
inline Vector splat(float x) { return x - Vector{}; }

// sum += word * column
template <typename T>
Vector multiply_add(Vector sum, float word, Vector column);

template <>
inline Vector multiply_add<float>(Vector sum, float word, Vector column) {
    return sum + splat(word) * column;
}

struct Bfloat16 {
    uint16_t bits;
};

#ifdef __AVX512BF16__
inline Vector load(const Bfloat16* from) {
    using Halves = uint16_t __attribute__((vector_size(kLanes * sizeof(uint16_t))));
    using Words = uint32_t __attribute__((vector_size(sizeof(Vector))));
    Halves bits;
    std::memcpy(&bits, from, sizeof(bits));
    return reinterpret_cast<Vector>(__builtin_convertvector(bits, Words) << 16);
}

inline void store(Bfloat16* to, Vector x) {
    const __m256bh rounded = _mm512_cvtneps_pbh(x);
    std::memcpy(to, &rounded, sizeof(rounded));
}

template <>
inline Vector multiply_add<Bfloat16>(Vector sum, float word, Vector column) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(_mm512_set1_ps(word)),
                            reinterpret_cast<__m512bh>(column));
}
#endif

// The first `count` of a vector, the others zero.
template <typename T>
inline Vector load_part(const T* from, int count) {
    T part[kLanes] = {};
    std::memcpy(part, from, count * sizeof(T));
    return load(part);
}

template <typename T>
inline void store_part(T* to, Vector x, int count) {
    T part[kLanes];
    store(part, x);
    std::memcpy(to, part, count * sizeof(T));
}

// Values in a word, and words for so many.
template <typename T>
constexpr int kPack = sizeof(float) / sizeof(T);
template <typename T>
constexpr int64_t words(int64_t values) {
    return (values + kPack<T> - 1) / kPack<T>;
}

// Written so that what is not a number stays so, as PyTorch's ReLU keeps it.
inline Vector clamp(Vector x, float ceiling) {
    const Vector zero = {}, top = zero + ceiling;
    x = zero > x ? zero : x;
    return top < x ? top : x;
}

// What a product starts from and what becomes of it.
template <typename T>
struct Around {
    const float* bias;  // starts from these columns; else from the sums there are, or from zero
    bool add;
    T* out;  // goes there, clamped, where given; else to the sums
    int64_t out_stride;
    float ceiling;
    bool clamps;
};

template <typename T, int Rows, int Vectors>
void multiply_tile(int depth, const float* a, const float* b, float* c, int64_t c_stride,
                   const Around<T>& around) {
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
        for (int r = 0; r < Rows; ++r)
            for (int v = 0; v < Vectors; ++v)
                sum[r][v] = multiply_add<T>(sum[r][v], a[r * kStride + k], column[v]);
        b += Vectors * kLanes;
    }
    for (int r = 0; r < Rows; ++r)
        for (int v = 0; v < Vectors; ++v) {
            const Vector x = sum[r][v];
            if (around.out)
                store(around.out + r * around.out_stride + v * kLanes,
                      around.clamps ? clamp(x, around.ceiling) : x);
            else
                store(c + r * c_stride + v * kLanes, x);
        }
}

template <typename T>
using MultiplyTile = void (*)(int, const float*, const float*, float*, int64_t, const Around<T>&);

template <typename T, int Vectors, int... Row>
MultiplyTile<T> multiply_tile_for(int rows, std::integer_sequence<int, Row...>) {
    static constexpr MultiplyTile<T> all[] = {multiply_tile<T, Row + 1, Vectors>...};
    return all[rows - 1];
}

template <typename T, int Vectors>
MultiplyTile<T> multiply_tile_for(int rows) {
    using Counts = std::make_integer_sequence<int, rows_for(Vectors)>;
    return multiply_tile_for<T, Vectors>(rows, Counts());
}

template <typename T>
MultiplyTile<T> multiply_tile_for(int rows, int vectors) {
    switch (vectors) {
        case 1:
            return multiply_tile_for<T, 1>(rows);
        case 2:
            return multiply_tile_for<T, 2>(rows);
        case 3:
            return multiply_tile_for<T, 3>(rows);
        default:
            return multiply_tile_for<T, 4>(rows);
    }
}

// c = a * b, of `rows` x `depth` and `depth` x `panels` * `vectors` * kLanes.
template <typename T>
void multiply(int rows, int depth, const float* a, const float* b, int panels, int vectors,
              float* c, int64_t c_stride, const Around<T>& around) {
    const int most = rows_for(vectors), groups = (rows + most - 1) / most;
    const int columns = vectors * kLanes;
    for (int p = 0; p < panels; ++p) {
        for (int g = 0; g < groups; ++g) {
            const int first = rows * g / groups, count = rows * (g + 1) / groups - first;
            Around<T> here = around;
            if (here.bias) here.bias += p * columns;
            if (here.out) here.out += first * here.out_stride + p * columns;
            const MultiplyTile<T> tile = multiply_tile_for<T>(count, vectors);
            tile(depth, a + first * kStride, b, c + first * c_stride + p * columns, c_stride, here);
        }
        b += depth * columns;
    }
}

template <typename T>
struct Maps {
    T* data;
    int64_t images, height, width, stride;  // values between cells
    int64_t rows;  // that there is memory for: of all images, or of the last ones made
};

constexpr int kAhead = 16;  // cells

template <typename T>
inline void prefetch(const T* from, int count) {
    constexpr int kLine = 64 / sizeof(T);
    for (int i = 0; i < count; i += kLine) __builtin_prefetch(from + i, 0, 2);
}

// clamp(scale * x + shift) of a cell's channels. What is behind the last ones, up to a vector's
// end, becomes zero.
template <typename T>
inline void norm_cell(const T* x, const float* scale, const float* shift, int channels,
                      float ceiling, T* out) {
    int c = 0;
    for (; c + kLanes <= channels; c += kLanes)
        store(out + c, clamp(load(x + c) * load(scale + c) + load(shift + c), ceiling));
    if (const int rest = channels - c) {
        const Vector weight = load_part(scale + c, rest), added = load_part(shift + c, rest);
        store(out + c, clamp(load_part(x + c, rest) * weight + added, ceiling));
    }
}

// The mean of the normed 2x2 cells from x on, likewise.
template <typename T>
inline void norm_four(const T* x, int64_t right, int64_t down, const float* scale,
                      const float* shift, int channels, float ceiling, T* out) {
    const T* four[] = {x, x + right, x + down, x + right + down};
    int c = 0;
    for (; c + kLanes <= channels; c += kLanes) {
        Vector sum = {};
        for (const T* cell : four)
            sum += clamp(load(cell + c) * load(scale + c) + load(shift + c), ceiling);
        store(out + c, sum * 0.25f);
    }
    if (const int rest = channels - c) {
        const Vector weight = load_part(scale + c, rest), added = load_part(shift + c, rest);
        Vector sum = {};
        for (const T* cell : four)
            sum += clamp(load_part(cell + c, rest) * weight + added, ceiling);
        store(out + c, sum * 0.25f);
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
template <typename T>
void pointwise(const Maps<T>& x, const Pointwise& p, const Maps<T>& out, int64_t first,
               int64_t last, float* scratch) {
    const int64_t columns = out.stride, room = out.rows * out.width;
    T* normed = reinterpret_cast<T*>(scratch);
    float* sums = scratch + kStrip * kStride;
    for (int64_t start = first, stop; start < last; start = stop) {
        stop = std::min({start + kStrip, last, (start / room + 1) * room});
        const int count = static_cast<int>(stop - start);
        for (int64_t from = 0; from < p.channels; from += kDepth * kPack<T>) {
            const int64_t rest = p.channels - from;
            const int depth = static_cast<int>(std::min<int64_t>(kDepth * kPack<T>, rest));
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
                const int64_t column = cell % out.width, row = cell / out.width % out.height;
                const int64_t image = cell / out.width / out.height;
                const int64_t corner = (image * x.height + 2 * row) * x.width + 2 * column;
                norm_four(x.data + corner * x.stride + from, x.stride, x.width * x.stride,
                          p.scale + from, p.shift + from, depth, p.ceiling, to);
            }
            T* to = depth == rest ? out.data + start % room * columns : nullptr;
            multiply<T>(count, static_cast<int>(words<T>(depth)), scratch,
                        p.weight + words<T>(from) * columns, static_cast<int>(p.panels),
                        static_cast<int>(p.vectors), sums, columns,
                        {from == 0 ? p.bias : nullptr, true, to, columns, p.ceiling, p.clamps});
        }
    }
}

// One-dimensional transforms: of four values read, and of four products, `step` apart, to two.
// Interpolation points 0, 1, -1 and infinity.
inline void spread(const Vector* d, Vector* out) {
    out[0] = d[0] - d[2];
    out[1] = d[1] + d[2];
    out[2] = d[2] - d[1];
    out[3] = d[1] - d[3];
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

// Neighbouring tiles of the input, transformed, to v[place][tile][kStride]. Two columns of a tile
// are the first two of the next, and are read, normed and transformed downwards once.
template <typename T>
void transform_in(const Maps<T>& x, const Conv& conv, int64_t image, int64_t top, int64_t left,
                  int tiles, int64_t from, int depth, T* v, int64_t place_stride) {
    const T* cells[kTile * kTiles + kTile][kSide];
    for (int r = 0; r < kSide; ++r) {
        const int64_t row = top + r - 1, place = (image * x.height + row) % x.rows * x.width;
        for (int s = 0; s < kTile * tiles + kTile; ++s) {
            const int64_t column = left + s - 1;
            const bool inside = row >= 0 && row < x.height && column >= 0 && column < x.width;
            cells[s][r] = inside ? x.data + (place + column) * x.stride + from : nullptr;
        }
    }
    for (int c = 0; c < depth; c += kLanes) {
        const int count = std::min(kLanes, depth - c);
        const Vector scale = conv.scale ? load_part(conv.scale + from + c, count) : Vector{};
        const Vector shift = conv.scale ? load_part(conv.shift + from + c, count) : Vector{};
        const auto read_column = [&](const T* const* column, Vector* half) {
            Vector d[kSide];
            for (int r = 0; r < kSide; ++r) {
                d[r] = Vector{};
                if (!column[r]) continue;
                d[r] = count == kLanes ? load(column[r] + c) : load_part(column[r] + c, count);
                if (conv.scale) d[r] = clamp(d[r] * scale + shift, conv.ceiling);
            }
            spread(d, half);
        };
        Vector half[kSide][kSide];  // by column
        for (int s = 0; s < kTile; ++s) read_column(cells[s], half[s]);
        for (int i = 0; i < tiles; ++i) {
            for (int s = kTile; s < kSide; ++s) read_column(cells[kTile * i + s], half[s]);
            T* to = v + i * kStride * kPack<T> + c;
            for (int r = 0; r < kSide; ++r) {
                const Vector d[kSide] = {half[0][r], half[1][r], half[2][r], half[3][r]};
                Vector out[kSide];
                spread(d, out);
                // kStride leaves room behind the last channels.
                for (int s = 0; s < kSide; ++s) store(to + (r * kSide + s) * place_stride, out[s]);
            }
            for (int s = 0; s < kTile; ++s) std::copy_n(half[s + kTile], kSide, half[s]);
        }
    }
}

template <typename T>
void transform_out(const float* m, int64_t place_stride, const Conv& conv, const Maps<T>& out,
                   int64_t image, int64_t top, int64_t left) {
    for (int64_t c = 0; c < conv.growth; c += kLanes) {
        const int count = static_cast<int>(std::min<int64_t>(kLanes, conv.growth - c));
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
                T* to = out.data + c +
                        ((image * out.height + top + r) * out.width + left + s) * out.stride;
                if (count == kLanes)
                    store(to, value);
                else
                    store_part(to, value, count);
            }
    }
}

// Tiles [first, last), counted over all images.
template <typename T>
void winograd(const Maps<T>& x, const Conv& conv, const Maps<T>& out, int64_t first, int64_t last,
              float* scratch) {
    const int64_t rows = (x.height + kTile - 1) / kTile, across = (x.width + kTile - 1) / kTile;
    const int64_t columns = conv.panels * conv.vectors * kLanes;
    float* m = scratch + kPlaces * kTiles * kStride;
    T* v = reinterpret_cast<T*>(scratch);
    // Of one place, also where fewer tiles are left.
    const int64_t v_stride = kTiles * kStride, m_stride = kTiles * columns;
    for (int64_t start = first; start < last; start += kTiles) {
        const int count = static_cast<int>(std::min<int64_t>(kTiles, last - start));
        for (int64_t from = 0; from < conv.channels; from += kDepth * kPack<T>) {
            const int64_t rest = conv.channels - from;
            const int depth = static_cast<int>(std::min<int64_t>(kDepth * kPack<T>, rest));
            for (int i = 0, some; i < count; i += some) {
                const int64_t tile = start + i, column = tile % across;
                some = static_cast<int>(std::min<int64_t>(count - i, across - column));
                transform_in(x, conv, tile / across / rows, tile / across % rows * kTile,
                             column * kTile, some, from, depth, v + i * kStride * kPack<T>,
                             v_stride * kPack<T>);
            }
            const int64_t behind = words<T>(conv.channels), before = words<T>(from);
            for (int place = 0; place < kPlaces; ++place)
                multiply<T>(count, static_cast<int>(words<T>(depth)), scratch + place * v_stride,
                            conv.weight + (place * behind + before) * columns,
                            static_cast<int>(conv.panels), static_cast<int>(conv.vectors),
                            m + place * m_stride, columns,
                            {nullptr, from > 0, nullptr, 0, 0.0f, false});
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
