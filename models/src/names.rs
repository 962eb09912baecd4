//! The tensor names of other code bases.

use std::borrow::Cow;

/// The name that this crate uses for a checkpoint's tensor; unchanged where it is known under no other name.
///
/// * `module.` in front (PyTorch's `DataParallel`) is dropped.
/// * LASNet's spatial masker `….masker.conv2.…` is LAUDNet's `….masker_spatial.conv.…`
///   (LASNet, imagenet_classification/models/dyn_resnet.py).
/// * The classifier `linear.…` of akamaster/pytorch_resnet_cifar10 is `fc.…`.
pub fn canonical_name(name: &str) -> Cow<'_, str> {
    let bare = name.strip_prefix("module.").unwrap_or(name);
    if let Some((block, tensor)) = bare.split_once(".masker.conv2.") {
        return format!("{block}.masker_spatial.conv.{tensor}").into();
    }
    match bare.strip_prefix("linear.") {
        Some(tensor) => format!("fc.{tensor}").into(),
        None => bare.into(),
    }
}
