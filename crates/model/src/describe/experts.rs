//! A mixture of experts in the place of a block's MLP: a router, rows gathered by expert, grouped products, and rows
//! added up by token.

use lowtide_kernels::{experts, grouped, route};
use lowtide_units::Bytes;
use lowtide_workload::LocalId;

use super::kind::{Kind, Product};
use super::{Builder, Phase, read, weight, write};
use crate::params::Part;

/// What forward makes and backward reads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Routed {
    logits: LocalId,
    routing: LocalId,
    weights: LocalId,
    /// What the experts read, sorted by expert.
    rows: LocalId,
    gate_up: LocalId,
    act: LocalId,
}

/// The products: of the router, and of each expert.
struct Products {
    router: Product,
    up: Product,
    down: Product,
}

impl Builder<'_> {
    fn products(&self) -> Products {
        let s = &self.model.sizes;
        let (rows, c, f) = (s.rows, s.hidden, s.intermediate);
        let experts = s.routes().experts;
        let product = |inner, cols| Product { rows, inner, cols };
        Products {
            router: product(c, experts),
            up: product(c, 2 * f),
            down: product(f, c),
        }
    }

    fn grouped(&mut self, part: Part, y: LocalId, x: LocalId, r: Routed, dims: Product) {
        let operands = grouped::Forward {
            y: write(y),
            x: read(x),
            w: weight(self.param(part)),
            routing: read(r.routing),
        };
        self.op(Phase::Forward, part.name(), Kind::Grouped(operands, dims));
    }

    /// The gradient of `part`, then `dx` = `dy` · `part`.
    fn grouped_backward(
        &mut self,
        part: Part,
        dx: LocalId,
        dy: LocalId,
        x: LocalId,
        (r, dims): (Routed, Product),
    ) {
        let (w, name, routing) = (self.param(part), part.name(), read(r.routing));
        if let Some(dw) = self.add(w) {
            let (dy, x) = (read(dy), read(x));
            let operands = grouped::Weight { dw, dy, x, routing };
            let kind = Kind::GroupedWeight(operands, dims);
            self.op(Phase::Backward, &format!("{name}.weight"), kind);
        }
        let operands = grouped::Input {
            dx: write(dx),
            dy: read(dy),
            w: weight(w),
            routing,
        };
        let kind = Kind::GroupedInput(operands, dims);
        self.op(Phase::Backward, &format!("{name}.input"), kind);
    }

    fn gather(&mut self, phase: Phase, y: LocalId, x: LocalId, routing: LocalId) {
        let (y, x, routing) = (write(y), read(x), read(routing));
        let kind = Kind::Gather(experts::Gather { y, x, routing });
        self.op(phase, "gather", kind);
    }

    /// `y` = `residual` + the sum of each token's rows of `x`.
    fn combine(&mut self, phase: Phase, y: LocalId, x: LocalId, residual: LocalId, r: Routed) {
        let operands = experts::Combine {
            y: write(y),
            x: read(x),
            residual: read(residual),
            routing: read(r.routing),
        };
        self.op(phase, "combine", Kind::Combine(operands));
    }

    /// `y` = `x` + what the experts make of `h`.
    pub(super) fn experts(&mut self, y: LocalId, h: LocalId, x: LocalId) -> Routed {
        let (model, products) = (self.model, self.products());
        let (c, f, routes) = (
            model.sizes.hidden,
            model.sizes.intermediate,
            model.sizes.routes(),
        );
        let r = Routed {
            logits: self.local("router_logits", model.rows(routes.experts)),
            routing: self.local("routing", Bytes(routes.bytes() as u64)),
            weights: self.local("router_weights", Bytes(4 * routes.sorted() as u64)),
            rows: self.local("sorted", model.sorted(c)),
            gate_up: self.local("gate_up", model.sorted(2 * f)),
            act: self.local("act", model.sorted(f)),
        };
        let made = self.local("experts_made", model.sorted(c));

        self.linear(Part::Router, r.logits, h, products.router, None);
        let operands = route::Forward {
            routing: write(r.routing),
            weights: write(r.weights),
            logits: read(r.logits),
        };
        self.op(Phase::Forward, "route", Kind::Route(operands));
        self.gather(Phase::Forward, r.rows, h, r.routing);
        self.grouped(Part::GateUp, r.gate_up, r.rows, r, products.up);
        let operands = experts::Act {
            y: write(r.act),
            gate_up: read(r.gate_up),
            weights: read(r.weights),
        };
        self.op(Phase::Forward, "swiglu", Kind::ExpertsAct(operands));
        self.grouped(Part::Down, made, r.act, r, products.down);
        self.combine(Phase::Forward, y, made, x, r);
        r
    }

    /// `dh` = the gradient of `h`, from that of `y`.
    pub(super) fn experts_backward(&mut self, dh: LocalId, dy: LocalId, h: LocalId, r: Routed) {
        let (model, products) = (self.model, self.products());
        let (c, f, routes) = (
            model.sizes.hidden,
            model.sizes.intermediate,
            model.sizes.routes(),
        );
        let d_made = self.local("d_experts_made", model.sorted(c));
        let d_act = self.local("d_act", model.sorted(f));
        let d_gate_up = self.local("d_gate_up", model.sorted(2 * f));
        let d_weights = self.local("d_router_weights", Bytes(4 * routes.sorted() as u64));
        let d_rows = self.local("d_sorted", model.sorted(c));
        let d_logits = self.local("d_router_logits", model.rows(routes.experts));
        let d_router = self.local("d_router", model.rows(c));

        self.gather(Phase::Backward, d_made, dy, r.routing);
        let down = (r, products.down);
        self.grouped_backward(Part::Down, d_act, d_made, r.act, down);
        let operands = experts::ActBackward {
            d_gate_up: write(d_gate_up),
            d_weights: write(d_weights),
            dy: read(d_act),
            gate_up: read(r.gate_up),
            weights: read(r.weights),
        };
        let kind = Kind::ExpertsActBackward(operands);
        self.op(Phase::Backward, "swiglu", kind);
        let up = (r, products.up);
        self.grouped_backward(Part::GateUp, d_rows, d_gate_up, r.rows, up);
        let operands = route::Backward {
            d_logits: write(d_logits),
            d_weights: read(d_weights),
            logits: read(r.logits),
            routing: read(r.routing),
        };
        self.op(Phase::Backward, "route", Kind::RouteBackward(operands));
        self.linear_backward(Part::Router, d_router, d_logits, h, products.router);
        self.combine(Phase::Backward, dh, d_rows, d_router, r);
    }
}
