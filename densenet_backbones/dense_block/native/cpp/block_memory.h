// What a dense block of training is made of, and the memory that its passes need: a part for each
// thread, and one that all share.

#pragma once

#include "gradients.h"

namespace {

// A dense layer: norm, ReLU, 1x1 convolution, and again with a 3x3; without bottleneck the latter
// alone, by norm1. Gradients are written where asked for.
struct TrainedLayer {
    Norm norm1, norm2;
    Kernel kernel1, kernel2;
    float *of_kernel1, *of_kernel2;  // laid out like the weights
    int64_t bottleneck, growth;      // the former 0 without one
    float* moments;  // mean and variance of the bottleneck, `bottleneck` values each
    void* narrow;    // bottleneck maps that are kept, by cell `whole_vectors(bottleneck)` values
    const float* bias;     // of the 3x3, (growth,), where there is one
    float* of_bias;
    const uint8_t* stays;  // of the new maps, by cell `growth` values: 0 for dropped ones, or 1
    double factor;         // of those that stay
};

// A block: its first `channels` of `total` are there, and every layer adds its own. Its maps, their
// gradients, and what products are made of, are float32 or bfloat16; parameters are float32.
struct TrainedBlock {
    void* buffer;
    int64_t images, height, width, total, channels, layers;
    float* moments;        // mean and variance of the buffer's channels, `total` values each
    const void* x;         // going forward, the input, which is copied into the buffer
    int64_t x_stride;
    void* gradient;        // going back, of the buffer
    void* of_x;            // and of the input, where asked for
    int64_t tile;          // side of the tiles of 3x3 convolutions

    int64_t cells() const { return images * height * width; }
    int64_t tiles() const {
        const int side = static_cast<int>(tile);
        return images * tiles_along(height, side) * tiles_along(width, side);
    }
    Moments of(int64_t channel) const { return {moments + channel, moments + total + channel}; }
    template <typename T>
    T* data() const {
        return static_cast<T*>(buffer);
    }
    template <typename T>
    T* gradients() const {
        return static_cast<T*>(gradient);
    }
    template <typename T>
    Maps<T> maps(T* data, int64_t stride) const {
        return {data, images, height, width, stride, images * height};
    }
};

// Calls `run` with a value of the type of maps of so many `bytes` a value.
template <typename Run>
void with_maps_of(int64_t bytes, const Run& run) {
    if (bytes == sizeof(float)) run(float());
#ifdef __AVX512BF16__
    if (bytes == sizeof(Bfloat16)) run(Bfloat16());
#endif
}

// Columns of packed weights.
struct Columns {
    int64_t vectors, panels, count;

    explicit Columns(int64_t columns) {
        const int64_t needed = (columns + kLanes - 1) / kLanes;
        const bool many = kRegisters >= 32 && needed % 4 == 0;
        vectors = many ? 4 : needed % 2 == 0 ? 2 : needed % 3 == 0 ? 3 : 1;
        panels = needed / vectors;
        count = needed * kLanes;
    }
};

// The largest of what layers need, and memory for it, taken in turn. Without a base it is counted.
struct Memory {
    float* base;
    int64_t used = 0;

    float* take(int64_t floats) {
        float* from = base ? base + used : nullptr;
        used += (floats + kLanes - 1) / kLanes * kLanes;
        return from;
    }
    Sums take_sums(int64_t channels) {
        double* both = reinterpret_cast<double*>(take(4 * channels));
        return {both, both ? both + channels : nullptr};
    }
};

// Tiles of a 3x3 at a time: in bfloat16, whole ones of the processor's.
template <typename T>
constexpr int kTilesAtOnce = kPack<T> == 1 ? kTiles : 32;

struct Sizes {
    int64_t read = 0, bottleneck = 0, growth = 0, weight1 = 0, weight2 = 0, back1 = 0, back2 = 0,
            of_weight1 = 0, of_weight2 = 0, back_scratch = 0, scratch = 0;

