// Products that are summed over cells, for gradients of weights: in float32 of rows as they lie, in
// bfloat16 of words of two cells, which are laid out for them here.

#pragma once

#include "norms.h"
#include "weights.h"

namespace {

constexpr int kCells = 112;  // cells of a 1x1's backward pass at a time
constexpr int kWide = 2;     // vectors of a panel of its weights

// c = a^T * b, or added to it, for a tile of rows (columns of a) and a few vectors of columns.
template <int Rows, int Vectors>
void correlate_tile(int depth, const float* a, int64_t a_stride, const float* b, int64_t b_stride,
                    float* c, int64_t c_stride, bool add) {
    Vector sum[Rows][Vectors] = {};
    for (int k = 0; k < depth; ++k) {
        Vector column[Vectors];
        for (int v = 0; v < Vectors; ++v) {
            column[v] = load(b + v * kLanes);
            keep_in_register(column[v]);
        }
        for (int r = 0; r < Rows; ++r)
            for (int v = 0; v < Vectors; ++v) sum[r][v] += splat(a[r]) * column[v];
        a += a_stride;
        b += b_stride;
    }
    for (int r = 0; r < Rows; ++r)
        for (int v = 0; v < Vectors; ++v) {
            float* to = c + r * c_stride + v * kLanes;
            store(to, add ? sum[r][v] + load(to) : sum[r][v]);
        }
}

using CorrelateTile = void (*)(int, const float*, int64_t, const float*, int64_t, float*, int64_t,
                               bool);

template <int Vectors, int... Row>
CorrelateTile correlate_tile_for(int rows, std::integer_sequence<int, Row...>) {
    static constexpr CorrelateTile all[] = {correlate_tile<Row + 1, Vectors>...};
    return all[rows - 1];
}

inline CorrelateTile correlate_tile_for(int rows, bool two) {
    return two ? correlate_tile_for<2>(rows, std::make_integer_sequence<int, rows_for(2)>())
               : correlate_tile_for<1>(rows, std::make_integer_sequence<int, rows_for(1)>());
}

// c = a^T * b, or added to it: `depth` rows of `rows` values of a, and of `columns` of b, of which
// there is room for whole vectors.
inline void correlate(int rows, int columns, int depth, const float* a, int64_t a_stride,
                      const float* b, int64_t b_stride, float* c, int64_t c_stride, bool add) {
    for (int from = 0; from < columns; from += 2 * kLanes) {
        const bool two = columns - from > kLanes;
        const int most = rows_for(two ? 2 : 1), groups = (rows + most - 1) / most;
        for (int g = 0; g < groups; ++g) {
            const int first = rows * g / groups, count = rows * (g + 1) / groups - first;
            correlate_tile_for(count, two)(depth, a + first, a_stride, b + from, b_stride,
                                           c + first * c_stride + from, c_stride, add);
        }
    }
}

inline int64_t whole_vectors(int64_t values) { return (values + kLanes - 1) / kLanes * kLanes; }

inline int64_t wide_columns(int64_t channels) {
    return (channels + kWide * kLanes - 1) / (kWide * kLanes) * kWide * kLanes;
}

// Cells of a 1x1's backward pass at a time: in bfloat16, whole tiles of pairs.
template <typename T>
constexpr int kBackCells = kPack<T> == 1 ? kCells : 128;

// Writes a strip of `count` cells as a product with it reads it: cell by cell, or of bfloat16 as
// words of two cells, in panels. `make` gives a cell's vector of channels. Returns rows of words.
template <typename T, typename Make>
int write_strip(int count, int depth, float* strip, const Make& make) {
    constexpr int kPanel = kWide * kLanes;
    if constexpr (kPack<T> == 1) {
        for (int i = 0; i < count; ++i)
            for_vectors(depth, [&](int64_t c, int some) {
                store(strip + i * kStride + c, make(i, c, some));
            });
        return count;
    } else {
        const int pairs = (count + 1) / 2;
        if (depth % kPanel)  // no garbage behind the last channel
            std::fill_n(strip + depth / kPanel * pairs * kPanel, pairs * kPanel, 0.0f);
        for (int i = 0; i < pairs; ++i)
            for_vectors(depth, [&](int64_t c, int some) {
                Vector both[2] = {};
                for (int half = 0; half < 2 && 2 * i + half < count; ++half)
                    both[half] = make(2 * i + half, c, some);
                store(strip + (c / kPanel * pairs + i) * kPanel + c % kPanel, join<T>(both));
            });
        return pairs;
    }
}

// of_weight += gradient^T * strip, or the same anew: of `outputs` outputs, and `rows` of the strip
// as write_strip() returns them.
template <typename T>
void add_product(int outputs, int depth, int rows, const float* gradient, const float* turned,
                 const float* strip, float* of_weight, int64_t wide, bool add) {
    if constexpr (kPack<T> == 1)
        correlate(outputs, depth, rows, gradient, kStride, strip, kStride, of_weight, wide, add);
    else
        multiply<T>(outputs, rows, turned, strip,
                    static_cast<int>(wide_columns(depth) / (kWide * kLanes)), kWide, of_weight,
                    wide, {nullptr, add, nullptr, 0, 0.0f, false});
}

// Where a thread's gradients of a 1x1's output lie as products read them: blocks of kDepth words of
// outputs, of each a row of kStride by cell; and in bfloat16 turned, by strip of kBackCells of this
// thread, as words of two cells, (outputs, kStride).
template <typename T>
struct Laid {
    float *product, *turned;
    int64_t cells, outputs, first;  // of all, and the first of this thread's cells

    Laid(float* product, float* all_turned, int64_t cells, int64_t outputs, const Team& team)
        : product(product), turned(all_turned), cells(cells), outputs(outputs),
          first(team.first(cells)) {
        // None of a thread's strips is another's.
        if (turned) turned += (first / kBackCells<T> + team.thread) * outputs * kStride;
    }

    T* place(int64_t cell, int64_t output) const {
        constexpr int kBlock = kDepth * kPack<T>;
        return reinterpret_cast<T*>(product + (output / kBlock * cells + cell) * kStride) +
               output % kBlock;
    }

    // Turns kGroup cells, or up to `stop`, that are placed.
    static constexpr int kGroup = kPack<T> * kLanes;
    void turn_group(int64_t start, int64_t stop) const {
        if constexpr (kPack<T> > 1)
            for_vectors(outputs, [&](int64_t c, int count) {
                Vector rows[kLanes];
                for (int n = 0; n < kLanes; ++n) {
                    Vector parts[kPack<T>] = {};
                    for (int k = 0; k < kPack<T>; ++k)
                        if (const int64_t i = start + kPack<T> * n + k; i < stop)
                            parts[k] = load(place(i, c));
                    rows[n] = join<T>(parts);
                }
                turn(rows);
                float* to = turned + ((start - first) / kBackCells<T> * outputs + c) * kStride +
                            (start - first) % kBackCells<T> / kPack<T>;
                for (int n = 0; n < count; ++n) store(to + n * kStride, rows[n]);
            });
    }

    // Floats of memory for them, of all threads; tiles read a few rows more.
    static int64_t product_floats(int64_t cells, int64_t outputs) {
        const int64_t blocks = (words<T>(outputs) + kDepth - 1) / kDepth;
        return (blocks * cells + (kPack<T> > 1 ? kLanes : 0)) * kStride;
    }
    static int64_t turned_floats(int64_t cells, int64_t outputs, int threads) {
        if (kPack<T> == 1) return 0;
        return ((cells / kBackCells<T> + threads) * outputs + kLanes) * kStride;
    }
};

}  // namespace
