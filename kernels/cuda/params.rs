//! What kernels are called with: `params.h`, field by field. What fields mean is said there.

use bytemuck::{Pod, Zeroable};

/// Address on the device; 0 where a pointer may be null.
pub type Address = u64;

macro_rules! mirror {
    ($($(#[$doc:meta])* $name:ident, $bytes:literal { $($field:ident: $type:ty),* $(,)? })*) => {
        $(
            $(#[$doc])*
            #[repr(C)]
            #[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
            #[allow(missing_docs, reason = "documented where it is read, in params.h")]
            pub struct $name { $(pub $field: $type),* }
            const _: () = assert!(size_of::<$name>() == $bytes);
        )*
        /// Name, size and fields of every struct, a field being its name, offset and size.
        #[cfg(test)]
        const MIRRORED: &[(&str, usize, &[(&str, usize, usize)])] = &[$((
            stringify!($name),
            size_of::<$name>(),
            &[$((stringify!($field), std::mem::offset_of!($name, $field), size_of::<$type>())),*],
        )),*];
    };
}

mirror! {
    /// Active pixels.
    Rows, 24 { index: Address, start: Address, batch: u32, pixels: u32 }
    /// Active channels.
    Channels, 24 { index: Address, count: Address, total: u32, group: u32 }
    /// How output pixels find their taps.
    Window, 40 {
        in_h: u32, in_w: u32, out_h: u32, out_w: u32, kernel_h: u32, kernel_w: u32, stride: u32, pad_top: u32,
        pad_left: u32, reserved: u32,
    }
    /// `gather_gemm_nhwc_*`.
    GatherGemmParams, 216 {
        rows: Rows, c_in: Channels, c_out: Channels, window: Window, input: Address, output: Address,
        weight: Address, bias: Address, output_constant: Address, partial: Address, arrived: Address, group_in: u32,
        group_out: u32, groups: u32, input_pitch: u32, output_pitch: u32, weight_pitch: u32, bias_pitch: u32,
        input_rows: u32, output_rows: u32, residual: u32, act: u32, split: u32,
    }
    /// `condition_u32`.
    ConditionParams, 16 { handle: u64, number: Address }
    /// `gather_nhwc_*`.
    GatherParams, 96 {
        rows: Rows, window: Window, input: Address, output: Address, c: u32, input_pitch: u32, output_pitch: u32,
        reserved: u32,
    }
    /// `depthwise_nhwc_*`.
    DepthwiseParams, 152 {
        rows: Rows, channels: Channels, window: Window, input: Address, output: Address, weight: Address,
        bias: Address, minus_constant: Address, output_constant: Address, input_channels: u32, output_rows: u32,
        act: u32, reserved: u32,
    }
    /// `max_pool_nhwc_*`.
    MaxPoolParams, 64 { window: Window, input: Address, output: Address, batch: u32, c: u32 }
    /// `mean_pool_nhwc_*`.
    MeanPoolParams, 96 {
        rows: Rows, channels: Channels, input: Address, output: Address, partial: Address, arrived: Address,
        input_rows: u32, mean: u32, by_channel: u32, split: u32,
    }
    /// `squeeze_excite_nhwc_*`.
    ScaleParams, 72 {
        rows: Rows, channels: Channels, data: Address, factor: Address, data_rows: u32, reserved: u32,
    }
    /// `pad_channels_nhwc_*`.
    PadChannelsParams, 56 {
        input: Address, output: Address, batch: u32, in_h: u32, in_w: u32, out_h: u32, out_w: u32, c_in: u32,
        c_out: u32, stride: u32, before: u32, reserved: u32,
    }
    /// `from_nchw_nhwc_*`.
    FromNchwParams, 56 {
        input: Address, output: Address, batch: u32, c: u32, h: u32, w: u32, border_top: u32, border_left: u32,
        out_h: u32, out_w: u32, pitch: u32, reserved: u32,
    }
    /// `to_nchw_nhwc_*`.
    ToNchwParams, 32 { input: Address, output: Address, batch: u32, c: u32, pixels: u32, reserved: u32 }
    /// `patch_gate_nhwc_*`.
    PatchGateParams, 64 {
        input: Address, weight: Address, margin: Address, keep: Address, batch: u32, h: u32, w: u32, c: u32,
        grid_h: u32, grid_w: u32, bias: f32, threshold: f32,
    }
    /// `linear_nc_f32`.
    LinearParams, 64 {
        input: Address, weight: Address, bias: Address, output: Address, keep: Address, batch: u32, c_in: u32,
        c_out: u32, act: u32, threshold: f32, reserved: u32,
    }
    /// `decide_n_f32`.
    DecideParams, 24 { margin: Address, keep: Address, len: u32, threshold: f32 }
    /// `decide_n_f32_highest`.
    DecideHighestParams, 56 {
        margin: Address, keep: Address, spent: Address, batch: u32, per_sample: u32, most: u32, threshold: f32,
        price: f32, pace: f32, limit: f32, reserved: u32,
    }
    /// One map of [`CompactRowsParams`].
    CompactLevel, 64 {
        index: Address, start: Address, other_index: Address, other_start: Address, h: u32, w: u32, kernel: u32,
        stride: u32, pad_top: u32, pad_left: u32, full: u32, reserved: u32,
    }
    /// `compact_rows_n_u32`.
    CompactRowsParams, 304 {
        keep: Address, state: Address, kept: Address, batch: u32, grid_h: u32, grid_w: u32, levels: u32,
        full_above: u32, side: u32, level: [CompactLevel; MAX_LEVELS],
    }
    /// `compact_channels_n_u32`.
    CompactChannelsParams, 40 {
        keep: Address, index: Address, count: Address, batch: u32, groups: u32, group: u32, reserved: u32,
    }
}

/// Maps that one launch of `compact_rows_n_u32` lists.
pub const MAX_LEVELS: usize = 4;

impl From<crate::gather_gemm::Placement> for u32 {
    fn from(placement: crate::gather_gemm::Placement) -> u32 {
        match placement {
            crate::gather_gemm::Placement::Natural => 0,
            crate::gather_gemm::Placement::Compact => 1,
        }
    }
}

impl From<crate::Act> for u32 {
    fn from(act: crate::Act) -> u32 {
        match act {
            crate::Act::None => 0,
            crate::Act::Relu => 1,
            crate::Act::Relu6 => 2,
        }
    }
}

/// `1 / (1 + exp(−x))` as an activation of `linear_nc_f32`.
pub const SIGMOID: u32 = 3;

impl From<crate::mean_pool::Mean> for u32 {
    fn from(mean: crate::mean_pool::Mean) -> u32 {
        match mean {
            crate::mean_pool::Mean::Active => 0,
            crate::mean_pool::Mean::InactiveAsZero => 1,
            crate::mean_pool::Mean::AllPixels => 2,
        }
    }
}

impl From<&crate::ConvGeometry> for Window {
    fn from(g: &crate::ConvGeometry) -> Self {
        let [in_h, in_w, out_h, out_w] = [g.input.h, g.input.w, g.output.h, g.output.w].map(|n| n as u32);
        let [kernel, stride, pad_top, pad_left] =
            [g.kernel, g.stride, g.pad_top, g.pad_left].map(|n| n as u32);
        let (kernel_h, kernel_w) = (kernel, kernel);
        Self { in_h, in_w, out_h, out_w, kernel_h, kernel_w, stride, pad_top, pad_left, reserved: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::MIRRORED;
    use std::collections::HashMap;

    /// Name, offset, size.
    type Field = (String, usize, usize);

    /// Structs of a C++ header with the offsets that C's rules give: name, size, alignment, fields.
    fn read(header: &str) -> Vec<(String, usize, Vec<Field>)> {
        let mut types: HashMap<String, (usize, usize)> = [("u32", 4), ("float", 4), ("u8", 1), ("u64", 8)]
            .map(|(name, n)| (name.to_owned(), (n, n)))
            .into();
        let mut structs = Vec::new();
        let mut open: Option<(String, usize, usize, Vec<_>)> = None;
        for line in header.lines().map(|line| line.split("//").next().unwrap().trim()) {
            if let Some(name) = line.strip_prefix("struct ") {
                open = Some((name.trim_end_matches(" {").to_owned(), 0, 1, vec![]));
            } else if line == "};" && open.is_some() {
                let (name, end, align, fields) = open.take().unwrap();
                let size = usize::next_multiple_of(end, align);
                types.insert(name.clone(), (size, align));
                structs.push((name, size, fields));
            } else if let Some((_, end, align, fields)) = open.as_mut().filter(|_| line.ends_with(';')) {
                let line = line.trim_end_matches(';').trim_start_matches("const ");
                let (kind, names) = line.split_once(' ').unwrap();
                for name in names.split(", ") {
                    let (name, count) = match name.split_once('[') {
                        Some((name, _)) => (name, super::MAX_LEVELS),
                        None => (name, 1),
                    };
                    let (size, to) = if kind.ends_with('*') { (8, 8) } else { types[kind] };
                    *end = end.next_multiple_of(to);
                    *align = (*align).max(to);
                    fields.push((name.to_owned(), *end, size * count));
                    *end += size * count;
                }
            }
        }
        structs
    }

    #[test]
    fn structs_are_laid_out_as_in_the_header() {
        let header = read(include_str!("params.h"));
        assert_eq!(header.len(), MIRRORED.len());
        for ((name, size, fields), (ours, our_size, our_fields)) in header.iter().zip(MIRRORED) {
            assert_eq!((name.as_str(), size), (*ours, our_size));
            let fields: Vec<_> = fields.iter().map(|(name, at, size)| (name.as_str(), *at, *size)).collect();
            assert_eq!(&fields, our_fields, "{name}");
        }
        assert!(header.iter().map(|(.., fields)| fields.len()).sum::<usize>() > 100);
    }
}
