//! The router on threads.

use super::{Backward, Forward, Parts, Routes};
use crate::number::{self, Number, exp};
use crate::operands::Views;
use crate::rows;

pub(super) fn forward<E: Number>(o: Forward<Views<'_>>, d: Routes) {
    let (k, n) = (d.chosen, d.sorted());
    let (tokens, rest) = o.routing.split_at(4 * n);
    let (places, rest) = rest.split_at(4 * n);
    let (choices, offsets) = rest.split_at(4 * n);
    // Weights stand in the order of choices first, in the room of tokens, which are as many numbers of as many bytes.
    let by_choice = &tokens;
    rows::each(d.rows, d.experts, |first, end| {
        let mut probabilities = vec![0.0; d.experts];
        for row in first..end {
            let logits = number::read::<E>(o.logits, row * d.experts, d.experts);
            // SAFETY: the task owns both, a row is one thread's.
            let (chosen, weights) = unsafe {
                let chosen = number::write::<i32>(&choices, row * k, k);
                (chosen, number::write::<f32>(by_choice, row * k, k))
            };
            choose(chosen, logits);
            softmax(&mut probabilities, logits);
            weigh(weights, chosen, &probabilities, d.renormalise);
        }
    });
    // One thread: a token takes some nanoseconds, and its products take microseconds.
    // SAFETY: the task owns all of it, and the threads above are done.
    let (choices, places, offsets, weights, tokens) = unsafe {
        (
            number::write::<i32>(&choices, 0, n),
            number::write::<i32>(&places, 0, n),
            number::write::<i32>(&offsets, 0, d.experts + 1),
            number::write::<f32>(&o.weights, 0, n),
            number::write::<i32>(&tokens, 0, n),
        )
    };
    offsets.fill(0);
    for &e in &*choices {
        offsets[e as usize + 1] += 1;
    }
    for e in 0..d.experts {
        offsets[e + 1] += offsets[e];
    }
    let mut next = offsets.to_vec();
    for i in 0..n {
        let at = &mut next[choices[i] as usize];
        places[i] = *at;
        // The weight's bits still stand where the tokens will.
        weights[*at as usize] = f32::from_bits(tokens[i] as u32);
        *at += 1;
    }
    for (i, &place) in places.iter().enumerate() {
        tokens[place as usize] = (i / k) as i32;
    }
}

/// The experts with the largest logits, the largest first; of equal ones the lower index, and what is no number last.
fn choose<E: Number>(chosen: &mut [i32], logits: &[E]) {
    for rank in 0..chosen.len() {
        let (taken, _) = chosen.split_at(rank);
        let mut best: Option<(usize, f32)> = None;
        for (e, x) in logits.iter().enumerate() {
            let x = x.widen();
            let over = best.is_none_or(|(_, b)| x > b || (b.is_nan() && !x.is_nan()));
            if over && !taken.contains(&(e as i32)) {
                best = Some((e, x));
            }
        }
        chosen[rank] = best.expect("no more choices than experts").0 as i32;
    }
}

/// `e^(x - max)`, and its sum.
fn softmax<E: Number>(p: &mut [f32], logits: &[E]) {
    let most = number::max(logits);
    let mut sum = 0.0;
    for (p, x) in p.iter_mut().zip(logits) {
        *p = exp(x.widen() - most);
        sum += *p;
    }
    p.iter_mut().for_each(|p| *p /= sum);
}

fn weigh(weights: &mut [f32], chosen: &[i32], p: &[f32], renormalise: bool) {
    for (w, &e) in weights.iter_mut().zip(chosen) {
        *w = p[e as usize];
    }
    if renormalise {
        let sum: f32 = weights.iter().sum();
        weights.iter_mut().for_each(|w| *w /= sum);
    }
}

pub(super) fn backward<E: Number>(o: Backward<Views<'_>>, d: Routes) {
    let k = d.chosen;
    let parts = Parts::of(o.routing, d);
    let d_weights = o.d_weights.read::<f32>();
    rows::each(d.rows, d.experts, |first, end| {
        let mut p = vec![0.0; d.experts];
        let (mut weights, mut dw) = (vec![0.0; k], vec![0.0; k]);
        for row in first..end {
            let logits = number::read::<E>(o.logits, row * d.experts, d.experts);
            let chosen = number::read::<i32>(parts.choices, row * k, k);
            let places = number::read::<i32>(parts.places, row * k, k);
            softmax(&mut p, logits);
            weigh(&mut weights, chosen, &p, d.renormalise);
            for (dw, &place) in dw.iter_mut().zip(places) {
                *dw = d_weights[place as usize];
            }
            let mean: f32 = weights.iter().zip(&dw).map(|(w, dw)| w * dw).sum();
            // SAFETY: the task owns it, a row is one thread's.
            let dx = unsafe { number::write::<E>(&o.d_logits, row * d.experts, d.experts) };
            // Without renormalising, what is not chosen has a share of the softmax too.
            for (dx, p) in dx.iter_mut().zip(&p) {
                *dx = E::narrow(if d.renormalise { 0.0 } else { -p * mean });
            }
            for ((&e, w), dw) in chosen.iter().zip(&weights).zip(&dw) {
                dx[e as usize] = E::narrow(w * (dw - mean));
            }
        }
    });
}
