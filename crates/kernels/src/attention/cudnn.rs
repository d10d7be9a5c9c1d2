//! Attention by cuDNN: the graphs that its fused kernels know, on the fused projection as it lies.
//!
//! Causal and grouped-query, bf16, one document a row: `doc_start` is not read. Queries, keys and
//! values are strided views of the projection, gradients of its gradient, so nothing is copied.
//! `lse` is what cuDNN calls stats.
//!
//! **Backward gives the same bits every time.** Its last product writes dq directly. For that, cuDNN keeps the
//! gradient of the probabilities in memory, (H, T, T) bf16 a row of tokens, instead of adding to dq from many blocks.
//! It runs slice by slice, so that this stays small (`cut.rs`): rows of tokens first, then key heads of a row with
//! their query heads, then tiles of a head's queries and keys. Slices and tiles are chosen by shape alone. The
//! gradient of a key head is the sum over its query heads, each rounded to bf16; where there are tiles, each tile's
//! part of every gradient is rounded to bf16, and the parts are added in f32 in a fixed order.
//!
//! Bound: as for the own kernels. Measured on an H200 with cuDNN 9.19: forward 380 to 602 TFLOP/s,
//! backward 275 to 449, for D 128 and T 2048 to 8192.
//!
//! One file because cuDNN's graphs and their launch are one description of the same tensors.

use lowtide_device::cuda::dnn::{self, Graph, Id, Number, Op, Operand};
use lowtide_device::cuda::{self, CudaError, Gpu, Source};
use lowtide_device::{Dst, Src};
use lowtide_workload::{Dtype, Mask};

use super::Attn;
use crate::cuda::define;
use crate::operands::Views;

mod cut;
mod long;

#[cfg(test)]
pub(super) use cut::executions;
pub(super) use cut::workspace;
use cut::{
    Copies, Part, Slice, Tile, backward_slice, delta, forward_slice, is_long, slices, tile_room,
    tiles, together,
};
#[cfg(test)]
pub(super) use long::{forward_in_copies, together_workspace};

/// The kernels that add a tile's gradients to those of the tiles before it, and that copy heads.
static SUMS: Source = Source {
    name: "sums.cu",
    text: include_str!("cudnn/sums.cu"),
    headers: crate::cuda::HEADERS,
};

/// The tensors of one execution, as they lie.
struct Shapes {
    rows: usize,
    heads: usize,
    kv_heads: usize,
    queries: usize,
    keys: usize,
    dim: usize,
    /// Numbers from one token to the next of the projection, and of the output.
    width: usize,
    out_width: usize,
    /// Numbers of lse from one row of tokens to the next, and from one head to the next.
    lse_row: usize,
    lse_head: usize,
    /// Tokens of a row.
    seq: usize,
}

impl Shapes {
    fn new(a: &Attn, p: Part) -> Self {
        Self {
            rows: p.rows,
            heads: p.kv_heads * a.group(),
            kv_heads: p.kv_heads,
            queries: p.queries,
            keys: p.keys,
            dim: a.head_dim,
            width: a.width(),
            out_width: a.heads * a.head_dim,
            lse_row: a.heads * a.seq,
            lse_head: a.seq,
            seq: a.seq,
        }
    }

    /// Heads of some tokens of a tensor whose tokens are `width` numbers apart.
    fn heads_of(&self, g: &mut Graph, heads: usize, tokens: usize, width: usize) -> Id {
        g.real(
            [self.rows, heads, tokens, self.dim],
            [self.row(tokens, width), self.dim, width, 1],
            Number::Bf16,
            16,
        )
    }

    /// Numbers from one row of tokens to the next. Where there is one, and it is long, any number will do: one that
    /// 32 bits hold.
    fn row(&self, tokens: usize, width: usize) -> usize {
        match self.rows == 1 && is_long(self.seq, width) {
            true => tokens * width,
            false => self.seq * width,
        }
    }

    /// Keys or values with tokens as columns.
    fn transposed(&self, g: &mut Graph) -> Id {
        g.real(
            [self.rows, self.kv_heads, self.dim, self.keys],
            [self.row(self.keys, self.width), self.dim, 1, self.width],
            Number::Bf16,
            16,
        )
    }

    /// One f32 a query, in memory.
    fn per_query(&self, g: &mut Graph, row: usize, head: usize) -> Id {
        g.real(
            [self.rows, self.heads, self.queries, 1],
            [row, head, 1, 1],
            Number::F32,
            size_of::<f32>(),
        )
    }

