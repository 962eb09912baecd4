/// What can go wrong in a kernel or its preparation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operand does not have the size that the operation's geometry asks for.
    #[error("{op}: {what} holds {got} elements, the geometry {geometry} needs {need}")]
    Size {
        /// Operation.
        op: &'static str,
        /// Operand.
        what: &'static str,
        /// Elements found.
        got: usize,
        /// Elements needed.
        need: usize,
        /// Geometry in words.
        geometry: String,
    },
    /// The geometry itself is impossible or not supported.
    #[error("{op}: {why} ({geometry})")]
    Geometry {
        /// Operation.
        op: &'static str,
        /// What is wrong with it.
        why: &'static str,
        /// Geometry in words.
        geometry: String,
    },
    /// The instruction set was asked for by name and this machine lacks it.
    #[error("instruction set {0} is not available on this machine; available: {1}")]
    Isa(String, String),
    /// A device did not do what it was asked for.
    #[error("{what}: {why}")]
    Device {
        /// What that was.
        what: String,
        /// What the device or its driver said.
        why: String,
    },
    /// Memory for a buffer could not be had.
    #[error("cannot allocate {bytes} bytes for {what}")]
    OutOfMemory {
        /// Buffer.
        what: String,
        /// Size.
        bytes: usize,
    },
}

/// Result of a kernel or its preparation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// [`Error::Size`] unless the operand `what` holds as many elements as the product of `need`, which may overflow.
pub(crate) fn require(
    op: &'static str,
    what: &'static str,
    got: usize,
    need: &[usize],
    geometry: &dyn std::fmt::Display,
) -> Result<()> {
    let need = need.iter().fold(1usize, |product, &size| product.saturating_mul(size));
    if got >= need {
        return Ok(());
    }
    Err(Error::Size { op, what, got, need, geometry: geometry.to_string() })
}
