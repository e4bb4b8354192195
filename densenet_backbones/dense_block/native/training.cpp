// Trains a dense block: convolutions from weights as they are, and the passes over whole maps
// between them, which are the parts of batch norm and ReLU once statistics are known. Maps are rows
// of cells, of `channels` values each, `stride` floats apart.

#include <limits>

#include "convolutions.h"

namespace {

// Sums run in float32 over so many rows, and over those sums in float64.
constexpr int64_t kRows = 64, kChannels = 128;

// A convolution's weight as PyTorch holds it: (outputs, channels, side, side), by floats between
// neighbours. Negative ones turn a kernel round.
struct Kernel {
    const float* data;
    int64_t output, channel, row, column;
};

// Where the weight of a channel and a column lies among packed ones: see convolutions.h.
inline int64_t packed_place(int64_t channel, int64_t column, int64_t channels, int64_t columns,
                            int64_t panel) {
    const int64_t from = channel / kDepth * kDepth;
    const int64_t depth = std::min<int64_t>(kDepth, channels - from);
    return from * columns + (column / panel * depth + channel - from) * panel + column % panel;
}

// Loads the weights of `kLanes` columns from `column` on, of which there may be fewer.
inline Vector load_columns(const Kernel& k, const float* from, int64_t column, int64_t outputs) {
    Vector x = {};
    const int64_t count = std::min<int64_t>(kLanes, outputs - column);
    for (int64_t i = 0; i < count; ++i) x[i] = from[(column + i) * k.output];
    return x;
}

// Winograd's transform of three values of a kernel to four of a tile, in one dimension: G g of
// Lavin and Gray, arXiv:1509.09308, section 4.1.
inline void spread_kernel(const Vector* g, int step, Vector* u, int u_step) {
    const Vector ends = 0.5f * (g[0] + g[2 * step]), middle = 0.5f * g[step];
    u[0] = g[0];
    u[u_step] = ends + middle;
    u[2 * u_step] = ends - middle;
    u[3 * u_step] = g[2 * step];
}

// Packs this thread's part of the channels: a 1x1 kernel as it is, a 3x3 one transformed, G g G^T,
// by place within a tile.
void pack(const Kernel& kernel, int64_t side, int64_t outputs, int64_t channels, int64_t columns,
          int64_t panel, float* packed, const Team& team) {
    for (int64_t c = team.first(channels); c < team.last(channels); ++c) {
        const float* from = kernel.data + c * kernel.channel;
        for (int64_t n = 0; n < columns; n += kLanes) {
            float* to = packed + packed_place(c, n, channels, columns, panel);
            if (side == 1) {
                store(to, load_columns(kernel, from, n, outputs));
                continue;
            }
            // Down the columns of the kernel, then across.
            Vector g[9], half[kSide * 3], u[kPlaces];
            for (int i = 0; i < 9; ++i)
                g[i] = load_columns(kernel, from + i / 3 * kernel.row + i % 3 * kernel.column, n,
                                    outputs);
            for (int i = 0; i < 3; ++i) spread_kernel(g + i, 3, half + i, 3);
            for (int i = 0; i < kSide; ++i) spread_kernel(half + 3 * i, 1, u + kSide * i, 1);
            for (int i = 0; i < kPlaces; ++i) store(to + i * channels * columns, u[i]);
        }
    }
}

// Masks a row of gradients by where its activation is positive, hands each to `use`, and adds it to
// both sums.
template <typename Use>
inline void mask_row(const float* gradient, const float* active, const float* x, int64_t count,
                     float* sum, float* weighted, const Use& use) {
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) {
        const float y = active[c] <= 0.0f ? 0.0f : gradient[c];
        use(c, y);
        sum[c] += y;
        weighted[c] += y * x[c];
    }
}

}  // namespace

