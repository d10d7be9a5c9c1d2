//! Attention over kept keys against `f64`.

use lowtide_workload::Mask;

use super::super::{Engine, reference};
use super::*;
use crate::operands::Planes;
use crate::testing::{DTYPES, Numbers, Rng, Scratch, Tensor, close, everywhere};

/// A step: where each row belongs, and how far each place is filled before.
struct Case {
    a: Attn,
    /// Place and position of each row.
    rows: Vec<(i32, i32)>,
    filled: Vec<usize>,
}

impl Case {
    /// Two places that are continued, one that begins, and padding; rows are in no order.
    fn new(heads: usize, kv_heads: usize, head_dim: usize, keys: usize) -> Self {
        let a = Attn {
            batch: 3,
            seq: keys,
            heads,
            kv_heads,
            head_dim,
            scale: 1.0 / (head_dim as f32).sqrt(),
            cap: None,
            mask: Mask::Causal,
            engine: Engine::Own,
        };
        let (long, last) = (keys as i32 - 4, keys as i32 - 1);
        let rows = vec![
            (2, last),
            (0, 1),
            (0, 0),
            (-1, 0),
            (1, long + 1),
            (0, 2),
            (1, long),
        ];
        let filled = vec![0, long as usize, last as usize];
        Self { a, rows, filled }
    }

    fn qkv(&self, dtype: Dtype) -> Tensor {
        let a = &self.a;
        Rng((a.seq * 131 + a.head_dim + a.heads) as u64).tensor(
            self.rows.len() * a.width(),
            dtype,
            3.0,
        )
    }

    /// The cache before: poison wherever nothing is kept yet.
    fn cache(&self, dtype: Dtype) -> Tensor {
        let a = &self.a;
        let mut rng = Rng((a.seq * 7 + a.head_dim) as u64);
        let values = (0..2 * half(a)).map(|i| {
            let (position, line) = (i / a.head_dim % a.seq, i / a.head_dim / a.seq);
            let kept = position < self.filled[line / a.kv_heads % a.batch];
            let x = 3.0 * rng.signed();
            if kept { x } else { f64::NAN }
        });
        Tensor::of(&values.collect::<Vec<_>>(), dtype)
    }

    /// What comes out, and the cache behind it.
    fn run(&self, q: &Queue, dtype: Dtype) -> (Tensor, Tensor) {
        let (a, n) = (&self.a, self.rows.len());
        let mut out = Tensor::nan(n * a.heads * a.head_dim, dtype);
        let (mut qkv, mut cache) = (self.qkv(dtype), self.cache(dtype));
        let of =
            |i: fn(&(i32, i32)) -> i32| Numbers::of(&self.rows.iter().map(i).collect::<Vec<_>>());
        let (mut places, mut positions) = (of(|r| r.0), of(|r| r.1));
        let mut ws = Scratch::new(cached_workspace(a, n, q.make()));
        let positions = positions.src(q);
        let o = Cached {
            out: out.on(q),
            cache: cache.on(q),
            qkv: qkv.src(q),
            inputs: Planes {
                doc_start: places.src(q),
                ..Planes::all(positions)
            },
        };
        cached(q, o, a, n, dtype, ws.on(q));
        if let Some(q) = q.cuda() {
            q.synchronize().expect("the device does it");
        }
        (out, cache)
    }

    #[track_caller]
    fn check(&self) {
        for dtype in DTYPES {
            let (qkv, before) = (self.qkv(dtype).values(), self.cache(dtype).values());
            let (want, after) = reference::cached(&qkv, &before, &self.rows, &self.a);
            for (device, (out, cache)) in everywhere(|q| self.run(q, dtype)) {
                let what = format!("out of {:?} {dtype:?} on {device}", self.a);
                close(&what, &out, &want, 1e-5);
                let same = cache.values().into_iter().zip(&after);
                let mut same =
                    same.map(|(have, want)| have == *want || have.is_nan() && want.is_nan());
                assert!(same.all(|s| s), "the cache of {what}");
            }
        }
    }
}

#[test]
fn kept_keys_agree_with_the_reference() {
    // Groups of one, of more and of more than a block takes; heads that 16-byte loads do not reach; several runs.
    for (heads, kv_heads, head_dim, keys) in [
        (2, 2, 8, 9),
        (6, 2, 5, 40),
        (9, 1, 16, 131),
        (4, 1, 64, 300),
        (2, 1, 136, 12),
    ] {
        let case = Case::new(heads, kv_heads, head_dim, keys);
        case.check();
        for (mask, cap) in [
            (Mask::Window(1), None),
            (Mask::Window(7), Some(2.5)),
            (Mask::Window(129), None),
        ] {
            let a = Attn {
                mask,
                cap,
                ..case.a
            };
            Case {
                a,
                rows: case.rows.clone(),
                filled: case.filled.clone(),
            }
            .check();
        }
    }
}

#[test]
fn rows_of_a_step_do_not_show_in_each_others_bits() {
    let all = Case::new(4, 2, 16, 150);
    for dtype in DTYPES {
        let runs = everywhere(|q| {
            // The last two rows, and then each of them on its own behind what the step before has kept.
            let (out, cache) = all.run(q, dtype);
            (out.values(), cache)
        });
        for (device, (together, _)) in runs {
            let row = all.a.heads * all.a.head_dim;
            let alone = Case {
                a: all.a,
                rows: all.rows[..1].to_vec(),
                filled: all.filled.clone(),
            };
            let first = everywhere(|q| alone.run(q, dtype).0.values());
            let first = first.into_iter().find(|(name, _)| *name == device);
            let (_, first) = first.expect("the same devices");
            assert_eq!(first, together[..row], "{dtype:?} on {device}");
        }
    }
}

#[test]
#[should_panic(expected = "position 9 of place 1 in a cache of 3 by 9")]
fn a_position_that_the_cache_has_not_is_no_position() {
    let mut case = Case::new(2, 2, 8, 9);
    case.rows[0] = (1, 9);
    case.run(&Queue::new("test", 1), Dtype::F32);
}
