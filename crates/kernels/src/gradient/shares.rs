//! A rank's share of a gradient, from what all ranks have of it.
//!
//! Bound: bytes over memory rate: for each rank but the first eight read and four written a number.

use lowtide_device::{Dst, Queue, Src};
use rayon::prelude::*;

use super::cuda;
use crate::number;

/// Numbers of one task.
const CHUNK: usize = 1 << 16;

/// `sum = ((first + second) + third) + ...`: f32 numbers of so many ranks, which lie one rank behind the other, in the
/// order of ranks. In `to` where there is one, else where the first lie; there it is returned. Finished, or in the
/// stream of a CUDA queue, when the call returns.
///
/// The order is the same wherever the numbers lie and however a parameter is cut, so the sum has the same bits.
///
/// # Panics
/// When ranks have no equal numbers of bytes, or `to` not as many.
pub fn add_up<'a>(q: &Queue, shares: Dst<'a>, to: Option<Dst<'a>>, ranks: usize) -> Dst<'a> {
    assert!(
        ranks > 0 && shares.bytes().is_multiple_of(16 * ranks),
        "{} bytes of {ranks} ranks",
        shares.bytes()
    );
    let each = shares.bytes() / ranks;
    let (first, others) = shares.split_at(each);
    let others = others.into_src();
    let mut sum = match to {
        None => first,
        Some(mut to) => {
            q.copy(to.again(), first.src());
            to
        }
    };
    for rank in 1..ranks {
        let more = others.part((rank - 1) * each, each);
        add(q, sum.again(), more);
    }
    sum
}

/// `to += more`, f32.
fn add(q: &Queue, to: Dst<'_>, more: Src<'_>) {
    if let Some(q) = q.cuda() {
        return cuda::add(q, to, more);
    }
    let n = more.bytes() / size_of::<f32>();
    q.run(|| {
        (0..n.div_ceil(CHUNK)).into_par_iter().for_each(|i| {
            let start = i * CHUNK;
            let len = CHUNK.min(n - start);
            // SAFETY: the task owns `to`, a chunk is one thread's; nobody writes `more`.
            let to = unsafe { number::write::<f32>(&to, start, len) };
            let more = number::read::<f32>(more, start, len);
            to.iter_mut().zip(more).for_each(|(to, more)| *to += more);
        });
    });
}

#[cfg(test)]
mod tests {
    use lowtide_workload::Dtype;

    use super::*;
    use crate::testing::{Rng, Tensor, everywhere};

    #[test]
    fn shares_add_up_in_the_order_of_ranks() {
        for (ranks, each) in [(1, 128), (2, 2048), (3, CHUNK + 4), (4, 3 * 2048)] {
            let mut rng = Rng(ranks as u64);
            let numbers: Vec<f32> = rng.vec(ranks * each).iter().map(|&x| x as f32).collect();
            let wide: Vec<f64> = numbers.iter().map(|&x| f64::from(x)).collect();
            let want: Vec<f64> = (0..each)
                .map(|i| {
                    let of = |rank: usize| numbers[rank * each + i];
                    f64::from((1..ranks).fold(of(0), |sum, rank| sum + of(rank)))
                })
                .collect();
            for elsewhere in [false, true] {
                let all = everywhere(|q| {
                    let mut shares = Tensor::of(&wide, Dtype::F32);
                    let mut to = Tensor::nan(each, Dtype::F32);
                    let other = elsewhere.then(|| to.on(q));
                    let _ = add_up(q, shares.on(q), other, ranks);
                    if let Some(stream) = q.cuda() {
                        stream.synchronize().unwrap();
                    }
                    match elsewhere {
                        true => to.values(),
                        false => shares.values()[..each].to_vec(),
                    }
                });
                for (device, got) in all {
                    assert!(got == want, "{device}: {ranks} ranks of {each}");
                }
            }
        }
    }
}
