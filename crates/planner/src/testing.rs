//! A small workload in the shape of a decoder, for the planner's own tests.

use lowtide_units::{Bytes, BytesPerSecond, Flops, FlopsPerSecond, List, Seconds};
use lowtide_workload::{
    Batch, Dtype, Local, LocalId, Op, OpId, Operand, Optimizer, Param, ParamId, Unit, UnitKind,
    What, Workload,
};

use crate::machine::{DiskRates, Machine, Shared, Source};
use crate::updates::{UpdateRate, Updates};

fn op(name: &str, operands: Vec<Operand>, workspace: u64, flops: f64) -> Op {
    Op {
        name: name.to_owned(),
        key: name.to_owned(),
        operands,
        workspace: Bytes(workspace),
        flops: Flops(flops),
        touched: Bytes(1 << 16),
    }
}

fn r(i: u16) -> Operand {
    Operand::read(What::Local(LocalId(i)))
}

fn w(i: u16) -> Operand {
    Operand::write(What::Local(LocalId(i)))
}

fn weight(p: u32) -> Operand {
    Operand::read(What::Weight(ParamId(p)))
}

const FIRST: ParamId = ParamId(0);

fn gradient(p: u32) -> Operand {
    Operand::gradient(ParamId(p))
}

const INPUTS: Operand = Operand {
    what: What::Inputs,
    access: lowtide_workload::Access::Read,
};

/// Embedding (tied), `layers` blocks of two products, head.
pub(crate) fn workload(layers: u32, accumulate: u32) -> Workload {
    let (c, f, v) = (64u64, 256u64, 1000u64);
    let batch = Batch {
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
        input: None,
        output: Some(LocalId(0)),
        d_output: Some(LocalId(1)),
        d_input: None,
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
            input: Some(LocalId(0)),
            output: Some(LocalId(4)),
            d_output: Some(LocalId(5)),
            d_input: Some(LocalId(9)),
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
        input: Some(LocalId(0)),
        output: None,
        d_output: None,
        d_input: Some(LocalId(3)),
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
            wanted.extend(unit.d_input.map(What::Local));
        }
        let mut kept = Vec::new();
        for mut op in std::mem::take(&mut unit.backward).into_iter().rev() {
            op.operands.retain(|o| match o.what {
                What::Gradient(p) => trained(p),
                _ => true,
            });
            let needed = |o: &Operand| match o.access {
                lowtide_workload::Access::Read => false,
                lowtide_workload::Access::Write => o.what == What::Loss || wanted.contains(&o.what),
                lowtide_workload::Access::Accumulate => true,
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

/// Rates of updates: so many parameters a second on the host.
pub(crate) fn updates(host: f64) -> Updates {
    Updates::of(UpdateRate {
        optimizer: Optimizer::default(),
        host,
        device: 1e10,
    })
}

/// Round rates.
pub(crate) fn machine() -> Machine {
    let share = |list: &[(&str, f64)]| list.iter().map(|&(k, v)| (k.to_owned(), v)).collect();
    Machine {
        name: "test".into(),
        date: "2026-11-21".into(),
        source: Source::Measured,
        note: String::new(),
        matmul_bf16: FlopsPerSecond(1e11),
        matmul_f32: FlopsPerSecond(1e11),
        device_memory: BytesPerSecond(1e10),
        op_overhead: Seconds(2e-6),
        h2d: BytesPerSecond(1e10),
        d2h: BytesPerSecond(1e10),
        copy_overhead: Seconds(2e-6),
        net: None,
        updates: updates(1e9),
        host_overhead: Seconds(2e-6),
        disk: Some(DiskRates {
            read: BytesPerSecond(2e9),
            write: BytesPerSecond(1e9),
            mixed: BytesPerSecond(1.2e9),
            latency: Seconds(1e-4),
            rated_writes: None,
        }),
        shared: vec![Shared {
            name: "host memory".into(),
            share: share(&[("host", 1.0), ("h2d", 0.2), ("d2h", 0.2), ("disk", 0.1)]),
        }],
        together: Vec::new(),
        device_reserve: Bytes(0),
        host_reserve: Bytes(0),
        cuda: false,
        ops: Default::default(),
    }
}

/// Bytes that a choice needs on each tier.
pub(crate) fn needs(w: &Workload, c: &crate::Choice, clip: crate::Clip) -> [u64; 3] {
    let rates = crate::draft::Rates::new(w, &machine());
    let d = crate::draft::draft(w, &rates, c, clip, &crate::plan::PartName::ALL);
    crate::layout::layout(&d.slots, crate::plan::PartName::ALL.len()).totals
}
