// Matrix products on a CPU, in float32 or, where the processor multiplies them, bfloat16. Sums are
// float32 in either case.
//
// They run in blocks of kDepth channels (Goto and van de Geijn, "Anatomy of High-Performance Matrix
// Multiplication", 2008): a panel of weights stays in the first cache while it meets the rows, of
// which rows_for() at a time stay in registers.
//
// Matrices are made of words of 32 bits, each a float32 or a pair of neighbouring bfloat16: of one
// cell, and in weights of one column. Depths, and strides of scratch memory, are in words.
//
// Weights come packed: for each block of kDepth rows of words, for each panel of `vectors` SIMD
// vectors of columns, the panel's rows one after another. Missing columns are zero, and so is the
// second of a pair that has none.

#pragma once

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

// Rows whose sums fit into the registers beside a row of a panel and one value of each row.
constexpr int rows_for(int vectors) { return std::min(14, (kRegisters - 1 - vectors) / vectors); }

using Vector = float __attribute__((vector_size(kLanes * sizeof(float))));

// Loads by copying, which compilers turn into one instruction that asks for no alignment.
inline Vector load(const float* from) {
    Vector x;
    std::memcpy(&x, from, sizeof(x));
    return x;
}

inline void store(float* to, Vector x) { std::memcpy(to, &x, sizeof(x)); }

// A vector of one value. Not added to zero, which would take the sign from -0 and so is an
// instruction of its own.
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

template <typename T>
inline void store_some(T* to, const Vector& x, int count) {
    if (count == kLanes)
        store(to, x);
    else
        store_part(to, x, count);
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
    for (int r = 0; r < Rows; ++r)
        for (int v = 0; v < Vectors; ++v) {
            if (around.bias)
                sum[r][v] = load(around.bias + v * kLanes);
            else if (around.add)
                sum[r][v] = load(c + r * c_stride + v * kLanes);
            else
                sum[r][v] = Vector{};
        }
    // The sums of a tile stay in registers: each step loads a row of the panel once for all rows.
    for (int k = 0; k < depth; ++k) {
        Vector column[Vectors];
        for (int v = 0; v < Vectors; ++v) column[v] = load(b + v * kLanes);
        for (int r = 0; r < Rows; ++r)
            for (int v = 0; v < Vectors; ++v)
                sum[r][v] = multiply_add<T>(sum[r][v], a[r * kStride + k], column[v]);
        b += Vectors * kLanes;
    }
    // The last block of channels writes the result, clamped; earlier ones keep their sums.
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

// c = a * b, of `rows` x `depth` and `depth` x `panels` * `vectors` * kLanes.
template <typename T>
void multiply(int rows, int depth, const float* a, const float* b, int panels, int vectors,
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

}  // namespace
