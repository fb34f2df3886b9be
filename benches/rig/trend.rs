//! Whether a series of measurements grows.

/// Of the straight line that fits best, from one value to the next.
pub(crate) fn slope(values: &[f64]) -> f64 {
    let count = values.len() as f64;
    let middle = (count - 1.0) / 2.0;
    let mean = values.iter().sum::<f64>() / count;
    let (mut covariance, mut variance) = (0.0, 0.0);
    for (at, value) in values.iter().enumerate() {
        let distance = at as f64 - middle;
        covariance += distance * (value - mean);
        variance += distance * distance;
    }
    covariance / variance
}
