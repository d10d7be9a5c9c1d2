//! What a model that classifies got right: loss, accuracy and F1 from the logits of each document.

use lowtide_data::Micro;

/// Documents that were classified, by class.
#[derive(Clone, Debug, Default)]
pub(crate) struct Classified {
    loss: f64,
    n: u64,
    /// By class: documents that are of it, that were taken to be of it, and of both.
    of: Vec<[u64; 3]>,
}

impl Classified {
    /// Adds a micro-batch: a row of logits for each of its tokens.
    ///
    /// # Panics
    /// When there are fewer logits, or a label beyond them.
    pub fn add(&mut self, micro: &Micro, logits: &[f32]) {
        let classes = logits.len() / micro.labels.len();
        self.of.resize(classes, [0; 3]);
        let rows = logits.chunks_exact(classes).zip(&micro.labels);
        for (row, label) in rows.filter_map(|(row, l)| Some((row, usize::try_from(*l).ok()?))) {
            let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = row.iter().map(|x| f64::from(x - most).exp()).sum();
            self.loss += f64::from(most) + sum.ln() - f64::from(row[label]);
            self.n += 1;
            // The first of those that are as large, as everywhere.
            let taken = row.iter().position(|x| *x == most).unwrap_or(0);
            self.of[label][0] += 1;
            self.of[taken][1] += 1;
            self.of[label][2] += u64::from(taken == label);
        }
    }

    /// Mean loss of a document.
    pub fn loss(&self) -> f64 {
        self.loss / self.n as f64
    }

    /// Share of documents whose class has the largest logit.
    pub fn accuracy(&self) -> f64 {
        self.of.iter().map(|of| of[2]).sum::<u64>() as f64 / self.n as f64
    }

    /// Of two classes the F1 of the second one; of more the mean of all that occur, as a label or by mistake.
    pub fn f1(&self) -> f64 {
        let f1 = |[are, taken, both]: &[u64; 3]| match are + taken {
            0 => 0.0,
            all => 2.0 * *both as f64 / all as f64,
        };
        if let [_, second] = &self.of[..] {
            return f1(second);
        }
        let there: Vec<f64> = self
            .of
            .iter()
            .filter(|of| of[0] + of[1] > 0)
            .map(f1)
            .collect();
        there.iter().sum::<f64>() / there.len().max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Labels and the class with the largest logit, one document a token.
    fn classified(classes: usize, pairs: &[(i32, usize)]) -> Classified {
        let mut micro = Micro::random(1, pairs.len() as u32, 10, 0);
        micro.labels = pairs.iter().map(|p| p.0).collect();
        let row = |taken: usize| (0..classes).map(move |c| if c == taken { 2.0 } else { 0.0 });
        let logits: Vec<f32> = pairs.iter().flat_map(|p| row(p.1)).collect();
        let mut all = Classified::default();
        all.add(&micro, &logits);
        all
    }

    /// Figures of scikit-learn 1.5: `f1_score` as it is and with `average="macro"`.
    #[test]
    fn figures_are_those_of_scikit_learn() {
        let two = classified(
            2,
            &[(0, 0), (1, 1), (1, 0), (0, 1), (1, 1), (-100, 1), (-101, 0)],
        );
        assert_eq!(two.accuracy(), 0.6);
        assert!((two.f1() - 2.0 / 3.0).abs() < 1e-12, "{}", two.f1());
        let hit = (2f64.exp() + 1.0).ln() - 2.0;
        let loss = (3.0 * hit + 2.0 * (hit + 2.0)) / 5.0;
        assert!(
            (two.loss() - loss).abs() < 1e-6,
            "{} for {loss}",
            two.loss()
        );
        // Class 3 does not occur, class 2 by mistake alone.
        let four = classified(4, &[(0, 0), (0, 0), (0, 1), (1, 1), (1, 2)]);
        assert_eq!(four.accuracy(), 0.6);
        let want = (0.8 + 0.5 + 0.0) / 3.0;
        assert!((four.f1() - want).abs() < 1e-12, "{}", four.f1());
    }
}
