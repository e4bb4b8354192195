// Trains what stands between dense blocks: norm and ReLU, with a 1x1 convolution or a pool behind
// them or with both, forward and back, each in one parallel region. An average pool of 2x2 cells
// runs before the 1x1 that it follows: both are linear, and means are a quarter of the cells.

#include <limits>

#include "block_memory.h"
#include "unit_passes.h"

namespace {

// Maps and their gradients are float32 or bfloat16, parameters float32.
struct TrainedUnit {
    void* x;
    int64_t x_stride, images, height, width, channels;
    Norm norm;
    float* moments;             // mean and variance, `channels` values each
    Kernel kernel;              // of the 1x1, where there is one
    float* of_kernel;           // laid out like it, where asked for
    const float* bias;          // (columns,), where there is a 1x1
    int64_t outputs;            // of the 1x1, or 0
    Window window;              // of a max pool; of 2x2 means its side is 2, without a pool 0
    void* out;                  // rows of `outputs` in whole vectors, or of `channels`
    int64_t out_height, out_width;
    uint8_t* places;            // of a max pool's largest values
    const void* gradient;       // of `out`, in rows without gaps
    void* of_x;                 // (cells, channels), where asked for

    int64_t cells() const { return images * height * width; }
    int64_t out_cells() const { return images * out_height * out_width; }
    bool convolves() const { return outputs > 0; }
    bool pools_means() const { return convolves() && window.side > 0; }
    bool pools_most() const { return !convolves() && window.side > 0; }
    Moments batch() const { return {moments, moments + channels}; }
    template <typename T>
    Maps<T> read() const {
        return {static_cast<T*>(x), images, height, width, x_stride, images * height};
    }
    template <typename T>
    Maps<T> made(int64_t stride) const {
        return {static_cast<T*>(out), images, out_height, out_width, stride, images * out_height};
    }
};

// What a thread has for itself in a pass.
struct UnitOwn {
    float *scratch, *few, *of_weight;
    Affine affine;
    Sums sums;

    template <typename T>
    UnitOwn(Memory& memory, const TrainedUnit& unit, bool back, T) {
        const int64_t wide = whole_vectors(unit.channels);
        const int64_t forward = kStrip * (kStride + whole_vectors(unit.outputs));
        const bool strips = unit.convolves();
        scratch = strips ? memory.take(back ? pointwise_back_floats<T>() : forward) : nullptr;
        few = back ? memory.take(2 * wide) : nullptr;
        of_weight =
            back && strips ? memory.take(unit.outputs * wide_columns(unit.channels)) : nullptr;
        affine = {memory.take(wide), memory.take(wide), memory.take(wide)};
        sums = memory.take_sums(wide);
        // Behind the last channel, whole vectors are read.
        if (memory.base)
            for (float* vector : {affine.scale, affine.shift}) std::fill_n(vector, wide, 0.0f);
    }
};

// Memory that all threads share in a pass.
struct UnitShared {
    float *weight, *product, *turned;
    Linear linear;