    /// One f32 a query, between operations.
    fn per_query_between(&self, g: &mut Graph) -> Id {
        g.between([self.rows, self.heads, self.queries, 1], Number::F32)
    }

    /// One number a query and key, between operations.
    fn scores(&self, g: &mut Graph, number: Number) -> Id {
        g.between([self.rows, self.heads, self.queries, self.keys], number)
    }

    /// Scores as bf16 with keys as rows: `x` transposed.
    fn scores_by_key(&self, g: &mut Graph, x: Id) -> Id {
        let (h, q, k) = (self.heads, self.queries, self.keys);
        let strides = [h * q * k, q * k, 1, k];
        let y = g.between_strided([self.rows, h, k, q], strides, Number::Bf16);
        g.reshape(x, y);
        y
    }

    fn scores_f32(&self, g: &mut Graph, op: Op, x: Id, b: Option<Id>) -> Id {
        let y = self.scores(g, Number::F32);
        g.pointwise(op, x, b, y);
        y
    }

    /// Writes `a·b` to `to`, a gradient of keys or values; summed over the query heads of a key
    /// head where there are several.
    fn product_by_key_head(&self, g: &mut Graph, a: Id, b: Id, to: Id) {
        if self.heads == self.kv_heads {
            g.product(a, b, to);
        } else {
            let each = g.between([self.rows, self.heads, self.keys, self.dim], Number::Bf16);
            g.product(a, b, each);
            g.sum(each, to);
        }
    }
}

/// The graph of forward, and its tensors in memory.
struct Forward {
    graph: Graph,
    q: Id,
    k: Id,
    v: Id,
    out: Id,
    lse: Id,
}

impl Forward {
    fn new(a: &Attn, s: Slice) -> Self {
        let (n, mut graph) = (Shapes::new(a, s.whole(a)), Graph::default());
        let g = &mut graph;
        let q = n.heads_of(g, n.heads, n.queries, n.width);
        let k = n.transposed(g);
        let v = n.heads_of(g, n.kv_heads, n.keys, n.width);
        let out = n.heads_of(g, n.heads, n.queries, n.out_width);
        let lse = n.per_query(g, n.lse_row, n.lse_head);
        let scale = g.scalar(a.scale);

        let s = n.scores(g, Number::F32);
        g.product(q, k, s);
        let s = n.scores_f32(g, Op::Mul, s, Some(scale));
        let s = g.causal(s, f32::NEG_INFINITY);
        let most = n.per_query_between(g);
        g.largest(s, most);
        let s = n.scores_f32(g, Op::Sub, s, Some(most));
        let e = n.scores_f32(g, Op::Exp, s, None);
        let sum = n.per_query_between(g);
        g.sum(e, sum);
        let log = n.per_query_between(g);
        g.pointwise(Op::Log, sum, None, log);
        g.pointwise(Op::Add, most, Some(log), lse);
        let p = n.scores(g, Number::Bf16);
        g.pointwise(Op::Div, e, Some(sum), p);
        g.product(p, v, out);
        Self {
            graph,
            q,
            k,
            v,
            out,
            lse,
        }
    }
}

/// The graph of backward, and its tensors in memory.
struct Backward {
    graph: Graph,
    q: Id,
    k: Id,
    v: Id,
    out: Id,
    d_out: Id,
    lse: Id,
    delta: Id,
    dq: Id,
    dk: Id,
    dv: Id,
}

