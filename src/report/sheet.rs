//! One picture of a whole inference: a tile a block, with the patches and channel groups that it computed.

use anyhow::{Result, ensure};
use image::{Rgb, imageops};

use super::overlay::{KeepGrid, scaled, shade};
use super::text::Font;
use super::{ACTIVE, CHANNEL, GROUND, IDLE, fill, mix, percent};
use crate::vision::RgbImage;
use crate::vision::image::MAX_PIXELS;

/// Longer side of a tile's photograph, pixels.
const TILE: u32 = 320;
/// Least width of a tile, pixels: its text wants room.
const MIN_TILE_WIDTH: u32 = 200;
const MARGIN: u32 = 32;
const GUTTER: u32 = 24;
/// Between the parts of a tile.
const GAP: u32 = 7;
const BAR: u32 = 5;
const STRIP: u32 = 18;
/// Width ÷ height that the columns are chosen for.
const ASPECT: f64 = 1.6;
const MAX_COLUMNS: u32 = 8;
const BRIGHT: Rgb<u8> = Rgb([236, 238, 243]);
const QUIET: Rgb<u8> = Rgb([150, 156, 170]);

/// What one block decided about one image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockView {
    /// Name shown, for example `layer1.0`.
    pub name: String,
    /// Its spatial gate's decisions; one cell for a gate about the whole layer; `None` without one.
    pub spatial: Option<KeepGrid>,
    /// Its channel gate's decisions, one a group; `None` without one.
    pub channels: Option<Vec<bool>>,
}

/// A contact sheet to be drawn.
#[derive(Clone, Copy, Debug)]
pub struct Sheet<'a> {
    /// First line, large.
    pub title: &'a str,
    /// Second line; may be empty.
    pub note: &'a str,
    /// The pixels that the network read.
    pub view: &'a RgbImage,
    /// Its blocks, in the order of execution.
    pub blocks: &'a [BlockView],
}

impl Sheet<'_> {
    /// Draws the sheet: dark, a tile a block from left to right and top to bottom.
    ///
    /// # Errors
    /// No blocks; a view without pixels; a sheet of more than [`MAX_PIXELS`].
    pub fn draw(&self) -> Result<RgbImage> {
        let layout = Layout::new(self)?;
        let mut picture = RgbImage::from_pixel(layout.sheet.0, layout.sheet.1, GROUND);
        self.draw_head(&mut picture, &layout);
        let photo = scaled(self.view, layout.photo);
        for (i, block) in (0..).zip(self.blocks) {
            let (col, row) = (i % layout.cols, i / layout.cols);
            let at = (
                MARGIN + col * (layout.tile.0 + GUTTER),
                MARGIN + layout.head + row * (layout.tile.1 + GUTTER),
            );
            draw_tile(&mut picture, at, &layout, &photo, block);
        }
        Ok(picture)
    }

    fn draw_head(&self, picture: &mut RgbImage, layout: &Layout) {
        let (large, small) = (Font::large(), Font::small());
        let right = layout.sheet.0 - MARGIN;
        let mut legend = right;
        for (label, color, shown) in [
            ("skipped", IDLE, true),
            ("active channel group", CHANNEL, self.blocks.iter().any(|b| b.channels.is_some())),
            ("active patch", ACTIVE, self.blocks.iter().any(|b| b.spatial.is_some())),
        ] {
            let width = small.width(label) + 20 + GUTTER;
            if shown && legend > MARGIN + width {
                legend -= width;
                fill(picture, (legend + GUTTER, MARGIN + 11), (12, 12), color);
                small.draw(picture, (legend + GUTTER + 20, MARGIN + 7), label, QUIET);
            }
        }
        // On a narrow sheet the title goes before the legend's room.
        let room = legend.saturating_sub(MARGIN + GUTTER).max(layout.tile.0.min(right - MARGIN));
        large.draw(picture, (MARGIN, MARGIN), &large.fit(self.title, room), BRIGHT);
        let note = small.fit(self.note, right - MARGIN);
        small.draw(picture, (MARGIN, MARGIN + large.height() + 4), &note, QUIET);
    }
}