extern "C" {

// out = the convolution of relu(scale * x + shift), or of x where there is no scale, by a kernel of
// 1x1, or of 3x3 with a border of zeros. `bias` has `columns` values; `out` has rows of `stride`:
// of 1x1, as many floats as there are columns. `packed` has room for columns * channels weights, or
// 16 times as many.
void convolve(float* data, int64_t images, int64_t height, int64_t width, int64_t x_stride,
              int64_t channels, const float* scale, const float* shift, const float* weight,
              const int64_t* strides, int64_t side, const float* bias, int64_t outputs,
              int64_t panels, int64_t vectors, float* result, int64_t stride, float* packed,
              float* scratch, int64_t scratch_size, int threads) {
    const Maps<float> x = {data, images, height, width, x_stride, images * height};
    const Maps<float> out = {result, images, height, width, stride, images * height};
    const Kernel kernel = {weight, strides[0], strides[1], strides[2], strides[3]};
    const int64_t panel = vectors * kLanes, columns = panels * panel;
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    const Pointwise product = {scale,  shift,   packed,    bias,  channels,
                               panels, vectors, kInfinity, false, false};
    const Conv conv = {scale, shift, packed, bias, channels, outputs, panels, vectors, kInfinity};
    const int64_t cells = images * height * width;
    const int64_t down = (height + kTile - 1) / kTile, across = (width + kTile - 1) / kTile;
    const int64_t tiles = images * down * across;
#pragma omp parallel num_threads(threads)
    {
        const Team team = this_thread(scratch, scratch_size);
        // Weights change with every step, so they are packed anew, by all threads.
        pack(kernel, side, outputs, channels, columns, panel, packed, team);
#pragma omp barrier
        if (side == 1)
            pointwise(x, product, out, team.first(cells), team.last(cells), team.scratch);
        else
            winograd(x, conv, out, team.first(tiles), team.last(tiles), team.scratch);
    }
}

// out = relu(scale * x + shift). What is not a number stays so, as in PyTorch's ReLU.
void scale_shift_relu(const float* x, int64_t stride, const float* scale, const float* shift,
                      int64_t rows, int64_t channels, float* out, int threads) {
#pragma omp parallel num_threads(threads)
    {
        const Team team = this_thread();
        for (int64_t row = team.first(rows); row < team.last(rows); ++row) {
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

// A map's gradient through ReLU, masked = gradient where active > 0, else 0, and its sums by
// channel: of masked and of masked * x. With `total`, rows of `total_stride`, total += scale *
// masked; else `masked` is written, which may be `gradient`. `partial` has room for 2 * channels
// values of each thread.
void masked_sums(const float* gradient, const float* active, const float* x, int64_t stride,
                 int64_t rows, int64_t channels, float* masked, float* total, int64_t total_stride,
                 const float* scale, float* sums, double* partial, int threads) {
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
                    const float* g = gradient + r * channels + from;
                    const float* a = active + r * channels + from;
                    const float* value = x + r * stride + from;
                    float* to =
                        total ? total + r * total_stride + from : masked + r * channels + from;
                    if (total)
                        mask_row(g, a, value, count, sum, weighted,
                                 [=](int64_t c, float y) { to[c] += scale[from + c] * y; });
                    else
                        mask_row(g, a, value, count, sum, weighted,
                                 [=](int64_t c, float y) { to[c] = y; });
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

// out = scale * y - constant - slope * x, where `y` lies `y_stride` apart and `x` `x_stride`.
// Without a scale it is 1.
void affine_difference(const float* y, int64_t y_stride, const float* x, int64_t x_stride,
                       const float* scale, const float* constant, const float* slope, int64_t rows,
                       int64_t channels, float* out, int threads) {
#pragma omp parallel num_threads(threads)
    {
        const Team team = this_thread();
        for (int64_t row = team.first(rows); row < team.last(rows); ++row) {
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
        const Team team = this_thread();
        for (int64_t row = team.first(rows); row < team.last(rows); ++row) {
            const float* from = x + row * channels;
            float* to = total + row * stride;
#pragma omp simd
            for (int64_t c = 0; c < channels; ++c) to[c] += scale[c] * from[c];
        }
    }
}
}
