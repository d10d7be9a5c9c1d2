//! Points of a curve in bounded memory, and figures of many steps: a metrics file may have millions.

use serde::Serialize;

/// Stretches of a curve, at most. Of each the lowest and the highest point are kept.
const STRETCHES: usize = 1024;
/// Times of steps that are kept for their median: of more, every second one, every fourth one, and so on.
const TIMES: usize = 1 << 22;
/// Losses of the mean that is shown.
const LAST: usize = 10;

/// Points in the order of x: all of them, or of each stretch of as many the lowest and the highest.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Curve {
    /// The lowest and the highest point of each stretch.
    stretches: Vec<[(f64, f64); 2]>,
    /// Points of a whole stretch; doubled when there are too many stretches.
    each: u64,
    /// Points of the last stretch.
    held: u64,
}

/// Whether a point can be drawn: it is a number, and none so large that the span from one to another is none.
fn is_drawn((x, y): (f64, f64)) -> bool {
    x.abs() < 1e300 && y.abs() < 1e300
}

impl Curve {
    /// Adds a point behind the others; what is no number leaves no gap.
    pub fn push(&mut self, x: f64, y: f64) {
        let p = (x, y);
        if !is_drawn(p) {
            return;
        }
        self.each = self.each.max(1);
        if self.held < self.each
            && let Some([low, high]) = self.stretches.last_mut()
        {
            if y < low.1 {
                *low = p;
            }
            if y > high.1 {
                *high = p;
            }
            self.held += 1;
            return;
        }
        if self.stretches.len() == STRETCHES {
            let pairs = self.stretches.chunks_exact(2).map(|pair| {
                let (a, b) = (pair[0], pair[1]);
                [
                    if b[0].1 < a[0].1 { b[0] } else { a[0] },
                    if b[1].1 > a[1].1 { b[1] } else { a[1] },
                ]
            });
            self.stretches = pairs.collect();
            self.each *= 2;
        }
        self.stretches.push([p, p]);
        self.held = 1;
    }

    /// All points that are kept, in the order of x.
    #[must_use]
    pub fn points(&self) -> Vec<(f64, f64)> {
        let each = self.stretches.iter().flat_map(|&[low, high]| {
            let mut both = [low, high];
            both.sort_by(|a, b| a.0.total_cmp(&b.0));
            both.into_iter().skip(usize::from(low == high))
        });
        each.collect()
    }

    /// Whether it has no point.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.stretches.is_empty()
    }
}

impl Serialize for Curve {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.points().serialize(to)
    }
}

impl FromIterator<(f64, f64)> for Curve {
    fn from_iter<I: IntoIterator<Item = (f64, f64)>>(points: I) -> Self {
        let mut curve = Self::default();
        points.into_iter().for_each(|(x, y)| curve.push(x, y));
        curve
    }
}

/// The mean of the newest values, of which older ones count less and less.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Smoothed {
    sum: f64,
    weight: f64,
}

impl Smoothed {
    /// With one more value; `over`: after so many a value counts 1/e.
    pub(crate) fn with(&mut self, value: f64, over: f64) -> f64 {
        let keep = (-1.0 / over).exp();
        self.sum = self.sum * keep + value;
        self.weight = self.weight * keep + 1.0;
        self.sum / self.weight
    }
}

/// The median of a stream of times, of which a bounded sample is kept.
#[derive(Clone, Debug, Default)]
pub(crate) struct Median {
    times: Vec<f64>,
    every: u64,
    seen: u64,
}

impl Median {
    pub(crate) fn push(&mut self, time: f64) {
        self.every = self.every.max(1);
        if self.seen.is_multiple_of(self.every) {
            self.times.push(time);
        }
        self.seen += 1;
        if self.times.len() == TIMES {
            let mut n = 0u64;
            self.times.retain(|_| {
                n += 1;
                n % 2 == 1
            });
            self.every *= 2;
        }
    }

    /// The mean of the middle two where they are even.
    pub(crate) fn value(mut self) -> Option<f64> {
        self.times.sort_by(f64::total_cmp);
        let upper = *self.times.get(self.times.len() / 2)?;
        let lower = self.times[(self.times.len() - 1) / 2];
        Some(f64::midpoint(lower, upper))
    }
}

/// The mean of the last ten losses.
#[derive(Clone, Debug, Default)]
pub(crate) struct LastLosses(std::collections::VecDeque<f64>);

impl LastLosses {
    pub(crate) fn push(&mut self, loss: f64) {
        self.0.truncate(LAST - 1);
        self.0.push_front(loss);
    }

    pub(crate) fn mean(&self) -> Option<f64> {
        let n = self.0.len();
        (n > 0).then(|| self.0.iter().sum::<f64>() / n as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A spike of one step in a million stays in the picture.
    #[test]
    fn of_many_points_the_lowest_and_the_highest_stay() {
        let mut points: Vec<(f64, f64)> = (1..=1_000_000)
            .map(|i| (f64::from(i), 1.0 + f64::from(i % 7) / 10.0))
            .collect();
        // In the first and in the second half of stretches.
        let spikes: Vec<usize> = (1..20).map(|i| i * 49_999).collect();
        for (i, &at) in spikes.iter().enumerate() {
            points[at].1 = if i % 2 == 0 { 9.0 } else { 0.25 };
        }
        points[600_000].1 = f64::NAN;
        let curve: Curve = points.iter().copied().collect();
        let drawn = curve.points();
        assert!(
            (1000..=2 * STRETCHES).contains(&drawn.len()),
            "{}",
            drawn.len()
        );
        assert!(spikes.iter().all(|&at| drawn.contains(&points[at])));
        assert!(drawn.is_sorted_by(|a, b| a.0 < b.0));
        // They lie as close at the begin as at the end.
        let first = drawn.iter().filter(|p| p.0 < 500_000.0).count() * 2;
        assert!(first.abs_diff(drawn.len()) < 8, "{first}");
        let few: Curve = points[..1000].iter().copied().collect();
        assert_eq!(few.points(), points[..1000]);
    }

    #[test]
    fn figures_of_many_are_those_of_all() {
        let mut median = Median::default();
        [4.0, 1.0, 9.0, 2.0]
            .into_iter()
            .for_each(|t| median.push(t));
        assert_eq!(median.value(), Some(3.0));
        assert_eq!(Median::default().value(), None);
        let mut last = LastLosses::default();
        assert_eq!(last.mean(), None);
        (0..20).for_each(|n| last.push(f64::from(n)));
        assert_eq!(last.mean(), Some(14.5));
        let mut smoothed = Smoothed::default();
        assert_eq!(smoothed.with(3.0, 10.0), 3.0);
        for _ in 0..200 {
            smoothed.with(1.0, 10.0);
        }
        assert!((smoothed.with(1.0, 10.0) - 1.0).abs() < 1e-6);
    }
}
