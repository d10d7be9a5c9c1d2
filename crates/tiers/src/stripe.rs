//! Which drive holds which bytes: a fixed repeating pattern of stripe units.
//!
//! Example with two drives of weights 2 and 1: the pattern is `0 1 0`, so flat units 0, 1, 2, 3, 4,
//! 5 lie on drives 0, 1, 0, 0, 1, 0. Each drive numbers its own units upwards without gaps, so a
//! contiguous flat range is one contiguous range on every drive, whose length is the difference of
//! two prefix lengths. That makes order and conflicts an affair of each drive alone.

use std::ops::Range;

use crate::ALIGN;

/// Units in the pattern of several drives: weights are honoured to one part in this many.
const PERIOD: usize = 64;

/// The mapping between the flat address space and the drives' own addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stripe {
    /// Bytes that lie together on one drive.
    unit: u64,
    /// The drive of each unit of one period.
    pattern: Vec<u32>,
    /// For each drive, the places of its units in the pattern, ascending.
    places: Vec<Vec<u64>>,
}

impl Stripe {
    /// A pattern in which each drive's units are in proportion to its weight and evenly spread.
    /// Every drive gets at least one unit, whatever its weight. At most 64 drives.
    pub(crate) fn new(unit: u64, weights: &[f64]) -> Self {
        assert!((1..=PERIOD).contains(&weights.len()) && unit > 0);
        let period = if weights.len() == 1 { 1 } else { PERIOD };
        let counts = apportion(period, weights);
        // Smooth weighted round robin: the drive that is furthest behind its share goes next.
        let mut credit = vec![0i64; weights.len()];
        let mut pattern = Vec::with_capacity(period);
        let mut places = vec![Vec::new(); weights.len()];
        for place in 0..period {
            for (credit, &count) in credit.iter_mut().zip(&counts) {
                *credit += count as i64;
            }
            // The first of equals, so that the pattern depends on the weights alone.
            let next = (0..credit.len())
                .rev()
                .max_by_key(|&d| credit[d])
                .expect("a drive");
            credit[next] -= period as i64;
            pattern.push(next as u32);
            places[next].push(place as u64);
        }
        Self {
            unit,
            pattern,
            places,
        }
    }

    /// The mapping that [`Stripe::pattern`] names; `None` when no mapping has that pattern.
    pub(crate) fn from_pattern(unit: u64, n_drives: usize, pattern: Vec<u32>) -> Option<Self> {
        let mut places = vec![Vec::new(); n_drives.min(PERIOD)];
        for (place, &drive) in pattern.iter().enumerate() {
            places.get_mut(drive as usize)?.push(place as u64);
        }
        let sound = unit > 0 && !places.is_empty() && places.iter().all(|p| !p.is_empty());
        sound.then_some(Self {
            unit,
            pattern,
            places,
        })
    }

    /// How many drives there are.
    pub(crate) fn n_drives(&self) -> usize {
        self.places.len()
    }

    /// The pattern, one drive per unit, and the bytes of a unit: what a state file remembers.
    pub(crate) fn pattern(&self) -> (&[u32], u64) {
        (&self.pattern, self.unit)
    }

    /// How many of the first `flat` bytes lie on `drive`.
    pub(crate) fn local_len(&self, drive: usize, flat: u64) -> u64 {
        let period = self.pattern.len() as u64;
        let (places, unit) = (&self.places[drive], flat / self.unit);
        let place = unit % period;
        let before = places.partition_point(|&p| p < place) as u64;
        let here = self.pattern[place as usize] as usize == drive;
        let part = if here { flat % self.unit } else { 0 };
        (unit / period * places.len() as u64 + before) * self.unit + part
    }

    /// The range of `drive`'s own addresses that holds its part of a flat range.
    pub(crate) fn local(&self, drive: usize, flat: Range<u64>) -> Range<u64> {
        self.local_len(drive, flat.start)..self.local_len(drive, flat.end)
    }

    /// The flat address of `drive`'s own address `local`, and how many bytes from there on are
    /// contiguous in both.
    pub(crate) fn flat(&self, drive: usize, local: u64) -> (u64, u64) {
        let (places, unit) = (&self.places[drive], local / self.unit);
        let n = places.len() as u64;
        let flat_unit = unit / n * self.pattern.len() as u64 + places[(unit % n) as usize];
        let inside = local % self.unit;
        (flat_unit * self.unit + inside, self.unit - inside)
    }