    template <typename T>
    UnitShared(Memory& memory, const TrainedUnit& unit, bool back, int threads, T) {
        const int64_t wide = whole_vectors(unit.channels);
        const int64_t deep = back ? wide_columns(unit.channels) : unit.channels;
        const int64_t narrow = back ? unit.outputs : whole_vectors(unit.outputs);
        const int64_t cells = unit.out_cells();
        weight = memory.take(deep * narrow);
        product = turned = nullptr;
        if (back) product = memory.take(Laid<T>::product_floats(cells, unit.outputs));
        if (back && kPack<T> > 1)
            turned = memory.take(Laid<T>::turned_floats(cells, unit.outputs, threads));
        linear = {memory.take(wide), memory.take(wide)};
        if (memory.base)
            for (float* vector : {linear.constant, linear.slope}) std::fill_n(vector, wide, 0.0f);
    }
};

template <typename T>
void run_forward(const TrainedUnit& unit, const UnitOwn& first, int64_t own_floats,
                 const UnitOwn& own, const UnitShared& shared, const Team& team) {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    const int64_t channels = unit.channels, cells = unit.cells(), out_cells = unit.out_cells();
    const Columns columns(unit.outputs);
    const double count = static_cast<double>(cells);
    const Maps<T> x = unit.read<T>();
    if (unit.convolves())
        pack<T>(unit.kernel, 0, unit.outputs, channels, columns.count,
                    columns.vectors * kLanes, shared.weight, team);
    const bool of_batch = !unit.norm.constant_mean;
    if (of_batch) sum_up(x, channels, team.first(cells), team.last(cells), own.sums);
#pragma omp barrier
    if (of_batch && team.thread == 0) {
        read_moments(first.sums, apart_of(own_floats), team.threads, channels, count, unit.batch());
        track(unit.norm, unit.batch(), channels, count);
    }
#pragma omp barrier
    make_affine(unit.norm, unit.batch(), channels, own.affine);
    const int64_t from = team.first(out_cells), to = team.last(out_cells);
    if (unit.pools_most()) {
        max_pool(x, channels, unit.window, unit.made<T>(channels), unit.places, from, to,
                 [&](int64_t c) {
                     return [scale = load(own.affine.scale + c),
                             shift = load(own.affine.shift + c)](const Vector& value) {
                         return as_kept<T>(clamp(value * scale + shift, kInfinity));
                     };
                 });
    } else if (unit.convolves()) {
        const Pointwise product = {own.affine.scale, own.affine.shift, shared.weight,
                                   unit.bias,        channels,         columns.panels,
                                   columns.vectors,  kInfinity,        false,
                                   unit.pools_means()};
        pointwise(x, product, unit.made<T>(columns.count), from, to, own.scratch);
    } else {
        activate(x, own.affine, channels, from, to, static_cast<T*>(unit.out));
    }
}

// Lays a thread's cells of a 1x1's gradient out as products read them.
template <typename T>
void lay_out(const TrainedUnit& unit, const Laid<T>& laid, const Team& team) {
    const int64_t last = team.last(laid.cells);
    for (int64_t start = laid.first, stop; start < last; start = stop) {
        stop = std::min<int64_t>(start + laid.kGroup, last);
        for (int64_t i = start; i < stop; ++i)
            for_vectors(unit.outputs, [&](int64_t c, int count) {
                const T* from = static_cast<const T*>(unit.gradient) + i * unit.outputs + c;
                store(laid.place(i, c), load_some(from, count));
            });
        laid.turn_group(start, stop);
    }
}

// Goes back to the norm's output, masked by its ReLU: into `of_x`, and into a thread's sums.
template <typename T>
void mask_back(const TrainedUnit& unit, const UnitOwn& own, const UnitShared& shared,
               const Laid<T>& laid, const Team& team) {
    const int64_t channels = unit.channels, cells = unit.cells(), out_cells = unit.out_cells();
    const Maps<T> x = unit.read<T>();
    const T* gradient = static_cast<const T*>(unit.gradient);
    T* of_x = static_cast<T*>(unit.of_x);
    if (unit.convolves()) {
        const ProductBack<T> back = {shared.weight,
                                     channels,
                                     unit.outputs,
                                     unit.pools_means(),
                                     laid,
                                     unit.out_height,
                                     unit.out_width,
                                     unit.of_kernel ? own.of_weight : nullptr};
        product_back(back, x, own.affine, team.last(out_cells), own.sums, of_x, own.scratch);
        return;
    }
    const auto run = [&](const auto& read) {
        mask_cells(x, own.affine, channels, team.first(cells), team.last(cells), own.sums, own.few,
                   of_x, read);
    };
    if (unit.pools_most())
        run([&](int64_t i) {
            return [&, readers = Readers(x, unit.window, unit.out_height, unit.out_width, i)](
                       int64_t c, int count) {
                return readers.gather(gradient, unit.places, channels, c, count);
            };
        });
    else
        run([&](int64_t i) {
            return [&, i](int64_t c, int count) {
                return load_some(gradient + i * channels + c, count);
            };
        });
}

template <typename T>
void run_back(const TrainedUnit& unit, const UnitOwn& first, int64_t own_floats,
              const UnitOwn& own, const UnitShared& shared, const Team& team) {
    const int64_t channels = unit.channels, cells = unit.cells();
    const Maps<T> x = unit.read<T>();
    const Laid<T> laid(shared.product, shared.turned, unit.out_cells(), unit.outputs, team);
    make_affine(unit.norm, unit.batch(), channels, own.affine);
    if (unit.convolves()) {
        const Kernel& k = unit.kernel;
        pack<T>({k.data, k.channel, k.output, 0, 0}, 0, channels, unit.outputs,
                    wide_columns(channels), kWide * kLanes, shared.weight, team);
        lay_out(unit, laid, team);
    }
#pragma omp barrier
    mask_back(unit, own, shared, laid, team);
#pragma omp barrier
    norm_backward(unit.norm, unit.batch(), own.affine, first.sums, apart_of(own_floats),
                  team.threads, team.first(channels), team.last(channels),
                  static_cast<double>(cells), shared.linear);
    if (unit.of_kernel)
        add_up_pointwise(first.of_weight, own_floats, unit.outputs, channels, unit.kernel,
                         unit.of_kernel, team);
#pragma omp barrier
    if (!unit.of_x) return;
    // Means leave out an odd last row and column.
    const bool pools = unit.pools_means();
    finish_cells(x, own.affine, shared.linear, channels, team.first(cells), team.last(cells),
                 static_cast<T*>(unit.of_x), [&](int64_t i) {
                     return !pools || (i % unit.width < 2 * unit.out_width &&
                                       i / unit.width % unit.height < 2 * unit.out_height);
                 });
}

// Goes back through a max pool alone, whose cells lie in rows without gaps.
template <typename T>
void pool_back(const TrainedUnit& unit, const Team& team) {
    const T* gradient = static_cast<const T*>(unit.gradient);
    T* of_x = static_cast<T*>(unit.of_x);
    const Maps<T> x = unit.read<T>();
    for (int64_t i = team.first(unit.cells()); i < team.last(unit.cells()); ++i) {
        const Readers readers(x, unit.window, unit.out_height, unit.out_width, i);
        for_vectors(unit.channels, [&](int64_t c, int count) {
            const Vector sum = readers.gather(gradient, unit.places, unit.channels, c, count);
            store_some(of_x + i * unit.channels + c, sum, count);
        });
    }
}

}  // namespace

