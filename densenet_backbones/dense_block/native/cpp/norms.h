// Batch norm taken apart (Ioffe and Szegedy, arXiv:1502.03167, section 3): sums over cells, the
// statistics and the map that they make, and on the way back the linear function of the input that
// a batch's statistics take from its gradient. Where the statistics are known, a norm and the ReLU
// behind it are clamp(scale * x + shift) of a cell.

#pragma once

#include <algorithm>
#include <cmath>

#include "products.h"

namespace {

constexpr int kAhead = 16;  // cells from the one that is read to the one that is fetched

template <typename T>
inline void prefetch(const T* from, int count) {
    constexpr int kLine = 64 / sizeof(T);
    for (int i = 0; i < count; i += kLine) __builtin_prefetch(from + i, 0, 2);
}

// clamp(scale * x + shift) of a cell's channels. What is behind the last ones, up to a vector's
// end, becomes zero.
template <typename T, typename Made>
inline void norm_cell(const T* x, const float* scale, const float* shift, int channels,
                      float ceiling, Made* out) {
    int c = 0;
    for (; c + kLanes <= channels; c += kLanes)
        store(out + c, clamp(load(x + c) * load(scale + c) + load(shift + c), ceiling));
    if (const int rest = channels - c) {
        const Vector weight = load_part(scale + c, rest), added = load_part(shift + c, rest);
        store(out + c, clamp(load_part(x + c, rest) * weight + added, ceiling));
    }
}

// The mean of the normed 2x2 cells from x on, likewise.
template <typename T>
inline void norm_four(const T* x, int64_t right, int64_t down, const float* scale,
                      const float* shift, int channels, float ceiling, T* out) {
    const T* four[] = {x, x + right, x + down, x + right + down};
    int c = 0;
    for (; c + kLanes <= channels; c += kLanes) {
        Vector sum = {};
        for (const T* cell : four)
            sum += clamp(load(cell + c) * load(scale + c) + load(shift + c), ceiling);
        store(out + c, sum * 0.25f);
    }
    if (const int rest = channels - c) {
        const Vector weight = load_part(scale + c, rest), added = load_part(shift + c, rest);
        Vector sum = {};
        for (const T* cell : four)
            sum += clamp(load_part(cell + c, rest) * weight + added, ceiling);
        store(out + c, sum * 0.25f);
    }
}

// A norm. Without constants it goes by the batch's statistics.
struct Norm {
    const float *weight, *bias;                  // (channels,), where there are any
    const float *constant_mean, *constant_var;   // running statistics it goes by, where it does
    float *running_mean, *running_var;           // those that the batch's are mixed into, if any
    int64_t* batches;                            // counted, where given
    float *of_weight, *of_bias;                  // gradients, where asked for
    double momentum, eps;                        // negative: the average over all batches
};

// Mean and biased variance of each channel.
struct Moments {
    float *mean, *var;
};

// A norm as scale * x + shift, and 1 / std.
struct Affine {
    float *scale, *shift, *inverse;
};

// What a batch's statistics take from the gradient of a norm's input: constant + slope * x.
struct Linear {
    float *constant, *slope;
};

// Two sums of each channel, in float64, or later values would be lost in the sum.
struct Sums {
    double *first, *second;

    void clear(int64_t channels) const {
        std::fill(first, first + channels, 0.0);
        std::fill(second, second + channels, 0.0);
    }
};

using Wide = double __attribute__((vector_size(kLanes * sizeof(double))));

inline void add_to(double* sums, const Wide& x) {
    Wide sum;
    std::memcpy(&sum, sums, sizeof(sum));
    sum += x;
    std::memcpy(sums, &sum, sizeof(sum));
}

// Adds a cell's values and their products with others.
inline void add_to(const Sums& sums, int64_t channel, const Vector& x, const Vector& other) {
    const Wide wide = __builtin_convertvector(x, Wide);
    add_to(sums.first + channel, wide);
    add_to(sums.second + channel, wide * __builtin_convertvector(other, Wide));
}

// The same, of up to kFew cells in float32 first, which takes fewer instructions.
class QuickSums {
  public:
    // `few` has room for twice as many floats as there are channels, in whole vectors.
    QuickSums(const Sums& sums, float* few, int64_t channels)
        : sums_(sums), few_(few), channels_(channels) {
        std::fill_n(few_, 2 * channels_, 0.0f);
    }
    ~QuickSums() { flush(); }

    // Called for the first channels of a cell first.
    void add(int64_t channel, const Vector& x, const Vector& other) {
        if (channel == 0 && ++cells_ > kFew) flush();
        float *first = few_ + channel, *second = first + channels_;
        store(first, load(first) + x);
        store(second, load(second) + x * other);
    }

