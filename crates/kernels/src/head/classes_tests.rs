//! Losses of classes against `f64`.

use super::*;
use crate::head::reference;
use crate::operands::Planes;
use crate::testing::{DTYPES, Numbers, Rng, Scratch, Tensor, close, everywhere};

/// Two classes, odd numbers of them, and rows of whole vectors; labels on some rows.
#[test]
fn agrees_with_the_reference() {
    for (rows, classes, smoothing) in [(1, 2, 0.0), (33, 3, 0.0), (100, 8, 0.1), (257, 16, 0.0)] {
        for dtype in DTYPES {
            check(rows, classes, smoothing, dtype);
        }
    }
}

fn check(rows: usize, classes: usize, smoothing: f32, dtype: Dtype) {
    let d = Classes {
        rows,
        classes,
        smoothing,
    };
    let mut rng = Rng((rows * classes) as u64);
    let logits = rng.tensor(rows * classes, dtype, 4.0);
    let label = |row: usize, rng: &mut Rng| match row % 3 {
        0 => rng.below(classes) as i32,
        1 => -100,
        _ => -101,
    };
    let labels: Vec<i32> = (0..rows).map(|row| label(row, &mut rng)).collect();
    let scale = 0.25_f32;
    let done = everywhere(|q| {
        let (mut logits, mut labels) = (logits.clone(), Numbers::of(&labels));
        let mut d_logits = Tensor::nan(rows * classes, dtype);
        let mut wide = Tensor::nan(rows * classes, Dtype::F32);
        let [mut trained, mut alone] = [(); 2].map(|()| Numbers::of(&[f64::NAN; 2]));
        let mut ws = Scratch::new(workspace(&d, dtype));
        let (from, inputs) = (logits.src(q), Planes::all(labels.src(q)));
        let mut ws = ws.on(q);
        let o = Train {
            d_logits: d_logits.on(q),
            loss: trained.on(q),
            logits: from,
            inputs,
        };
        train(q, o, scale, &d, dtype, ws.again());
        let o = Loss {
            loss: alone.on(q),
            logits: from,
            inputs,
        };
        loss(q, o, &d, dtype, ws);
        let o = Values {
            values: wide.on(q),
            logits: from,
        };
        values(q, o, &d, dtype);
        if let Some(q) = q.cuda() {
            q.synchronize().unwrap();
        }
        (d_logits, wide, trained.values(), alone.values())
    });
    let (mut sum, mut sharp, mut counts) = (0.0, 0.0, Counts::default());
    let mut want = vec![0.0; rows * classes];
    let (all, e) = (logits.values(), f64::from(smoothing));
    for (row, label) in labels.iter().enumerate().filter(|(_, l)| **l >= 0) {
        let (row_logits, label) = (&all[row * classes..][..classes], *label as usize);
        let (loss, d) = reference::smoothed_row_of(row_logits, label, f64::from(scale), e);
        want[row * classes..][..classes].copy_from_slice(&d);
        sum += loss;
        sharp += reference::row_of(row_logits, label, 1.0).0;
        counts.rows += 1;
        counts.right += u32::from(reference::is_right(row_logits, label));
    }
    for (device, (d_logits, wide, trained, alone)) in done {
        close(&format!("{device} d_logits"), &d_logits, &want, 1e-6);
        close(&format!("{device} values"), &wide, &all, 0.0);
        assert_eq!(trained[1], f64::from(counts.rows), "{device}");
        assert_eq!(Counts::of(alone[1]), counts, "{device}");
        for (got, want) in [(trained[0], sum), (alone[0], sharp)] {
            assert!(
                (got - want).abs() < 1e-5 * want.max(1.0),
                "{device}: {got} for {want}"
            );
        }
    }
}
