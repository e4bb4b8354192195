// Runs dense blocks and transitions in evaluation, from folded weights (see folded/): the norm in
// front of a convolution is a scale and a shift, the norm behind it is part of its weights.

#include "convolutions.h"

namespace {

// Bytes of bottleneck maps that a thread makes before it reads them: they stay in its second cache.
constexpr int64_t kNarrowBytes = 400 * 1024;

// A dense layer, or without a second weight a transition; weights are packed (see products.h).
struct Layer {
    const float *scale, *shift, *weight1, *bias1, *weight2, *bias2;
    int64_t bottleneck, growth, panels1, vectors1, panels2, vectors2;  // no bottleneck: 0
};

// Rows of tiles whose bottleneck maps, of `bytes` a value, are made, and then read, at a time.
int64_t strip_of(int64_t images, int64_t height, int64_t width, int64_t columns, int64_t bytes,
                 int tile, int threads) {
    const int64_t most = threads * kNarrowBytes / (tile * width * columns * bytes);
    return split_evenly(images * tiles_along(height, tile), std::max<int64_t>(1, most));
}

// Rows of bottleneck maps that are needed at once. While one thread reads a strip, with a row above
// and below it, another may be making the next.
int64_t narrow_rows(int64_t images, int64_t height, int64_t strip, int tile) {
    return std::min(images * height, 2 * strip * tile + 2);
}

// Runs a layer: reads channels [0, read) of the buffer, and writes its new maps behind them.
template <int Tile, typename T>
void run_layer(const Layer& layer, const Maps<T>& buffer, int64_t read, float ceiling, T* narrow,
               const Team& team) {
    const int64_t images = buffer.images, height = buffer.height, width = buffer.width;
    const int64_t down = tiles_along(height, Tile), across = tiles_along(width, Tile);
    Maps<T> out = buffer;
    out.data += read;
    const float* nothing = nullptr;
    const Pointwise squeeze = {layer.scale,   layer.shift,    layer.weight1, layer.bias1, read,
                               layer.panels1, layer.vectors1, ceiling,       true,        false};
    const int64_t columns = layer.panels1 * layer.vectors1 * kLanes;
    const bool narrows = layer.bottleneck > 0;
    const int64_t strip =
        narrows ? strip_of(images, height, width, columns, sizeof(T), Tile, team.threads)
                : images * down;
    const Maps<T> narrowed = {narrow, images,  height,
                              width,  columns, narrow_rows(images, height, strip, Tile)};
    const Conv conv = {narrows ? nothing : layer.scale,
                       narrows ? nothing : layer.shift,
                       layer.weight2,
                       layer.bias2,
                       narrows ? layer.bottleneck : read,
                       layer.growth,
                       layer.panels2,
                       layer.vectors2,
                       ceiling};
    // Strip by strip: make the bottleneck of the rows that a strip of tiles reads, then read it
    // while it is in the cache.
    int64_t made = 0;  // rows of all images that have bottleneck maps
    for (int64_t start = 0; start < images * down; start += strip) {
        const int64_t end = std::min(start + strip, images * down);
        if (narrows) {
            // The last tile of the strip reads one row below its own, unless the image ends there.
            const int64_t image = (end - 1) / down, row = (end - 1) % down;
            const int64_t needed = image * height + std::min((row + 1) * Tile + 1, height);
            const int64_t cells = (needed - made) * width, from = made * width;
            pointwise(buffer, squeeze, narrowed, from + team.first(cells), from + team.last(cells),
                      team.scratch);
            made = needed;
            // The 3x3 reads rows that other threads have made.
#pragma omp barrier
        }
        // Who finishes early starts on the next strip's bottleneck: narrow_rows() leaves room.
        const int64_t tiles = (end - start) * across, from = start * across;
        winograd<Tile>(narrows ? narrowed : buffer, conv, out, from + team.first(tiles),
                 from + team.last(tiles), team.scratch);
    }
}

// Runs the layers of a block one after the other, all threads on each.
template <int Tile, typename T>
void run_block(T* data, int64_t images, int64_t height, int64_t width, int64_t total,
               int64_t channels, const Layer* layers, int64_t count, float ceiling, T* narrow,
               float* scratch, int64_t scratch_size, int threads) {
    const Maps<T> buffer = {data, images, height, width, total, images * height};
#pragma omp parallel num_threads(threads)
    {
        const Team team = this_thread(scratch, scratch_size);
        int64_t read = channels;
        for (const Layer* layer = layers; layer < layers + count; ++layer) {
            run_layer<Tile>(*layer, buffer, read, ceiling, narrow, team);
            read += layer->growth;
            // The next layer reads all maps of this one.
#pragma omp barrier
        }
    }
}

// Runs a transition, or one whose pool stands before its 1x1: both are linear, so the order is free.
template <typename T>
void run_transition(T* data, int64_t images, int64_t height, int64_t width, int64_t channels,
                    const Layer& layer, float ceiling, bool pools, T* result, float* scratch,
                    int64_t scratch_size, int threads) {
    const Maps<T> maps = {data, images, height, width, channels, images * height};
    const int64_t columns = layer.panels1 * layer.vectors1 * kLanes, step = pools ? 2 : 1;
    const Maps<T> out = {result,  images, height / step, width / step,
                         columns, images * (height / step)};
    const Pointwise squeeze = {layer.scale,   layer.shift,    layer.weight1, layer.bias1, channels,
                               layer.panels1, layer.vectors1, ceiling,       false,       pools};
#pragma omp parallel num_threads(threads)
    {
        const Team team = this_thread(scratch, scratch_size);
        const int64_t cells = images * out.height * out.width;
        pointwise(maps, squeeze, out, team.first(cells), team.last(cells), team.scratch);
    }
}

// Runs a 3x3 convolution with a border of zeros; a ceiling that is not negative clamps its results.
template <int Tile, typename T>
void run_convolution(T* data, int64_t images, int64_t height, int64_t width, int64_t channels,
                     const Layer& layer, float ceiling, T* result, float* scratch,
                     int64_t scratch_size, int threads) {
    const Maps<T> x = {data, images, height, width, channels, images * height};
    const Conv conv = {nullptr,       nullptr,        layer.weight2, layer.bias2, channels,
                       layer.growth, layer.panels2, layer.vectors2, ceiling,
                       tiles_of(channels, layer.panels2 * layer.vectors2 * kLanes, Tile)};
    const int64_t down = tiles_along(height, Tile), across = tiles_along(width, Tile);
#pragma omp parallel num_threads(threads)
    {
        const Team team = this_thread(scratch, scratch_size);
        const int64_t tiles = images * down * across;
        winograd<Tile, T>(x, conv, team.first(tiles), team.last(tiles), team.scratch,
                          [&](int64_t cell, int64_t c, int count, const Vector& value) {
                              store_some(result + cell * layer.growth + c,
                                         ceiling < 0 ? value : clamp(value, ceiling), count);
                          });
    }
}

// Calls `run` with a value of the type that maps of so many `bytes` a value have.
template <typename Run>
void with_type(int64_t bytes, const Run& run) {
    if (bytes == sizeof(float)) run(float());
#ifdef __AVX512BF16__
    if (bytes == sizeof(Bfloat16)) run(Bfloat16());
#endif
}

}  // namespace

