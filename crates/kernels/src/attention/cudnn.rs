//! Attention by cuDNN: the graphs that its fused kernels know, on the fused projection as it lies.
//!
//! Causal and grouped-query, bf16, one document a row: `doc_start` is not read. Queries, keys and
//! values are strided views of the projection, gradients of its gradient, so nothing is copied.
//! `lse` is what cuDNN calls stats.
//!
//! **Backward gives the same bits every time.** Its last product writes dq itself; with that,
//! cuDNN keeps the gradient of the probabilities in memory, (H, T, T) bf16 a row of tokens, instead
//! of adding to dq from many blocks. It runs slice by slice, so that this stays under [`MOST`]:
//! rows of tokens first, and where one row is too many, key heads of it with their query heads.
//! Slices are chosen by shape alone. The gradient of a key head is the sum over its query heads,
//! each rounded to bf16.
//!
//! Bound: as for the own kernels. Measured on an H200 with cuDNN 9.19: forward 380 to 602 TFLOP/s,
//! backward 275 to 449, for D 128 and T 2048 to 8192.
//!
//! One file because cuDNN's graphs, their slices and their launch are one description of the same tensors.

use lowtide_device::cuda::dnn::{self, Graph, Id, Number, Op, Operand};
use lowtide_device::cuda::{self, CudaError, Gpu};
use lowtide_device::{Dst, Src};
use lowtide_workload::Dtype;

use super::Attn;
use crate::operands::Views;

/// Bytes of workspace that a slice of backward may want, where it can be cut at all.
const MOST: usize = 5 << 28;

/// Numbers of the projection that one call of forward may span: cuDNN's own indices may be 32 bits
/// wide.
const SPAN: usize = 1 << 31;

/// Bytes kept free of any formula: what an engine wants beside its large tensors.
const MARGIN: usize = 1 << 20;

/// What one execution computes: whole rows of tokens, or some key heads of one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slice {
    rows: usize,
    kv_heads: usize,
}

/// Bytes of the sums d_out·out of a slice, which cuDNN's kernels hand from one to the next.
fn delta(a: &Attn, s: Slice) -> usize {
    (s.rows * s.kv_heads * a.group() * a.seq * size_of::<f32>()).next_multiple_of(256)
}

/// Bytes that cuDNN may want for a slice of backward: the gradient of the probabilities, and for
/// grouped queries dk and dv of every query head. cuDNN 9.19 wants a little less than this on every
/// chip and shape that was tried (`every_graph_is_accepted`).
fn planned(a: &Attn, s: Slice) -> usize {
    let heads = s.rows * s.kv_heads * a.group();
    let seq = a.seq.next_multiple_of(128);
    let d_probabilities = heads * seq * seq * size_of::<u16>();
    let expanded = if a.group() > 1 {
        2 * heads * seq * a.head_dim * size_of::<u16>()
    } else {
        0
    };
    d_probabilities + expanded + MARGIN
}

fn slice_bytes(a: &Attn, s: Slice) -> usize {
    delta(a, s) + planned(a, s)
}

/// How backward is cut: as many rows as fit, in slices of about the same size; of a row that does
/// not fit, as many key heads.
fn backward_slice(a: &Attn) -> Slice {
    let of = |rows, kv_heads| Slice { rows, kv_heads };
    let fits = |s: Slice| slice_bytes(a, s) <= MOST;
    if fits(of(1, a.kv_heads)) {
        let most = (1..=a.batch).rev().find(|&n| fits(of(n, a.kv_heads)));
        let slices = a.batch.div_ceil(most.unwrap_or(1));
        return of(a.batch.div_ceil(slices), a.kv_heads);
    }
    let heads = (1..=a.kv_heads).rev().find(|&n| fits(of(1, n)));
    let slices = a.kv_heads.div_ceil(heads.unwrap_or(1));
    of(1, a.kv_heads.div_ceil(slices))
}

/// How forward is cut.
fn forward_slice(a: &Attn) -> Slice {
    let row = a.seq * a.width();
    Slice {
        rows: (SPAN / row.max(1)).clamp(1, a.batch.max(1)),
        kv_heads: a.kv_heads,
    }
}

/// Bytes of scratch, enough for either direction.
pub(super) fn workspace(a: &Attn) -> usize {
    slice_bytes(a, backward_slice(a)).max(MARGIN)
}

/// The slices of a direction, as first row, first key head, and size.
fn slices(a: &Attn, s: Slice) -> Vec<(usize, usize, Slice)> {
    let mut all = Vec::new();
    for row in (0..a.batch).step_by(s.rows) {
        for head in (0..a.kv_heads).step_by(s.kv_heads) {
            let slice = Slice {
                rows: s.rows.min(a.batch - row),
                kv_heads: s.kv_heads.min(a.kv_heads - head),
            };
            all.push((row, head, slice));
        }
    }
    all
}

