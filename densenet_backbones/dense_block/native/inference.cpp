// Dense blocks and transitions from folded weights.

#include "convolutions.h"

namespace {

// Bottleneck maps that a thread makes before it reads them: they stay in its second cache.
constexpr int64_t kNarrowFloats = 100 * 1024;

struct Layer {
    const float *scale, *shift, *weight1, *bias1, *weight2, *bias2;
    int64_t bottleneck, growth, panels1, vectors1, panels2, vectors2;  // no bottleneck: 0
};

// Rows of tiles whose bottleneck maps are made, and then read, at a time.
int64_t strip_of(int64_t width, int64_t columns, int threads) {
    return std::max<int64_t>(1, threads * kNarrowFloats / (kTile * width * columns));
}

// Rows of bottleneck maps that are needed at once. While one thread reads a strip, with a row above
// and below it, another may be making the next.
int64_t narrow_rows(int64_t images, int64_t height, int64_t strip) {
    return std::min(images * height, 2 * strip * kTile + 2);
}

// Channels [0, read) of the buffer are there, and the next ones are made.
void run_layer(const Layer& layer, const Maps& buffer, int64_t read, float ceiling, float* narrow,
               const Team& team) {
    const int64_t images = buffer.images, height = buffer.height, width = buffer.width;
    const int64_t down = (height + kTile - 1) / kTile, across = (width + kTile - 1) / kTile;
    Maps out = buffer;
    out.data += read;
    const float* nothing = nullptr;
    const Pointwise squeeze = {layer.scale,   layer.shift,    layer.weight1, layer.bias1, read,
                               layer.panels1, layer.vectors1, ceiling,       true,        false};
    const int64_t columns = layer.panels1 * layer.vectors1 * kLanes;
    const bool narrows = layer.bottleneck > 0;
    const int64_t strip = narrows ? strip_of(width, columns, team.threads) : images * down;
    const Maps narrowed = {narrow, images,  height,
                           width,  columns, narrow_rows(images, height, strip)};
    const Conv conv = {narrows ? nothing : layer.scale,
                       narrows ? nothing : layer.shift,
                       layer.weight2,
                       layer.bias2,
                       narrows ? layer.bottleneck : read,
                       layer.growth,
                       layer.panels2,
                       layer.vectors2,
                       ceiling};
    int64_t made = 0;  // rows of all images that have bottleneck maps
    for (int64_t start = 0; start < images * down; start += strip) {
        const int64_t end = std::min(start + strip, images * down);
        if (narrows) {
            const int64_t image = (end - 1) / down, row = (end - 1) % down;
            const int64_t needed = image * height + std::min((row + 1) * kTile + 1, height);
            const int64_t cells = (needed - made) * width, from = made * width;
            pointwise(buffer, squeeze, narrowed, from + team.first(cells), from + team.last(cells),
                      team.scratch);
            made = needed;
#pragma omp barrier
        }
        const int64_t tiles = (end - start) * across, from = start * across;
        winograd(narrows ? narrowed : buffer, conv, out, from + team.first(tiles),
                 from + team.last(tiles), team.scratch);
    }
}

}  // namespace

extern "C" {

int lanes() { return kLanes; }
int registers() { return kRegisters; }
int depth() { return kDepth; }

// Floats of scratch memory a thread needs for 3x3 convolutions of that many packed columns.
int64_t scratch_floats(int64_t columns) {
    return std::max<int64_t>(kPlaces * kTiles * (kStride + columns), kStrip * kStride);
}

// Floats of memory for bottleneck maps of that many packed columns.
int64_t narrow_floats(int64_t images, int64_t height, int64_t width, int64_t columns, int threads) {
    const int64_t strip = strip_of(width, columns, threads);
    return narrow_rows(images, height, strip) * width * columns;
}

// Runs a block: `channels` of `total` are there, and every layer adds its own. `narrow` has room
// for the bottleneck maps of each, `scratch` for `scratch_size` floats of each thread.
void dense_block(float* data, int64_t images, int64_t height, int64_t width, int64_t total,
                 int64_t channels, const Layer* layers, int64_t count, float ceiling, float* narrow,
                 float* scratch, int64_t scratch_size, int threads) {
    const Maps buffer = {data, images, height, width, total, images * height};
#pragma omp parallel num_threads(threads)
    {
        const Team team = this_thread(scratch, scratch_size);
        int64_t read = channels;
        for (const Layer* layer = layers; layer < layers + count; ++layer) {
            run_layer(*layer, buffer, read, ceiling, narrow, team);
            read += layer->growth;
#pragma omp barrier
        }
    }
}

// 2x2 means of clamp(scale * x + shift), then a 1x1 convolution. `result` has packed columns.
void transition(float* data, int64_t images, int64_t height, int64_t width, int64_t channels,
                const Layer* layer, float ceiling, float* result, float* scratch,
                int64_t scratch_size, int threads) {
    const Maps maps = {data, images, height, width, channels, images * height};
    const int64_t columns = layer->panels1 * layer->vectors1 * kLanes;
    const Maps out = {result, images, height / 2, width / 2, columns, images * (height / 2)};
    const Pointwise squeeze = {
        layer->scale,   layer->shift,    layer->weight1, layer->bias1, channels,
        layer->panels1, layer->vectors1, ceiling,        false,        true};
#pragma omp parallel num_threads(threads)
    {
        const Team team = this_thread(scratch, scratch_size);
        const int64_t cells = images * out.height * out.width;
        pointwise(maps, squeeze, out, team.first(cells), team.last(cells), team.scratch);
    }
}
}
