use std::ops::Range;

/// A slice that the chunks of a step write disjoint parts of.
pub(crate) struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    slice: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: handing out parts is unsafe, and whoever does so promises that they do not overlap.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: std::marker::PhantomData }
    }

    /// One part.
    ///
    /// # Safety
    /// No two parts that are alive at the same time overlap.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn slice(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: inside the slice, as asserted; not aliased, as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }

    /// Where element `at` lies, for parts that are not one range. Writing through it is up to the caller: inside the
    /// slice, and not what another thread writes or reads meanwhile.
    pub(crate) fn pointer(&self, at: usize) -> *mut T {
        self.start.wrapping_add(at)
    }
}