    /// The longest flat prefix, a multiple of [`ALIGN`], that fits drives of these sizes.
    pub(crate) fn capacity(&self, shares: &[u64]) -> u64 {
        let fits = |flat: u64| {
            shares
                .iter()
                .enumerate()
                .all(|(drive, &share)| self.local_len(drive, flat) <= share)
        };
        let (mut low, mut high) = (0, shares.iter().sum::<u64>() / ALIGN + 1);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if fits(middle * ALIGN) {
                low = middle
            } else {
                high = middle
            }
        }
        low * ALIGN
    }
}

/// Cuts `period` units in proportion to `weights`, at least one each, by largest remainder.
fn apportion(period: usize, weights: &[f64]) -> Vec<usize> {
    let sum: f64 = weights.iter().sum();
    let exact: Vec<f64> = weights.iter().map(|w| w / sum * period as f64).collect();
    let mut counts: Vec<usize> = exact.iter().map(|e| (e.floor() as usize).max(1)).collect();
    // The error of giving one more or one less is smallest where the count is furthest off.
    let off = |counts: &[usize], d: usize| exact[d] - counts[d] as f64;
    while counts.iter().sum::<usize>() < period {
        let drives = (0..counts.len()).rev();
        let next = drives.max_by(|&a, &b| off(&counts, a).total_cmp(&off(&counts, b)));
        counts[next.expect("a drive")] += 1;
    }
    while counts.iter().sum::<usize>() > period {
        let drives = (0..counts.len()).filter(|&d| counts[d] > 1);
        let next = drives.min_by(|&a, &b| off(&counts, a).total_cmp(&off(&counts, b)));
        counts[next.expect("more units than drives")] -= 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_honoured_and_spread() {
        let stripe = Stripe::new(1, &[2.0, 1.0, 1.0]);
        assert_eq!(stripe.pattern[..8], [0, 1, 2, 0, 0, 1, 2, 0]);
        assert_eq!(apportion(64, &[4.5, 4.1]), [33, 31]);
        assert_eq!(apportion(64, &[1e9, 1.0, 1.0]), [62, 1, 1]);
        assert_eq!(apportion(64, &[1.0; 64]), [1; 64]);
        assert_eq!(Stripe::new(1, &[0.3]).pattern, [0]);
    }

    #[test]
    fn every_flat_byte_has_one_home_and_the_maps_agree() {
        for weights in [&[1.0][..], &[3.0, 1.0], &[1.0, 1.0], &[5.0, 2.5, 0.1]] {
            let (unit, total) = (3, 64 * 3 * 2 + 17);
            let stripe = Stripe::new(unit, weights);
            let mut seen = vec![false; total as usize];
            for drive in 0..weights.len() {
                let len = stripe.local_len(drive, total);
                for local in 0..len {
                    let (flat, run) = stripe.flat(drive, local);
                    assert!(!std::mem::replace(&mut seen[flat as usize], true));
                    assert_eq!(stripe.local_len(drive, flat), local, "{weights:?}");
                    assert_eq!(stripe.local_len(drive, flat + run), local + run);
                }
            }
            assert!(
                seen.iter().all(|&s| s),
                "{weights:?}: a byte without a home"
            );
        }
    }

    #[test]
    fn capacity_is_the_longest_that_fits() {
        let unit = 2 * ALIGN;
        for weights in [&[1.0][..], &[2.0, 1.0], &[5.0, 2.5, 0.1]] {
            let stripe = Stripe::new(unit, weights);
            for total in [0, ALIGN, 7 * ALIGN, 1000 * ALIGN, 1003 * ALIGN] {
                let drives = 0..weights.len();
                let shares: Vec<u64> = drives.map(|d| stripe.local_len(d, total)).collect();
                assert_eq!(shares.iter().sum::<u64>(), total);
                assert_eq!(stripe.capacity(&shares), total, "{weights:?} {total}");
                // Whichever drive is the small one, it sets the limit, and exactly.
                for small in (0..weights.len()).filter(|&d| shares[d] > 0) {
                    let mut less: Vec<u64> = shares.iter().map(|s| s + 3 * unit).collect();
                    less[small] = shares[small] - ALIGN;
                    let fits = |flat| (0..less.len()).all(|d| stripe.local_len(d, flat) <= less[d]);
                    let most = stripe.capacity(&less);
                    assert!(
                        most < total && fits(most) && !fits(most + ALIGN),
                        "{weights:?}"
                    );
                }
            }
        }
    }
}
