//! Forward of rows of tokens whose projection is longer than what cuDNN's kernels surely count: a few heads at a time,
//! copied together.
//!
//! Bound: as for forward. The copies pass over projection and output once more, which for rows so long is a percent of
//! attention's time.

use lowtide_device::cuda::{self, dnn};
use lowtide_device::{Dst, Src};
use lowtide_workload::Dtype;

use super::cut::{Copies, forward_slice};
use super::{Attn, Forward, SUMS, from, into};
use crate::attention;
use crate::cuda::define;
use crate::operands::Views;

/// Forward of `b`'s heads at a time: their queries, keys and values are copied together, and their output to its place.
pub(super) fn forward(
    q: &cuda::Queue,
    mut o: attention::Forward<Views<'_>>,
    a: &Attn,
    b: &Attn,
    ws: Dst<'_>,
) {
    let copies = Copies::of(b);
    let (mut qkv, ws) = ws.split_at(copies.qkv);
    let (mut out, mut rest) = ws.split_at(copies.out);
    let slice = forward_slice(b);
    for row in 0..a.batch {
        let token = row * a.seq;
        for head in (0..a.heads).step_by(b.heads) {
            let kv_head = head / a.group();
            for (width, at, into) in [
                (b.heads, a.query(token, head), b.query(0, 0)),
                (b.kv_heads, a.key(token, kv_head), b.key(0, 0)),
                (b.kv_heads, a.value(token, kv_head), b.value(0, 0)),
            ] {
                let size = [a.seq, width * a.head_dim];
                let to = (&mut qkv, into, b.width());
                copy_columns(q, to, (o.qkv, at, a.width()), size);
            }
            let f = Forward::new(b, slice);
            let views = [
                from(f.q, qkv.src(), b.query(0, 0), 2),
                from(f.k, qkv.src(), b.key(0, 0), 2),
                from(f.v, qkv.src(), b.value(0, 0), 2),
                into(f.out, &out, 0, 2),
                into(f.lse, &o.lse, (row * a.heads + head) * a.seq, 4),
            ];
            dnn::execute(q, &f.graph, &views, rest.again());
            let (width, all) = (b.heads * a.head_dim, a.heads * a.head_dim);
            let to = (&mut o.out, a.output(token, head), all);
            copy_columns(q, to, (out.again().into_src(), 0, width), [a.seq, width]);
        }
    }
}

/// Copies `tokens` times `width` bf16, each side from a number on, with tokens so many numbers apart.
fn copy_columns(
    q: &cuda::Queue,
    (to, to_first, to_stride): (&mut Dst<'_>, usize, usize),
    (from, from_first, from_stride): (Src<'_>, usize, usize),
    [tokens, width]: [usize; 2],
) {
    let bytes = |stride: usize| ((tokens - 1) * stride + width) * size_of::<u16>();
    let to = to.lend(to_first * size_of::<u16>(), bytes(to_stride));
    let from = from.part(from_first * size_of::<u16>(), bytes(from_stride));
    // SAFETY: the kernel's own arguments; both sides have just been cut to what is read and written
    // (`crate::cuda`).
    unsafe {
        q.kernel(&SUMS, define(Dtype::Bf16), "copy_columns")
            .grid((tokens * width / 8).div_ceil(256), 1, 1)
            .block(256)
            .arg(&to)
            .arg(from)
            .arg(tokens)
            .arg(width)
            .arg(to_stride)
            .arg(from_stride)
            .launch();
    }
}

/// [`forward`] of so many query heads and key heads at a time, however short the rows are; `ws` has room for
/// [`together_workspace`].
#[cfg(test)]
pub(in super::super) fn forward_in_copies(
    q: &cuda::Queue,
    o: attention::Forward<Views<'_>>,
    a: &Attn,
    heads: [usize; 2],
    ws: Dst<'_>,
) {
    forward(q, o, a, &of_heads(a, heads), ws);
}

/// Bytes of scratch of [`forward_in_copies`].
#[cfg(test)]
pub(in super::super) fn together_workspace(a: &Attn, heads: [usize; 2]) -> usize {
    Copies::of(&of_heads(a, heads)).bytes() + super::workspace(a)
}

#[cfg(test)]
fn of_heads(a: &Attn, [heads, kv_heads]: [usize; 2]) -> Attn {
    Attn {
        batch: 1,
        heads,
        kv_heads,
        ..*a
    }
}