/// Sizes in pixels.
struct Layout {
    cols: u32,
    photo: (u32, u32),
    tile: (u32, u32),
    head: u32,
    sheet: (u32, u32),
    /// Whether tiles have a channel strip; all or none, so that rows line up.
    strip: bool,
}

impl Layout {
    fn new(sheet: &Sheet<'_>) -> Result<Self> {
        let (w, h) = sheet.view.dimensions();
        ensure!(w > 0 && h > 0, "cannot draw a view of {w}×{h} pixels");
        ensure!(!sheet.blocks.is_empty(), "a contact sheet of no blocks");
        let fit = |side: u32| (u64::from(side) * u64::from(TILE) / u64::from(w.max(h))).max(1) as u32;
        let photo = (fit(w), fit(h));
        let text = Font::small().height();
        let strip = sheet.blocks.iter().any(|b| b.channels.is_some());
        let bar = sheet.blocks.iter().any(|b| b.spatial.is_some());
        let below = if bar { GAP + BAR } else { 0 } + if strip { GAP + STRIP + GAP + text } else { 0 };
        let tile = (photo.0.max(MIN_TILE_WIDTH), text + GAP + photo.1 + below);
        let head = Font::large().height() + 4 + if sheet.note.is_empty() { 0 } else { text } + 20;

        let count = u32::try_from(sheet.blocks.len()).unwrap_or(u32::MAX);
        let size = |cols: u32| {
            let along = |n: u32, tile: u32| {
                2 * u64::from(MARGIN) + u64::from(n) * u64::from(tile + GUTTER) - u64::from(GUTTER)
            };
            (along(cols, tile.0), along(count.div_ceil(cols), tile.1) + u64::from(head))
        };
        let off = |cols: u32| (size(cols).0 as f64 / size(cols).1 as f64 / ASPECT).ln().abs();
        let cols = (1..=count.min(MAX_COLUMNS)).min_by(|&a, &b| off(a).total_cmp(&off(b))).unwrap_or(1);
        let (w, h) = size(cols);
        ensure!(w * h <= MAX_PIXELS, "a contact sheet of {count} blocks is too large");
        Ok(Self { cols, photo, tile, head, sheet: (w as u32, h as u32), strip })
    }
}

fn draw_tile(picture: &mut RgbImage, at: (u32, u32), layout: &Layout, photo: &RgbImage, block: &BlockView) {
    let small = Font::small();
    let width = layout.tile.0;
    let (state, color) = match (&block.spatial, &block.channels) {
        (Some(grid), _) if grid.size() == (1, 1) && grid.density() == 0.0 => ("skipped".to_owned(), QUIET),
        (Some(grid), _) if grid.size() == (1, 1) => ("run".to_owned(), ACTIVE),
        (Some(grid), _) => (percent(grid.density()), ACTIVE),
        (None, Some(_)) => (String::new(), QUIET),
        (None, None) => ("static".to_owned(), QUIET),
    };
    labelled(picture, at, width, (&block.name, BRIGHT), (&state, color));

    let mut y = at.1 + small.height() + GAP;
    let left = at.0 + (width - layout.photo.0) / 2;
    let mut shown = photo.clone();
    if let Some(grid) = &block.spatial {
        shade(&mut shown, grid);
    }
    imageops::replace(picture, &shown, i64::from(left), i64::from(y));
    y += layout.photo.1 + GAP;
    if let Some(grid) = &block.spatial {
        fill(picture, (at.0, y), (width, BAR), IDLE);
        fill(picture, (at.0, y), ((f64::from(width) * grid.density()).round() as u32, BAR), ACTIVE);
    }
    if let (true, Some(channels)) = (layout.strip, &block.channels) {
        y = at.1 + layout.tile.1 - small.height() - GAP - STRIP;
        channel_strip(picture, (at.0, y), (width, STRIP), channels);
        let active = channels.iter().filter(|&&a| a).count();
        let share = active as f64 / channels.len().max(1) as f64;
        let label = format!("{active} of {} channel groups", channels.len());
        labelled(picture, (at.0, y + STRIP + GAP), width, (&label, QUIET), (&percent(share), CHANNEL));
    }
}