impl Backward {
    /// Gradients lie in the projection's gradient where the part has all tokens of its rows; those of
    /// a tile lie by themselves, without gaps.
    fn new(a: &Attn, p: Part) -> Self {
        let (n, mut graph) = (Shapes::new(a, p), Graph::default());
        let g = &mut graph;
        let q = n.heads_of(g, n.heads, n.queries, n.width);
        let k = n.transposed(g);
        let v = n.transposed(g);
        let out = n.heads_of(g, n.heads, n.queries, n.out_width);
        let d_out = n.heads_of(g, n.heads, n.queries, n.out_width);
        let lse = n.per_query(g, n.lse_row, n.lse_head);
        let delta = n.per_query(g, n.heads * n.queries, n.queries);
        let (dq_width, dk_width) = if p.tile {
            (n.heads * n.dim, n.kv_heads * n.dim)
        } else {
            (n.width, n.width)
        };
        let dq = n.heads_of(g, n.heads, n.queries, dq_width);
        let dk = n.heads_of(g, n.kv_heads, n.keys, dk_width);
        let dv = n.heads_of(g, n.kv_heads, n.keys, dk_width);
        let (one, scale) = (g.scalar(1.0), g.scalar(a.scale));

        // The softmax's gradient subtracts Σ p·dp, which is d_out·out.
        let both = g.between([n.rows, n.heads, n.queries, n.dim], Number::F32);
        g.pointwise(Op::Mul, d_out, Some(out), both);
        let sum = n.per_query_between(g);
        g.sum(both, sum);
        g.pointwise(Op::Mul, sum, Some(one), delta);

        // Probabilities again, and from them dv.
        let s = n.scores(g, Number::F32);
        g.product(q, k, s);
        let s = n.scores_f32(g, Op::Mul, s, Some(scale));
        let mut s = n.scores_f32(g, Op::Sub, s, Some(lse));
        if p.causal {
            s = g.causal(s, f32::NEG_INFINITY);
        }
        let p = n.scores_f32(g, Op::Exp, s, None);
        let p_transposed = n.scores_by_key(g, p);
        n.product_by_key_head(g, p_transposed, d_out, dv);

        // The gradient of the scores, and from it dk and dq.
        let dp = n.scores(g, Number::F32);
        g.product(d_out, v, dp);
        let dp = n.scores_f32(g, Op::Sub, dp, Some(delta));
        let dp = n.scores_f32(g, Op::Mul, dp, Some(p));
        let ds = n.scores_f32(g, Op::Mul, dp, Some(scale));
        let ds_transposed = n.scores_by_key(g, ds);
        n.product_by_key_head(g, ds_transposed, q, dk);
        let keys = g.between_strided(
            [n.rows, n.kv_heads, n.keys, n.dim],
            [n.row(n.keys, n.width), n.dim, n.width, 1],
            Number::Bf16,
        );
        g.reshape(k, keys);
        g.product(ds, keys, dq);
        Self {
            graph,
            q,
            k,
            v,
            out,
            d_out,
            lse,
            delta,
            dq,
            dk,
            dv,
        }
    }
}

/// What cuDNN is not asked for, because it refuses it, or because its answers were never compared
/// with the reference.
fn refused(a: &Attn, dtype: Dtype, (major, minor): (u32, u32), version: usize) -> Option<String> {
    let d = a.head_dim;
    let widest = if major == 9 { 256 } else { 128 };
    if dtype != Dtype::Bf16 {
        Some("cuDNN's attention takes bf16 only".to_owned())
    } else if a.mask != Mask::Causal {
        Some("windows and full masks are left to the own kernels".to_owned())
    } else if a.cap.is_some() {
        Some("caps of scores are left to the own kernels".to_owned())
    } else if !(8..=9).contains(&major) {
        Some(format!(
            "on compute capability {major}.{minor} cuDNN's backward does not give the same bits \
             every time"
        ))
    } else if !d.is_multiple_of(8) || d == 0 || d > widest {
        Some(format!(
            "head dimension {d}: cuDNN takes multiples of 8 up to {widest} here"
        ))
    } else if a.seq < 2 || a.batch == 0 {
        Some(format!(
            "{} rows of {} tokens: cuDNN needs a row of two tokens",
            a.batch, a.seq
        ))
    } else if version < 91002 || version < 91600 && !a.seq.is_multiple_of(128) {
        // Backward gives wrong numbers in 9.10.0 and 9.10.1, and before 9.16 where the last tile
        // of keys is not whole.
        Some(format!(
            "cuDNN {}.{}.{} is too old; 9.16 or later is needed",
            version / 10_000,
            version / 100 % 100,
            version % 100
        ))
    } else {
        None
    }
}

fn failure(what: String) -> CudaError {
    CudaError::Call {
        call: "attention",
        what,
    }
}

/// Whether cuDNN computes this attention on this device, in the workspace that is planned for it.
/// Makes the plans, which are kept.
pub(super) fn supports(gpu: &Gpu, a: &Attn, dtype: Dtype) -> Result<(), String> {
    let (_, version) = dnn::library().map_err(|e| e.to_string())?;
    if let Some(why) = refused(a, dtype, gpu.capability(), version) {
        return Err(why);
    }
    for (direction, graphs) in graphs(a) {
        for (graph, have) in graphs {
            let want = dnn::prepare(gpu, &graph).map_err(|e| format!("{direction}: {e}"))?;
            if want > have {
                return Err(format!(
                    "{direction}: cuDNN wants {want} bytes of workspace, {have} are planned"
                ));
            }
        }
    }
    Ok(())
}

