//! What a spatial gate looked at, drawn over the photograph: active patches as they are inside a thin border, skipped
//! ones grey and dark.

use anyhow::{Result, ensure};
use image::imageops::{self, FilterType};
use image::{Luma, Pixel, Rgb};

use super::{ACTIVE, GROUND, mix};
use crate::vision::RgbImage;

/// Shorter side of an overlay, pixels, that small views are enlarged to.
const MIN_SIDE: u32 = 448;
/// Views up to this side are enlarged pixel by pixel: there is nothing to interpolate that the network saw.
const PIXEL_ART_SIDE: u32 = 64;
/// Cells below this side, pixels, get no lines between them.
const MIN_LINED_CELL: u32 = 12;

/// Keep decisions of a spatial gate: a coarse grid over the view, row by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeepGrid {
    rows: usize,
    cols: usize,
    keep: Vec<bool>,
}

impl KeepGrid {
    /// Takes `rows × cols` decisions, row by row; `true` is active.
    ///
    /// # Errors
    /// No cells, or another number of decisions.
    pub fn new(rows: usize, cols: usize, keep: Vec<bool>) -> Result<Self> {
        ensure!(rows > 0 && cols > 0, "a keep grid of {rows}×{cols} has no cells");
        ensure!(
            rows.checked_mul(cols) == Some(keep.len()),
            "keep grid: {} decisions given, {rows}×{cols} needed",
            keep.len()
        );
        Ok(Self { rows, cols, keep })
    }

    /// Rows and columns.
    pub fn size(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// Active fraction, `0..=1`.
    pub fn density(&self) -> f64 {
        self.keep.iter().filter(|&&k| k).count() as f64 / self.keep.len() as f64
    }

    /// The row or column that pixel `at` of `side` falls into: the kernels' nearest up-sampling.
    fn cell(at: u32, cells: usize, side: u32) -> usize {
        (u64::from(at) * cells as u64 / u64::from(side)) as usize
    }
}

/// Draws `grid` over `view`, the pixels that the network read. Small views are enlarged by a whole factor until the
/// shorter side has 448 pixels.
///
/// # Errors
/// A view without pixels.
pub fn overlay(view: &RgbImage, grid: &KeepGrid) -> Result<RgbImage> {
    let (w, h) = view.dimensions();
    ensure!(w > 0 && h > 0, "cannot draw over a view of {w}×{h} pixels");
    // A sliver is not worth a picture thousands of times its size.
    let factor = MIN_SIDE.div_ceil(w.min(h)).min((4 * MIN_SIDE).div_ceil(w.max(h)));
    let mut picture = scaled(view, (w * factor, h * factor));
    shade(&mut picture, grid);
    Ok(picture)
}

/// `view` at another size.
pub(super) fn scaled(view: &RgbImage, (w, h): (u32, u32)) -> RgbImage {
    let filter = match view.dimensions() {
        (from_w, from_h) if (from_w, from_h) == (w, h) => return view.clone(),
        (from_w, from_h) if from_w.max(from_h) <= PIXEL_ART_SIDE && w >= from_w => FilterType::Nearest,
        _ => FilterType::CatmullRom,
    };
    imageops::resize(view, w, h, filter)
}

/// Draws `grid` over a picture of any size.
pub(super) fn shade(picture: &mut RgbImage, grid: &KeepGrid) {
    let (w, h) = picture.dimensions();
    let border = (w.min(h) / 160).max(1);
    let lined = w / grid.cols as u32 >= MIN_LINED_CELL && h / grid.rows as u32 >= MIN_LINED_CELL;
    let (rows, cols) = (grid.size().0, grid.size().1);
    // Cell of a pixel, `None` outside the picture, which counts as skipped.
    let active = |x: Option<u32>, y: Option<u32>| {
        let (Some(x), Some(y)) = (x.filter(|&x| x < w), y.filter(|&y| y < h)) else { return false };
        grid.keep[KeepGrid::cell(y, rows, h) * cols + KeepGrid::cell(x, cols, w)]
    };
    for y in 0..h {
        let line_y = y > 0 && KeepGrid::cell(y, rows, h) != KeepGrid::cell(y - 1, rows, h);
        for x in 0..w {
            let pixel = picture.get_pixel_mut(x, y);
            if !active(Some(x), Some(y)) {
                *pixel = faded(*pixel);
                continue;
            }
            let xs = [x.checked_sub(border), Some(x), Some(x + border)];
            let ys = [y.checked_sub(border), Some(y), Some(y + border)];
            if xs.iter().any(|&x| ys.iter().any(|&y| !active(x, y))) {
                *pixel = mix(*pixel, ACTIVE, 230);
            } else if lined
                && (line_y || (x > 0 && KeepGrid::cell(x, cols, w) != KeepGrid::cell(x - 1, cols, w)))
            {
                *pixel = mix(*pixel, Rgb([255; 3]), 72);
            }
        }
    }
}

/// A pixel that the network skipped.
fn faded(pixel: Rgb<u8>) -> Rgb<u8> {
    let Luma([grey]) = pixel.to_luma();
    mix(mix(pixel, Rgb([grey; 3]), 216), GROUND, 152)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(rows: usize, cols: usize) -> KeepGrid {
        KeepGrid::new(rows, cols, (0..rows * cols).map(|i| (i / cols + i % cols).is_multiple_of(2)).collect())
            .unwrap()
    }

    #[test]
    fn small_views_grow_and_large_ones_stay() {
        let grid = checked(2, 2);
        for (from, to) in [
            ((224, 224), (448, 448)),
            ((32, 32), (448, 448)),
            ((300, 200), (900, 600)),
            ((512, 768), (512, 768)),
        ] {
            let picture = overlay(&RgbImage::new(from.0, from.1), &grid).unwrap();
            assert_eq!(picture.dimensions(), to);
        }
        assert!(overlay(&RgbImage::new(1, 4000), &grid).unwrap().height() <= 4000);
        assert!(overlay(&RgbImage::new(0, 5), &grid).is_err());
    }

    #[test]
    fn active_patches_keep_their_pixels_and_skipped_ones_fade() {
        let color = Rgb([40, 160, 220]);
        let view = RgbImage::from_pixel(448, 448, color);
        let picture = overlay(&view, &checked(2, 2)).unwrap();
        assert_eq!(*picture.get_pixel(112, 112), color);
        assert_eq!(*picture.get_pixel(336, 112), faded(color));
        assert_eq!(*picture.get_pixel(223, 112), mix(color, ACTIVE, 230));
        assert_eq!(overlay(&view, &checked(1, 1)).unwrap().get_pixel(200, 9), &color);
    }

    #[test]
    fn grids_finer_than_the_view_are_drawn() {
        overlay(&RgbImage::new(448, 448), &checked(1000, 3)).unwrap();
    }

    #[test]
    fn grids_are_checked() {
        assert!(KeepGrid::new(0, 3, vec![]).is_err());
        assert!(KeepGrid::new(usize::MAX, 2, vec![true; 2]).is_err());
        assert!(
            KeepGrid::new(2, 2, vec![true; 3])
                .unwrap_err()
                .to_string()
                .contains("3 decisions given, 2×2 needed")
        );
        assert_eq!(checked(2, 3).density(), 0.5);
    }
}
