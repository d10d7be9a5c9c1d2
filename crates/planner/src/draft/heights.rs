//! Bytes that are taken during each operation, where copies stand ahead of thousands of them: a tree of maxima.

use std::ops::Range;

/// A number for each position, to which whole ranges are added. Any change and any question takes the logarithm of
/// their count.
pub(super) struct Heights {
    /// Positions below a node of the root's level, a power of two.
    width: usize,
    /// Of each node the largest number below it, without what was added to a node above; the root is node 1, and a
    /// position's node is behind all others.
    most: Vec<u64>,
    /// What was added to all that is below a node.
    added: Vec<u64>,
}

/// A node and the positions below it.
#[derive(Clone, Copy)]
struct Node {
    at: usize,
    from: usize,
    width: usize,
}

impl Node {
    fn halves(self) -> [Self; 2] {
        let width = self.width / 2;
        [0, 1].map(|half| Self {
            at: 2 * self.at + half,
            from: self.from + half * width,
            width,
        })
    }

    fn misses(self, range: &Range<usize>) -> bool {
        self.from >= range.end || self.from + self.width <= range.start
    }
}

impl Heights {
    /// The numbers to begin with.
    pub(super) fn new(numbers: &[u64]) -> Self {
        let width = numbers.len().next_power_of_two();
        let mut most = vec![0; 2 * width];
        most[width..width + numbers.len()].copy_from_slice(numbers);
        for at in (1..width).rev() {
            most[at] = most[2 * at].max(most[2 * at + 1]);
        }
        let added = vec![0; width];
        Self { width, most, added }
    }

    fn root(&self) -> Node {
        Node {
            at: 1,
            from: 0,
            width: self.width,
        }
    }

    /// Adds to the numbers of a range.
    pub(super) fn add(&mut self, range: Range<usize>, by: u64) {
        if !range.is_empty() {
            self.add_below(self.root(), &range, by);
        }
    }

    fn add_below(&mut self, node: Node, range: &Range<usize>, by: u64) {
        if node.misses(range) {
            return;
        }
        if range.start <= node.from && node.from + node.width <= range.end {
            self.most[node.at] += by;
            if node.width > 1 {
                self.added[node.at] += by;
            }
            return;
        }
        for half in node.halves() {
            self.add_below(half, range, by);
        }
        let below = self.most[2 * node.at].max(self.most[2 * node.at + 1]);
        self.most[node.at] = below + self.added[node.at];
    }

    /// The last position of a range whose number is above a limit.
    pub(super) fn last_above(&self, range: Range<usize>, limit: u64) -> Option<usize> {
        if range.is_empty() {
            return None;
        }
        self.last_below(self.root(), &range, limit)
    }

    fn last_below(&self, node: Node, range: &Range<usize>, limit: u64) -> Option<usize> {
        if node.misses(range) || self.most[node.at] <= limit {
            return None;
        }
        if node.width == 1 {
            return Some(node.from);
        }
        // What was added to the node counts for both halves; more than the limit is above it whatever they have.
        let [first, second] = node.halves();
        let Some(limit) = limit.checked_sub(self.added[node.at]) else {
            return Some(range.end.min(node.from + node.width) - 1);
        };
        let second = self.last_below(second, range, limit);
        second.or_else(|| self.last_below(first, range, limit))
    }

    /// Writes all numbers.
    pub(super) fn write(mut self, numbers: &mut [u64]) {
        for at in 1..self.width {
            let added = self.added[at];
            for half in [2 * at, 2 * at + 1] {
                self.most[half] += added;
                if half < self.width {
                    self.added[half] += added;
                }
            }
        }
        let n = numbers.len();
        numbers.copy_from_slice(&self.most[self.width..self.width + n]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_last_positions_are_those_of_a_list() {
        let mut x = 11u64;
        let mut next = move |n: usize| {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (x >> 33) as usize % n
        };
        for n in [1, 2, 3, 7, 8, 31, 100] {
            let mut plain: Vec<u64> = (0..n).map(|_| next(20) as u64).collect();
            let mut heights = Heights::new(&plain);
            for _ in 0..300 {
                let from = next(n + 1);
                let range = from..from + next(n + 1 - from);
                let limit = next(200) as u64;
                let above = range.clone().rev().find(|&i| plain[i] > limit);
                assert_eq!(heights.last_above(range.clone(), limit), above);
                let by = next(3) as u64;
                plain[range.clone()].iter_mut().for_each(|p| *p += by);
                heights.add(range, by);
            }
            let mut written = vec![0; n];
            heights.write(&mut written);
            assert_eq!(written, plain);
        }
    }
}
