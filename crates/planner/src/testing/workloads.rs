//! Small workloads: one in the shape of a decoder, what is like it, and one of two stacks. For the planner's tests, and
//! for the executor's (`crates/executor/tests/graph.rs` includes this file).

use lowtide_units::{Bytes, Flops, List};
use lowtide_workload::{
    Access, Batch, Dtype, Input, Local, LocalId, Op, OpId, Operand, Optimizer, Param, ParamId,
    Unit, UnitKind, What, Workload,
};

pub(crate) fn op(name: &str, operands: Vec<Operand>, workspace: u64, flops: f64) -> Op {
    Op {
        name: name.to_owned(),
        key: name.to_owned(),
        operands,
        workspace: Bytes(workspace),
        flops: Flops(flops),
        touched: Bytes(1 << 16),
    }
}

pub(crate) fn r(i: u16) -> Operand {
    Operand::read(What::Local(LocalId(i)))
}

pub(crate) fn w(i: u16) -> Operand {
    Operand::write(What::Local(LocalId(i)))
}

pub(crate) fn weight(p: u32) -> Operand {
    Operand::read(What::Weight(ParamId(p)))
}

/// A unit's output as local tensor `tensor`, its gradient as `gradient`.
pub(crate) fn input(unit: u32, tensor: u16, gradient: u16) -> Input {
    Input {
        unit,
        tensor: LocalId(tensor),
        gradient: LocalId(gradient),
    }
}

const FIRST: ParamId = ParamId(0);

pub(crate) fn gradient(p: u32) -> Operand {
    Operand::gradient(ParamId(p))
}

const INPUTS: Operand = Operand {
    what: What::Inputs,
    access: Access::Read,
};