/// The graphs of both directions, one a size of slice or tile, and the bytes planned for each.
fn graphs(a: &Attn) -> [(&'static str, Vec<(Graph, usize)>); 2] {
    let sizes = |cut: Slice| {
        let mut sizes: Vec<Slice> = slices(a, cut).into_iter().map(|(_, _, s)| s).collect();
        sizes.dedup();
        sizes
    };
    let have = workspace(a);
    let forward = match together(a) {
        Some(b) => {
            let left = have - Copies::of(&b).bytes();
            vec![(Forward::new(&b, forward_slice(&b)).graph, left)]
        }
        None => sizes(forward_slice(a))
            .into_iter()
            .map(|s| (Forward::new(a, s).graph, have))
            .collect(),
    };
    let mut parts: Vec<Part> = Vec::new();
    for slice in sizes(backward_slice(a)) {
        for part in tiles(a, slice).into_iter().map(|t| t.part(a, slice)) {
            if !parts.contains(&part) {
                parts.push(part);
            }
        }
    }
    let backward = parts
        .into_iter()
        .map(|p| (Backward::new(a, p).graph, p.planned(a)))
        .collect();
    [("forward", forward), ("backward", backward)]
}

/// `view` from number `at` on.
fn from<'a>(id: Id, view: Src<'a>, at: usize, size: usize) -> Operand<'a> {
    Operand::read(id, view.part(at * size, view.bytes() - at * size))
}

/// The same of what is written.
fn into<'a>(id: Id, view: &'a Dst<'_>, at: usize, size: usize) -> Operand<'a> {
    Operand::write(id, view, at * size)
}

/// Whether `q` can compute it; if not, the queue gets the reason.
fn ready(q: &cuda::Queue, a: &Attn, dtype: Dtype) -> bool {
    let why = match dnn::library() {
        Ok((_, version)) => refused(a, dtype, q.gpu().capability(), version).map(failure),
        Err(e) => Some(e),
    };
    why.map(|e| q.fail(e)).is_none()
}

/// [`super::forward`], without documents.
pub(super) fn forward(
    q: &cuda::Queue,
    o: super::Forward<Views<'_>>,
    a: &Attn,
    dtype: Dtype,
    mut ws: Dst<'_>,
) {
    if !ready(q, a, dtype) {
        return;
    }
    if let Some(b) = together(a) {
        return long::forward(q, o, a, &b, ws);
    }
    for (row, head, slice) in slices(a, forward_slice(a)) {
        let (token, query) = (row * a.seq, head * a.group());
        let f = Forward::new(a, slice);
        let views = [
            from(f.q, o.qkv, a.query(token, query), 2),
            from(f.k, o.qkv, a.key(token, head), 2),
            from(f.v, o.qkv, a.value(token, head), 2),
            into(f.out, &o.out, a.output(token, query), 2),
            into(f.lse, &o.lse, (row * a.heads + query) * a.seq, 4),
        ];
        dnn::execute(q, &f.graph, &views, ws.again());
    }
}

/// [`super::backward`], without documents.
pub(super) fn backward(
    q: &cuda::Queue,
    o: super::Backward<Views<'_>>,
    a: &Attn,
    dtype: Dtype,
    ws: Dst<'_>,
) {
    if !ready(q, a, dtype) {
        return;
    }
    backward_by(q, o, a, backward_slice(a), ws);
}

/// [`backward`], cut as `cut` says.
fn backward_by(
    q: &cuda::Queue,
    mut o: super::Backward<Views<'_>>,
    a: &Attn,
    cut: Slice,
    mut ws: Dst<'_>,
) {
    for (row, head, slice) in slices(a, cut) {
        if slice.side < a.seq {
            in_tiles(q, &mut o, a, (row, head), slice, ws.again());
            continue;
        }
        let (token, query) = (row * a.seq, head * a.group());
        let part = slice.whole(a);
        let b = Backward::new(a, part);
        let (sums, rest) = ws.again().split_at(delta(a, part));
        let views = [
            from(b.q, o.qkv, a.query(token, query), 2),
            from(b.k, o.qkv, a.key(token, head), 2),
            from(b.v, o.qkv, a.value(token, head), 2),
            from(b.out, o.out, a.output(token, query), 2),
            from(b.d_out, o.d_out, a.output(token, query), 2),
            from(b.lse, o.lse, (row * a.heads + query) * a.seq, 4),
            into(b.delta, &sums, 0, 1),
            into(b.dq, &o.d_qkv, a.query(token, query), 2),
            into(b.dk, &o.d_qkv, a.key(token, head), 2),
            into(b.dv, &o.d_qkv, a.value(token, head), 2),
        ];
        dnn::execute(q, &b.graph, &views, rest);
    }
}