extern "C" {

// Facts that packing.py lays weights out by: floats of a vector, vector registers, rows of a block.
int lanes() { return kLanes; }
int registers() { return kRegisters; }
int depth() { return kDepth; }

// Multiplies and adds `rounds` times in each of a dozen vectors, which keep a core's units busy: to
// measure their speed. It is 24 * kLanes operations a round.
float multiply_adds(int64_t rounds) {
    const Vector factor = splat(0.999f), added = splat(1e-3f);
    Vector sums[12];
    for (int i = 0; i < 12; ++i) sums[i] = splat(static_cast<float>(i));
    for (int64_t r = 0; r < rounds; ++r)
        for (Vector& sum : sums) sum = sum * factor + added;
    for (int i = 1; i < 12; ++i) sums[0] += sums[i];
    return sums[0][0];
}

// Floats of scratch memory a thread needs for 1x1 and 3x3 convolutions of so many packed columns, the
// latter in tiles of that side.
int64_t scratch_floats(int64_t columns1, int64_t columns2, int tile) {
    return std::max<int64_t>(kStrip * (kStride + columns1),
                             places_of(tile) * kTiles * (kStride + columns2));
}

// Likewise, for `convolution`.
int64_t convolution_floats(int64_t channels, int64_t columns, int tile) {
    return places_of(tile) * tiles_of(channels, columns, tile) * (kStride + columns);
}

// Values, of `bytes` each, of memory for bottleneck maps of that many packed columns.
int64_t narrow_values(int64_t images, int64_t height, int64_t width, int64_t columns, int64_t bytes,
                      int tile, int threads) {
    const int64_t strip = strip_of(images, height, width, columns, bytes, tile, threads);
    return narrow_rows(images, height, strip, tile) * width * columns;
}

// Whether there are kernels for bfloat16, and whether the processor multiplies whole tiles of it.
int has_bfloat16() {
#ifdef __AVX512BF16__
    return 1;
#else
    return 0;
#endif
}
int has_bfloat16_tiles() { return has_tiles<Bfloat16>(); }

// Runs a block: `channels` of `total` are there, and every layer adds its own. `bytes` of a value
// tell float32 from bfloat16, 3x3 weights are of tiles of `tile` cells a side. `narrow` has room for
// the bottleneck maps of each, `scratch` for `scratch_size` floats of each thread.
void dense_block(void* data, int64_t bytes, int64_t images, int64_t height, int64_t width,
                 int64_t total, int64_t channels, const Layer* layers, int64_t count, float ceiling,
                 void* narrow, float* scratch, int64_t scratch_size, int threads, int tile) {
    with_type(bytes, [&](auto value) {
        using T = decltype(value);
        with_tile<T>(tile, [&](auto side) {
            run_block<side>(static_cast<T*>(data), images, height, width, total, channels, layers,
                            count, ceiling, static_cast<T*>(narrow), scratch, scratch_size, threads);
        });
    });
}

// clamp(scale * x + shift), its 2x2 means if it `pools`, then a 1x1 convolution. `result` has packed
// columns.
void transition(void* data, int64_t bytes, int64_t images, int64_t height, int64_t width,
                int64_t channels, const Layer* layer, float ceiling, void* result, float* scratch,
                int64_t scratch_size, int threads, int pools) {
    with_type(bytes, [&](auto value) {
        using T = decltype(value);
        run_transition(static_cast<T*>(data), images, height, width, channels, *layer, ceiling,
                       pools != 0, static_cast<T*>(result), scratch, scratch_size, threads);
    });
}

// A 3x3 convolution, that of `layer`, of dense maps to dense maps; clamped by a ceiling from 0 on.
void convolution(void* data, int64_t bytes, int64_t images, int64_t height, int64_t width,
                 int64_t channels, const Layer* layer, float ceiling, void* result, float* scratch,
                 int64_t scratch_size, int threads, int tile) {
    with_type(bytes, [&](auto value) {
        using T = decltype(value);
        with_tile<T>(tile, [&](auto side) {
            run_convolution<side>(static_cast<T*>(data), images, height, width, channels, *layer,
                                  ceiling, static_cast<T*>(result), scratch, scratch_size, threads);
        });
    });
}
}