/// One line: `left` as far as it fits, `right` flush right.
fn labelled(
    picture: &mut RgbImage,
    at: (u32, u32),
    width: u32,
    left: (&str, Rgb<u8>),
    right: (&str, Rgb<u8>),
) {
    let small = Font::small();
    let taken = small.width(right.0);
    small.draw(picture, (at.0 + width.saturating_sub(taken), at.1), right.0, right.1);
    let text = small.fit(left.0, width.saturating_sub(taken + 2 * GAP));
    small.draw(picture, at, &text, left.1);
}

/// One bar a channel group, in order; bars are parted where there is room, and shaded by their share of active groups
/// where several fall on one pixel.
fn channel_strip(picture: &mut RgbImage, at: (u32, u32), size: (u32, u32), active: &[bool]) {
    let n = active.len();
    let width = size.0 as usize;
    let parted = n * 3 <= width;
    for x in 0..width {
        let first = x * n / width;
        let last = ((x + 1) * n).div_ceil(width).min(n).max(first + 1);
        let Some(groups) = active.get(first..if parted { first + 1 } else { last }) else { continue };
        if parted && x > 0 && (x - 1) * n / width != first {
            continue;
        }
        let on = groups.iter().filter(|&&a| a).count();
        fill(
            picture,
            (at.0 + x as u32, at.1),
            (1, size.1),
            mix(IDLE, CHANNEL, (256 * on / groups.len()) as u32),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(name: &str, cells: Option<usize>, groups: Option<usize>) -> BlockView {
        BlockView {
            name: name.to_owned(),
            spatial: cells.map(|n| KeepGrid::new(n, n, (0..n * n).map(|i| i % 3 > 0).collect()).unwrap()),
            channels: groups.map(|n| (0..n).map(|i| i % 2 > 0).collect()),
        }
    }

    fn draw(view: &RgbImage, blocks: &[BlockView]) -> Result<RgbImage> {
        Sheet { title: "a title", note: "and a note", view, blocks }.draw()
    }

    #[test]
    fn every_kind_of_block_has_its_tile() {
        let view = RgbImage::from_pixel(64, 48, Rgb([90; 3]));
        let blocks = [
            block("patches", Some(7), None),
            block("layer", Some(1), None),
            block("groups", None, Some(16)),
            block("both", Some(4), Some(5000)),
            block("static", None, None),
            block("an exceptionally long name of a block", Some(64), Some(0)),
        ];
        for n in 1..=blocks.len() {
            let sheet = draw(&view, &blocks[..n]).unwrap();
            assert!(sheet.width() >= TILE && sheet.height() >= TILE, "{n} blocks: {:?}", sheet.dimensions());
            assert!(sheet.pixels().any(|&p| p == ACTIVE), "{n} blocks");
        }
    }

    #[test]
    fn strips_show_each_group_and_shade_what_is_too_fine() {
        let color_at = |active: &[bool], x| {
            let mut strip = RgbImage::from_pixel(120, 1, GROUND);
            channel_strip(&mut strip, (0, 0), (120, 1), active);
            *strip.get_pixel(x, 0)
        };
        assert_eq!(color_at(&[true, false, true], 20), CHANNEL);
        assert_eq!(color_at(&[true, false, true], 60), IDLE);
        assert_eq!(color_at(&[true, false, true], 40), GROUND);
        let alternating: Vec<bool> = (0..480).map(|i| i % 2 == 0).collect();
        assert_eq!(color_at(&alternating, 60), mix(IDLE, CHANNEL, 128));
        assert_eq!(color_at(&[], 60), GROUND);
    }

    #[test]
    fn odd_views_and_counts_draw_or_are_refused() {
        let one = [block("b", Some(2), None)];
        for (w, h) in [(1, 1), (4000, 1), (1, 4000)] {
            draw(&RgbImage::new(w, h), &one).unwrap();
        }
        assert!(draw(&RgbImage::new(0, 4), &one).is_err());
        assert!(draw(&RgbImage::new(4, 4), &[]).is_err());
        assert!(
            draw(&RgbImage::new(4, 4), &vec![one[0].clone(); 5000])
                .unwrap_err()
                .to_string()
                .contains("5000 blocks")
        );
    }
}
