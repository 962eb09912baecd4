//! Telling formats apart by content.

use super::error::ErrorKind;
use super::source::Source;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Safetensors,
    Torch,
}

/// How a PyTorch file from before 1.6 begins: a pickle of its magic number.
const LEGACY_TORCH: &[u8] = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";

const CONVERT: &str =
    "convert it once in Python: torch.save(torch.load(\"old.pth\", map_location=\"cpu\"), \"new.pth\")";

/// The format that the first bytes belong to; for anything else an error that says what it looks like.
pub(super) fn format(source: &Source) -> Result<Format, ErrorKind> {
    let mut head = [0; 512];
    let mut filled = 0;
    while filled < head.len() {
        match source.read_at(&mut head[filled..], filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    let head = &head[..filled];
    let not = |what: &str| Err(ErrorKind::NotACheckpoint(what.to_owned()));

    if head.is_empty() {
        return not("is empty");
    }
    if head.starts_with(b"PK\x03\x04") {
        return Ok(Format::Torch);
    }
    if head.get(8) == Some(&b'{') {
        return Ok(Format::Safetensors);
    }
    // A pickle starts with opcode 0x80 and its protocol.
    if let [0x80, 2..=5, rest @ ..] = head {
        return if rest.starts_with(LEGACY_TORCH) {
            not(&format!("is a PyTorch file from before 1.6; {CONVERT}"))
        } else {
            not("is a bare pickle, not a PyTorch archive; save the state dict with torch.save")
        };
    }
    if head.get(257..262) == Some(b"ustar") {
        return not(&format!(
            "is a tar archive (PyTorch before 0.2, or a packed folder); unpack it, or {CONVERT}"
        ));
    }
    if head.starts_with(b"\x1f\x8b") {
        return not("is compressed with gzip; unpack it first");
    }
    if head.starts_with(b"version https://git-lfs") {
        return not("is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`");
    }
    if head.first_chunk().is_some_and(|&n| u64::from_le_bytes(n) <= 100_000_000) || filled <= 8 {
        return not("is neither a safetensors nor a PyTorch file, or it is cut short");
    }
    not("is neither a safetensors nor a PyTorch file")
}
