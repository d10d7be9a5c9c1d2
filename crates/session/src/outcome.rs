//! Results of a submitted part.

/// What came out of one submitted part.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Sum of the losses of supervised tokens, and their number, of each micro-batch.
    pub losses: Vec<(f64, f64)>,
    /// Global norm of the gradients before clipping (training only).
    pub norm: f64,
    /// The update was left out because the norm was not finite.
    pub skipped: bool,
    /// Logits at the marked positions, a row of V for each span of a row of tokens (inference only).
    pub logits: Vec<f32>,
    /// Something was not finite: what.
    pub nonfinite: Option<String>,
    /// All of the above is there.
    pub done: bool,
}

impl Outcome {
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