/// Backward of a slice's key heads of one row of tokens with their query heads, tile by tile of queries and
/// keys: the tiles of a block of queries one behind another, from the first keys on. A block's dq is
/// finished with its last tile, dk and dv of a block of keys with the last block of queries.
fn in_tiles(
    q: &cuda::Queue,
    o: &mut super::Backward<Views<'_>>,
    a: &Attn,
    (row, head): (usize, usize),
    slice: Slice,
    ws: Dst<'_>,
) {
    let (query, width) = (head * a.group(), slice.kv_heads * a.head_dim);
    let room = tile_room(a, slice);
    let (sums, ws) = ws.split_at(room.delta);
    let (mut dq, ws) = ws.split_at(room.dq);
    let (mut dk, ws) = ws.split_at(room.dkv);
    let (mut dv, ws) = ws.split_at(room.dkv);
    let (mut dq_sum, ws) = ws.split_at(room.dq_sum);
    let (mut dk_sum, ws) = ws.split_at(room.dkv_sum);
    let (mut dv_sum, mut rest) = ws.split_at(room.dkv_sum);
    for tile in tiles(a, slice) {
        let b = Backward::new(a, tile.part(a, slice));
        let (queries, keys) = (row * a.seq + tile.query, row * a.seq + tile.key);
        let views = [
            from(b.q, o.qkv, a.query(queries, query), 2),
            from(b.k, o.qkv, a.key(keys, head), 2),
            from(b.v, o.qkv, a.value(keys, head), 2),
            from(b.out, o.out, a.output(queries, query), 2),
            from(b.d_out, o.d_out, a.output(queries, query), 2),
            from(
                b.lse,
                o.lse,
                (row * a.heads + query) * a.seq + tile.query,
                4,
            ),
            into(b.delta, &sums, 0, 1),
            into(b.dq, &dq, 0, 2),
            into(b.dk, &dk, 0, 2),
            into(b.dv, &dv, 0, 2),
        ];
        dnn::execute(q, &b.graph, &views, rest.again());
        let Tile { first, last, .. } = tile;
        let mut add = |sum: Dst<'_>, part: &mut Dst<'_>, at, [tokens, width]: [usize; 2], ends| {
            add_part(
                q,
                sum,
                part.src(),
                &mut o.d_qkv,
                at,
                [tokens, width, a.width()],
                ends,
            );
        };
        let of_queries = [tile.queries, a.group() * width];
        let at = a.query(queries, query);
        add(
            dq_sum.again(),
            &mut dq,
            at,
            of_queries,
            (first.of_queries, last.of_queries),
        );
        let (of_keys, ends) = ([tile.keys, width], (first.of_keys, last.of_keys));
        let (from, bytes) = (tile.key * width * 4, tile.keys * width * 4);
        add(
            dk_sum.lend(from, bytes),
            &mut dk,
            a.key(keys, head),
            of_keys,
            ends,
        );
        add(
            dv_sum.lend(from, bytes),
            &mut dv,
            a.value(keys, head),
            of_keys,
            ends,
        );
    }
}

/// Adds a tile's gradients, (tokens, width) bf16, to `sum`, f32 of the same shape: the first sets it, the
/// last gives the rounded sum to `out` from number `at` on, whose tokens are `stride` numbers apart.
fn add_part(
    q: &cuda::Queue,
    sum: Dst<'_>,
    part: Src<'_>,
    out: &mut Dst<'_>,
    at: usize,
    [tokens, width, stride]: [usize; 3],
    (first, last): (bool, bool),
) {
    let numbers = (tokens - 1) * stride + width;
    let out = out.lend(at * size_of::<u16>(), numbers * size_of::<u16>());
    // SAFETY: the kernel's own arguments; `sum` and `part` have tokens · width numbers and more, `out`
    // has just been cut to what is written (`crate::cuda`).
    unsafe {
        q.kernel(&SUMS, define(Dtype::Bf16), "add_part")
            .grid((tokens * width / 8).div_ceil(256), 1, 1)
            .block(256)
            .arg(&sum)
            .arg(part)
            .arg(&out)
            .arg(tokens)
            .arg(width)
            .arg(stride)
            .arg(first)
            .arg(last)
            .launch();
    }
}

