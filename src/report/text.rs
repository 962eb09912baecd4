//! Antialiased text from two small glyph tables.
//!
//! `font15.png` and `font24.png` hold Aileron Regular (Sora Sagano, CC0) at 15 and 24 pixels as coverage, 16 cells a row:
//! ASCII from the space on, then `·` and `…`. The last pixel row of a cell is white as far as the pen advances.

use std::sync::LazyLock;

use image::{GrayImage, ImageFormat, Rgb};

use super::mix;
use crate::vision::RgbImage;

const COLUMNS: u32 = 16;
const GLYPHS: u32 = 97;
/// The pen stands this many pixels right of a cell's edge.
const BEARING: i64 = 1;

static SMALL: LazyLock<Font> = LazyLock::new(|| Font::new(include_bytes!("font15.png")));
static LARGE: LazyLock<Font> = LazyLock::new(|| Font::new(include_bytes!("font24.png")));

/// Glyphs of one size.
pub(super) struct Font {
    table: GrayImage,
    cell: (u32, u32),
    advance: Vec<u32>,
}

impl Font {
    /// 15 pixels, for labels.
    pub(super) fn small() -> &'static Self {
        &SMALL
    }

    /// 24 pixels, for titles.
    pub(super) fn large() -> &'static Self {
        &LARGE
    }

    fn new(png: &[u8]) -> Self {
        let table = image::load_from_memory_with_format(png, ImageFormat::Png)
            .expect("the glyph table is part of the program")
            .into_luma8();
        let cell = (table.width() / COLUMNS, table.height() / GLYPHS.div_ceil(COLUMNS));
        let advance = (0..GLYPHS)
            .map(|g| {
                let (left, y) = (g % COLUMNS * cell.0, g / COLUMNS * cell.1 + cell.1 - 1);
                (left..left + cell.0).filter(|&x| table.get_pixel(x, y)[0] > 0).count() as u32
            })
            .collect();
        Self { table, cell, advance }
    }

    /// Pixels from the top of a line to its bottom.
    pub(super) fn height(&self) -> u32 {
        self.cell.1 - 1
    }

    /// Pixels that the pen advances over `text`.
    pub(super) fn width(&self, text: &str) -> u32 {
        text.chars().map(|c| self.advance[glyph(c) as usize]).sum()
    }

    /// `text`, or as much of its start as fits into `width` pixels with an ellipsis behind it.
    pub(super) fn fit(&self, text: &str, width: u32) -> String {
        if self.width(text) <= width {
            return text.to_owned();
        }
        let mut room = width.saturating_sub(self.width("…"));
        let kept = text.chars().take_while(|&c| {
            let advance = self.advance[glyph(c) as usize];
            let fits = advance <= room;
            room = room.saturating_sub(advance);
            fits
        });
        kept.chain(['…']).collect()
    }

    /// Draws one line with its top left corner at `at`; what lies outside the picture is cut off.
    pub(super) fn draw(&self, picture: &mut RgbImage, at: (u32, u32), text: &str, color: Rgb<u8>) {
        let mut pen = i64::from(at.0) - BEARING;
        for glyph in text.chars().map(glyph) {
            let (left, top) = (glyph % COLUMNS * self.cell.0, glyph / COLUMNS * self.cell.1);
            for y in 0..self.height() {
                for x in 0..self.cell.0 {
                    let coverage = u32::from(self.table.get_pixel(left + x, top + y)[0]);
                    let to = u32::try_from(pen + i64::from(x)).ok();
                    if let Some(under) = to.and_then(|to| picture.get_pixel_mut_checked(to, at.1 + y)) {
                        *under = mix(*under, color, coverage + (coverage >> 7));
                    }
                }
            }
            pen += i64::from(self.advance[glyph as usize]);
        }
    }
}

/// Cell of a character; what the tables lack is a question mark.
fn glyph(c: char) -> u32 {
    match c {
        ' '..='~' => c as u32 - ' ' as u32,
        '·' => 95,
        '…' => 96,
        '×' => glyph('x'),
        '–' | '−' => glyph('-'),
        _ => glyph('?'),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_add_up_and_long_text_is_shortened() {
        for font in [Font::small(), Font::large()] {
            assert_eq!(font.width("layer1.0"), font.width("layer") + font.width("1.0"));
            assert!(font.advance.iter().all(|&a| a > 0));
            assert_eq!(font.fit("short", 500), "short");
            let fitted = font.fit("features.17.conv.with.a.long.name", 90);
            assert!(fitted.ends_with('…') && font.width(&fitted) <= 90, "{fitted}");
            assert_eq!(font.width("日本"), font.width("??"));
        }
    }

    #[test]
    fn text_beyond_the_edge_is_cut_off() {
        let mut picture = RgbImage::new(30, 15);
        Font::large().draw(&mut picture, (10, 0), "WWWW", Rgb([255; 3]));
        Font::large().draw(&mut picture, (50, 50), "W", Rgb([255; 3]));
        assert!(picture.iter().any(|&v| v > 0));
    }
}
