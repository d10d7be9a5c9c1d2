//! How a block's two branches, attention and MLP, leave the residual stream and come back to it: behind a norm or as it
//! is, and added as it is, normed, or multiplied.

use lowtide_kernels::add;
use lowtide_workload::LocalId;

use super::block::Statistics;
use super::kind::{Kind, Product};
use super::{Builder, Phase, read, write};
use crate::families::{Layer, Norms};
use crate::params::Part;

/// The end of a branch that its last product does not add to the residual stream by itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    /// The last product's result, before it is added to the residual stream.
    made: LocalId,
    /// Of the norm behind it.
    stats: Option<Statistics>,
}

impl Builder<'_> {
    /// `y` = `factor`·`x` [+ `residual`].
    pub(super) fn add_up(
        &mut self,
        (phase, name): (Phase, &str),
        y: LocalId,
        x: LocalId,
        residual: Option<LocalId>,
        factor: f32,
    ) {
        let operands = add::Forward {
            y: write(y),
            x: read(x),
            residual: residual.map(read),
        };
        let width = self.model.sizes.hidden;
        self.op(phase, name, Kind::Add(operands, width, factor));
    }

    /// `y` = `x` + what the branch's last product makes of `input`: normed by `after` and multiplied where `layer`
    /// has it so.
    pub(super) fn branch_end(
        &mut self,
        layer: Layer,
        (product, after): (Part, Part),
        y: LocalId,
        (input, dims): (LocalId, Product),
        x: LocalId,
    ) -> Option<End> {
        if !layer.norms.after() && layer.residual == 1.0 {
            self.linear(product, y, input, dims, Some(x));
            return None;
        }
        let (name, rows) = (product.name(), self.model.rows(dims.cols));
        let made = self.local(&format!("{name}_made"), rows);
        self.linear(product, made, input, dims, None);
        let mut branch = made;
        let after = layer.norms.after().then_some(after);
        let stats = after.map(|after| {
            let stats = self.statistics(&format!("_{name}"), layer.norm);
            branch = self.local(after.name(), rows);
            self.norm(Phase::Forward, after, branch, stats, made);
            stats
        });
        let named = (Phase::Forward, &*format!("{name}.add"));
        self.add_up(named, y, branch, Some(x), layer.residual);
        Some(End { made, stats })
    }

    /// The gradient of what the branch's last product makes, from that of the sum, `dy`.
    pub(super) fn branch_end_backward(
        &mut self,
        layer: Layer,
        (product, after): (Part, Part),
        mut dy: LocalId,
        end: Option<End>,
    ) -> LocalId {
        let Some(End { made, stats }) = end else {
            return dy;
        };
        let (name, bytes) = (product.name(), self.unit.tensors[made].bytes);
        if layer.residual != 1.0 {
            let multiple = self.local(&format!("d_{name}_multiple"), bytes);
            let named = (Phase::Backward, &*format!("{name}.multiple"));
            self.add_up(named, multiple, dy, None, layer.residual);
            dy = multiple;
        }
        let Some(stats) = stats else { return dy };
        let d_made = self.local(&format!("d_{name}_made"), bytes);
        self.norm_backward(after, d_made, dy, (made, stats), None);
        d_made
    }

    /// Of a block that norms its sums, where a sum stands before its norm, and the norm's statistics.
    pub(super) fn sum(&mut self, which: &str, layer: Layer) -> Option<(LocalId, Statistics)> {
        (layer.norms == Norms::OfSum).then(|| {
            let bytes = self.model.rows(self.model.sizes.hidden);
            let sum = self.local(&format!("sum{which}"), bytes);
            (sum, self.statistics(which, layer.norm))
        })
    }

    /// `y` = the norm of a sum, where there is one.
    pub(super) fn sum_norm(&mut self, part: Part, y: LocalId, sum: Option<(LocalId, Statistics)>) {
        if let Some((sum, stats)) = sum {
            self.norm(Phase::Forward, part, y, stats, sum);
        }
    }

    /// The gradient of a sum from that of its norm, `dy`, or the latter itself where there is no norm.
    pub(super) fn sum_norm_backward(
        &mut self,
        part: Part,
        dy: LocalId,
        sum: Option<(LocalId, Statistics)>,
    ) -> LocalId {
        let Some((sum, stats)) = sum else { return dy };
        let (name, bytes) = (&self.unit.tensors[sum].name, self.unit.tensors[sum].bytes);
        let d_sum = self.local(&format!("d_{name}"), bytes);
        self.norm_backward(part, d_sum, dy, (sum, stats), None);
        d_sum
    }

    /// `dx` = the gradient of the residual stream where a branch leaves it: `residual`, and what comes through the
    /// branch, of whose first input the gradient is `dh`.
    pub(super) fn branch_start_backward(
        &mut self,
        norm: Part,
        dx: LocalId,
        dh: LocalId,
        (x, stats): (LocalId, Option<Statistics>),
        residual: LocalId,
    ) {
        match stats {
            Some(stats) => self.norm_backward(norm, dx, dh, (x, stats), Some(residual)),
            None => {
                let named = (Phase::Backward, &*format!("{}.add", norm.name()));
                self.add_up(named, dx, dh, Some(residual), 1.0);
            }
        }
    }
}
