//! A batch in rounds: a step of many micro-batches repeats, so its repeat is planned once.
//!
//! In a round a few micro-batches visit every unit; between two rounds only accumulators (and what
//! [`Plan::late`](crate::Plan::late) says) stay. All rounds but the first and the last are alike, so a plan has
//! them as one part, [`PartName::Middle`], that is run again and again. Weights' gradients add up in the
//! order of micro-batches in every cut, so a cut changes no number.

use std::ops::Range;

use crate::parts::PartName;

/// How a batch is cut into rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rounds {
    /// Micro-batches of a round; the last may have fewer.
    each: u32,
    batch: u32,
}

impl Rounds {
    /// `batch` micro-batches in rounds of `each`; zero: all in one.
    #[must_use]
    pub fn new(each: u32, batch: u32) -> Self {
        let batch = batch.max(1);
        let each = if each == 0 { batch } else { each.min(batch) };
        Self { each, batch }
    }

    /// Micro-batches of each round but the last.
    #[must_use]
    pub fn each(self) -> u32 {
        self.each
    }

    /// Whether the whole batch is one round.
    #[must_use]
    pub fn one(self) -> bool {
        self.each == self.batch
    }

    /// How many rounds a batch has.
    #[must_use]
    pub fn count(self) -> u32 {
        self.batch.div_ceil(self.each)
    }

    /// Rounds between the first and the last.
    #[must_use]
    pub fn middles(self) -> u32 {
        self.count().saturating_sub(2)
    }

    /// The micro-batches of a part as its tasks name them: a part that repeats names those of the
    /// first time that it runs.
    #[must_use]
    pub fn span(self, part: PartName) -> Range<u32> {
        match part {
            PartName::First | PartName::Steady | PartName::Evaluate => 0..self.each,
            PartName::Middle => self.each..2 * self.each,
            PartName::Last | PartName::LastFirst | PartName::LastEvaluate => {
                (self.count() - 1) * self.each..self.batch
            }
            PartName::Infer => 0..1,
            PartName::Drain => 0..0,
        }
    }

    /// The parts that make up a whole `First`, `Steady` or `Evaluate`, with how many micro-batches later
    /// than [`Rounds::span`] each is; any other part is itself. `unnormed`: the plan has a part
    /// [`PartName::LastFirst`], which ends a `First`.
    pub fn parts(
        self,
        part: PartName,
        unnormed: bool,
    ) -> impl Iterator<Item = (PartName, u32)> + use<> {
        let cut = matches!(
            part,
            PartName::First | PartName::Steady | PartName::Evaluate
        ) && !self.one();
        let count = if cut { self.count() } else { 1 };
        let each = self.each;
        (0..count).map(move |round| match part {
            _ if round == 0 => (part, 0),
            PartName::Evaluate if round + 1 == count => (PartName::LastEvaluate, 0),
            PartName::Evaluate => (part, round * each),
            PartName::First if round + 1 == count && unnormed => (PartName::LastFirst, 0),
            _ if round + 1 == count => (PartName::Last, 0),
            _ => (PartName::Middle, (round - 1) * each),
        })
    }

    /// The parts of a steady step, with how often each runs.
    #[must_use]
    pub fn steady(self) -> Vec<(PartName, u32)> {
        if self.one() {
            return vec![(PartName::Steady, 1)];
        }
        let mut parts = vec![(PartName::Steady, 1)];
        if self.middles() > 0 {
            parts.push((PartName::Middle, self.middles()));
        }
        parts.push((PartName::Last, 1));
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_step_name_every_micro_batch_once() {
        for batch in 1..40 {
            for each in 0..=batch + 1 {
                let rounds = Rounds::new(each, batch);
                for part in [PartName::First, PartName::Steady, PartName::Evaluate] {
                    let named: Vec<u32> = rounds
                        .parts(part, each.is_multiple_of(2))
                        .flat_map(|(p, shift)| rounds.span(p).map(move |m| m + shift))
                        .collect();
                    assert_eq!(named, (0..batch).collect::<Vec<_>>(), "{each} of {batch}");
                }
                let times: u32 = rounds.steady().iter().map(|p| p.1).sum();
                assert_eq!(times, rounds.count());
            }
        }
    }
}