/// Embedding (tied), `layers` blocks of two products, head. Long because it is a table.
pub(crate) fn workload(layers: u32, accumulate: u32) -> Workload {
    let (c, f, v) = (64u64, 256u64, 1000u64);
    let batch = Batch {
        target: 0,
        micro_batch: 2,
        seq: 16,
        accumulate,
    };
    let rows = batch.rows();
    let mut params = vec![Param {
        frozen: false,
        kind: lowtide_workload::ParamKind::Own,
        name: "embedding".into(),
        unit: 0,
        elements: v * c,
        cols: c,
        parts: Vec::new(),
        decay: true,
    }];
    let local = |name: &str, n: u64| Local {
        name: name.into(),
        bytes: Bytes(rows * n * 2),
    };
    let mut units = vec![Unit {
        name: "embedding".into(),
        kind: UnitKind::Embedding,
        params: ParamId(0)..ParamId(1),
        tensors: vec![local("y", c), local("dy", c)].into(),
        inputs: Vec::new(),
        output: Some(LocalId(0)),
        d_output: Some(LocalId(1)),
        logits: None,
        forward: vec![op("embed", vec![w(0), INPUTS, weight(0)], 0, 0.0)].into(),
        backward: vec![op("embed'", vec![gradient(0), r(1), INPUTS], 512, 0.0)].into(),
        evaluate: List::default(),
        cache: Bytes::ZERO,
        infer: List::default(),
    }];
    for l in 0..layers {
        let p = params.len() as u32;
        let unit = l + 1;
        params.push(Param {
            frozen: false,
            kind: lowtide_workload::ParamKind::Own,
            name: format!("{l}.norm"),
            unit,
            elements: c,
            cols: 1,
            parts: Vec::new(),
            decay: false,
        });
        params.push(Param {
            frozen: false,
            kind: lowtide_workload::ParamKind::Own,
            name: format!("{l}.up"),
            unit,
            elements: f * c,
            cols: c,
            parts: Vec::new(),
            decay: true,
        });
        params.push(Param {
            frozen: false,
            kind: lowtide_workload::ParamKind::Own,
            name: format!("{l}.down"),
            unit,
            elements: f * c,
            cols: f,
            parts: Vec::new(),
            decay: true,
        });
        // x 0, h 1, up 2, act 3, y 4, dy 5, dact 6, dup 7, dh 8, dx 9
        let tensors = vec![
            local("x", c),
            local("h", c),
            local("up", f),
            local("act", f),
            local("y", c),
            local("dy", c),
            local("dact", f),
            local("dup", f),
            local("dh", c),
            local("dx", c),
        ];
        let flops = 2.0 * (rows * c * f) as f64;
        units.push(Unit {
            name: format!("blocks.{l}"),
            kind: UnitKind::Block,
            params: ParamId(p)..ParamId(p + 3),
            tensors: tensors.into(),
            inputs: vec![input(l, 0, 9)],
            output: Some(LocalId(4)),
            d_output: Some(LocalId(5)),
            logits: None,
            forward: vec![
                op("norm", vec![w(1), r(0), weight(p)], 0, 0.0),
                op("up", vec![w(2), r(1), weight(p + 1)], 4096, flops),
                op("act", vec![w(3), r(2)], 0, 0.0),
                op("down", vec![w(4), r(3), r(0), weight(p + 2)], 4096, flops),
            ]
            .into(),
            backward: vec![
                op("down'", vec![w(6), r(5), weight(p + 2)], 4096, flops),
                op("down''", vec![gradient(p + 2), r(5), r(3)], 4096, flops),
                op("act'", vec![w(7), r(6), r(2)], 0, 0.0),
                op("up'", vec![w(8), r(7), weight(p + 1)], 4096, flops),
                op("up''", vec![gradient(p + 1), r(7), r(1)], 4096, flops),
                op(
                    "norm'",
                    vec![w(9), r(8), r(0), r(5), weight(p), gradient(p)],
                    64,
                    0.0,
                ),
            ]
            .into(),
            evaluate: List::default(),
            cache: Bytes::ZERO,
            infer: List::default(),
        });
    }
    let p = params.len() as u32;
    let unit = layers + 1;
    params.push(Param {
        frozen: false,
        kind: lowtide_workload::ParamKind::Own,
        name: "head.norm".into(),
        unit,
        elements: c,
        cols: 1,
        parts: Vec::new(),
        decay: false,
    });
    let loss = Operand::write(What::Loss);
    let mut tensors = vec![local("x", c), local("h", c), local("dh", c), local("dx", c)];
    tensors.push(Local {
        name: "logits".into(),
        bytes: Bytes(2 * v * 4),
    });
    units.push(Unit {
        name: "head".into(),
        kind: UnitKind::Head,
        params: ParamId(p)..ParamId(p + 1),
        tensors: tensors.into(),
        inputs: vec![input(layers, 0, 3)],
        output: None,
        d_output: None,
        logits: Some(LocalId(4)),
        forward: List::default(),
        backward: vec![
            op("norm", vec![w(1), r(0), weight(p)], 0, 0.0),
            op(
                "loss",
                vec![w(2), gradient(0), loss, r(1), weight(0), INPUTS],
                8192,
                1e6,
            ),
            op(
                "norm'",
                vec![w(3), r(2), r(0), weight(p), gradient(p)],
                64,
                0.0,
            ),
        ]
        .into(),
        evaluate: vec![
            op("norm", vec![w(1), r(0), weight(p)], 0, 0.0),
            op("loss only", vec![loss, r(1), weight(0), INPUTS], 8192, 1e6),
        ]
        .into(),
        cache: Bytes::ZERO,
        infer: vec![
            op("norm", vec![w(1), r(0), weight(p)], 0, 0.0),
            op("logits", vec![w(4), r(1), weight(0), INPUTS], 8192, 1e6),
        ]
        .into(),
    });
    Workload {
        model: "test".into(),
        batch,
        precision: Dtype::Bf16,
        gradient: Dtype::Bf16,
        optimizer: Optimizer::default(),
        ranks: 1,
        leaves: 1,
        units,
        params: params.into(),
        model_flops: Flops(1e9),
    }
}

