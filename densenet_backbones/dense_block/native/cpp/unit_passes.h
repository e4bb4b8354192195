// Passes over cells of norm and ReLU, and of an average or max pool behind them, forward and back.
// What a pass makes of a cell on the way is not kept.

#pragma once

#include "gradients.h"

namespace {

constexpr int kSumRows = 64;  // cells whose sums stay in registers

using Ints = int32_t __attribute__((vector_size(kLanes * sizeof(int32_t))));
using Bytes = uint8_t __attribute__((vector_size(kLanes)));

// A max pool of square windows, whose first cell lies `step` times the output's, less `border`.
struct Window {
    int64_t side, step, border;
};

// Sums of the values of cells [first, last) and of their squares.
template <typename T>
void sum_up(const Maps<T>& x, int64_t channels, int64_t first, int64_t last,
                   const Sums& sums) {
    sums.clear(whole_vectors(channels));
    for (int64_t start = first; start < last; start += kSumRows) {
        const int64_t stop = std::min(start + kSumRows, last);
        for_vectors(channels, [&](int64_t c, int count) {
            Wide sum = {}, squares = {};
            for (int64_t i = start; i < stop; ++i) {
                const Vector value = load_some(x.data + i * x.stride + c, count);
                const Wide wide = __builtin_convertvector(value, Wide);
                sum += wide;
                squares += wide * wide;
            }
            add_to(sums.first + c, sum);
            add_to(sums.second + c, squares);
        });
    }
}

// relu(scale * x + shift) of cells [first, last).
template <typename T>
void activate(const Maps<T>& x, const Affine& affine, int64_t channels, int64_t first,
              int64_t last, T* out) {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    for (int64_t i = first; i < last; ++i)
        for_vectors(channels, [&](int64_t c, int count) {
            const Vector value = load_some(x.data + i * x.stride + c, count);
            const Vector normed = value * load(affine.scale + c) + load(affine.shift + c);
            store_some(out + i * channels + c, clamp(normed, kInfinity), count);
        });
}

// The largest of each window, and its place in the window, for cells [first, last) of the output.
// Of a vector of channels, `make` gives what turns an input to a value. As in PyTorch, the place is
// that of the first of equal ones, and what is not a number is larger than any.
template <typename T, typename Make>
void max_pool(const Maps<T>& x, int64_t channels, const Window& window, const Maps<T>& out,
              uint8_t* places, int64_t first, int64_t last, const Make& make) {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    for (int64_t i = first; i < last; ++i) {
        const int64_t image = i / out.width / out.height;
        const int64_t top = i / out.width % out.height * window.step - window.border;
        const int64_t left = i % out.width * window.step - window.border;
        const int64_t bottom = std::min(window.side, x.height - top);
        const int64_t right = std::min(window.side, x.width - left);
        for_vectors(channels, [&](int64_t c, int count) {
            const auto convert = make(c);
            Vector most = Vector{} - kInfinity;
            const int64_t from = std::max<int64_t>(0, -top), start = std::max<int64_t>(0, -left);
            Ints place = Ints{} + static_cast<int32_t>(from * window.side + start);
            for (int64_t r = from; r < bottom; ++r)
                for (int64_t s = start; s < right; ++s) {
                    const int64_t cell = (image * x.height + top + r) * x.width + left + s;
                    const Vector value = convert(load_some(x.data + cell * x.stride + c, count));
                    const Ints larger = (value > most) | (value != value);
                    most = larger ? value : most;
                    place = larger ? Ints{} + static_cast<int32_t>(r * window.side + s) : place;
                }
            store_some(out.data + i * channels + c, most, count);
            const Bytes bytes = __builtin_convertvector(place, Bytes);
            std::memcpy(places + i * channels + c, &bytes, count);
        });
    }
}

// The output cells of a max pool whose windows hold a cell of the input, and where in them it is.
class Readers {
  public:
    template <typename T>
    Readers(const Maps<T>& x, const Window& window, int64_t out_height, int64_t out_width,
            int64_t cell) {
        const int64_t image = cell / x.width / x.height;
        const int64_t row = cell / x.width % x.height + window.border;
        const int64_t column = cell % x.width + window.border;
        const auto first = [&](int64_t at) {
            return at < window.side ? 0 : (at - window.side) / window.step + 1;
        };
        for (int64_t y = first(row); y <= row / window.step && y < out_height; ++y)
            for (int64_t z = first(column); z <= column / window.step && z < out_width; ++z) {
                cells_[count_] = (image * out_height + y) * out_width + z;
                places_[count_++] = static_cast<int32_t>(
                    (row - y * window.step) * window.side + column - z * window.step);
            }
    }

