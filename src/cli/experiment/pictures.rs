//! What was computed of an image, beside the results.

use super::super::model::Model;
use super::super::run::{block_views, class_name, top};
use anyhow::{Context, Result};
use laud::Output;
use laud::evaluate::{Cell, Picture};
use laud::report::{Sheet, save_png};
use laud::vision::{Preprocess, Sample};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

/// Blocks on a picture: the first with a gate in every stage, up to so many.
const BLOCKS: usize = 4;

/// Draws sample `i` of `output`, which kept its masks.
pub(super) fn draw(
    model: &Model,
    preprocess: &Preprocess,
    sample: &Sample,
    output: &Output,
    i: usize,
    (cell, results): (&Cell, &Path),
) -> Result<Picture> {
    let spec = &model.spec;
    let mut stages = Vec::new();
    let views: Vec<_> = block_views(spec, output, i)?
        .into_iter()
        .zip(&spec.blocks)
        .filter(|(view, block)| {
            let gated = view.spatial.is_some() || view.channels.is_some();
            let first = gated && !stages.contains(&block.stage) && stages.len() < BLOCKS;
            if first {
                stages.push(block.stage);
            }
            first
        })
        .map(|(view, _)| view)
        .collect();
    let classes = spec.head.fc.c_out;
    let (class, _) = top(&output.logits[i * classes..][..classes], 1)[0];
    let (said, is) = (class_name(model, class), class_name(model, sample.label));
    let caption = if class == sample.label { said } else { format!("{said}, is {is}") };
    let view = preprocess.view(&sample.image)?;
    let title = format!("{caption} · {}", cell.policy);
    let picture = Sheet { title: &title, note: "", view: &view, blocks: &views }.draw()?;

    let mut hash = DefaultHasher::new();
    serde_json::to_string(cell)?.hash(&mut hash);
    let stem = results.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let folder = format!("{stem}.pictures");
    let parent = results.parent().unwrap_or(Path::new(""));
    let path = parent.join(&folder);
    std::fs::create_dir_all(&path).with_context(|| format!("{}: cannot make the folder", path.display()))?;
    let file = format!("{folder}/{:016x}-{i}.png", hash.finish() ^ sample.label as u64);
    save_png(&picture, &parent.join(&file))?;
    Ok(Picture { file, caption })
}
