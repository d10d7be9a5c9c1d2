//! Counter-based random numbers: Philox 4x32-10 (Salmon et al., SC 2011).
//!
//! A number is a function of (seed, stream, index) and nothing else, so there is no state to save
//! and a resumed run draws what an unbroken one would have drawn, in any order, on any thread.

const MULTIPLY: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// One sequence of random numbers: the seed is Philox's key, stream and index are its counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Philox {
    seed: u64,
    stream: u64,
}

impl Philox {
    /// The sequence `stream` of `seed`; streams of one seed are independent.
    #[must_use]
    pub fn new(seed: u64, stream: u64) -> Self {
        Self { seed, stream }
    }

    /// The four 32-bit words at `index`.
    #[must_use]
    pub fn words(&self, index: u64) -> [u32; 4] {
        let counter = [low(index), high(index), low(self.stream), high(self.stream)];
        philox4x32(counter, [low(self.seed), high(self.seed)])
    }

    /// 64 random bits at `index`.
    #[must_use]
    pub fn bits(&self, index: u64) -> u64 {
        let [a, b, ..] = self.words(index);
        u64::from(a) | u64::from(b) << 32
    }

    /// A number in `0..n`, by multiply and shift: its bias is below n / 2^64. `n` must not be 0.
    #[must_use]
    pub fn below(&self, index: u64, n: u64) -> u64 {
        assert!(n > 0, "no number lies below zero");
        ((u128::from(self.bits(index)) * u128::from(n)) >> 64) as u64
    }

    /// A number in `[0, 1)`, a multiple of 2^-53.
    #[must_use]
    pub fn unit(&self, index: u64) -> f64 {
        (self.bits(index) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// The numbers `0..n` in random order (Fisher and Yates, drawing index i at place i).
    #[must_use]
    pub fn permutation(&self, n: usize) -> Vec<u32> {
        let n_u32 = u32::try_from(n).expect("fewer than 2^32 items");
        let mut order: Vec<u32> = (0..n_u32).collect();
        for i in (1..n).rev() {
            let j = self.below(i as u64, i as u64 + 1) as usize;
            order.swap(i, j);
        }
        order
    }
}

fn low(x: u64) -> u32 {
    x as u32
}

fn high(x: u64) -> u32 {
    (x >> 32) as u32
}

fn philox4x32(mut c: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..ROUNDS {
        if round > 0 {
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        let p0 = u64::from(MULTIPLY[0]) * u64::from(c[0]);
        let p1 = u64::from(MULTIPLY[1]) * u64::from(c[2]);
        c = [
            high(p1) ^ c[1] ^ key[0],
            low(p1),
            high(p0) ^ c[3] ^ key[1],
            low(p0),
        ];
    }
    c
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known-answer vectors published with Random123.
    #[test]
    fn philox_gives_the_published_words() {
        for (counter, key, want) in [
            (
                [0; 4],
                [0; 2],
                [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8],
            ),
            (
                [u32::MAX; 4],
                [u32::MAX; 2],
                [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd],
            ),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ] {
            assert_eq!(philox4x32(counter, key), want);
        }
        let p = Philox::new(0x299f_31d0_a409_3822, 0x0370_7344_1319_8a2e);
        assert_eq!(
            p.words(0x85a3_08d3_243f_6a88)[0],
            0xd16c_fe09,
            "counter or key words swapped"
        );
    }

    #[test]
    fn a_permutation_holds_every_number_once_and_depends_on_seed_and_stream() {
        for n in [0usize, 1, 2, 3, 1000] {
            let mut p = Philox::new(7, 3).permutation(n);
            p.sort_unstable();
            assert!(p.iter().copied().eq(0..n as u32), "{n}");
        }
        let base = Philox::new(7, 3).permutation(100);
        assert_eq!(base, Philox::new(7, 3).permutation(100));
        assert_ne!(base, Philox::new(8, 3).permutation(100));
        assert_ne!(base, Philox::new(7, 4).permutation(100));
    }

    /// Each of the six orders of three items, one in six times: 6000 draws, five sigma is 144.
    #[test]
    fn every_order_is_as_likely() {
        let mut seen = std::collections::HashMap::new();
        for stream in 0..6000 {
            *seen
                .entry(Philox::new(1, stream).permutation(3))
                .or_insert(0u32) += 1;
        }
        assert_eq!(seen.len(), 6);
        assert!(seen.values().all(|&n| n.abs_diff(1000) < 144), "{seen:?}");
    }

    #[test]
    fn unit_and_below_stay_in_range() {
        let p = Philox::new(5, 0);
        let mean: f64 = (0..10_000).map(|i| p.unit(i)).sum::<f64>() / 1e4;
        assert!((mean - 0.5).abs() < 0.015, "{mean}");
        assert!((0..10_000).all(|i| p.below(i, 3) < 3 && (0.0..1.0).contains(&p.unit(i))));
    }
}
