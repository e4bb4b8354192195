// Trains a dense block over one buffer (see shared.py): forward and back, each in one parallel
// region. Every thread has cells and tiles of its own; what all must know of all, sums over cells,
// is added up from each thread's own by whoever needs it.

#include "block_passes.h"

namespace {

template <typename T>
void run_forward(const TrainedBlock& block, const TrainedLayer* layers, const Own& first,
                 int64_t own_floats, const Own& own, Weights* weights, T* narrow,
                 const Team& team) {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    const int64_t apart = apart_of(own_floats), tiles = block.tiles();
    const double count = static_cast<double>(block.cells());
    int64_t channels = block.channels, known = 0;
    copy_input<T>(block, own, team);
    const auto pack_layer = [&](const TrainedLayer& layer, int64_t read, const Weights& to) {
        const int64_t inner = layer.bottleneck ? layer.bottleneck : read;
        if (layer.bottleneck)
            pack_kernel<T>(layer.kernel1, 0, layer.bottleneck, read, to.first, team);
        pack_kernel<T>(layer.kernel2, block.tile, layer.growth, inner, to.second, team);
    };
    pack_layer(layers[0], channels, weights[0]);
#pragma omp barrier
    for (int64_t l = 0; l < block.layers; ++l) {
        const TrainedLayer& layer = layers[l];
        T* made = layer.narrow ? static_cast<T*>(layer.narrow) : narrow;
        // Statistics of the newest maps: every thread makes them for itself, one keeps them.
        read_moments(first.sums, apart, team.threads, channels - known, count,
                     {own.moments.mean + known, own.moments.var + known});
        make_affine(layer.norm1, own.moments, channels, own.affine);
        if (team.thread == 0) {
            std::copy_n(own.moments.mean + known, channels - known, block.of(known).mean);
            std::copy_n(own.moments.var + known, channels - known, block.of(known).var);
            track(layer.norm1, own.moments, channels, count);
        }
        Maps<T> read = block.maps(block.data<T>(), block.total);
        int64_t inner = channels;
        if (layer.bottleneck) {
            squeeze(block, layer, channels, own.affine, weights[l % 2].first, made, own, team,
                    true);
            read = block.maps(made, whole_vectors(layer.bottleneck));
            inner = layer.bottleneck;
        }
        // Sums are read by all before they begin anew.
#pragma omp barrier
        if (layer.bottleneck) {
            const Moments batch = {own.linear.constant, own.linear.slope};  // unused going forward
            read_moments(first.narrow_sums, apart, team.threads, layer.bottleneck, count, batch);
            make_affine(layer.norm2, batch, layer.bottleneck, own.affine);
            if (team.thread == 0) {
                std::copy_n(batch.mean, layer.bottleneck, layer.moments);
                std::copy_n(batch.var, layer.bottleneck, layer.moments + layer.bottleneck);
                track(layer.norm2, batch, layer.bottleneck, count);
            }
        }
        if (layer.bias) std::copy_n(layer.bias, layer.growth, own.bias);
        const Columns columns(layer.growth);
        const Conv conv = {own.affine.scale,
                           own.affine.shift,
                           weights[l % 2].second,
                           layer.bias ? own.bias : own.zeros,
                           inner,
                           layer.growth,
                           columns.panels,
                           columns.vectors,
                           kInfinity,
                           kTilesAtOnce<T>};
        own.sums.clear(columns.count);
        const auto use = [&](int64_t cell, int64_t c, int some, const Vector& value) {
            T* to = block.data<T>() + cell * block.total + channels + c;
            const Vector left =
                as_kept<T>(layer.stays ? value * factors(layer, cell, c, some) : value);
            add_to(own.sums, c, left, left);
            store_some(to, left, some);
        };
        with_tile<T>(block.tile, [&](auto side) {
            winograd<side, T>(read, conv, team.first(tiles), team.last(tiles), own.scratch, use);
        });
        known = channels;
        channels += layer.growth;
        if (l + 1 < block.layers) pack_layer(layers[l + 1], channels, weights[(l + 1) % 2]);
        // The next layer reads all maps of this one.
#pragma omp barrier
    }
}

template <typename T>
void run_back(const TrainedBlock& block, const TrainedLayer* layers, const Own& first,
              int64_t own_floats, const Own& own, const Shared& shared, const Team& team) {
    const int64_t apart = apart_of(own_floats), cells = block.cells();
    const double count = static_cast<double>(cells);
    int64_t channels = block.total;
    const auto pack_layer = [&](const TrainedLayer& layer, int64_t read) {
        // The gradient of a 3x3's input is that of a 3x3 turned round, its channels exchanged.
        const Kernel& k = layer.kernel2;
        const Kernel turned = {k.data + 2 * (k.row + k.column), k.channel, k.output, -k.row,
                               -k.column};
        pack_kernel<T>(turned, block.tile, layer.bottleneck ? layer.bottleneck : read, layer.growth,
                    shared.back.second, team);
        if (!layer.bottleneck) return;
        const Kernel& p = layer.kernel1;
        pack<T>({p.data, p.channel, p.output, 0, 0}, 0, read, layer.bottleneck,
                wide_columns(read), kWide * kLanes, shared.back.first, team);
        if (shared.again)
            pack_kernel<T>(layer.kernel1, 0, layer.bottleneck, read, shared.again, team);
    };
    for (int64_t c = team.first(block.total); c < team.last(block.total); ++c)
        shared.linear.constant[c] = shared.linear.slope[c] = 0.0f;
#pragma omp barrier
    for (int64_t l = block.layers - 1; l >= 0; --l) {
        const TrainedLayer& layer = layers[l];
        T* narrow = static_cast<T*>(layer.narrow ? layer.narrow : shared.narrow);
        channels -= layer.growth;
        const auto add_up_kernel = [&](int64_t inner) {
            with_tile<T>(block.tile, [&](auto side) {
                add_up_winograd<side>(first.of_weight2, own_floats, layer.growth, inner,
                                      layer.kernel2, layer.of_kernel2, team);
            });
        };
        // The new maps' gradient: later layers, which read them, have all been passed.
        finish_new<T>(block, layer, shared, channels, own, team);
        pack_layer(layer, channels);
#pragma omp barrier
        for (int64_t c = team.first(layer.growth); layer.of_bias && c < team.last(layer.growth);
             ++c)
            layer.of_bias[c] =
                static_cast<float>(add_up(first.bias_sums + c, apart, team.threads));
        if (!layer.bottleneck) {
            make_affine(layer.norm1, block.of(0), channels, own.affine);
            convolve_whole_back<T>(block, layer, shared, channels, own, team);
#pragma omp barrier
            norm_backward(layer.norm1, block.of(0), own.affine, first.sums, apart, team.threads,
                          team.first(channels), team.last(channels), count, shared.linear);
            if (layer.of_kernel2)
                add_up_kernel(channels);
#pragma omp barrier
            continue;
        }
        if (!layer.narrow) {
            make_affine(layer.norm1, block.of(0), channels, own.affine);
            squeeze(block, layer, channels, own.affine, shared.again, narrow, own, team, false);
#pragma omp barrier
        }
        const Moments batch = {layer.moments, layer.moments + layer.bottleneck};
        make_affine(layer.norm2, batch, layer.bottleneck, own.affine);
        expand_back(block, layer, shared, narrow, own, team);
#pragma omp barrier
        std::fill_n(own.linear.constant, layer.bottleneck, 0.0f);
        std::fill_n(own.linear.slope, layer.bottleneck, 0.0f);
        Norm norm = layer.norm2;
        if (team.thread > 0) norm.of_weight = norm.of_bias = nullptr;  // one writes them
        norm_backward(norm, batch, own.affine, first.narrow_sums, apart, team.threads, 0,
                      layer.bottleneck, count, own.linear);
        if (layer.of_kernel2)
            add_up_kernel(layer.bottleneck);
        const Laid<T> laid(shared.product, shared.turned, cells, layer.bottleneck, team);
        finish_narrow(block, layer, shared, narrow, own.affine, own.linear, laid, team);
        // Back through the 1x1, into the gradients of all maps that the layer reads.
        make_affine(layer.norm1, block.of(0), channels, own.affine);
        const PointwiseBack<T> back = {own.affine.scale,
                                       own.affine.shift,
                                       shared.back.first,
                                       channels,
                                       layer.bottleneck,
                                       laid.product,
                                       cells,
                                       laid.turned,
                                       layer.of_kernel1 ? own.of_weight1 : nullptr,
                                       block.gradients<T>(),
                                       block.total};
        pointwise_back(back, block.data<T>(), block.total, team.first(cells), team.last(cells),
                       own.sums, own.scratch);
#pragma omp barrier
        norm_backward(layer.norm1, block.of(0), own.affine, first.sums, apart, team.threads,
                      team.first(channels), team.last(channels), count, shared.linear);
        if (layer.of_kernel1)
            add_up_pointwise(first.of_weight1, own_floats, layer.bottleneck, channels,
                             layer.kernel1, layer.of_kernel1, team);
#pragma omp barrier
    }
    if (block.of_x)
        finish<T>(block, shared.linear, 0, block.channels, static_cast<T*>(block.of_x),
                  block.channels, team);
}

}  // namespace

