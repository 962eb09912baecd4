//! How far two tensors are apart.

use candle_core::Tensor;

/// All values, in order.
pub(crate) fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// `max |a − b| ÷ max |b|`; 0 where they are equal.
pub(crate) fn distance(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let largest = |values: &mut dyn Iterator<Item = f32>| {
        values
            .fold(0.0, |most: f32, value| if value.is_nan() { f32::INFINITY } else { most.max(value.abs()) })
    };
    let (a, b) = (values(a), values(b));
    let scale = largest(&mut b.iter().copied());
    let apart = largest(&mut a.iter().zip(&b).map(|(a, b)| a - b));
    if apart == 0.0 { 0.0 } else { apart / scale }
}

/// Asserts `|a − b| <= relative · (|b| + floor · max |b|)` everywhere: f32 sums in another order.
#[track_caller]
pub(crate) fn assert_close(what: &str, a: &Tensor, b: &Tensor, relative: f32, floor: f32) {
    assert!(distance(a, b) <= relative, "{what}: {} of the largest value apart", distance(a, b));
    let (a, b) = (values(a), values(b));
    let floor = floor * b.iter().fold(0f32, |most, value| most.max(value.abs()));
    for (index, (a, b)) in a.iter().zip(&b).enumerate() {
        assert!((a - b).abs() <= relative * (b.abs() + floor), "{what}: {a} at {index}, expected {b}");
    }
}