/// A workload of which some parameters are frozen: as a model describes it, without the operations of backward of
/// which then nothing comes.
pub(crate) fn frozen(mut w: Workload, off: &[u32]) -> Workload {
    for &p in off {
        w.params[ParamId(p)].frozen = true;
    }
    let trained = |p: ParamId| !off.contains(&p.0);
    let all = w.params.pairs().filter(|&(p, _)| trained(p));
    let lowest = all.map(|(_, param)| param.unit);
    let lowest = lowest.min().expect("something is trained") as usize;
    for (u, unit) in w.units.iter_mut().enumerate() {
        let mut wanted: Vec<What> = Vec::new();
        if u > lowest {
            wanted.extend(unit.inputs.iter().map(|i| What::Local(i.gradient)));
        }
        let mut kept = Vec::new();
        for mut op in std::mem::take(&mut unit.backward).into_iter().rev() {
            op.operands.retain(|o| match o.what {
                What::Gradient(p) => trained(p),
                _ => true,
            });
            let needed = |o: &Operand| match o.access {
                Access::Read => false,
                Access::Write => o.what == What::Loss || wanted.contains(&o.what),
                Access::Accumulate => true,
            };
            if op.operands.iter().any(needed) {
                wanted.extend(op.operands.iter().map(|o| o.what));
                kept.push(op);
            }
        }
        unit.backward = kept.into_iter().rev().collect();
    }
    w
}

/// As [`workload`], with a matrix of the head's own.
pub(crate) fn untied(layers: u32, accumulate: u32) -> Workload {
    let mut w = workload(layers, accumulate);
    let unit = w.units.len() - 1;
    let own = Param {
        name: "head.own".into(),
        unit: unit as u32,
        ..w.params[FIRST].clone()
    };
    let own = w.params.push(own);
    let head = &mut w.units[unit];
    head.params.end.0 += 1;
    let lists = [&mut head.backward, &mut head.evaluate, &mut head.infer];
    for o in lists.into_iter().flatten().flat_map(|op| &mut op.operands) {
        match o.what {
            What::Weight(FIRST) => o.what = What::Weight(own),
            What::Gradient(FIRST) => o.what = What::Gradient(own),
            _ => {}
        }
    }
    w
}

/// As [`workload`], with positions in the embedding that the head has no part in.
pub(crate) fn with_positions(layers: u32, accumulate: u32) -> Workload {
    let mut w = workload(layers, accumulate);
    let positions = Param {
        name: "positions".into(),
        ..w.params[FIRST].clone()
    };
    let mut params = w.params.to_vec();
    params.insert(1, positions);
    w.params = params.into();
    w.units[0].params.end.0 += 1;
    for unit in &mut w.units[1..] {
        unit.params.start.0 += 1;
        unit.params.end.0 += 1;
    }
    for unit in &mut w.units {
        let lists = [
            &mut unit.forward,
            &mut unit.backward,
            &mut unit.evaluate,
            &mut unit.infer,
        ];
        let operations = lists.into_iter().flatten();
        for o in operations.flat_map(|op| &mut op.operands) {
            match &mut o.what {
                What::Weight(p) | What::Gradient(p) if *p > FIRST => p.0 += 1,
                _ => {}
            }
        }
    }
    let embedding = &mut w.units[0];
    embedding.forward[OpId(0)].operands.push(weight(1));
    embedding.backward[OpId(0)].operands.push(gradient(1));
    w
}

/// Adds the units of a workload one by one, with their parameters.
struct Builder {
    units: Vec<Unit>,
    params: Vec<Param>,
    like: Workload,
}

impl Builder {
    /// Names a unit's parameters anew: those of its own become the next ones.
    fn push(&mut self, mut unit: Unit) -> u32 {
        let this = self.units.len() as u32;
        let (from, to) = (unit.params.start.0, self.params.len() as u32);
        for p in lowtide_units::ids(&unit.params) {
            let param = &self.like.params[p];
            self.params.push(Param {
                name: format!("{this}.{}", param.name),
                unit: this,
                ..param.clone()
            });
        }
        let own = unit.params.clone();
        let lists = [
            &mut unit.forward,
            &mut unit.backward,
            &mut unit.evaluate,
            &mut unit.infer,
        ];
        for o in lists.into_iter().flatten().flat_map(|op| &mut op.operands) {
            match &mut o.what {
                What::Weight(p) | What::Gradient(p) if own.contains(p) => p.0 = p.0 - from + to,
                _ => {}
            }
        }
        unit.params = ParamId(to)..ParamId(self.params.len() as u32);
        self.units.push(unit);
        this
    }

