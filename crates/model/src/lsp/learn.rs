//! Directions that are learned from a gradient: where a sketch of it is largest.
//!
//! The sketch Z = Gᵀ·Ψ of an (m, n) gradient, Ψ (m, r) drawn, spans about the directions in which G is large (Halko,
//! Martinsson and Tropp 2011). The projector is an orthonormal basis of it along its principal axes, the largest first:
//! Q = Z·V·Λ^(-1/2) with the eigenvectors and eigenvalues of ZᵀZ. Axes whose square is below 1e-10 of the first one's
//! are rounding; drawn ones that are orthogonal to the others take their places. Everything is f64, in an order that
//! sizes alone decide; of the platform's library it takes the hypotenuse.

use super::Factors;

/// A sketch that no directions can be learned from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotFinite;

/// Axes with a smaller share of the first one's square are left out.
const NOISE: f64 = 1e-10;

/// The projector, (`features`, `rank`) row-major with columns of length √(features / rank), from a sketch of the same
/// shape. `drawn` is another such projector, whose columns take the places of what the sketch does not have.
///
/// # Errors
/// [`NotFinite`] when a number of the sketch is none.
pub(crate) fn learned(sketch: &[f32], drawn: &[f32], f: Factors) -> Result<Vec<f32>, NotFinite> {
    let (n, r) = (f.projected as usize, f.rank as usize);
    assert!(
        sketch.len() == n * r && drawn.len() == n * r,
        "a sketch of {n} x {r}"
    );
    let largest = sketch.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    if !sketch.iter().all(|x| x.is_finite()) {
        return Err(NotFinite);
    }
    // Of the size of 1, so that no square is lost.
    let unit = if largest > 0.0 {
        f64::from(largest)
    } else {
        1.0
    };
    let columns = |of: &[f32], unit: f64| -> Vec<Vec<f64>> {
        let column = |j: usize| (0..n).map(|i| f64::from(of[i * r + j]) / unit).collect();
        (0..r).map(column).collect()
    };
    let z = columns(sketch, unit);
    let mut gram = vec![0.0; r * r];
    for i in 0..r {
        for j in 0..=i {
            let x = dot(&z[i], &z[j]);
            (gram[i * r + j], gram[j * r + i]) = (x, x);
        }
    }
    let (values, vectors) = eigen(gram, r);
    let mut axes: Vec<Vec<f64>> = Vec::with_capacity(r);
    for j in (0..r).rev() {
        if values[j] <= values[r - 1] * NOISE || values[j] <= 0.0 {
            break;
        }
        let mut axis = vec![0.0; n];
        for (k, z) in z.iter().enumerate() {
            add(&mut axis, vectors[j * r + k], z);
        }
        let length = dot(&axis, &axis).sqrt();
        axis.iter_mut().for_each(|x| *x /= length);
        axes.push(axis);
    }
    fill(&mut axes, &columns(drawn, 1.0), r);
    let scale = (n as f64 / r as f64).sqrt();
    let mut projector = vec![0.0; n * r];
    for (j, axis) in axes.iter().enumerate() {
        // An axis has no sign of its own: that of its largest number.
        let top = axis
            .iter()
            .fold(0.0f64, |top, x| if x.abs() > top.abs() { *x } else { top });
        for (i, x) in axis.iter().enumerate() {
            projector[i * r + j] = (x * scale.copysign(top)) as f32;
        }
    }
    Ok(projector)
}

/// Adds columns of `drawn`, as far as they are orthogonal to the axes that are there, until there are `r`.
fn fill(axes: &mut Vec<Vec<f64>>, drawn: &[Vec<f64>], r: usize) {
    let mut left = drawn.iter();
    while axes.len() < r {
        let column = left.next().expect("r columns span more than fewer axes");
        let mut axis = column.clone();
        let before = dot(&axis, &axis).sqrt();
        // Twice is enough.
        for _ in 0..2 {
            for other in axes.iter() {
                let share = dot(&axis, other);
                add(&mut axis, -share, other);
            }
        }
        let length = dot(&axis, &axis).sqrt();
        if length > 1e-6 * before {
            axis.iter_mut().for_each(|x| *x /= length);
            axes.push(axis);
        }
    }
}

/// Σ a·b, in eight independent sums: their order depends on the length alone.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let (x, y) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f64 = x
        .remainder()
        .iter()
        .zip(y.remainder())
        .map(|(a, b)| a * b)
        .sum();
    for (x, y) in x.zip(y) {
        for i in 0..8 {
            sums[i] += x[i] * y[i];
        }
    }
    sums.iter().sum::<f64>() + rest
}

/// `to` += `by` · `from`.
fn add(to: &mut [f64], by: f64, from: &[f64]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += by * from;
    }
}

