//! Results of a submitted part.

use lowtide_kernels::head::Counts;

/// What came out of one submitted part.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Sum of the losses of supervised tokens, and their number, of each micro-batch.
    pub losses: Vec<(f64, f64)>,
    /// Of an evaluation: of these tokens those whose label is the most likely one, of each micro-batch.
    pub right: Vec<u32>,
    /// Global norm of the gradients before clipping (training only).
    pub norm: f64,
    /// The update was left out because the norm was not finite, or a spike.
    pub skipped: bool,
    /// Where the norm is a spike: how many times the median of those before it.
    pub spike: Option<f64>,
    /// Logits at the marked positions, a row of V for each span of a row of tokens (inference only).
    pub logits: Vec<f32>,
    /// Something was not finite, or a spike that ends the run: what.
    pub nonfinite: Option<String>,
    /// All of the above is there.
    pub done: bool,
}

impl Outcome {
    /// With the counts of an evaluation apart, which are in one word.
    pub(super) fn evaluated(mut self) -> Self {
        for (_, count) in &mut self.losses {
            let counts = Counts::of(*count);
            *count = f64::from(counts.rows);
            self.right.push(counts.right);
        }
        self
    }

    /// Mean loss of a supervised token.
    #[must_use]
    pub fn loss(&self) -> f64 {
        let (sum, count) = self
            .losses
            .iter()
            .fold((0.0, 0.0), |a, l| (a.0 + l.0, a.1 + l.1));
        sum / count
    }
}
