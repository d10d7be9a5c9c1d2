//! Examples that are kept for evaluation instead of being trained on (`data.eval_split`).

use lowtide_config::Run;
use lowtide_data::{DataError, Dataset};
use lowtide_random::Philox;

use super::SPLIT_STREAM;

/// The examples to train on, and those to evaluate on.
///
/// # Errors
/// [`DataError::SplitOfOne`], [`DataError::SplitOfAll`]: none would be left to train on.
pub(super) fn of(run: &Run, data: &Dataset) -> Result<(Dataset, Dataset), DataError> {
    let (n, split) = (data.len(), run.data.eval_split);
    if n < 2 {
        return Err(DataError::SplitOfOne {
            path: data.path().to_owned(),
            share: split,
        });
    }
    if split >= n as f64 {
        return Err(DataError::SplitOfAll {
            path: data.path().to_owned(),
            split: split as u64,
            n: n as u64,
        });
    }
    let held = match split >= 1.0 {
        true => split as usize,
        false => ((n as f64 * split).ceil() as usize).clamp(1, n - 1),
    };
    let order = Philox::new(run.seed, SPLIT_STREAM).permutation(n);
    let mut mine: Vec<usize> = order[held..].iter().map(|&i| i as usize).collect();
    let mut theirs: Vec<usize> = order[..held].iter().map(|&i| i as usize).collect();
    // In the order of the file, so that only the choice is random.
    mine.sort_unstable();
    theirs.sort_unstable();
    Ok((data.select(&mine)?, data.select(&theirs)?))
}
