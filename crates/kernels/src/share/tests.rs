//! Shares of gradients against `f64`.

use super::*;
use crate::operands::Sum;
use crate::testing::{DTYPES, Rng, Tensor, close, everywhere};

#[test]
fn agrees_with_the_reference() {
    for (n, accumulate) in [(1, false), (129, true), (20_001, true), (1000, false)] {
        for dtype in DTYPES {
            let mut rng = Rng(n as u64);
            let (x, sum) = (rng.tensor(n, dtype, 2.0), rng.tensor(n, Dtype::F32, 1.0));
            let done = everywhere(|q| {
                let mut to = match accumulate {
                    true => sum.clone(),
                    false => Tensor::nan(n, Dtype::F32),
                };
                let (mut x, mut y) = (x.clone(), Tensor::nan(n, dtype));
                let o = Add {
                    sum: Sum {
                        to: to.on(q),
                        accumulate,
                    },
                    x: x.src(q),
                };
                add(q, o, n, dtype);
                let o = Round {
                    y: y.on(q),
                    sum: to.src(q),
                };
                round(q, o, n, dtype);
                (to, y)
            });
            let before = sum.values();
            let want = reference::add(accumulate.then_some(&before), &x.values());
            for (device, (added, rounded)) in &done {
                close(&format!("sum, {device}"), added, &want, 1e-6);
                close(
                    &format!("rounded, {device}"),
                    rounded,
                    &added.values(),
                    1e-6,
                );
            }
        }
    }
}
