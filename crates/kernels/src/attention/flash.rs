//! Attention on a CUDA device by kernels of our own: flash attention on tensor cores for bf16 heads
//! whose width is a multiple of 8 up to 256, a plain version for all else.
//!
//! Bound: matrix products, as the module's head says. Backward computes the scores and the gradient
//! of probabilities twice, once for the keys' gradients and once for the queries': 14·D operations a
//! pair for the 10·D that are counted. In exchange nothing is added in memory, so the bits do not
//! depend on which block comes first.

use lowtide_device::Dst;
use lowtide_device::cuda::{Queue, Source};
use lowtide_workload::Dtype;

use super::{Attn, Backward, Forward};
use crate::cuda::{define, source};
use crate::number::size;
use crate::operands::Views;

/// Headers of the tensor-core kernels.
const HEADERS: &[(&str, &str)] = &[
    ("common.cuh", include_str!("../common.cuh")),
    ("flash.cuh", include_str!("flash.cuh")),
    ("flash_ptx.cuh", include_str!("flash_ptx.cuh")),
    ("flash_forward.cuh", include_str!("flash_forward.cuh")),
    ("flash_backward.cuh", include_str!("flash_backward.cuh")),
];

static FORWARD: Source = Source {
    name: "flash_forward.cu",
    text: include_str!("flash_forward.cu"),
    headers: HEADERS,
};
static BACKWARD: Source = Source {
    name: "flash_backward.cu",
    text: include_str!("flash_backward.cu"),
    headers: HEADERS,
};
static FORWARD_CAPPED: Source = Source {
    name: "flash_forward_capped.cu",
    text: include_str!("flash_forward_capped.cu"),
    headers: HEADERS,
};
static BACKWARD_CAPPED: Source = Source {
    name: "flash_backward_capped.cu",
    text: include_str!("flash_backward_capped.cu"),
    headers: HEADERS,
};
static FORWARD_FULL: Source = Source {
    name: "flash_forward_full.cu",
    text: include_str!("flash_forward_full.cu"),
    headers: HEADERS,
};
static BACKWARD_FULL: Source = Source {
    name: "flash_backward_full.cu",
    text: include_str!("flash_backward_full.cu"),
    headers: HEADERS,
};
static PLAIN: Source = source!("flash_plain", "flash_plain.cu");

/// Threads of a block of the tensor-core kernels.
const THREADS: u32 = 128;

/// The tensor-core kernels for one width of head, as the sources fix them.
#[derive(Debug)]
struct Tiles {
    /// Widest head that they take; columns are padded to it in shared memory.
    width: usize,
    /// What their sources are compiled with: one width each, so that a first run compiles no other.
    define: &'static str,
    /// Queries and keys of a tile in forward.
    forward: (usize, usize),
    /// Keys and queries of a tile in the keys' gradient.
    keys: (usize, usize),
    /// Queries and keys of a tile in the queries' gradient.
    queries: (usize, usize),
}

impl Tiles {
    const fn new(width: usize, define: &'static str) -> Self {
        // The constants of the sources: QUERIES, KEYS and THREADS there.
        Self {
            width,
            define,
            forward: (if width <= 128 { 128 } else { 64 }, 64),
            keys: match width {
                0..=64 => (128, 32),
                65..=128 => (64, 32),
                _ => (32, 16),
            },
            queries: match width {
                0..=64 => (128, 64),
                65..=128 => (128, 32),
                _ => (64, 16),
            },
        }
    }

    /// The narrowest that take `a`, if any do.
    fn of(a: &Attn, dtype: Dtype) -> Option<&'static Self> {
        static ALL: [Tiles; 5] = [
            Tiles::new(32, "BF16=32"),
            Tiles::new(64, "BF16=64"),
            Tiles::new(96, "BF16=96"),
            Tiles::new(128, "BF16=128"),
            Tiles::new(256, "BF16=256"),
        ];
        // The running maximum is that of unscaled scores, hence a positive scale.
        let suits = dtype == Dtype::Bf16 && a.head_dim.is_multiple_of(8) && a.scale > 0.0;
        ALL.iter().find(|t| suits && a.head_dim <= t.width)
    }

    /// Bytes of a row in shared memory: its numbers and 16 bytes, against bank conflicts.
    fn row(&self) -> usize {
        2 * self.width + 16
    }

    fn shared_forward(&self) -> usize {
        (self.forward.0 + 2 * self.forward.1) * self.row()
    }

    /// Keys and values; two stages of queries and their gradients, with three numbers each.
    fn shared_keys(&self) -> usize {
        let (keys, queries) = self.keys;
        2 * keys * self.row() + 2 * (2 * queries * self.row() + 3 * queries * size_of::<f32>())
    }

    fn shared_queries(&self) -> usize {
        (2 * self.queries.0 + 3 * self.queries.1) * self.row()
    }
}

/// Whether 16-byte accesses reach every head of these tensors; heads are multiples of 16 bytes.
fn aligned(addresses: &[u64]) -> bool {
    addresses.iter().all(|at| at.is_multiple_of(16))
}