    // The sum of the gradients of those that found their largest value in this cell.
    template <typename T>
    Vector gather(const T* gradient, const uint8_t* places, int64_t channels, int64_t channel,
                  int count) const {
        Vector sum = {};
        for (int i = 0; i < count_; ++i) {
            const int64_t from = cells_[i] * channels + channel;
            Bytes bytes = {};
            std::memcpy(&bytes, places + from, count);
            const Ints here = __builtin_convertvector(bytes, Ints) == Ints{} + places_[i];
            sum += here ? load_some(gradient + from, count) : Vector{};
        }
        return sum;
    }

  private:
    int64_t cells_[256];
    int32_t places_[256];
    int count_ = 0;
};

// Masks the gradients that `read` gives of cells [first, last), sums them up, and writes them to
// `out` where it is given.
template <typename T, typename Read>
void mask_cells(const Maps<T>& x, const Affine& affine, int64_t channels, int64_t first,
                int64_t last, const Sums& sums, float* few, T* out, const Read& read) {
    sums.clear(whole_vectors(channels));
    QuickSums quick(sums, few, whole_vectors(channels));
    for (int64_t i = first; i < last; ++i) {
        const auto of_cell = read(i);
        for_vectors(channels, [&](int64_t c, int count) {
            const Vector value = load_some(x.data + i * x.stride + c, count);
            const Vector masked = mask(value, load(affine.scale + c), load(affine.shift + c),
                                       of_cell(c, count));
            quick.add(c, masked, value);
            if (out) store_some(out + i * channels + c, masked, count);
        });
    }
}

// out = scale * out - constant - slope * x for cells [first, last): the gradient of a norm's input.
// Cells that `covers` denies have none of their own.
template <typename T, typename Covers>
void finish_cells(const Maps<T>& x, const Affine& affine, const Linear& linear,
                  int64_t channels, int64_t first, int64_t last, T* out,
                  const Covers& covers) {
    for (int64_t i = first; i < last; ++i) {
        const bool covered = covers(i);
        for_vectors(channels, [&](int64_t c, int count) {
            T* to = out + i * channels + c;
            const Vector masked = covered ? load_some(to, count) : Vector{};
            const Vector value = load_some(x.data + i * x.stride + c, count);
            store_some(to,
                       load(affine.scale + c) * masked - load(linear.constant + c) -
                           load(linear.slope + c) * value,
                       count);
        });
    }
}

// The way back through a 1x1 convolution of relu(scale * x + shift), or with `pools` of its 2x2
// means.
template <typename T>
struct ProductBack {
    const float* weight;    // packed: `outputs` deep, `channels` wide, in panels of kWide
    int64_t channels, outputs;
    bool pools;
    Laid<T> gradient;       // of the convolution's output
    int64_t out_height, out_width;
    float* of_weight;       // (outputs, wide_columns(channels)) of this thread, where asked for