/// [`backward`] in tiles of some key heads and `side` queries and keys, however short the rows are; `ws` has room for
/// [`tiles_workspace`].
#[cfg(test)]
pub(super) fn backward_in_tiles(
    q: &cuda::Queue,
    o: super::Backward<Views<'_>>,
    a: &Attn,
    (kv_heads, side): (usize, usize),
    ws: Dst<'_>,
) {
    backward_by(q, o, a, in_squares(kv_heads, side), ws);
}

/// Bytes of scratch of [`backward_in_tiles`].
#[cfg(test)]
pub(super) fn tiles_workspace(a: &Attn, (kv_heads, side): (usize, usize)) -> usize {
    cut::slice_bytes(a, in_squares(kv_heads, side))
}

#[cfg(test)]
fn in_squares(kv_heads: usize, side: usize) -> Slice {
    Slice {
        rows: 1,
        kv_heads,
        side,
    }
}

#[cfg(test)]
mod tests {
    use super::cut::testing::{SHAPES, attn};
    use super::*;

    /// A device as cuDNN describes one.
    fn properties(version: u32) -> String {
        let (name, multiprocessors, shared, threads, l2, memory) = match version {
            900 => ("NVIDIA H200", 132, 232_448, 2048, 62_914_560_u64, 150_u64),
            800 => ("NVIDIA A100", 108, 166_912, 2048, 41_943_040, 85),
            _ => (
                "NVIDIA GeForce RTX 4090",
                128,
                101_376,
                1536,
                75_497_472,
                25,
            ),
        };
        let numbers = [
            ("deviceVer", u64::from(version)),
            ("driverVer", 13_000),
            ("cudaDeviceId", 0),
            ("multiProcessorCount", multiprocessors),
            ("warpSize", 32),
            ("maxSharedMemoryPerBlock", 49_152),
            ("maxSharedMemoryPerBlockOptin", shared),
            ("reservedSharedMemoryPerBlock", 1024),
            ("oversizedSharedMemoryPerBlock", shared),
            ("regsPerBlock", 65_536),
            ("maxRegistersPerSM", 65_536),
            ("maxCtasPerSM", 32),
            ("maxThreadsPerBlock", 1024),
            ("maxThreadsPerSM", threads),
            ("smCountOrigin", multiprocessors),
            ("pciDeviceId", 0),
            ("isTccDriver", 0),
            ("supportCoopLaunch", 1),
            ("smClockRateKHz", 1_980_000),
            ("memClockRateKHz", 2_619_000),
            ("memoryBusWidth", 5120),
            ("l2CacheSize", l2),
            ("totalGlobalMem", memory * 1_000_000_000),
        ]
        .map(|(key, value)| format!("\"{key}\":{value},"))
        .concat();
        format!(
            "{{{numbers}\"maxGridSize\":[2147483647,65535,65535],\
             \"maxBlockSize\":[1024,1024,64],\"deviceName\":\"{name}\"}}"
        )
    }

    /// Runs where `LOWTIDE_CUDNN_STUB` is set, and takes minutes. Needs cuDNN and no GPU: `LOWTIDE_CUDA_LIBS` names
    /// the folder of `libcudnn.so.9`, and `LD_LIBRARY_PATH` folders of `libcublasLt`, `libnvrtc` and a
    /// `libcuda.so.1`. For the last serves a library that has every function of the driver, whose calls return 100,
    /// but for those that load modules and find kernels in them (`cuLibraryLoadData`, `cuLibraryGetKernel`,
    /// `cuLibraryGetModule`, `cuKernelGetFunction`, `cuModuleLoadData`, `cuModuleGetFunction`, and the setters of
    /// their attributes): these give a handle that is not null, and 0.
    #[test]
    #[allow(clippy::print_stderr, reason = "what is skipped must be seen")]
    fn every_graph_is_accepted() {
        if std::env::var_os("LOWTIDE_CUDNN_STUB").is_none() {
            eprintln!("skipped: LOWTIDE_CUDNN_STUB is not set");
            return;
        }
        for version in [900, 890, 800] {
            let device = properties(version);
            for shape in SHAPES {
                for (direction, graphs) in graphs(&attn(shape)) {
                    for (graph, have) in graphs {
                        match dnn::plan_without_device(&device, &graph) {
                            Ok(want) if want <= have => {}
                            other => panic!(
                                "{direction} of {shape:?} on {version}: {other:?}, {have} planned"
                            ),
                        }
                    }
                }
            }
        }
    }
}