    template <typename T>
    Sizes(const TrainedBlock& block, const TrainedLayer* layers, T) {
        int64_t channels = block.channels;
        const int64_t places = places_of(static_cast<int>(block.tile));
        const auto raise = [](int64_t& most, int64_t value) { most = std::max(most, value); };
        for (const TrainedLayer* layer = layers; layer < layers + block.layers; ++layer) {
            const int64_t narrow = whole_vectors(layer->bottleneck);
            const int64_t growth = whole_vectors(layer->growth), wide = whole_vectors(channels);
            // What the 3x3 reads.
            const int64_t inner = layer->bottleneck ? layer->bottleneck : channels;
            const int64_t inner_wide = whole_vectors(inner);
            raise(read, wide + kLanes);
            raise(bottleneck, narrow);
            raise(this->growth, growth);
            raise(weight1, channels * narrow);
            raise(weight2, places * inner * growth);
            raise(back1, layer->bottleneck * wide_columns(channels));
            raise(back2, places * layer->growth * inner_wide);
            raise(of_weight1, layer->bottleneck * wide_columns(channels));
            raise(of_weight2, places * layer->growth * wide_columns(inner));
            raise(back_scratch, winograd_back_floats<T>(layer->growth, block.tile));
            raise(scratch, kStrip * (kStride + narrow));
            raise(scratch, places * kTilesAtOnce<T> * (kStride + std::max(inner_wide, growth)));
            channels += layer->growth;
        }
        read = std::max(read, whole_vectors(block.total));
        raise(back_scratch, pointwise_back_floats<T>());
        raise(back_scratch, scratch);
    }
};

// Packed weights of a layer.
struct Weights {
    float *first, *second;
};

// What a thread has for itself.
struct Own {
    float *scratch, *zeros, *few, *bias;
    Affine affine;
    Moments moments;
    Linear linear;
    Sums sums;              // of the buffer's channels, or the new ones
    Sums narrow_sums;       // of the bottleneck
    double* bias_sums;      // of the new maps' gradient
    float *of_weight1, *of_weight2;

    Own(Memory& memory, const Sizes& sizes, bool back) {
        const int64_t most = std::max(sizes.read, sizes.bottleneck);
        scratch = memory.take(back ? sizes.back_scratch : sizes.scratch);
        zeros = memory.take(most);
        few = memory.take(2 * most);
        bias = memory.take(sizes.growth);
        affine = {memory.take(most), memory.take(most), memory.take(most)};
        moments = {memory.take(most), memory.take(most)};
        linear = {memory.take(most), memory.take(most)};
        sums = memory.take_sums(sizes.read);
        narrow_sums = memory.take_sums(sizes.bottleneck);
        bias_sums = memory.take_sums(sizes.growth).first;
        of_weight1 = back ? memory.take(sizes.of_weight1) : nullptr;
        of_weight2 = back ? memory.take(sizes.of_weight2) : nullptr;
        if (zeros) std::fill_n(zeros, most, 0.0f);
    }
};

// Distance of the sums of one thread from those of the next, in float64.
inline int64_t apart_of(int64_t own_floats) { return own_floats / 2; }

// Memory that all threads of a backward pass share.
struct Shared {
    Weights back;             // packed weights of the gradients of inputs
    float* again;             // and of the 1x1 convolution, where its maps are made again
    void* narrow;             // bottleneck maps made again
    float* gradient;          // of new maps
    float* narrow_gradient;   // of bottlenecks: blocks of kDepth, of each a row of kStride by cell
    float *product, *turned;  // the same as products read it: see Laid
    Linear linear;            // of the buffer's channels

    template <typename T>
    Shared(Memory& memory, const TrainedBlock& block, const TrainedLayer* layers,
           const Sizes& sizes, int threads, T) {
        const int64_t cells = block.cells(), blocks = (sizes.bottleneck + kDepth - 1) / kDepth;
        const bool lean = !layers[0].narrow;
        back = {memory.take(sizes.back1), memory.take(sizes.back2)};
        again = lean ? memory.take(sizes.weight1) : nullptr;
        narrow = lean ? memory.take(words<T>(cells * sizes.bottleneck)) : nullptr;
        gradient = memory.take(cells * sizes.growth);
        narrow_gradient = product = memory.take(blocks * cells * kStride);
        turned = nullptr;
        if (kPack<T> > 1) {
            product = memory.take(Laid<T>::product_floats(cells, sizes.bottleneck));
            turned = memory.take(Laid<T>::turned_floats(cells, sizes.bottleneck, threads));
        }
        linear = {memory.take(sizes.read), memory.take(sizes.read)};
    }
};

}  // namespace