/// Bytes of scratch, enough for either direction: `Σ d_out·out` of each query, f32 (B, H, T).
pub(super) fn workspace(a: &Attn, dtype: Dtype) -> usize {
    let _ = dtype; // the sums are f32 whatever is stored
    a.rows() * a.heads * size_of::<f32>()
}

/// The kernels' parameter for the window: 0 tells the plain ones that a token sees what is behind it.
fn window(a: &Attn, tiles: Option<&Tiles>) -> usize {
    match tiles.is_none() && a.full() {
        true => 0,
        false => a.window(),
    }
}

/// [`super::forward`] on a CUDA device; uses no scratch. When the call returns the work is in the
/// queue's stream.
pub(super) fn forward(q: &Queue, o: Forward<Views<'_>>, a: &Attn, dtype: Dtype) {
    let tiles = Tiles::of(a, dtype).filter(|_| aligned(&[o.out.address(), o.qkv.address()]));
    let source = match (a.cap, a.full()) {
        (None, false) => &FORWARD,
        (None, true) => &FORWARD_FULL,
        (Some(_), _) => &FORWARD_CAPPED,
    };
    // The tensor cores' kernels have a parameter for the cap where there is one, the plain ones always.
    let cap = match (tiles, a.cap) {
        (Some(_), cap) => cap,
        (None, cap) => Some(cap.unwrap_or(0.0)),
    };
    let launch = match tiles {
        Some(t) => q
            .kernel(source, t.define, "flash_forward")
            .grid(a.seq.div_ceil(t.forward.0), a.heads, a.batch)
            .block(THREADS)
            .shared(t.shared_forward()),
        None => q
            .kernel(&PLAIN, define(dtype), "plain_forward")
            .grid(a.seq, a.heads, a.batch)
            .block(32)
            .shared((a.head_dim + 32) * size_of::<f32>()),
    };
    let launch = launch
        .arg(&o.out)
        .arg(&o.lse)
        .arg(o.qkv)
        .arg(o.inputs.doc_start)
        .arg(a.seq)
        .arg(a.heads)
        .arg(a.kv_heads)
        .arg(a.head_dim)
        .arg(a.scale)
        .arg(window(a, tiles));
    let launch = match cap {
        Some(cap) => launch.arg(cap),
        None => launch,
    };
    // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
    unsafe {
        launch.launch();
    }
}

/// [`super::backward`] on a CUDA device. When the call returns the work is in the queue's stream.
pub(super) fn backward(q: &Queue, o: Backward<Views<'_>>, a: &Attn, dtype: Dtype, ws: Dst<'_>) {
    let delta = ws.part(0, workspace(a, dtype));
    let wide = aligned(&[o.d_out.address(), o.out.address()])
        && (a.head_dim * size(dtype)).is_multiple_of(16);
    // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
    unsafe {
        q.kernel(&PLAIN, define(dtype), "flash_delta")
            .grid((16 * a.rows() * a.heads).div_ceil(128), 1, 1)
            .block(128)
            .arg(&delta)
            .arg(o.d_out)
            .arg(o.out)
            .arg(a.batch)
            .arg(a.seq)
            .arg(a.heads)
            .arg(a.head_dim)
            .arg(wide && a.head_dim.is_multiple_of(8))
            .launch();
    }
    let row = a.head_dim * size_of::<f32>();
    let tiles = Tiles::of(a, dtype)
        .filter(|_| aligned(&[o.d_qkv.address(), o.d_out.address(), o.qkv.address()]));
    let source = match (a.cap, a.full()) {
        (None, false) => &BACKWARD,
        (None, true) => &BACKWARD_FULL,
        (Some(_), _) => &BACKWARD_CAPPED,
    };
    let cap = match (tiles, a.cap) {
        (Some(_), cap) => cap,
        (None, cap) => Some(cap.unwrap_or(0.0)),
    };
    let launches = match tiles {
        Some(t) => [
            q.kernel(source, t.define, "flash_backward_kv")
                .grid(a.seq.div_ceil(t.keys.0), a.kv_heads, a.batch)
                .block(THREADS)
                .shared(t.shared_keys()),
            q.kernel(source, t.define, "flash_backward_q")
                .grid(a.seq.div_ceil(t.queries.0), a.heads, a.batch)
                .block(THREADS)
                .shared(t.shared_queries()),
        ],
        None => [
            q.kernel(&PLAIN, define(dtype), "plain_backward_kv")
                .grid(a.seq, a.kv_heads, a.batch)
                .block(32)
                .shared(2 * row + 64 * size_of::<f32>()),
            q.kernel(&PLAIN, define(dtype), "plain_backward_q")
                .grid(a.seq, a.heads, a.batch)
                .block(32)
                .shared(row + 32 * size_of::<f32>()),
        ],
    };
    for launch in launches {
        let launch = launch
            .arg(&o.d_qkv)
            .arg(o.d_out)
            .arg(o.qkv)
            .arg(o.lse)
            .arg(&delta)
            .arg(o.inputs.doc_start)
            .arg(a.seq)
            .arg(a.heads)
            .arg(a.kv_heads)
            .arg(a.head_dim)
            .arg(a.scale)
            .arg(window(a, tiles));
        let launch = match cap {
            Some(cap) => launch.arg(cap),
            None => launch,
        };
        // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
        unsafe {
            launch.launch();
        }
    }
}
