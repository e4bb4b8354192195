// Trains a dense block: convolutions from weights as they are, and the passes over whole maps
// between them, which are the parts of batch norm and ReLU once statistics are known. Maps are rows
// of cells, of `channels` values each, `stride` floats apart.

#include <limits>

#include "gradients.h"

namespace {

// Sums run in float32 over so many rows, and over those sums in float64.
constexpr int64_t kRows = 64, kChannels = 128;

inline float widen(float x) { return x; }

inline float widen(Bfloat16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof(wide));
    return wide;
}

template <typename T>
T narrow(float x);

template <>
inline float narrow<float>(float x) {
    return x;
}

// Rounds to the nearest, of two as near to the even one; what is not a number stays so.
template <>
inline Bfloat16 narrow<Bfloat16>(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof(bits));
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return {static_cast<uint16_t>(x != x ? 0x7fc0 : rounded)};
}

// Masks a row of gradients by where its activation is positive, hands each to `use`, and adds it to
// both sums.
template <typename T, typename Use>
inline void mask_row(const T* gradient, const T* active, const T* x, int64_t count, float* sum,
                     float* weighted, const Use& use) {
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) {
        const float y = widen(active[c]) <= 0.0f ? 0.0f : widen(gradient[c]);
        use(c, y);
        sum[c] += y;
        weighted[c] += y * widen(x[c]);
    }
}

// Calls `run(row)` for all rows, each in one of the threads.
template <typename Run>
void for_rows(int64_t rows, int threads, const Run& run) {
#pragma omp parallel num_threads(threads)
    {
        const Team team = this_thread();
        for (int64_t row = team.first(rows); row < team.last(rows); ++row) run(row);
    }
}

// Calls `run` with a value of the type that maps of so many `bytes` a value have: float32, or
// bfloat16, which passes compute with in float32.
template <typename Run>
void with_type(int64_t bytes, const Run& run) {
    if (bytes == sizeof(float))
        run(float());
    else
        run(Bfloat16());
}

template <typename T>
void sum_masked(const T* gradient, const T* active, const T* x, int64_t stride, int64_t rows,
                int64_t channels, T* masked, T* total, int64_t total_stride, const float* scale,
                float* sums, double* partial, int threads) {
#pragma omp parallel num_threads(threads)
    {
        const Team team = this_thread();
        const int64_t last = team.last(rows);
        double* own = partial + 2 * channels * team.thread;
        std::fill(own, own + 2 * channels, 0.0);
        // A few rows of a few channels at a time, whose float32 sums stay in the first cache.
        for (int64_t row = team.first(rows); row < last; row += kRows) {
            const int64_t end = std::min(row + kRows, last);
            for (int64_t from = 0; from < channels; from += kChannels) {
                const int64_t count = std::min(kChannels, channels - from);
                float sum[kChannels] = {}, weighted[kChannels] = {};
                for (int64_t r = row; r < end; ++r) {
                    const T* g = gradient + r * channels + from;
                    const T* a = active + r * channels + from;
                    const T* value = x + r * stride + from;
                    T* to = total ? total + r * total_stride + from : masked + r * channels + from;
                    if (total)
                        mask_row(g, a, value, count, sum, weighted, [=](int64_t c, float y) {
                            to[c] = narrow<T>(widen(to[c]) + scale[from + c] * y);
                        });
                    else
                        mask_row(g, a, value, count, sum, weighted,
                                 [=](int64_t c, float y) { to[c] = narrow<T>(y); });
                }
                // Over many rows in float64, or later values would be lost in the sum.
                for (int64_t c = 0; c < count; ++c) {
                    own[from + c] += sum[c];
                    own[channels + from + c] += weighted[c];
                }
            }
        }
        // All threads' sums in one order: the same number of threads gives the same bits.
#pragma omp barrier
        for (int64_t c = team.first(2 * channels); c < team.last(2 * channels); ++c) {
            double sum = 0.0;
            for (int t = 0; t < team.threads; ++t) sum += partial[2 * channels * t + c];
            sums[c] = static_cast<float>(sum);
        }
    }
}

}  // namespace

