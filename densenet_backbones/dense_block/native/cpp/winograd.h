// Winograd's transforms in one dimension, for 3x3 convolutions in tiles of `Tile` cells a side: Lavin
// and Gray, CVPR 2016, arXiv:1509.09308, section 4, whose letters stand here for matrices. A tile
// reads two cells more than it gives, and has that many places, at each of which a product is made.

#pragma once

#include "vectors.h"

namespace {

// Their F(2x2, 3x3), with interpolation points 0, 1, -1 and infinity.
template <int Tile>
struct Transform {
    // B^T d: what is read to places.
    static void spread(const Vector* d, Vector* out) {
        out[0] = d[0] - d[2];
        out[1] = d[1] + d[2];
        out[2] = d[2] - d[1];
        out[3] = d[1] - d[3];
    }
    // A^T m: products of places, `step` apart, to results.
    static void gather(const Vector* m, int step, Vector* out, int out_step) {
        const Vector m0 = m[0], m1 = m[step], m2 = m[2 * step], m3 = m[3 * step];
        out[0] = m0 + m1 + m2;
        out[out_step] = m1 - m2 - m3;
    }
    // G g: three values of a kernel to places.
    static void spread_kernel(const Vector* g, int step, Vector* u, int u_step) {
        const Vector ends = 0.5f * (g[0] + g[2 * step]), middle = 0.5f * g[step];
        u[0] = g[0];
        u[u_step] = ends + middle;
        u[2 * u_step] = ends - middle;
        u[3 * u_step] = g[2 * step];
    }
    // G^T u and A y, for gradients: of places to those of a kernel, of results to those of places.
    static void gather_kernel(const Vector* u, int u_step, Vector* g, int step) {
        const Vector sum = 0.5f * (u[u_step] + u[2 * u_step]);
        g[0] = u[0] + sum;
        g[step] = 0.5f * (u[u_step] - u[2 * u_step]);
        g[2 * step] = sum + u[3 * u_step];
    }
    static void spread_gradient(const Vector* y, int step, Vector* out, int out_step) {
        const Vector y0 = y[0], y1 = y[step];
        out[0] = y0;
        out[out_step] = y0 + y1;
        out[2 * out_step] = y0 - y1;
        out[3 * out_step] = -y1;
    }
};

// F(4x4, 3x3). Their points 1, -1, 2 and -2 make the errors of float32 four times those of a plain sum;
// with the roots of 1/2 and of 2, and their negatives, they are twice as large.
template <>
struct Transform<4> {
    static constexpr float kLow = 0.70710678f, kHigh = 1.41421356f;
    // What divides the powers of a point, of either kind: products of its distances from the others.
    static constexpr float kOfLow = -2.0f / 3.0f, kOfHigh = 1.0f / 6.0f;

    static void spread(const Vector* d, Vector* out) {
        const Vector even = d[4] - 2.0f * d[2], odd = d[3] - 2.0f * d[1];
        const Vector even2 = d[4] - 0.5f * d[2], odd2 = d[3] - 0.5f * d[1];
        out[0] = d[0] + d[4] - 2.5f * d[2];
        out[1] = even + kLow * odd;
        out[2] = even - kLow * odd;
        out[3] = even2 + kHigh * odd2;
        out[4] = even2 - kHigh * odd2;
        out[5] = d[1] + d[5] - 2.5f * d[3];
    }
    static void gather(const Vector* m, int step, Vector* out, int out_step) {
        const Vector m1 = m[step], m2 = m[2 * step], m3 = m[3 * step], m4 = m[4 * step];
        const Vector sum = m1 + m2, sum2 = m3 + m4;
        const Vector part = kLow * (m1 - m2), part2 = kHigh * (m3 - m4);
        out[0] = m[0] + sum + sum2;
        out[out_step] = part + part2;
        out[2 * out_step] = 0.5f * sum + 2.0f * sum2;
        out[3 * out_step] = 0.5f * part + 2.0f * part2 + m[5 * step];
    }
    static void spread_kernel(const Vector* g, int step, Vector* u, int u_step) {
        const Vector g0 = g[0], g1 = g[step], g2 = g[2 * step];
        const Vector even = kOfLow * (g0 + 0.5f * g2), odd = kOfLow * kLow * g1;
        const Vector even2 = kOfHigh * (g0 + 2.0f * g2), odd2 = kOfHigh * kHigh * g1;
        u[0] = g0;
        u[u_step] = even + odd;
        u[2 * u_step] = even - odd;
        u[3 * u_step] = even2 + odd2;
        u[4 * u_step] = even2 - odd2;
        u[5 * u_step] = g2;
    }
    static void gather_kernel(const Vector* u, int u_step, Vector* g, int step) {
        const Vector u1 = u[u_step], u2 = u[2 * u_step], u3 = u[3 * u_step], u4 = u[4 * u_step];
        const Vector sum = kOfLow * (u1 + u2), sum2 = kOfHigh * (u3 + u4);
        g[0] = u[0] + sum + sum2;
        g[step] = kOfLow * kLow * (u1 - u2) + kOfHigh * kHigh * (u3 - u4);
        g[2 * step] = 0.5f * sum + 2.0f * sum2 + u[5 * u_step];
    }
    static void spread_gradient(const Vector* y, int step, Vector* out, int out_step) {
        const Vector y0 = y[0], y1 = y[step], y2 = y[2 * step], y3 = y[3 * step];
        const Vector even = y0 + 0.5f * y2, odd = kLow * (y1 + 0.5f * y3);
        const Vector even2 = y0 + 2.0f * y2, odd2 = kHigh * (y1 + 2.0f * y3);
        out[0] = y0;
        out[out_step] = even + odd;
        out[2 * out_step] = even - odd;
        out[3 * out_step] = even2 + odd2;
        out[4 * out_step] = even2 - odd2;
        out[5 * out_step] = y3;
    }
};

constexpr int kShared = 2;  // columns that neighbouring tiles both read

// Places of a tile that gives so many cells a side, and tiles that give so many cells.
constexpr int places_of(int tile) { return (tile + kShared) * (tile + kShared); }
inline int64_t tiles_along(int64_t cells, int tile) { return (cells + tile - 1) / tile; }

// Calls `run` with the side of a tile as a constant; of bfloat16 there is one.
template <typename T, typename Run>
void with_tile(int64_t tile, const Run& run) {
    if constexpr (kPack<T> == 1)
        if (tile == 4) return run(std::integral_constant<int, 4>());
    run(std::integral_constant<int, 2>());
}

}  // namespace
