//! [`Around`]: what is copied around calls that are timed.

use anyhow::Result;
use laud_kernels::shortcut::PadChannels;
use laud_kernels::{Backend, Extent};

/// What is copied around calls that are timed, so that they find caches as they do in a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Around {
    /// Values of each of two buffers that are copied to drive everything out of the caches: together more than they
    /// hold.
    pub(super) far: usize,
    /// The same for what a core has to itself.
    pub(super) near: usize,
    /// How often everything is driven out before the first call: a device that runs behind is busy until all calls are
    /// issued, so that none waits for this machine.
    pub(super) ahead: usize,
}

/// Bytes of each of the copied buffers: together more than most outermost caches hold.
const FAR_BYTES: usize = 40 << 20;
/// Bytes of a cache that a core has to itself, where nobody says.
const L2_BYTES: usize = 1 << 20;
/// Values of the copies are whole lines of maps with this many channels.
pub(super) const COPIED: usize = 64;
/// Values of a GPU's copies that drive everything out of what a multiprocessor has to itself.
const NEAR: usize = 512 << 10;
/// Copies of a GPU's memory that take longer than to issue the calls of a round.
const AHEAD: usize = 64;

impl Around {
    /// Around calls on a CPU, by so many threads that each have a cache of `l2_bytes` (0: not known), on elements of
    /// `element_bytes`.
    pub fn cpu(l2_bytes: u64, threads: usize, element_bytes: usize) -> Self {
        let l2_bytes = if l2_bytes == 0 { L2_BYTES } else { usize::try_from(l2_bytes).unwrap_or(usize::MAX) };
        let far = FAR_BYTES / element_bytes.max(1);
        // Twice what the threads' caches hold, to be sure.
        let near = (l2_bytes.saturating_mul(threads) / element_bytes.max(1)).min(far);
        Self {
            far: far.next_multiple_of(COPIED * COPIED),
            near: near.next_multiple_of(COPIED * COPIED),
            ahead: 1,
        }
    }

    /// Around calls on a GPU whose caches hold `cache_bytes` (0: not known), on elements of `element_bytes`.
    pub fn gpu(cache_bytes: u64, element_bytes: usize) -> Self {
        let values = usize::try_from(cache_bytes).unwrap_or(usize::MAX) / element_bytes.max(1);
        let far =
            values.clamp(FAR_BYTES / size_of::<f32>(), super::probe::MOST).next_multiple_of(COPIED * COPIED);
        Self { far, near: NEAR, ahead: AHEAD }
    }

    /// As little as can be: times of calls mean nothing then.
    pub const LEAST: Self = Self { far: COPIED * COPIED, near: COPIED * COPIED, ahead: 1 };
}

/// A map of [`COPIED`] channels with `len` values.
pub(super) fn memory_map(len: usize) -> Extent {
    Extent { h: len / (COPIED * COPIED), w: COPIED }
}

/// Reads and writes `len` values.
pub(super) fn copy<B: Backend>(
    queue: &mut B::Queue<'_>,
    input: &B::Buffer,
    output: &mut B::Buffer,
    len: usize,
) -> Result<()> {
    let map = memory_map(len);
    let (c_in, c_out) = (COPIED, COPIED);
    let call = PadChannels {
        batch: 1,
        input_map: map,
        output_map: map,
        c_in,
        c_out,
        stride: 1,
        before: 0,
        input,
        output,
    };
    Ok(B::pad_channels(queue, call)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_as_many_bytes_whatever_the_elements() {
        for (l2_bytes, threads, near) in [(2 << 20, 2, 4 << 20), (0, 1, L2_BYTES), (u64::MAX, 64, FAR_BYTES)]
        {
            for element_bytes in [1, 2, 4] {
                let around = Around::cpu(l2_bytes, threads, element_bytes);
                assert_eq!(around.far * element_bytes, FAR_BYTES);
                assert_eq!(around.near * element_bytes, near);
            }
        }
    }
}