    // The input cell that an output cell reads, or the first of four.
    int64_t corner(const Maps<T>& x, int64_t cell) const {
        if (!pools) return cell;
        const int64_t image = cell / out_width / out_height;
        const int64_t row = cell / out_width % out_height;
        return (image * x.height + 2 * row) * x.width + 2 * (cell % out_width);
    }
};

// Goes back through a thread's cells, up to `last`, of the output; masks, sums up and writes as
// mask_cells().
template <typename T>
void product_back(const ProductBack<T>& p, const Maps<T>& x, const Affine& affine, int64_t last,
                  const Sums& sums, T* out, float* scratch) {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    constexpr int kBlock = kDepth * kPack<T>;
    float *normed = scratch, *made = scratch + kBackCells<T> * kStride;
    const int64_t wide = wide_columns(p.channels), first = p.gradient.first;
    const int64_t right = x.stride, down = x.width * x.stride;
    const int64_t four[] = {0, right, down, right + down};
    const Tiles<T> tiles;
    sums.clear(whole_vectors(p.channels));
    if (p.of_weight && first == last) std::fill_n(p.of_weight, p.outputs * wide, 0.0f);
    // Few channels at a time, whose weights and gradients of weights stay in the second cache.
    for (int64_t from = 0; from < p.channels; from += kDepth) {
        const int depth = static_cast<int>(std::min<int64_t>(kDepth, p.channels - from));
        const int panels = static_cast<int>(wide_columns(depth) / (kWide * kLanes));
        const float* turned = p.gradient.turned;
        for (int64_t cell = first; cell < last; cell += kBackCells<T>) {
            const int count = static_cast<int>(std::min<int64_t>(kBackCells<T>, last - cell));
            int64_t corners[kBackCells<T>];
            for (int i = 0; i < count; ++i) corners[i] = p.corner(x, cell + i);
            const int rows = write_strip<T>(count, depth, normed, [&](int i, int64_t c, int some) {
                const T* read = x.data + corners[i] * x.stride + from + c;
                const Vector scale = load_some(affine.scale + from + c, some);
                const Vector shift = load_some(affine.shift + from + c, some);
                Vector sum = clamp(load_some(read, some) * scale + shift, kInfinity);
                if (!p.pools) return sum;
                for (int k = 1; k < 4; ++k)
                    sum += clamp(load_some(read + four[k], some) * scale + shift, kInfinity);
                return sum * 0.25f;
            });
            for (int64_t o = 0; o < p.outputs; o += kBlock) {
                const int some = static_cast<int>(std::min<int64_t>(kBlock, p.outputs - o));
                const float* gradient =
                    p.gradient.product + (o / kBlock * p.gradient.cells + cell) * kStride;
                if (p.of_weight)
                    add_product<T>(some, depth, rows, gradient, turned + o * kStride, normed,
                                   p.of_weight + o * wide + from, wide, cell > first);
                const int deep = static_cast<int>(words<T>(some));
                multiply<T>(count, deep, gradient, p.weight + words<T>(o) * wide + from * deep,
                            panels, kWide, made, kStride,
                            {nullptr, o > 0, nullptr, 0, 0.0f, false});
            }
            if (turned) turned += p.outputs * kStride;
            // A mean gives each of its four cells a quarter.
            const float share = p.pools ? 0.25f : 1.0f;
            const int side = p.pools ? 2 : 1;
            for_vectors(depth, [&](int64_t c, int some) {
                const Vector scale = load(affine.scale + from + c);
                const Vector shift = load(affine.shift + from + c);
                Vector sum = {}, weighted = {};
                for (int i = 0; i < count; ++i) {
                    const Vector own = load(made + i * kStride + c) * share;
                    for (int four = 0; four < side * side; ++four) {
                        const int64_t at = corners[i] + four / 2 * x.width + four % 2;
                        const Vector value = load_some(x.data + at * x.stride + from + c, some);
                        const Vector masked = mask(value, scale, shift, own);
                        sum += masked;
                        weighted += masked * value;
                        if (out) store_some(out + at * p.channels + from + c, masked, some);
                    }
                }
                add_to(sums.first + from + c, __builtin_convertvector(sum, Wide));
                add_to(sums.second + from + c, __builtin_convertvector(weighted, Wide));
            });
        }
    }
}

}  // namespace
