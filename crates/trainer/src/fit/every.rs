//! After which steps something is due: each so many steps, or each so many epochs.

use lowtide_config::{LastBatch, Run};
use lowtide_data::Batches;

use crate::error::TrainError;

/// After which steps something is due.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Every {
    /// Behind no step.
    Never,
    /// Each so many steps, at least 1.
    Steps(u64),
    /// Each so many steps, of which a part counts: behind the step with which each is complete.
    Parts(f64),
}

impl Every {
    /// `epochs` win, of a run whose batches are these.
    ///
    /// # Errors
    /// How long an epoch is, is not known.
    pub fn of(
        run: &Run,
        batches: &Batches,
        (steps, epochs): (u64, Option<f64>),
    ) -> Result<Self, TrainError> {
        Ok(match (steps, epochs) {
            (_, Some(epochs)) => Self::Parts(epochs * epoch(run, batches)?),
            (0, None) => Self::Never,
            (steps, None) => Self::Steps(steps),
        })
    }

    /// Whether it is due behind this step, from 1.
    pub fn due(self, step: u64) -> bool {
        match self {
            Self::Never => false,
            Self::Steps(every) => step > 0 && step.is_multiple_of(every),
            // Sums of shares such as 0.1 are off by a few last bits.
            Self::Parts(every) => {
                let complete = |step: u64| (step as f64 / every * (1.0 + 1e-12)).floor();
                step > 0 && complete(step) > complete(step - 1)
            }
        }
    }
}

/// Steps of an epoch, of which the last may belong to the next one in part.
fn epoch(run: &Run, batches: &Batches) -> Result<f64, TrainError> {
    Ok(match run.train.last_batch {
        LastBatch::Fill => batches.rows_per_epoch()? as f64 / batches.rows_per_batch() as f64,
        LastBatch::Keep | LastBatch::Drop => batches.batches_per_epoch()? as f64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_due_with_the_step_that_completes_a_part() {
        let due = |every: Every, to: u64| (0..=to).filter(|&s| every.due(s)).collect::<Vec<_>>();
        assert!(due(Every::Never, 9).is_empty());
        assert_eq!(due(Every::Steps(4), 9), [4, 8]);
        assert_eq!(due(Every::Parts(13.5), 60), [14, 27, 41, 54]);
        assert_eq!(due(Every::Parts(0.25), 3), [1, 2, 3]);
        // Ten times each of 70 steps by tenths, which have no exact number.
        let tenths: Vec<u64> = (1..=10).map(|i| 7 * i).collect();
        assert_eq!(due(Every::Parts(0.1 * 70.0), 70), tenths);
        let thirds = 0.1 * 3.0 * 10.0;
        assert_eq!(due(Every::Parts(thirds), 9), [3, 6, 9]);
    }
}
