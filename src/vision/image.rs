//! Photographs from files and from memory: JPEG, PNG, WebP and BMP, always as 8-bit RGB.
//!
//! Pixels are what `PIL.Image.open(f).convert("RGB")` gives, because that is what the checkpoints were trained and
//! measured with: alpha is dropped and not blended, 16-bit samples keep their high byte, colour profiles and the EXIF
//! orientation are ignored. The format is recognised by content, never by the file's name. Two exceptions: lossy
//! decoders round differently, by a few levels at worst; 16-bit grey keeps its high byte too, where Pillow clips it
//! to white.
//!
//! Everything here is hostile input. A file is refused with one line that names it and the reason; memory stays
//! below about 1 GiB whatever the header says, and a JPEG whose header announces more pixels than its bytes can hold
//! is refused before anything is allocated for it.

use std::fs::File;
use std::io::{Cursor, Read};
use std::path::Path;

use anyhow::{Result, anyhow, bail, ensure};
pub use image::RgbImage;
use image::{ColorType, ImageDecoder, ImageFormat, ImageReader, Limits};

use super::jpeg;

/// Most pixels of an image, 67 million: a 50-megapixel photograph passes.
pub const MAX_PIXELS: u64 = 1 << 26;
/// Most bytes of an image file.
pub const MAX_FILE_BYTES: u64 = 1 << 28;
/// Most bytes that a decoder may hold at once, its output included, where it keeps to a limit.
const MAX_DECODER_BYTES: u64 = 3 << 28;

/// Decodes the image file at `path`.
///
/// # Errors
/// One line, `path: reason`: not a regular file, unreadable, empty, larger than [`MAX_FILE_BYTES`], and everything that
/// [`decode`] refuses.
pub fn load(path: &Path) -> Result<RgbImage> {
    read_bounded(path, MAX_FILE_BYTES)
        .and_then(|bytes| decode(&bytes))
        .map_err(|e| anyhow!("{}: {e:#}", path.display()))
}

/// Decodes an image file that lies in memory.
///
/// # Errors
/// One line with the reason: empty, of no supported format, damaged, cut short, more than [`MAX_PIXELS`].
pub fn decode(bytes: &[u8]) -> Result<RgbImage> {
    ensure!(!bytes.is_empty(), "the file is empty");
    let format = match image::guess_format(bytes) {
        Ok(f @ (ImageFormat::Jpeg | ImageFormat::Png | ImageFormat::WebP | ImageFormat::Bmp)) => f,
        Ok(other) => bail!("{other:?} images are not supported; JPEG, PNG, WebP and BMP are"),
        Err(_) => bail!("not a JPEG, PNG, WebP or BMP image"),
    };
    match format {
        ImageFormat::Jpeg => jpeg::check(bytes, MAX_PIXELS)?,
        ImageFormat::WebP => check_riff(bytes)?,
        _ => {}
    }
    decode_as(format, bytes).map_err(|e| anyhow!("{}", one_line(&format!("{e:#}"))))
}

/// Reads a regular file of at most `limit` bytes.
pub(super) fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>> {
    // Asked before opening, because opening a pipe waits for its writer.
    ensure!(std::fs::metadata(path)?.is_file(), "not a regular file");
    let mut bytes = Vec::new();
    File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    ensure!(bytes.len() as u64 <= limit, "larger than {} MiB", limit >> 20);
    Ok(bytes)
}

fn decode_as(format: ImageFormat, bytes: &[u8]) -> Result<RgbImage> {
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_DECODER_BYTES);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits);
    let decoder = reader.into_decoder()?;

    let (w, h) = decoder.dimensions();
    check_size(u64::from(w), u64::from(h), MAX_PIXELS)?;
    let color = decoder.color_type();
    // At most 8 bytes a pixel, so the size limit bounds this.
    let mut samples = vec![0; usize::try_from(decoder.total_bytes())?];
    decoder.read_image(&mut samples)?;
    let rgb = to_rgb(color, samples)?;
    RgbImage::from_raw(w, h, rgb).ok_or_else(|| anyhow!("decoder returned too few samples for {w}×{h}"))
}

/// Refuses empty images and those of more than `max_pixels`.
pub(super) fn check_size(w: u64, h: u64, max_pixels: u64) -> Result<()> {
    ensure!(w > 0 && h > 0, "the image has no pixels ({w}×{h})");
    ensure!(
        w.checked_mul(h).is_some_and(|n| n <= max_pixels),
        "{w}×{h} pixels; at most {} million are supported",
        max_pixels / 1_000_000
    );
    Ok(())
}

/// Refuses a WebP of fewer bytes than its container announces, as libwebp does; the decoder fills in what is missing.
fn check_riff(bytes: &[u8]) -> Result<()> {
    let announced = bytes.get(4..).and_then(|b| b.first_chunk()).map(|b| u64::from(u32::from_le_bytes(*b)));
    ensure!(announced.is_some_and(|n| n + 8 <= bytes.len() as u64), "the WebP is truncated");
    Ok(())
}

/// Packs decoded samples as RGB8 the way Pillow does; 16-bit samples are native-endian.
fn to_rgb(color: ColorType, mut samples: Vec<u8>) -> Result<Vec<u8>> {
    let wide = matches!(color, ColorType::L16 | ColorType::La16 | ColorType::Rgb16 | ColorType::Rgba16);
    if wide {
        for i in 0..samples.len() / 2 {
            samples[i] = (u16::from_ne_bytes([samples[2 * i], samples[2 * i + 1]]) >> 8) as u8;
        }
        samples.truncate(samples.len() / 2);
    }
    Ok(match color.channel_count() {
        1 => samples.iter().flat_map(|&l| [l; 3]).collect(),
        2 => samples.chunks_exact(2).flat_map(|la| [la[0]; 3]).collect(),
        3 => samples,
        4 => {
            let pixels = samples.len() / 4;
            for i in 0..pixels {
                samples.copy_within(4 * i..4 * i + 3, 3 * i);
            }
            samples.truncate(3 * pixels);
            samples
        }
        n => bail!("images of {n} channels are not supported"),
    })
}

fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}