extern "C" {

// out = the convolution of relu(scale * x + shift), or of x where there is no scale, by a kernel of
// 1x1 (a `tile` of 0), or of 3x3 with a border of zeros in tiles of that side. `bias` has `columns`
// values; `out` has rows of `stride`: of 1x1, as many floats as there are columns. `packed` has room
// for columns * channels weights, of 3x3 for each place of a tile.
void convolve(float* data, int64_t images, int64_t height, int64_t width, int64_t x_stride,
              int64_t channels, const float* scale, const float* shift, const float* weight,
              const int64_t* strides, int tile, const float* bias, int64_t outputs,
              int64_t panels, int64_t vectors, float* result, int64_t stride, float* packed,
              float* scratch, int64_t scratch_size, int threads) {
    const Maps<float> x = {data, images, height, width, x_stride, images * height};
    const Maps<float> out = {result, images, height, width, stride, images * height};
    const Kernel kernel = {weight, strides[0], strides[1], strides[2], strides[3]};
    const int64_t panel = vectors * kLanes, columns = panels * panel;
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    const Pointwise product = {scale,  shift,   packed,    bias,  channels,
                               panels, vectors, kInfinity, false, false};
    const Conv conv = {scale,  shift,   packed,    bias, channels, outputs,
                       panels, vectors, kInfinity, tiles_of(channels, columns, tile)};
    const int64_t cells = images * height * width;
    const int64_t tiles = tile ? images * tiles_along(height, tile) * tiles_along(width, tile) : 0;
#pragma omp parallel num_threads(threads)
    {
        const Team team = this_thread(scratch, scratch_size);
        // Weights change with every step, so they are packed anew, by all threads.
        pack<float>(kernel, tile, outputs, channels, columns, panel, packed, team);
#pragma omp barrier
        if (tile == 0)
            pointwise(x, product, out, team.first(cells), team.last(cells), team.scratch);
        else
            with_tile<float>(tile, [&](auto side) {
                winograd<side>(x, conv, out, team.first(tiles), team.last(tiles), team.scratch);
            });
    }
}

// Floats of memory that a thread needs for `convolve_back`.
int64_t convolve_back_floats(int64_t channels, int64_t outputs, int tile) {
    return places_of(tile) * outputs * wide_columns(channels) +
           winograd_back_floats<float>(outputs, tile);
}

// The gradient of a 3x3 kernel with a border of zeros, laid out by its strides, from that of what
// the convolution gave, in rows of `gradient_stride`; in tiles of that side, and in memory of `own`
// floats of each thread.
void convolve_back(float* data, int64_t images, int64_t height, int64_t width, int64_t x_stride,
                   int64_t channels, float* gradient, int64_t gradient_stride, int64_t outputs,
                   float* of_weight, const int64_t* strides, int tile, float* memory,
                   int64_t own, int threads) {
    const Maps<float> x = {data, images, height, width, x_stride, images * height};
    const Maps<float> back = {gradient, images, height, width, gradient_stride, images * height};
    const Kernel kernel = {nullptr, strides[0], strides[1], strides[2], strides[3]};
    Conv conv = {};
    conv.channels = channels, conv.growth = outputs;
    const int64_t tiles = images * tiles_along(height, tile) * tiles_along(width, tile);
    with_tile<float>(tile, [&](auto side) {
#pragma omp parallel num_threads(threads)
        {
            const Team team = this_thread(memory, own);
            winograd_back<side, float>(
                x, conv, back, team.first(tiles), team.last(tiles), team.scratch,
                team.scratch + places_of(side) * outputs * wide_columns(channels));
#pragma omp barrier
            add_up_winograd<side>(memory, own, outputs, channels, kernel, of_weight, team);
        }
    });
}

// The passes take maps whose values have so many `bytes`: see with_type().

// out = relu(scale * x + shift). What is not a number stays so, as in PyTorch's ReLU.
void scale_shift_relu(int64_t bytes, const void* x, int64_t stride, const float* scale,
                      const float* shift, int64_t rows, int64_t channels, void* out, int threads) {
    with_type(bytes, [&](auto kind) {
        using T = decltype(kind);
        for_rows(rows, threads, [&](int64_t row) {
            const T* from = static_cast<const T*>(x) + row * stride;
            T* to = static_cast<T*>(out) + row * channels;
#pragma omp simd
            for (int64_t c = 0; c < channels; ++c) {
                const float y = scale[c] * widen(from[c]) + shift[c];
                to[c] = narrow<T>(0.0f > y ? 0.0f : y);
            }
        });
    });
}

// A map's gradient through ReLU, masked = gradient where active > 0, else 0, and its sums by
// channel: of masked and of masked * x. With `total`, rows of `total_stride`, total += scale *
// masked; else `masked` is written, which may be `gradient`. `partial` has room for 2 * channels
// values of each thread.
void masked_sums(int64_t bytes, const void* gradient, const void* active, const void* x,
                 int64_t stride, int64_t rows, int64_t channels, void* masked, void* total,
                 int64_t total_stride, const float* scale, float* sums, double* partial,
                 int threads) {
    with_type(bytes, [&](auto kind) {
        using T = decltype(kind);
        sum_masked(static_cast<const T*>(gradient), static_cast<const T*>(active),
                   static_cast<const T*>(x), stride, rows, channels, static_cast<T*>(masked),
                   static_cast<T*>(total), total_stride, scale, sums, partial, threads);
    });
}

// out = scale * y - constant - slope * x, where `y` lies `y_stride` apart and `x` `x_stride`.
// Without a scale it is 1.
void affine_difference(int64_t bytes, const void* y, int64_t y_stride, const void* x,
                       int64_t x_stride, const float* scale, const float* constant,
                       const float* slope, int64_t rows, int64_t channels, void* out,
                       int threads) {
    with_type(bytes, [&](auto kind) {
        using T = decltype(kind);
        for_rows(rows, threads, [&](int64_t row) {
            const T* from = static_cast<const T*>(y) + row * y_stride;
            const T* value = static_cast<const T*>(x) + row * x_stride;
            T* to = static_cast<T*>(out) + row * channels;
            if (scale) {
#pragma omp simd
                for (int64_t c = 0; c < channels; ++c)
                    to[c] = narrow<T>(scale[c] * widen(from[c]) - constant[c] -
                                      slope[c] * widen(value[c]));
            } else {
#pragma omp simd
                for (int64_t c = 0; c < channels; ++c)
                    to[c] = narrow<T>(widen(from[c]) - constant[c] - slope[c] * widen(value[c]));
            }
        });
    });
}

// total += scale * x, in place; rows of `total` lie `stride` apart.
void add_scaled(int64_t bytes, void* total, int64_t stride, const void* x, const float* scale,
                int64_t rows, int64_t channels, int threads) {
    with_type(bytes, [&](auto kind) {
        using T = decltype(kind);
        for_rows(rows, threads, [&](int64_t row) {
            const T* from = static_cast<const T*>(x) + row * channels;
            T* to = static_cast<T*>(total) + row * stride;
#pragma omp simd
            for (int64_t c = 0; c < channels; ++c)
                to[c] = narrow<T>(widen(to[c]) + scale[c] * widen(from[c]));
        });
    });
}
}
