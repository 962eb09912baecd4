// What kernels are called with: one struct for each kernel, passed by value. `params.rs` mirrors every field; sizes are
// asserted here and there, offsets compared by a test.
//
// Letters as in the crate: `n` samples, `h` rows, `w` columns, `c` channels. Pitches count elements. Pointers are
// addresses on the device; where null is allowed it says so.
#pragma once

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using i32 = int;
using u64 = unsigned long long;
using i64 = long long;

// Active pixels of a batch. Row `i` is pixel `index[i] = (n·h + y)·w + x`, ascending; sample `n` has rows
// `start[n] .. start[n + 1]`. A null `index`: every pixel, row `i` is pixel `i`, and `start` is not read.
struct Rows {
    const u32* index;
    const u32* start;
    u32 batch;
    u32 pixels;
};
static_assert(sizeof(Rows) == 24, "mirrored in params.rs");

// Active channels of each sample. Sample `n` has `count[n]` channels, listed in ascending order from
// `index[n · total]`. They come in aligned runs of `group`. A null `index`: all channels, and `count` is not read.
struct Channels {
    const u32* index;
    const u32* count;
    u32 total;
    u32 group;
};
static_assert(sizeof(Channels) == 24, "mirrored in params.rs");

// How output pixels find their taps: tap `(r, s)` of pixel `(y, x)` is `(y·stride + r − pad_top, x·stride + s − pad_left)`.
struct Window {
    u32 in_h, in_w;
    u32 out_h, out_w;
    u32 kernel_h, kernel_w;
    u32 stride;
    u32 pad_top, pad_left;
    u32 reserved;
};
static_assert(sizeof(Window) == 40, "mirrored in params.rs");

enum Placement : u32 { NATURAL = 0, COMPACT = 1 };
enum Act : u32 { ACT_NONE = 0, ACT_RELU = 1, ACT_RELU6 = 2, ACT_SIGMOID = 3 };
enum Mean : u32 { MEAN_ACTIVE = 0, MEAN_INACTIVE_AS_ZERO = 1, MEAN_ALL_PIXELS = 2 };

// Weights are `[c_out][weight_pitch]`, a row being `[kernel_h][kernel_w][group_in]`: krsc with padding behind a row.
// The taps of a pixel are `group_in` consecutive elements each, `input_pitch` from one pixel to the next; a kernel row
// whose pixels are neighbours in memory can be given as one tap (`kernel_w = 1`, `group_in` a multiple of the pitch).
// With compact input rows all taps of row `i` lie one behind the other from `i · input_pitch` on.
struct GatherGemmParams {
    Rows rows;
    Channels c_in;
    Channels c_out;
    Window window;
    const void* input;
    void* output;
    const void* weight;
    // `[classes][bias_pitch]` with the input constant folded in; the class of a pixel is which of its taps lie inside.
    const float* bias;
    // `[c_out]`, subtracted from what is stored; null: zero.
    const float* output_constant;
    // With `split > 1`: room for `tiles · split` accumulator tiles.
    float* partial;
    // With `split > 1`: one counter for each tile, zero before and after.
    u32* arrived;
    u32 group_in;
    u32 group_out;
    u32 groups;
    u32 input_pitch;
    u32 output_pitch;
    u32 weight_pitch;
    // 0: one class.
    u32 bias_pitch;
    u32 input_rows;
    u32 output_rows;
    // Add what the output holds before the activation.
    u32 residual;
    u32 act;
    // Parts that the sum of an output is cut into, more than one in the smallest tiles only; parts are added in order.
    u32 split;
};
static_assert(sizeof(GatherGemmParams) == 216, "mirrored in params.rs");

// Whether the graph behind a conditional node is run: if `*number` is not zero.
struct ConditionParams {
    // Of the node's condition, as the driver gave it.
    u64 handle;
    const u32* number;
};
static_assert(sizeof(ConditionParams) == 16, "mirrored in params.rs");

// Copies what the taps of listed pixels hold: row `i` of the output is `[kernel_h][kernel_w][c]`, zero outside.
struct GatherParams {
    Rows rows;
    Window window;
    const void* input;
    void* output;
    u32 c;
    u32 input_pitch;
    u32 output_pitch;
    u32 reserved;
};
static_assert(sizeof(GatherParams) == 96, "mirrored in params.rs");

struct DepthwiseParams {
    Rows rows;
    Channels channels;
    Window window;
    const void* input;
    void* output;
    // `[kernel_h][kernel_w][c]`.
    const float* weight;
    // `[c]`, with the input constant folded in for a pixel whose taps all lie inside.
    const float* bias;
    // `[c]`: minus the input constant; null: zero.
    const float* minus_constant;
    // `[c]`; null: zero.
    const float* output_constant;
    // Natural: channel `c` of an input pixel lies at `c`, also where not all are active.
    u32 input_channels;
    u32 output_rows;
    u32 act;
    u32 reserved;
};
static_assert(sizeof(DepthwiseParams) == 152, "mirrored in params.rs");

struct MaxPoolParams {
    Window window;
    const void* input;
    void* output;
    u32 batch;
    u32 c;
};
static_assert(sizeof(MaxPoolParams) == 64, "mirrored in params.rs");

