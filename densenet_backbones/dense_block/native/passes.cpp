// Passes over whole maps in float32 on a CPU: what training a dense block needs between its
// convolutions. Maps are rows of cells, of `channels` values each, which lie `stride` floats apart.

#include <omp.h>

#include <algorithm>
#include <cstdint>

namespace {

// Sums run in float32 over so many rows, and over those sums in float64.
constexpr int64_t kRows = 64;

struct Rows {
    int64_t first, last;
};

// This thread's part of 0 .. count.
Rows own_rows(int64_t count) {
    const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
    return {count * thread / threads, count * (thread + 1) / threads};
}

}  // namespace

extern "C" {

// out = relu(scale * x + shift). What is not a number stays so, as in PyTorch's ReLU.
void scale_shift_relu(const float* x, int64_t stride, const float* scale, const float* shift,
                      int64_t rows, int64_t channels, float* out, int threads) {
#pragma omp parallel num_threads(threads)
    {
        const Rows own = own_rows(rows);
        for (int64_t row = own.first; row < own.last; ++row) {
            const float* from = x + row * stride;
            float* to = out + row * channels;
#pragma omp simd
            for (int64_t c = 0; c < channels; ++c) {
                const float y = scale[c] * from[c] + shift[c];
                to[c] = 0.0f > y ? 0.0f : y;
            }
        }
    }
}

// masked = gradient where active > 0, else 0; sums = those of masked and of masked * x, by channel.
// `masked` may be `gradient`. `partial` has room for 2 * channels values of each thread.
void masked_sums(const float* gradient, const float* active, const float* x, int64_t stride,
                 int64_t rows, int64_t channels, float* masked, float* sums, double* partial,
                 int threads) {
#pragma omp parallel num_threads(threads)
    {
        const Rows own = own_rows(rows);
        double* total = partial + 2 * channels * omp_get_thread_num();
        std::fill(total, total + 2 * channels, 0.0);
        constexpr int64_t kChannels = 128;
        for (int64_t row = own.first; row < own.last; row += kRows) {
            const int64_t end = std::min(row + kRows, own.last);
            for (int64_t from = 0; from < channels; from += kChannels) {
                const int64_t count = std::min(kChannels, channels - from);
                float sum[kChannels] = {}, weighted[kChannels] = {};
                for (int64_t r = row; r < end; ++r) {
                    const float* g = gradient + r * channels + from;
                    const float* a = active + r * channels + from;
                    const float* value = x + r * stride + from;
                    float* to = masked + r * channels + from;
#pragma omp simd
                    for (int64_t c = 0; c < count; ++c) {
                        const float y = a[c] <= 0.0f ? 0.0f : g[c];
                        to[c] = y;
                        sum[c] += y;
                        weighted[c] += y * value[c];
                    }
                }
                for (int64_t c = 0; c < count; ++c) {
                    total[from + c] += sum[c];
                    total[channels + from + c] += weighted[c];
                }
            }
        }
#pragma omp barrier
        const Rows mine = own_rows(2 * channels);
        for (int64_t c = mine.first; c < mine.last; ++c) {
            double sum = 0.0;
            for (int t = 0; t < omp_get_num_threads(); ++t) sum += partial[2 * channels * t + c];
            sums[c] = static_cast<float>(sum);
        }
    }
}

// out = scale * y - constant - slope * x, where `y` lies `y_stride` apart and `x` `x_stride`.
// Without a scale it is 1. `out` may be `y` if that is dense.
void affine_difference(const float* y, int64_t y_stride, const float* x, int64_t x_stride,
                       const float* scale, const float* constant, const float* slope, int64_t rows,
                       int64_t channels, float* out, int threads) {
#pragma omp parallel num_threads(threads)
    {
        const Rows own = own_rows(rows);
        for (int64_t row = own.first; row < own.last; ++row) {
            const float *from = y + row * y_stride, *value = x + row * x_stride;
            float* to = out + row * channels;
            if (scale) {
#pragma omp simd
                for (int64_t c = 0; c < channels; ++c)
                    to[c] = scale[c] * from[c] - constant[c] - slope[c] * value[c];
            } else {
#pragma omp simd
                for (int64_t c = 0; c < channels; ++c)
                    to[c] = from[c] - constant[c] - slope[c] * value[c];
            }
        }
    }
}

// total += scale * x, in place; rows of `total` lie `stride` apart.
void add_scaled(float* total, int64_t stride, const float* x, const float* scale, int64_t rows,
                int64_t channels, int threads) {
#pragma omp parallel num_threads(threads)
    {
        const Rows own = own_rows(rows);
        for (int64_t row = own.first; row < own.last; ++row) {
            const float* from = x + row * channels;
            float* to = total + row * stride;
#pragma omp simd
            for (int64_t c = 0; c < channels; ++c) to[c] += scale[c] * from[c];
        }
    }
}
}
