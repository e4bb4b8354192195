// Matrix products on a CPU, in float32 or, where the processor multiplies them, bfloat16. Sums are
// float32 in either case.
//
// They run in blocks of kDepth channels (Goto and van de Geijn, "Anatomy of High-Performance Matrix
// Multiplication", 2008): a panel of weights stays in the first cache while it meets the rows, of
// which rows_for() at a time stay in registers.
//
// Matrices are made of words (see vectors.h): of one cell, and in weights of one column. Depths and
// strides of scratch memory, are in words.
//
// Weights come packed: for each block of kDepth rows of words, for each panel of `vectors` SIMD
// vectors of columns, the panel's rows one after another. Missing columns are zero, and so is the
// second of a pair that has none.

#pragma once

#include <utility>

#include "tiles.h"

namespace {

// Rows whose sums fit into the registers beside a row of a panel and one value of each row.
constexpr int rows_for(int vectors) { return std::min(14, (kRegisters - 1 - vectors) / vectors); }

// sum += word * column
template <typename T>
Vector multiply_add(Vector sum, float word, Vector column);

template <>
inline Vector multiply_add<float>(Vector sum, float word, Vector column) {
    return sum + splat(word) * column;
}

#ifdef __AVX512BF16__
template <>
inline Vector multiply_add<Bfloat16>(Vector sum, float word, Vector column) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(_mm512_set1_ps(word)),
                            reinterpret_cast<__m512bh>(column));
}
#endif

// Ends of a product: where its sums start from, and where they go.
template <typename T>
struct Around {
    const float* bias;  // sums start from it, where given
    bool add;           // else from the sums there are, or from zero
    T* out;             // the result goes there, clamped, where given; else to the sums
    int64_t out_stride;
    float ceiling;
    bool clamps;
};

// c = a * b for a tile of rows and one panel of columns, with `around` before and behind.
template <typename T, int Rows, int Vectors>
void multiply_tile(int depth, const float* a, const float* b, float* c, int64_t c_stride,
                   const Around<T>& around) {
    Vector sum[Rows][Vectors];
    // Start from the bias, from what earlier blocks of channels summed up, or from zero.
    if (around.bias || around.add) {
        const float* from = around.bias ? around.bias : c;
        const int64_t stride = around.bias ? 0 : c_stride;
        for (int r = 0; r < Rows; ++r)
            for (int v = 0; v < Vectors; ++v) sum[r][v] = load(from + r * stride + v * kLanes);
    } else {
        for (int r = 0; r < Rows; ++r)
            for (int v = 0; v < Vectors; ++v) sum[r][v] = Vector{};
    }
    // The sums of a tile stay in registers: each step loads a row of the panel once for all rows.
    for (int k = 0; k < depth; ++k) {
        Vector column[Vectors];
        for (int v = 0; v < Vectors; ++v) {
            column[v] = load(b + v * kLanes);
            keep_in_register(column[v]);
        }
        for (int r = 0; r < Rows; ++r)
            for (int v = 0; v < Vectors; ++v)
                sum[r][v] = multiply_add<T>(sum[r][v], a[r * kStride + k], column[v]);
        b += Vectors * kLanes;
    }
    // The last block of channels writes the result, clamped; earlier ones keep their sums.
    if (around.out && around.clamps)
        for (int r = 0; r < Rows; ++r)
            for (int v = 0; v < Vectors; ++v) sum[r][v] = clamp(sum[r][v], around.ceiling);
    if (around.out) {
        for (int r = 0; r < Rows; ++r)
            for (int v = 0; v < Vectors; ++v)
                store(around.out + r * around.out_stride + v * kLanes, sum[r][v]);
    } else {
        for (int r = 0; r < Rows; ++r)
            for (int v = 0; v < Vectors; ++v) store(c + r * c_stride + v * kLanes, sum[r][v]);
    }
}

template <typename T>
using MultiplyTile = void (*)(int, const float*, const float*, float*, int64_t, const Around<T>&);

// The tile of as many rows and vectors: loops of a known length are unrolled into registers.
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

// c = a * b in vectors, of `rows` x `depth` and `depth` x `panels` * `vectors` * kLanes.
template <typename T>
void multiply_vectors(int rows, int depth, const float* a, const float* b, int panels, int vectors,
                      float* c, int64_t c_stride, const Around<T>& around) {
    const int most = rows_for(vectors), groups = (rows + most - 1) / most;
    const int columns = vectors * kLanes;
    // A panel meets all rows before the next one is loaded.
    for (int p = 0; p < panels; ++p) {
        for (int g = 0; g < groups; ++g) {
            // Groups of rows as even as they can be, so that none is left with a single row.
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

#ifdef HAS_TILES
// c = a * b in tiles, likewise. Rows of `a` are read up to a whole tile, whatever they are.
template <typename T>
void multiply_in_tiles(int rows, int depth, const float* a, const float* b, int panels, int vectors,
                       float* c, int64_t c_stride, const Around<T>& around) {
    constexpr int kRows = 2 * kTileRows, kColumns = 2 * kTileWords;
    const int columns = vectors * kLanes;
    if (const int rest = depth % kTileWords) Tiles<T>::shape(rest);
    alignas(64) float made[kRows * kColumns];
    for (int p = 0; p < panels; ++p, b += depth * columns)
        for (int first = 0; first < rows; first += kRows) {
            const int count = std::min(kRows, rows - first);
            for (int v = 0; v < vectors; v += 2) {
                const bool two = v + 1 < vectors;
                const int64_t column = p * columns + v * kLanes;
                float* to = c + first * c_stride + column;
                const float *left = a + first * kStride, *right = b + v * kLanes;
                if (!around.bias && !around.out && count % kTileRows == 0) {
                    multiply_tiles(count > kTileRows, two, depth, left, right, columns, to,
                                   c_stride, around.add);
                    continue;
                }
                // What tiles leave: the bias or earlier sums, and the end.
                multiply_tiles(count > kTileRows, two, depth, left, right, columns, made, kColumns,
                               false);
                for (int r = 0; r < count; ++r)
                    for (int w = 0; w < (two ? 2 : 1); ++w) {
                        Vector x = load(made + r * kColumns + w * kLanes);
                        float* sum = to + r * c_stride + w * kLanes;
                        if (around.bias)
                            x += load(around.bias + column + w * kLanes);
                        else if (around.add)
                            x += load(sum);
                        if (!around.out) {
                            store(sum, x);
                            continue;
                        }
                        T* out = around.out + (first + r) * around.out_stride;
                        store(out + column + w * kLanes,
                              around.clamps ? clamp(x, around.ceiling) : x);
                    }
            }
        }
}
#endif

// c = a * b, of `rows` x `depth` and `depth` x `panels` * `vectors` * kLanes, while `Tiles` are
// there. Of bfloat16, rows of `a` are read up to the next multiple of 16.
template <typename T>
void multiply(int rows, int depth, const float* a, const float* b, int panels, int vectors,
              float* c, int64_t c_stride, const Around<T>& around) {
#ifdef HAS_TILES
    if constexpr (sizeof(T) == sizeof(Bfloat16))
        if (has_tiles<T>())
            return multiply_in_tiles(rows, depth, a, b, panels, vectors, c, c_stride, around);
#endif
    multiply_vectors(rows, depth, a, b, panels, vectors, c, c_stride, around);
}

}  // namespace