/// Eigenvalues of a symmetric (n, n) matrix, ascending, and its eigenvectors one behind another: Householder's
/// tridiagonal form, then QL with implicit shifts (EISPACK's tred2 and tql2).
pub(crate) fn eigen(mut v: Vec<f64>, n: usize) -> (Vec<f64>, Vec<f64>) {
    let (mut d, mut e) = (vec![0.0; n], vec![0.0; n]);
    tridiagonal(&mut v, &mut d, &mut e);
    rotate(&mut v, &mut d, &mut e);
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&a, &b| d[a].total_cmp(&d[b]));
    let values = order.iter().map(|&i| d[i]).collect();
    let vectors = order
        .iter()
        .flat_map(|&i| v[i * n..(i + 1) * n].iter().copied());
    (values, vectors.collect())
}

/// To the diagonal `d` and the off-diagonal `e` from 1 on; `v`, column by column, becomes the transformation.
/// Long because its two passes, down and up again, share their layout.
fn tridiagonal(v: &mut [f64], d: &mut [f64], e: &mut [f64]) {
    let n = d.len();
    let at = |row: usize, col: usize| col * n + row;
    for j in 0..n {
        d[j] = v[at(n - 1, j)];
    }
    for i in (1..n).rev() {
        let scale: f64 = d[..i].iter().map(|x| x.abs()).sum();
        let mut h = 0.0;
        if scale == 0.0 {
            e[i] = d[i - 1];
            for j in 0..i {
                d[j] = v[at(i - 1, j)];
                v[at(i, j)] = 0.0;
                v[at(j, i)] = 0.0;
            }
        } else {
            for x in &mut d[..i] {
                *x /= scale;
                h += *x * *x;
            }
            let f = d[i - 1];
            let g = if f > 0.0 { -h.sqrt() } else { h.sqrt() };
            e[i] = scale * g;
            h -= f * g;
            d[i - 1] = f - g;
            e[..i].fill(0.0);
            for j in 0..i {
                let f = d[j];
                v[at(j, i)] = f;
                let column = &v[at(j + 1, j)..at(i, j)];
                let g = e[j] + v[at(j, j)] * f + dot(column, &d[j + 1..i]);
                add(&mut e[j + 1..i], f, column);
                e[j] = g;
            }
            let mut f = 0.0;
            for (e, d) in e[..i].iter_mut().zip(&d[..i]) {
                *e /= h;
                f += *e * d;
            }
            let hh = f / (h + h);
            add(&mut e[..i], -hh, &d[..i]);
            for j in 0..i {
                let (f, g) = (d[j], e[j]);
                let column = &mut v[at(j, j)..at(i, j)];
                for ((x, e), d) in column.iter_mut().zip(&e[j..i]).zip(&d[j..i]) {
                    *x -= f * e + g * d;
                }
                d[j] = v[at(i - 1, j)];
                v[at(i, j)] = 0.0;
            }
        }
        d[i] = h;
    }
    for i in 0..n - 1 {
        v[at(n - 1, i)] = v[at(i, i)];
        v[at(i, i)] = 1.0;
        let h = d[i + 1];
        let (left, right) = v.split_at_mut(at(0, i + 1));
        let next = &mut right[..=i];
        if h != 0.0 {
            for (d, x) in d[..=i].iter_mut().zip(&*next) {
                *d = x / h;
            }
            for j in 0..=i {
                let column = &mut left[at(0, j)..=at(i, j)];
                let g = dot(next, column);
                add(column, -g, &d[..=i]);
            }
        }
        next.fill(0.0);
    }
    for j in 0..n {
        d[j] = v[at(n - 1, j)];
        v[at(n - 1, j)] = 0.0;
    }
    v[at(n - 1, n - 1)] = 1.0;
    e[0] = 0.0;
}