// `output[n, j]`, or with `by_channel` `output[n, channel j]` and zero for channels that are not active.
struct MeanPoolParams {
    Rows rows;
    Channels channels;
    const void* input;
    float* output;
    // With `split > 1`: `[batch][split][c]` and, zero before and after, a counter for each sample and 64 channels.
    float* partial;
    u32* arrived;
    u32 input_rows;
    u32 mean;
    u32 by_channel;
    u32 split;
};
static_assert(sizeof(MeanPoolParams) == 96, "mirrored in params.rs");

// `data[p, j] *= factor[n, channel j]` for active rows and channels.
struct ScaleParams {
    Rows rows;
    Channels channels;
    void* data;
    // `[batch, c]`.
    const float* factor;
    u32 data_rows;
    u32 reserved;
};
static_assert(sizeof(ScaleParams) == 72, "mirrored in params.rs");

struct PadChannelsParams {
    const void* input;
    void* output;
    u32 batch;
    u32 in_h, in_w;
    u32 out_h, out_w;
    u32 c_in, c_out;
    u32 stride;
    u32 before;
    u32 reserved;
};
static_assert(sizeof(PadChannelsParams) == 56, "mirrored in params.rs");

// `[n, c, h, w]` to `[n, out_h, out_w, pitch]`, zero in the border and in the channels from `c` on.
struct FromNchwParams {
    const float* input;
    void* output;
    u32 batch, c;
    u32 h, w;
    u32 border_top, border_left;
    u32 out_h, out_w;
    u32 pitch;
    u32 reserved;
};
static_assert(sizeof(FromNchwParams) == 56, "mirrored in params.rs");

struct ToNchwParams {
    const void* input;
    float* output;
    u32 batch, c;
    u32 pixels;
    u32 reserved;
};
static_assert(sizeof(ToNchwParams) == 32, "mirrored in params.rs");

struct PatchGateParams {
    const void* input;
    // `[c]`: keep weight minus skip weight.
    const float* weight;
    // `[batch, grid]`; null: not wanted.
    float* margin;
    // `[batch, grid]`: 1 where the margin is at least `threshold`; null: not wanted.
    u8* keep;
    u32 batch;
    u32 h, w;
    u32 c;
    u32 grid_h, grid_w;
    float bias;
    float threshold;
};
static_assert(sizeof(PatchGateParams) == 64, "mirrored in params.rs");

// `output[n, o] = act(weight[o] · input[n] + bias[o])`.
struct LinearParams {
    const float* input;
    const float* weight;
    const float* bias;
    // Null: not wanted.
    float* output;
    // As for the patch gate; null: not wanted.
    u8* keep;
    u32 batch;
    u32 c_in, c_out;
    u32 act;
    float threshold;
    u32 reserved;
};
static_assert(sizeof(LinearParams) == 64, "mirrored in params.rs");

// `keep[i] = margin[i] ≥ threshold`.
struct DecideParams {
    const float* margin;
    u8* keep;
    u32 len;
    float threshold;
};
static_assert(sizeof(DecideParams) == 24, "mirrored in params.rs");

// `keep[n, i]`: whether a margin is at least `threshold` and among the highest of its sample, of equals the first ones.
struct DecideHighestParams {
    // `[batch, per_sample]`.
    const float* margin;
    u8* keep;
    // What each sample has spent, `[batch]`; the price of what is kept is added. Null: up to `most` units are kept.
    float* spent;
    u32 batch;
    u32 per_sample;
    u32 most;
    float threshold;
    // Of a unit; what should have been spent behind it, and what may be in all.
    float price;
    float pace;
    float limit;
    u32 reserved;
};
static_assert(sizeof(DecideHighestParams) == 56, "mirrored in params.rs");

// The lists for one map of a chain of convolutions.
struct CompactLevel {
    // Active pixels, `[batch · pixels]` and `[batch + 1]`; null: not wanted.
    u32* index;
    u32* start;
    // The others, ditto.
    u32* other_index;
    u32* other_start;
    u32 h, w;
    // Of the convolution that reads this map and whose output is the map of the level before; 1, 1, 0, 0 where both
    // maps are the same. Not read at the first level.
    u32 kernel;
    u32 stride;
    u32 pad_top, pad_left;
    // 1: list every pixel of the batch when more than `full_above` cells are kept.
    u32 full;
    u32 reserved;
};
static_assert(sizeof(CompactLevel) == 64, "mirrored in params.rs");

enum : u32 { MAX_LEVELS = 4 };

// Decisions about the cells of a grid to pixels of the first level, those to what the convolutions before it read.
struct CompactRowsParams {
    // `[batch, grid]`.
    const u8* keep;
    // `2 + batch · levels` words, zero before and after.
    u32* state;
    // Cells kept in the batch; null: not wanted.
    u32* kept;
    u32 batch;
    u32 grid_h, grid_w;
    u32 levels;
    u32 full_above;
    // Levels behind the first are grown from whole squares of so many cells a side, of which any is kept; 1: from what is kept.
    u32 side;
    CompactLevel level[MAX_LEVELS];
};
static_assert(sizeof(CompactRowsParams) == 304, "mirrored in params.rs");

// Decisions about groups of `group` channels to lists of channels.
struct CompactChannelsParams {
    // `[batch, groups]`.
    const u8* keep;
    // `[batch, groups · group]` and `[batch]`.
    u32* index;
    u32* count;
    u32 batch;
    u32 groups;
    u32 group;
    u32 reserved;
};
static_assert(sizeof(CompactChannelsParams) == 40, "mirrored in params.rs");
