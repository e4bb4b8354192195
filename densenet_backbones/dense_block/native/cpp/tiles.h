// Products of bfloat16 in whole tiles of 16 rows of 16 words, on processors that have them (Intel's
// AMX: "Intel Architecture Instruction Set Extensions Programming Reference", chapter 3).

#pragma once

#include "vectors.h"

#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#define HAS_TILES
#endif

namespace {

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

// Shapes of the eight tiles, as the processor reads them: four of sums, one of each factor, and one
// of each that is not as deep. Not made on the way: GCC 12 does not know that all of it is read.
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

// c += a * b, of the depth of tiles kA and kB. A macro, as GCC's intrinsics take written numbers.
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
    const auto high = two_columns ? multiply_tiles<true, true> : multiply_tiles<true, false>;
    const auto low = two_columns ? multiply_tiles<false, true> : multiply_tiles<false, false>;
    const auto run = two_rows ? high : low;
    run(depth, a, b, b_stride, c, c_stride, add);
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

}  // namespace