extern "C" {

// Runs a max pool alone, of maps of so many `bytes` a value, forward or back.
void train_pool(const TrainedUnit* unit, int64_t bytes, int back, int threads) {
    with_maps_of(bytes, [&](auto value) {
        using T = decltype(value);
#pragma omp parallel num_threads(threads)
        {
            const Team team = this_thread();
            const int64_t cells = unit->out_cells();
            if (back)
                pool_back<T>(*unit, team);
            else
                max_pool(unit->read<T>(), unit->channels, unit->window,
                         unit->made<T>(unit->channels), unit->places, team.first(cells),
                         team.last(cells),
                         [](int64_t) { return [](const Vector& value) { return value; }; });
        }
    });
}

// Floats of memory that a pass over a unit needs, on so many threads; see `train_unit`.
int64_t train_unit_floats(const TrainedUnit* unit, int64_t bytes, int back, int threads) {
    int64_t floats = 0;
    with_maps_of(bytes, [&](auto value) {
        Memory one = {nullptr}, all = {nullptr};
        UnitOwn(one, *unit, back, value);
        UnitShared(all, *unit, back, threads, value);
        floats = all.used + threads * one.used;
    });
    return floats;
}

// Runs a unit of maps of so many `bytes` a value forward, or back, in memory of
// `train_unit_floats`.
void train_unit(const TrainedUnit* unit, int64_t bytes, int back, float* base, int threads) {
    with_maps_of(bytes, [&](auto value) {
        using T = decltype(value);
        Memory count = {nullptr};
        UnitOwn(count, *unit, back, value);
        const int64_t own_floats = count.used;
        const auto own_of = [&](int thread) {
            Memory memory = {base + thread * own_floats};
            return UnitOwn(memory, *unit, back, value);
        };
        Memory rest = {base + threads * own_floats};
        const UnitOwn first = own_of(0);
        const UnitShared shared(rest, *unit, back, threads, value);
#pragma omp parallel num_threads(threads)
        {
            const Team team = this_thread();
            const UnitOwn own = own_of(team.thread);
            if (back)
                run_back<T>(*unit, first, own_floats, own, shared, team);
            else
                run_forward<T>(*unit, first, own_floats, own, shared, team);
        }
    });
}
}
