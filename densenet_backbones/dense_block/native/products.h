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

#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#define HAS_TILES
#endif

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
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return reinterpret_cast<Vector>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
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

// A vector as maps of T keep it.
template <typename T>
Vector as_kept(const Vector& x) {
    T kept[kLanes];
    store(kept, x);
    return load(kept);
}

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
inline Vector load_some(const T* from, int count) {
    return count == kLanes ? load(from) : load_part(from, count);
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

inline void put(float* to, float x) { *to = x; }

#ifdef __AVX512BF16__
inline void put(Bfloat16* to, float x) {
    const __m128bh rounded = _mm_cvtneps_pbh(_mm_set_ss(x));
    std::memcpy(to, &rounded, sizeof(*to));
}
#endif

// Words of what one or two vectors hold, side by side: in weights, of neighbouring channels.
template <typename T>
Vector join(const Vector* parts);

template <>
inline Vector join<float>(const Vector* parts) {
    return parts[0];
}

#ifdef __AVX512BF16__
template <>
inline Vector join<Bfloat16>(const Vector* parts) {
    const auto widen = [](const Vector& x) {
        return _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)));
    };
    return reinterpret_cast<Vector>(
        _mm512_or_si512(widen(parts[0]), _mm512_slli_epi32(widen(parts[1]), 16)));
}
#endif

// Turns kLanes vectors round: what was the i-th value of the j-th becomes the j-th of the i-th. Halves
// of quarters, of eighths and so on change places.
template <int Step = kLanes / 2>
inline void turn(Vector* rows) {
    using Places = int32_t __attribute__((vector_size(sizeof(Vector))));
    Places low, high;
    for (int i = 0; i < kLanes; ++i) {
        low[i] = i & Step ? kLanes + i - Step : i;
        high[i] = i & Step ? kLanes + i : i + Step;
    }
    for (int i = 0; i < kLanes; ++i) {
        if (i & Step) continue;
        const Vector a = rows[i], b = rows[i + Step];
        rows[i] = __builtin_shuffle(a, b, low);
        rows[i + Step] = __builtin_shuffle(a, b, high);
    }
    if constexpr (Step > 1) turn<Step / 2>(rows);
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

// Whether products of bfloat16 run in whole tiles of 16 x 16 words (AMX), and a guard around them:
// the processor keeps a thread's tiles until they are released.
#ifdef HAS_TILES
constexpr int kTileRows = 16, kTileWords = 16;

// Linux lends the registers of tiles to processes that ask.
inline bool ask_for_tiles() {
    constexpr long kAsk = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, kAsk, kTileData) == 0;
}

inline const bool kTilesLent = ask_for_tiles();

template <typename T>
bool has_tiles() {
    return sizeof(T) == sizeof(Bfloat16) && kTilesLent;
}

// Shapes of the eight tiles, as the processor reads them: four of sums, one of each factor, and one of
// each that is not as deep. Not made on the way: GCC 12 does not know that all of it is read.
struct TileShapes {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 0, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 0};
};

// For each depth of the last two.
struct AllShapes {
    TileShapes by_depth[kTileWords];

    AllShapes() {
        for (int depth = 0; depth < kTileWords; ++depth) {
            by_depth[depth].bytes[5] = static_cast<uint16_t>(std::max(1, depth) * sizeof(float));
            by_depth[depth].rows[7] = static_cast<uint8_t>(std::max(1, depth));
        }
    }
};
const AllShapes kAllShapes;

template <typename T>
class Tiles {
  public:
    Tiles() {
        if (has_tiles<T>()) shape(0);
    }
    ~Tiles() {
        if (has_tiles<T>()) _tile_release();
    }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;

    // Gives the last two a depth, which leaves all tiles empty.
    static void shape(int depth) {
        if (depth == depth_ && depth > 0) return;
        _tile_loadconfig(&kAllShapes.by_depth[depth]);
        depth_ = depth;
    }

  private:
    static inline thread_local int depth_ = 0;
};

// c += a * b, of the depth of tiles kA and kB. A macro, as GCC's intrinsics take numbers as written.
#define ADD_TILES(kA, kB)                                \
    _tile_loadd(kA, a, a_bytes);                         \
    _tile_loadd(kB, b, b_bytes);                         \
    _tile_dpbf16ps(0, kA, kB);                           \
    if (kTwoRows) {                                      \
        _tile_loadd(kA, a + kDown * kStride, a_bytes);   \
        _tile_dpbf16ps(2, kA, kB);                       \
    }                                                    \
    if (kTwoColumns) {                                   \
        _tile_loadd(kB, b + kTileWords, b_bytes);        \
        if (kTwoRows) {                                  \
            _tile_dpbf16ps(3, kA, kB);                   \
            _tile_loadd(kA, a, a_bytes);                 \
        }                                                \
        _tile_dpbf16ps(1, kA, kB);                       \
    }

// c = a * b, or added to c, of up to 2 x 2 tiles; rows of `a` lie kStride words apart, of `b`
// b_stride, of `c` c_stride.
template <bool kTwoRows, bool kTwoColumns>
void multiply_tiles(int depth, const float* a, const float* b, int64_t b_stride, float* c,
                    int64_t c_stride, bool add) {
    constexpr int64_t kBytes = sizeof(float), kDown = kTileRows;
    const int64_t a_bytes = kStride * kBytes, b_bytes = b_stride * kBytes;
    const int64_t c_bytes = c_stride * kBytes;
    float* below = c + kDown * c_stride;
    if (add) {
        _tile_loadd(0, c, c_bytes);
        if (kTwoColumns) _tile_loadd(1, c + kTileWords, c_bytes);
        if (kTwoRows) _tile_loadd(2, below, c_bytes);
        if (kTwoRows && kTwoColumns) _tile_loadd(3, below + kTileWords, c_bytes);
    } else {
        _tile_zero(0);
        if (kTwoColumns) _tile_zero(1);
        if (kTwoRows) _tile_zero(2);
        if (kTwoRows && kTwoColumns) _tile_zero(3);
    }
    for (; depth >= kTileWords; depth -= kTileWords) {
        ADD_TILES(4, 6)
        a += kTileWords;
        b += kTileWords * b_stride;
    }
    if (depth > 0) {
        ADD_TILES(5, 7)
    }
    _tile_stored(0, c, c_bytes);
    if (kTwoColumns) _tile_stored(1, c + kTileWords, c_bytes);
    if (kTwoRows) _tile_stored(2, below, c_bytes);
    if (kTwoRows && kTwoColumns) _tile_stored(3, below + kTileWords, c_bytes);
}
#undef ADD_TILES

inline void multiply_tiles(bool two_rows, bool two_columns, int depth, const float* a,
                           const float* b, int64_t b_stride, float* c, int64_t c_stride, bool add) {
    const auto run = two_rows ? two_columns ? multiply_tiles<true, true> : multiply_tiles<true, false>
                              : two_columns ? multiply_tiles<false, true>
                                            : multiply_tiles<false, false>;
    run(depth, a, b, b_stride, c, c_stride, add);
}

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
                        if (around.out)
                            store(around.out + (first + r) * around.out_stride + column + w * kLanes,
                                  around.clamps ? clamp(x, around.ceiling) : x);
                        else
                            store(sum, x);
                    }
            }
        }
}
#else
template <typename T>
constexpr bool has_tiles() {
    return false;
}

template <typename T>
struct Tiles {
    Tiles() {}
};
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