  private:
    static constexpr int kFew = 64;

    void flush() {
        for (int64_t c = 0; c < channels_; c += kLanes) {
            add_to(sums_.first + c, __builtin_convertvector(load(few_ + c), Wide));
            add_to(sums_.second + c, __builtin_convertvector(load(few_ + channels_ + c), Wide));
        }
        std::fill_n(few_, 2 * channels_, 0.0f);
        cells_ = 1;
    }

    Sums sums_;
    float* few_;
    int64_t channels_;
    int cells_ = 0;
};

// Calls `use` with the first of a few channels, and how many they are.
template <typename Use>
inline void for_vectors(int64_t channels, const Use& use) {
    for (int64_t c = 0; c < channels; c += kLanes)
        use(c, static_cast<int>(std::min<int64_t>(kLanes, channels - c)));
}

// A norm's output that ReLU lets through leaves the gradient as it is, also what is not a number.
inline Vector mask(const Vector& x, const Vector& scale, const Vector& shift,
                   const Vector& gradient) {
    const Vector zero = {};
    return x * scale + shift <= zero ? zero : gradient;
}

// All threads' sums, `apart` float64 from one another, added up in one order: the same number of
// threads gives the same bits.
inline double add_up(const double* sums, int64_t apart, int threads) {
    double sum = 0.0;
    for (int t = 0; t < threads; ++t) sum += sums[apart * t];
    return sum;
}

inline void read_moments(const Sums& sums, int64_t apart, int threads, int64_t channels,
                         double count, const Moments& moments) {
    for (int64_t c = 0; c < channels; ++c) {
        const double mean = add_up(sums.first + c, apart, threads) / count;
        const double square = add_up(sums.second + c, apart, threads) / count;
        const double var = square - mean * mean;
        moments.mean[c] = static_cast<float>(mean);
        // What is not a number stays so.
        moments.var[c] = static_cast<float>(var < 0.0 ? 0.0 : var);
    }
}

// Makes a norm a map.
inline void make_affine(const Norm& norm, const Moments& batch, int64_t channels,
                        const Affine& affine) {
    const float* mean = norm.constant_mean ? norm.constant_mean : batch.mean;
    const float* var = norm.constant_mean ? norm.constant_var : batch.var;
    const float eps = static_cast<float>(norm.eps);
    for (int64_t c = 0; c < channels; ++c) affine.inverse[c] = 1.0f / std::sqrt(var[c] + eps);
    for (int64_t c = 0; c < channels; ++c) {
        affine.scale[c] = norm.weight ? affine.inverse[c] * norm.weight[c] : affine.inverse[c];
        affine.shift[c] = (norm.bias ? norm.bias[c] : 0.0f) - mean[c] * affine.scale[c];
    }
}

// Mixes the batch's statistics, of `count` values, into the running ones.
inline void track(const Norm& norm, const Moments& batch, int64_t channels, double count) {
    if (norm.batches) ++*norm.batches;
    if (!norm.running_mean) return;
    const double weight = norm.momentum < 0.0 ? 1.0 / *norm.batches : norm.momentum;
    const float mixed = static_cast<float>(weight), kept = static_cast<float>(1.0 - weight);
    const float unbiased = static_cast<float>(weight * (count / std::max(count - 1.0, 1.0)));
    for (int64_t c = 0; c < channels; ++c) {
        norm.running_mean[c] += mixed * (batch.mean[c] - norm.running_mean[c]);
        norm.running_var[c] = norm.running_var[c] * kept + unbiased * batch.var[c];
    }
}

// Channels [first, last) of a norm's gradients, from sums of the gradient of its output and of that
// weighted by its input. `linear` is added to.
inline void norm_backward(const Norm& norm, const Moments& batch, const Affine& affine,
                          const Sums& sums, int64_t apart, int threads, int64_t first,
                          int64_t last, double count, const Linear& linear) {
    const float* mean = norm.constant_mean ? norm.constant_mean : batch.mean;
    for (int64_t c = first; c < last; ++c) {
        const double summed = add_up(sums.first + c, apart, threads);
        const double weighted = add_up(sums.second + c, apart, threads);
        const double correlated = (weighted - mean[c] * summed) * affine.inverse[c];
        if (norm.of_weight) norm.of_weight[c] = static_cast<float>(correlated);
        if (norm.of_bias) norm.of_bias[c] = static_cast<float>(summed);
        if (norm.constant_mean) continue;
        const double share = affine.scale[c] / count;
        const double slope = share * correlated * affine.inverse[c];
        linear.slope[c] += static_cast<float>(slope);
        linear.constant[c] += static_cast<float>(share * summed - slope * mean[c]);
    }
}

}  // namespace