/// Into how many executions backward is cut.
#[cfg(test)]
pub(super) fn executions(a: &Attn) -> usize {
    slices(a, backward_slice(a)).len()
}

/// The tensors of a slice, as they lie.
struct Shapes {
    rows: usize,
    heads: usize,
    kv_heads: usize,
    seq: usize,
    dim: usize,
    /// Numbers from one token to the next of the projection, and of the output.
    width: usize,
    out_width: usize,
    /// Numbers of lse from one row of tokens to the next.
    lse_row: usize,
}

impl Shapes {
    fn new(a: &Attn, s: Slice) -> Self {
        Self {
            rows: s.rows,
            heads: s.kv_heads * a.group(),
            kv_heads: s.kv_heads,
            seq: a.seq,
            dim: a.head_dim,
            width: a.width(),
            out_width: a.heads * a.head_dim,
            lse_row: a.heads * a.seq,
        }
    }

    /// Heads of a tensor whose tokens are `width` numbers apart.
    fn heads_of(&self, g: &mut Graph, heads: usize, width: usize) -> Id {
        g.real(
            [self.rows, heads, self.seq, self.dim],
            [self.seq * width, self.dim, width, 1],
            Number::Bf16,
            16,
        )
    }

    /// The same with tokens as columns.
    fn transposed(&self, g: &mut Graph, heads: usize, width: usize) -> Id {
        g.real(
            [self.rows, heads, self.dim, self.seq],
            [self.seq * width, self.dim, 1, width],
            Number::Bf16,
            16,
        )
    }

    /// One f32 a query, in memory.
    fn per_query(&self, g: &mut Graph, row: usize) -> Id {
        g.real(
            [self.rows, self.heads, self.seq, 1],
            [row, self.seq, 1, 1],
            Number::F32,
            size_of::<f32>(),
        )
    }

    /// One f32 a query, between operations.
    fn per_query_between(&self, g: &mut Graph) -> Id {
        g.between([self.rows, self.heads, self.seq, 1], Number::F32)
    }

    /// One number a query and key, between operations.
    fn scores(&self, g: &mut Graph, number: Number) -> Id {
        g.between([self.rows, self.heads, self.seq, self.seq], number)
    }

