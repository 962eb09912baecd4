//! What networks decided, how long it took and what that was worth, for people: pictures, pages and trace files.

mod canvas;
pub mod charts;
pub mod overlay;
mod page;
mod plots;
pub mod sheet;
mod text;
mod trace;

pub use overlay::{KeepGrid, overlay};
pub use page::Page;
pub use sheet::{BlockView, Sheet};
pub use trace::chrome_events;

use std::io::Cursor;
use std::path::Path;

use anyhow::{Context, Result};
use image::{ImageFormat, Rgb};

use crate::files::write_atomically;
use crate::vision::RgbImage;

/// What is active, in every picture.
const ACTIVE: Rgb<u8> = Rgb([255, 186, 56]);
/// An active channel group.
const CHANNEL: Rgb<u8> = Rgb([79, 205, 196]);
/// What is skipped, where it is not a photograph; empty parts of a bar.
const IDLE: Rgb<u8> = Rgb([52, 57, 70]);
/// Behind everything, and what skipped patches fade to.
const GROUND: Rgb<u8> = Rgb([17, 19, 26]);

/// Writes a picture as PNG, all or nothing.
///
/// # Errors
/// The file cannot be written; the message names it.
pub fn save_png(picture: &RgbImage, path: &Path) -> Result<()> {
    let mut png = Cursor::new(Vec::new());
    picture.write_to(&mut png, ImageFormat::Png).with_context(|| path.display().to_string())?;
    write_atomically(path, |out| out.write_all(png.get_ref())).with_context(|| path.display().to_string())
}

/// `a` and `b` mixed; `share` of `b` in `0..=256`.
fn mix(a: Rgb<u8>, b: Rgb<u8>, share: u32) -> Rgb<u8> {
    Rgb([0, 1, 2].map(|c| ((u32::from(a[c]) * (256 - share) + u32::from(b[c]) * share) >> 8) as u8))
}

/// Fills the part of a rectangle that lies inside the picture.
fn fill(picture: &mut RgbImage, at: (u32, u32), size: (u32, u32), color: Rgb<u8>) {
    for y in at.1..at.1.saturating_add(size.1).min(picture.height()) {
        for x in at.0..at.0.saturating_add(size.0).min(picture.width()) {
            picture.put_pixel(x, y, color);
        }
    }
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}