    /// A block that reads `below`, and what `beside` puts out as its second input: the last one to read that, or not.
    fn block(&mut self, below: u32, beside: u32, last: bool) -> u32 {
        let mut unit = self.like.units[1].clone();
        let bytes = self.output(beside);
        let more = unit.tensors.push(Local {
            name: "beside".into(),
            bytes,
        });
        let d_more = unit.tensors.push(Local {
            name: "d_beside".into(),
            bytes,
        });
        unit.forward[OpId(1)]
            .operands
            .push(Operand::read(What::Local(more)));
        let access = if last {
            Access::Write
        } else {
            Access::Accumulate
        };
        let what = What::Local(d_more);
        let hand = vec![Operand { what, access }, Operand::read(What::Local(more))];
        unit.backward.push(op("beside'", hand, 0, 1e5));
        unit.inputs = vec![input(below, 0, 9), input(beside, more.0, d_more.0)];
        self.push(unit)
    }

    /// Bytes of what a unit puts out.
    fn output(&self, unit: u32) -> Bytes {
        let unit = &self.units[unit as usize];
        unit.tensors[unit.output.expect("it has one")].bytes
    }

    /// An embedding of the first one's table.
    fn embedding(&mut self) -> u32 {
        let mut unit = self.like.units[0].clone();
        if !self.units.is_empty() {
            unit.params = ParamId(0)..ParamId(0);
        }
        self.push(unit)
    }
}

fn simple(name: &str, kind: UnitKind, bytes: [u64; 2], ops: [Op; 2]) -> Unit {
    let [forward, backward] = ops;
    let local = |(name, bytes): (&str, u64)| Local {
        name: name.into(),
        bytes: Bytes(bytes),
    };
    Unit {
        name: name.into(),
        kind,
        params: ParamId(0)..ParamId(0),
        tensors: [
            ("y", bytes[0]),
            ("dy", bytes[0]),
            ("x", bytes[1]),
            ("dx", bytes[1]),
        ]
        .map(local)
        .to_vec()
        .into(),
        inputs: Vec::new(),
        output: Some(LocalId(0)),
        d_output: Some(LocalId(1)),
        logits: None,
        cache: Bytes::ZERO,
        forward: vec![forward].into(),
        backward: vec![backward].into(),
        evaluate: List::default(),
        infer: List::default(),
    }
}

/// Two stacks, of two blocks and of three. Those of the first read a small table that a unit of its own makes of a
/// parameter; those of the second read what the first stack puts out in the end. Both embeddings read one table, of
/// which the head has its own or not.
pub(crate) fn stacks(accumulate: u32, tied: bool) -> Workload {
    let like = match tied {
        true => workload(1, accumulate),
        false => untied(1, accumulate),
    };
    let mut b = Builder {
        units: Vec::new(),
        params: Vec::new(),
        like,
    };
    let mut below = b.embedding();
    let norm = b.like.units[1].params.start;
    let table = {
        let made = op("table", vec![w(0), weight(norm.0)], 0, 0.0);
        let back = op("table'", vec![gradient(norm.0), r(1)], 0, 0.0);
        let mut unit = simple("table", UnitKind::Embedding, [256, 0], [made, back]);
        unit.params = norm..ParamId(norm.0 + 1);
        b.push(unit)
    };
    for last in [false, true] {
        below = b.block(below, table, last);
    }
    let end = {
        let bytes = b.output(below).0;
        let made = op("end", vec![w(0), r(2)], 0, 0.0);
        let back = op("end'", vec![w(3), r(1), r(2)], 0, 0.0);
        let mut unit = simple("end", UnitKind::Block, [2 * bytes, bytes], [made, back]);
        unit.inputs = vec![input(below, 2, 3)];
        b.push(unit)
    };
    below = b.embedding();
    for last in [false, false, true] {
        below = b.block(below, end, last);
    }
    let mut head = b.like.units[2].clone();
    head.inputs = vec![input(below, 0, 3)];
    b.push(head);
    Workload {
        units: b.units,
        params: b.params.into(),
        ..b.like
    }
}