    /// Scores as bf16 with keys as rows: `x` turned.
    fn turned(&self, g: &mut Graph, x: Id) -> Id {
        let (h, t) = (self.heads, self.seq);
        let y = g.between_strided([self.rows, h, t, t], [h * t * t, t * t, 1, t], Number::Bf16);
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
            let each = g.between([self.rows, self.heads, self.seq, self.dim], Number::Bf16);
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
        let (n, mut graph) = (Shapes::new(a, s), Graph::default());
        let g = &mut graph;
        let q = n.heads_of(g, n.heads, n.width);
        let k = n.transposed(g, n.kv_heads, n.width);
        let v = n.heads_of(g, n.kv_heads, n.width);
        let out = n.heads_of(g, n.heads, n.out_width);
        let lse = n.per_query(g, n.lse_row);
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
    fn new(a: &Attn, s: Slice) -> Self {
        let (n, mut graph) = (Shapes::new(a, s), Graph::default());
        let g = &mut graph;
        let q = n.heads_of(g, n.heads, n.width);
        let k = n.transposed(g, n.kv_heads, n.width);
        let v = n.transposed(g, n.kv_heads, n.width);
        let out = n.heads_of(g, n.heads, n.out_width);
        let d_out = n.heads_of(g, n.heads, n.out_width);
        let lse = n.per_query(g, n.lse_row);
        let delta = n.per_query(g, n.heads * n.seq);
        let dq = n.heads_of(g, n.heads, n.width);
        let dk = n.heads_of(g, n.kv_heads, n.width);
        let dv = n.heads_of(g, n.kv_heads, n.width);
        let (one, scale) = (g.scalar(1.0), g.scalar(a.scale));

        // The softmax's gradient subtracts Σ p·dp, which is d_out·out.
        let both = g.between([n.rows, n.heads, n.seq, n.dim], Number::F32);
        g.pointwise(Op::Mul, d_out, Some(out), both);
        let sum = n.per_query_between(g);
        g.sum(both, sum);
        g.pointwise(Op::Mul, sum, Some(one), delta);

        // Probabilities again, and from them dv.
        let s = n.scores(g, Number::F32);
        g.product(q, k, s);
        let s = n.scores_f32(g, Op::Mul, s, Some(scale));
        let s = n.scores_f32(g, Op::Sub, s, Some(lse));
        let s = g.causal(s, f32::NEG_INFINITY);
        let p = n.scores_f32(g, Op::Exp, s, None);
        let p_turned = n.turned(g, p);
        n.product_by_key_head(g, p_turned, d_out, dv);

        // The gradient of the scores, and from it dk and dq.
        let dp = n.scores(g, Number::F32);
        g.product(d_out, v, dp);
        let dp = n.scores_f32(g, Op::Sub, dp, Some(delta));
        let dp = n.scores_f32(g, Op::Mul, dp, Some(p));
        let ds = n.scores_f32(g, Op::Mul, dp, Some(scale));
        let ds_turned = n.turned(g, ds);
        n.product_by_key_head(g, ds_turned, q, dk);
        let keys = g.between_strided(
            [n.rows, n.kv_heads, n.seq, n.dim],
            [n.seq * n.width, n.dim, n.width, 1],
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

/// The graphs of both directions, one a size of slice, and the bytes planned for each.
fn graphs(a: &Attn) -> [(&'static str, Vec<(Graph, usize)>); 2] {
    let sizes = |cut: Slice| {
        let mut sizes: Vec<Slice> = slices(a, cut).into_iter().map(|(_, _, s)| s).collect();
        sizes.dedup();
        sizes
    };
    let have = workspace(a);
    let forward = sizes(forward_slice(a))
        .into_iter()
        .map(|s| (Forward::new(a, s).graph, have))
        .collect();
    let backward = sizes(backward_slice(a))
        .into_iter()
        .map(|s| (Backward::new(a, s).graph, have - delta(a, s)))
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
    mut ws: Dst<'_>,
) {
    if !ready(q, a, dtype) {
        return;
    }
    for (row, head, slice) in slices(a, backward_slice(a)) {
        let (token, query) = (row * a.seq, head * a.group());
        let b = Backward::new(a, slice);
        let (sums, rest) = ws.again().split_at(delta(a, slice));
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

#[cfg(test)]
mod tests {
    use super::super::Engine;
    use super::*;

    fn attn([batch, heads, kv_heads, seq, head_dim]: [usize; 5]) -> Attn {
        Attn {
            batch,
            seq,
            heads,
            kv_heads,
            head_dim,
            scale: 1.0 / (head_dim as f32).sqrt(),
            engine: Engine::Cudnn,
        }
    }

    /// B, H, KV, T, D.
    const SHAPES: [[usize; 5]; 12] = [
        [3, 4, 4, 7, 64],
        [1, 14, 2, 128, 64],
        [3, 4, 2, 129, 128],
        [2, 14, 2, 2048, 64],
        [1, 4, 4, 100, 96],
        [8, 32, 8, 2048, 128],
        [7, 16, 8, 2048, 128],
        [8, 16, 16, 2048, 128],
        [4, 32, 8, 4096, 128],
        [1, 32, 8, 8192, 128],
        [2, 14, 7, 8191, 64],
        [1, 2, 1, 33_000, 64],
    ];

    #[test]
    fn slices_cover_everything_once_and_stay_small() {
        for shape in SHAPES {
            let a = attn(shape);
            let cut = backward_slice(&a);
            for cut in [cut, forward_slice(&a)] {
                let mut seen = vec![0; a.batch * a.kv_heads];
                for (row, head, s) in slices(&a, cut) {
                    for row in row..row + s.rows {
                        for head in head..head + s.kv_heads {
                            seen[row * a.kv_heads + head] += 1;
                        }
                    }
                }
                assert!(seen.iter().all(|&n| n == 1), "{shape:?}: {seen:?}");
            }
            let smallest = cut.rows == 1 && cut.kv_heads == 1;
            assert!(smallest || workspace(&a) <= MOST, "{shape:?}");
            for (_, _, s) in slices(&a, cut) {
                assert!(slice_bytes(&a, s) <= workspace(&a), "{shape:?}: {s:?}");
            }
        }
        assert_eq!(backward_slice(&attn(SHAPES[5])).rows, 4, "rows are cut");
        assert_eq!(
            backward_slice(&attn(SHAPES[9])).kv_heads,
            2,
            "heads are cut"
        );
    }

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

    /// Runs where `LOWTIDE_CUDNN_STUB` is set, and takes minutes. Needs cuDNN and no GPU: `LOWTIDE_CUDA_LIBS` names the folder of `libcudnn.so.9`, and
    /// `LD_LIBRARY_PATH` folders of `libcublasLt`, `libnvrtc` and a `libcuda.so.1`. For the last
    /// serves a library that has every function of the driver, whose calls return 100, but for
    /// those that load modules and find kernels in them (`cuLibraryLoadData`,
    /// `cuLibraryGetKernel`, `cuLibraryGetModule`, `cuKernelGetFunction`, `cuModuleLoadData`,
    /// `cuModuleGetFunction`, and the setters of their attributes): these give a handle that is not
    /// null, and 0.
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
