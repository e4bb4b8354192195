// SIMD vectors of float32, loaded from and stored to float32 or bfloat16.
//
// Matrices are made of words of 32 bits, each a float32 or a pair of neighbouring bfloat16.

#pragma once

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>

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

// Words of a matrix's depth that products take at a time.
constexpr int kDepth = 128;
// Rows of scratch memory lie a little apart, or they would compete for the same lines of the cache.
constexpr int kStride = kDepth + 16;

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

// Has a vector that is used several times be loaded once: compilers would rather read it from memory
// each time, and a core loads no faster than it multiplies.
inline void keep_in_register([[maybe_unused]] Vector& x) {
#if defined(__x86_64__)
    asm("" : "+v"(x));
#elif defined(__aarch64__)
    asm("" : "+w"(x));
#endif
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

// Turns kLanes vectors round: the i-th value of the j-th becomes the j-th of the i-th. Halves trade
// places, then quarters, and so on.
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

}  // namespace