/// Eigenvalues into `d`, eigenvectors into the columns of `v`.
fn rotate(v: &mut [f64], d: &mut [f64], e: &mut [f64]) {
    let n = d.len();
    e.rotate_left(1);
    e[n - 1] = 0.0;
    let (mut shift, mut size) = (0.0, 0.0f64);
    for l in 0..n {
        size = size.max(d[l].abs() + e[l].abs());
        let small = |x: f64| x.abs() <= f64::EPSILON * size;
        let m = (l..n).find(|&m| small(e[m])).unwrap_or(n - 1);
        // Each converges in two or three sweeps.
        for _ in 0..60 {
            if m == l || small(e[l]) {
                break;
            }
            let g = d[l];
            let p = (d[l + 1] - g) / (2.0 * e[l]);
            let r = p.hypot(1.0).copysign(p);
            d[l] = e[l] / (p + r);
            d[l + 1] = e[l] * (p + r);
            let (next, h) = (d[l + 1], g - d[l]);
            d[l + 2..].iter_mut().for_each(|x| *x -= h);
            shift += h;
            let beside = e[l + 1];
            let (mut p, mut c, mut c2, mut c3) = (d[m], 1.0, 1.0, 1.0);
            let (mut s, mut s2) = (0.0, 0.0);
            for i in (l..m).rev() {
                (c3, c2, s2) = (c2, c, s);
                let (g, h) = (c * e[i], c * p);
                let r = p.hypot(e[i]);
                e[i + 1] = s * r;
                (s, c) = (e[i] / r, p / r);
                p = c * d[i] - s * g;
                d[i + 1] = h + s * (c * g + s * d[i]);
                let (left, right) = v.split_at_mut((i + 1) * n);
                for (a, b) in left[i * n..].iter_mut().zip(&mut right[..n]) {
                    let h = *b;
                    *b = s * *a + c * h;
                    *a = c * *a - s * h;
                }
            }
            p = -s * s2 * c3 * beside * e[l] / next;
            e[l] = s * p;
            d[l] = c * p;
        }
        d[l] += shift;
        e[l] = 0.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lsp::Side;

    fn factors(projected: u64, rank: u64) -> Factors {
        Factors {
            side: Side::Input,
            rank,
            projected,
            other: 0,
        }
    }

    /// Numbers without a pattern.
    fn noise(n: usize, seed: u64) -> Vec<f64> {
        let mut x = seed | 1;
        let mut next = || {
            x = x
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (x >> 33) as f64 / f64::from(1u32 << 31) - 0.5
        };
        (0..n).map(|_| next()).collect()
    }

    #[test]
    fn eigenvectors_are_those_of_the_matrix() {
        for n in [1, 2, 3, 8, 33, 64] {
            let half = noise(n * n, n as u64);
            let mut a = vec![0.0; n * n];
            for i in 0..n {
                for j in 0..n {
                    a[i * n + j] = half[i * n + j] + half[j * n + i];
                }
            }
            if n == 8 {
                // Equal eigenvalues, and none at all.
                a = (0..64)
                    .map(|i| if i / 8 == i % 8 && i < 40 { 2.0 } else { 0.0 })
                    .collect();
            }
            let (values, vectors) = eigen(a.clone(), n);
            for j in 0..n {
                let v = &vectors[j * n..(j + 1) * n];
                for i in 0..n {
                    let product = dot(&a[i * n..(i + 1) * n], v);
                    assert!(
                        (product - values[j] * v[i]).abs() < 1e-12 * n as f64,
                        "{n}: {j} {i}"
                    );
                    let other = &vectors[i * n..(i + 1) * n];
                    let want = if i == j { 1.0 } else { 0.0 };
                    assert!((dot(v, other) - want).abs() < 1e-12, "{n}: {j} {i}");
                }
                assert!(j == 0 || values[j - 1] <= values[j]);
            }
        }
    }

    /// A gradient of low rank, in noise: its directions come first, the columns are orthogonal and as long as drawn
    /// ones, and what a sketch does not have is filled.
    #[test]
    fn leading_directions_come_first() {
        for (n, r, rank, level) in [
            (48, 16, 3, 1e-4),
            (40, 8, 8, 0.0),
            (64, 16, 5, 0.0),
            (32, 8, 0, 0.0),
        ] {
            // Z = Σ s_k u_k w_kᵀ with u_k orthogonal: cosines.
            let u = |k: usize, i: usize| {
                let x = std::f64::consts::PI * (2 * i + 1) as f64 * (3 * k + 1) as f64;
                (x / (2 * n) as f64).cos() * (2.0 / n as f64).sqrt()
            };
            let w = noise(rank * r, 5);
            let extra = noise(n * r, 9);
            let z: Vec<f32> = (0..n * r)
                .map(|at| {
                    let (i, j) = (at / r, at % r);
                    let sum = |k: usize| 10f64.powi(-(k as i32) / 2) * u(k, i) * w[k * r + j];
                    let whole = (0..rank).map(sum).sum::<f64>() + level * extra[at];
                    (whole * 1e-20) as f32
                })
                .collect();
            let drawn: Vec<f32> = noise(n * r, 77).into_iter().map(|x| x as f32).collect();
            let q = learned(&z, &drawn, factors(n as u64, r as u64)).unwrap();
            let column =
                |j: usize| -> Vec<f64> { (0..n).map(|i| f64::from(q[i * r + j])).collect() };
            for a in 0..r {
                for b in 0..r {
                    let want = if a == b { n as f64 / r as f64 } else { 0.0 };
                    let got = dot(&column(a), &column(b));
                    assert!((got - want).abs() < 1e-5, "{n} {r} {rank}: {a} {b} {got}");
                }
            }
            // Each direction of the gradient lies in the span of as many columns as there are directions.
            for k in 0..rank {
                let direction: Vec<f64> = (0..n).map(|i| u(k, i)).collect();
                let kept: f64 = (0..rank).map(|j| dot(&column(j), &direction).powi(2)).sum();
                let kept = kept * r as f64 / n as f64;
                assert!(kept > 1.0 - 1e-4, "{n} {r} {rank}: {k} {kept}");
            }
        }
        assert_eq!(
            learned(&[f32::NAN; 8], &[1.0; 8], factors(8, 1)),
            Err(NotFinite)
        );
    }
}