extern "C" {

// Floats of memory that a pass over a block needs, on so many threads; see `train_block`.
int64_t train_block_floats(const TrainedBlock* block, const TrainedLayer* layers, int64_t bytes,
                           int back, int threads) {
    int64_t floats = 0;
    with_maps_of(bytes, [&](auto value) {
        using T = decltype(value);
        const Sizes sizes(*block, layers, value);
        Memory one = {nullptr};
        Own(one, sizes, back);
        Memory all = {nullptr};
        if (back) {
            Shared(all, *block, layers, sizes, threads, value);
        } else {
            for (int i = 0; i < 2; ++i) all.take(sizes.weight1), all.take(sizes.weight2);
            if (!layers[0].narrow) all.take(words<T>(block->cells() * sizes.bottleneck));
        }
        floats = all.used + threads * one.used;
    });
    return floats;
}

// Runs a block of maps of so many `bytes` a value forward, or back, in memory of
// `train_block_floats`.
void train_block(const TrainedBlock* block, const TrainedLayer* layers, int64_t bytes, int back,
                 float* base, int threads) {
    with_maps_of(bytes, [&](auto value) {
        using T = decltype(value);
        const Sizes sizes(*block, layers, value);
        Memory count = {nullptr};
        Own(count, sizes, back);
        const int64_t own_floats = count.used;
        const auto own_of = [&](int thread) {
            Memory memory = {base + thread * own_floats};
            return Own(memory, sizes, back);
        };
        const Own first = own_of(0);
        Memory rest = {base + threads * own_floats};
        if (back) {
            const Shared shared(rest, *block, layers, sizes, threads, value);
#pragma omp parallel num_threads(threads)
            {
                const Team team = this_thread();
                const Own own = own_of(team.thread);
                run_back<T>(*block, layers, first, own_floats, own, shared, team);
            }
            return;
        }
        Weights weights[2];
        for (Weights& both : weights) both = {rest.take(sizes.weight1), rest.take(sizes.weight2)};
        float* floats =
            layers[0].narrow ? nullptr : rest.take(words<T>(block->cells() * sizes.bottleneck));
        T* narrow = reinterpret_cast<T*>(floats);
#pragma omp parallel num_threads(threads)
        {
            const Team team = this_thread();
            const Own own = own_of(team.thread);
            run_forward(*block, layers, first, own_floats, own, weights, narrow, team);
        }
    });
}
}
