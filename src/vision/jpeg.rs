//! A look at a JPEG's markers before its decoder runs: is the file whole, and can it hold the pixels it announces?
//!
//! The decoder takes the header's word for the size and fills what is missing with grey; Pillow calls such a file
//! truncated. Reference: ITU-T T.81, annex B.

use anyhow::{Result, bail, ensure};

use super::image::check_size;

/// A Huffman-coded block of 64 samples takes at least one bit, and at most two blocks' area shares one block
/// (components sampled at 4×1 beside 1×4).
const MAX_PIXELS_PER_BYTE: u64 = 2 * 64 * 8;

/// Accepts a JPEG that has a frame header, at least one scan, and an end marker behind it.
///
/// # Errors
/// Cut short; no frame; more than `max_pixels`; a size that this many bytes cannot code.
pub(super) fn check(bytes: &[u8], max_pixels: u64) -> Result<()> {
    let mut at = 2;
    let mut frame = false;
    let mut scan = false;
    loop {
        let Some(marker) = next_marker(bytes, &mut at, scan) else { bail!("the JPEG is truncated") };
        match marker {
            0xD9 => break,
            // Markers without a segment: TEM, RSTn, SOI.
            0x01 | 0xD0..=0xD8 => continue,
            _ => {}
        }
        let Some(&[high, low]) = bytes.get(at..at + 2) else { bail!("the JPEG is truncated") };
        let len = usize::from(u16::from_be_bytes([high, low]));
        let Some(segment) = bytes.get(at..at + len).filter(|_| len >= 2) else {
            bail!("the JPEG is truncated")
        };
        at += len;
        match marker {
            0xC4 | 0xC8 | 0xCC => {}
            0xC0..=0xCF => {
                ensure!(len >= 7, "the JPEG's frame header is too short");
                let number = |i| u64::from(u16::from_be_bytes([segment[i], segment[i + 1]]));
                let (h, w) = (number(3), number(5));
                check_size(w, h, max_pixels)?;
                ensure!(
                    w * h / MAX_PIXELS_PER_BYTE <= bytes.len() as u64,
                    "the header says {w}×{h} pixels, more than {} bytes can hold",
                    bytes.len()
                );
                frame = true;
            }
            0xDA => scan = true,
            _ => {}
        }
    }
    ensure!(frame && scan, "the JPEG holds no image");
    Ok(())
}

/// Code of the first marker at or behind `at`, which is moved behind it. Between segments other bytes are passed over,
/// as decoders do; in a scan `FF 00` is a stuffed byte and not a marker.
fn next_marker(bytes: &[u8], at: &mut usize, scan: bool) -> Option<u8> {
    loop {
        let found = bytes.get(*at..)?.iter().position(|&b| b == 0xFF)?;
        *at += found + 1;
        match bytes.get(*at)? {
            0xFF => {}
            0x00 => *at += 1,
            0xD0..=0xD7 if scan => *at += 1,
            &code => {
                *at += 1;
                return Some(code);
            }
        }
    }
}
