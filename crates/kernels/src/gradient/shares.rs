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

/// The same of sums that add up as a tree: the second half of them to the first half, sum by sum, until one is left.
/// Where it is there is as in [`add_up`].
///
/// # Panics
/// When there are not a power of two of equal numbers of bytes, or `to` has not as many.
pub fn add_halves<'a>(q: &Queue, sums: Dst<'a>, to: Option<Dst<'a>>, count: usize) -> Dst<'a> {
    assert!(
        count.is_power_of_two() && sums.bytes().is_multiple_of(16 * count),
        "{} bytes of {count} sums",
        sums.bytes()
    );
    let mut left = sums;
    // One launch for all of a half. The last two are those that `to` may get.
    for _ in 1..count.ilog2() {
        let half = left.bytes() / 2;
        let (mut first, second) = left.split_at(half);
        add(q, first.again(), second.src());
        left = first;
    }
    add_up(q, left, to, count.min(2))
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

    /// The sum of `of(0..n)`, the second half added to the first half, number by number.
    fn halved(of: &dyn Fn(usize) -> f32, n: usize) -> f32 {
        let mut all: Vec<f32> = (0..n).map(of).collect();
        while all.len() > 1 {
            let second = all.split_off(all.len() / 2);
            all.iter_mut().zip(second).for_each(|(a, b)| *a += b);
        }
        all[0]
    }

    #[test]
    fn sums_of_a_tree_add_up_by_halves_whoever_has_them() {
        for (count, each) in [(1, 128), (2, CHUNK + 4), (4, 2048), (8, 260), (16, 128)] {
            let mut rng = Rng(count as u64);
            // Of so many sizes that another order gives other bits.
            let numbers: Vec<f32> = rng.vec(count * each).iter().map(|&x| x as f32).collect();
            let wide: Vec<f64> = numbers.iter().map(|&x| f64::from(x)).collect();
            let want = |i: usize| halved(&|sum| numbers[sum * each + i], count);
            let want: Vec<f64> = (0..each).map(|i| f64::from(want(i))).collect();
            let straight = |i: usize| (1..count).fold(numbers[i], |a, k| a + numbers[k * each + i]);
            let same = (0..each)
                .filter(|&i| f64::from(straight(i)) == want[i])
                .count();
            assert_eq!(same == each, count <= 2, "{same} of {each}");
            let tree = |q: &Queue, mine: &[f64], n: usize, elsewhere: bool| {
                let mut sums = Tensor::of(mine, Dtype::F32);
                let mut to = Tensor::nan(each, Dtype::F32);
                let other = elsewhere.then(|| to.on(q));
                let _ = add_halves(q, sums.on(q), other, n);
                if let Some(stream) = q.cuda() {
                    stream.synchronize().unwrap();
                }
                match elsewhere {
                    true => to.values(),
                    false => sums.values()[..each].to_vec(),
                }
            };
            // Rank r of R has the sums l with l mod R = r, in order; then those of all ranks add up.
            for ranks in [1, 2, 4, 8, 16].into_iter().filter(|r| count % r == 0) {
                for elsewhere in [false, true] {
                    let all = everywhere(|q| {
                        let of = |rank: usize| {
                            let leaves = (rank..count).step_by(ranks);
                            let mine: Vec<f64> = leaves
                                .flat_map(|l| wide[l * each..][..each].to_vec())
                                .collect();
                            tree(q, &mine, count / ranks, false)
                        };
                        let shares: Vec<f64> = (0..ranks).flat_map(of).collect();
                        tree(q, &shares, ranks, elsewhere)
                    });
                    for (device, got) in all {
                        assert!(got == want, "{device}: {count} of {each} on {ranks} ranks");
                    }
                }
            }
        }
    }

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
