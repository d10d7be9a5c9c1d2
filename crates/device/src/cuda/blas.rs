//! Matrix products by cuBLASLt.
//!
//! Bound: 2·m·n·k operations over the rate of the tensor cores (bf16) or of `fma` (f32, never
//! TF32); for a few rows, the operands' bytes over the bandwidth.
//!
//! Which of the library's algorithms computes a product decides its bits, so a choice is made once
//! and then stays: by the library's own ranking, or by measurement while
//! [`set_tuning`](Gpu::set_tuning) is on. Measured choices are kept on disk beside the compiled
//! kernels; a run stores what it used ([`choices`](Gpu::choices)) and gets it back when it resumes
//! ([`set_choices`](Gpu::set_choices)). Only algorithms whose sums have a fixed order are taken:
//! one pass over the inner size, or partial sums in `f32` that a second kernel adds.
//!
//! One file because a product's description, the choice of its algorithm and its launch share the state that the lock
//! guards; what can be looked at alone (choices as text, the library's functions) is in `blas/`.

mod choice;
mod library;

use std::collections::{BTreeMap, HashMap};
use std::ffi::{c_int, c_void};
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::cublaslt::sys::{
    self, cublasLtHandle_t, cublasLtMatmulAlgoCapAttributes_t as Cap,
    cublasLtMatmulAlgoConfigAttributes_t as Config, cublasLtMatmulDescAttributes_t as Desc,
    cublasLtMatmulPreferenceAttributes_t as Prefer, cublasLtReductionScheme_t as Reduction,
    cudaDataType,
};

use self::choice::{Add, Key, Words, alignment};
use self::library::{
    CublasLt, Found, INVALID_VALUE, Layout, NOT_SUPPORTED, Operation, Preference, SUCCESS, Status,
};
use super::module::cache_folder;
use super::{CudaError, Event, Gpu, KernelArg, Queue};
use crate::view::{Dst, Src};

/// Most bytes of scratch that a product uses.
///
/// NVIDIA advises this for Hopper. Partial sums cannot need more there: the inner size is only
/// split while there are fewer tiles than multiprocessors, and 132 partial tiles of 256 x 128
/// numbers are 17 MiB.
pub const PRODUCT_WORKSPACE: usize = 32 << 20;

/// The name under which a run's choices hold the library's version.
const VERSION: &str = "cublasLt";

/// How many candidates the library is asked for.
const CANDIDATES: usize = 16;

/// How a product's numbers lie in memory. Arithmetic is `f32` for both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// bfloat16: two bytes a number.
    Bf16,
    /// IEEE single: four bytes a number.
    F32,
}

impl Format {
    fn size(self) -> usize {
        match self {
            Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }

    fn library(self) -> cudaDataType {
        match self {
            Self::Bf16 => cudaDataType::CUDA_R_16BF,
            Self::F32 => cudaDataType::CUDA_R_32F,
        }
    }
}

/// `d = a·b (+ c) (+ bias)`: sizes and how the operands are stored, all of them row by row, `b`
/// without gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Product {
    /// Rows of `a`, `c` and `d`.
    pub rows: usize,
    /// Columns of `b`, `c` and `d`; as many numbers has `bias`.
    pub cols: usize,
    /// Columns of `a`, rows of `b`.
    pub inner: usize,
    /// Whether `a` is stored transposed, as (inner, rows).
    pub a_transposed: bool,
    /// Whether `b` is stored transposed, as (cols, inner).
    pub b_transposed: bool,
    /// Numbers from the end of a stored row of `a` to the start of the next, the last one's too. Rows
    /// that start at multiples of 16 bytes are several times as fast as others.
    pub a_gap: usize,
    /// The same of `c` and `d`; what stands there is neither read nor written.
    pub d_gap: usize,
    /// Numbers of `a` and `b`.
    pub input: Format,
    /// Numbers of `c`, `d` and `bias`.
    pub output: Format,
}

/// What is added to a product.
#[derive(Clone, Copy, Debug)]
pub enum Plus<'a> {
    /// Nothing: the output is overwritten unread.
    Nothing,
    /// What the output holds already.
    Itself,
    /// A matrix of its own.
    Other(Src<'a>),
}

/// The library has no algorithm for a product; nothing was launched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoAlgorithm(pub CudaError);

/// Puts a product into the queue's stream and returns before it is done.
///
/// `c` is what is added. The sum is `f32` to the end and rounded once. `ws` is scratch; at most [`PRODUCT_WORKSPACE`]
/// bytes of it are used. Other errors than the one below are kept in the queue.
///
/// # Errors
/// When the library cannot compute it; nothing was launched then.
///
/// # Panics
/// When a view is not in device memory, or has not the size that its shape says.
#[allow(
    clippy::too_many_arguments,
    reason = "a product's operands are its documentation"
)]
pub fn product(
    q: &Queue,
    p: &Product,
    a: Src<'_>,
    b: Src<'_>,
    c: Plus<'_>,
    d: Dst<'_>,
    bias: Option<Src<'_>>,
    ws: Dst<'_>,
) -> Result<(), NoAlgorithm> {
    let expect = |what: &str, bytes: usize, numbers: usize, format: Format| {
        assert_eq!(bytes, numbers * format.size(), "{what} of {p:?}");
    };
    let (a_rows, a_cols) = if p.a_transposed {
        (p.inner, p.rows)
    } else {
        (p.rows, p.inner)
    };
    expect("a", a.bytes(), a_rows * (a_cols + p.a_gap), p.input);
    expect("b", b.bytes(), p.inner * p.cols, p.input);
    let d_numbers = p.rows * (p.cols + p.d_gap);
    expect("d", d.bytes(), d_numbers, p.output);
    if let Plus::Other(c) = c {
        expect("c", c.bytes(), d_numbers, p.output);
    }
    if let Some(bias) = bias {
        expect("bias", bias.bytes(), p.cols, p.output);
    }
    if p.rows == 0 || p.cols == 0 {
        return Ok(());
    }
    let (key, at) = Operands::of(p, a, b, c, &d, bias, &ws);
    let products = q.gpu().products();
    let tuning = products.tuning.load(Ordering::Relaxed);
    match products.lock().product(q, &key, &at, tuning) {
        Ok(true) => {}
        Ok(false) => {
            return Err(NoAlgorithm(CudaError::Call {
                call: "cublasLtMatmulAlgoGetHeuristic",
                what: format!("the library has no algorithm for the product {key}"),
            }));
        }
        Err(e) => q.fail(e),
    }
    Ok(())
}

/// Addresses of one call.
#[derive(Clone, Copy, Debug)]
struct Operands {
    a: u64,
    b: u64,
    c: u64,
    d: u64,
    bias: u64,
    ws: u64,
}

impl Operands {
    fn of(
        p: &Product,
        a: Src<'_>,
        b: Src<'_>,
        c: Plus<'_>,
        d: &Dst<'_>,
        bias: Option<Src<'_>>,
        ws: &Dst<'_>,
    ) -> (Key, Self) {
        // Scratch starts at a multiple of 256, as the library's own does.
        let skip = ws.address().wrapping_neg() as usize % 256;
        let scratch = ws.bytes().saturating_sub(skip).min(PRODUCT_WORKSPACE);
        let at = Self {
            a: a.bits(),
            b: b.bits(),
            c: match c {
                Plus::Other(c) => c.bits(),
                Plus::Nothing | Plus::Itself => d.bits(),
            },
            d: d.bits(),
            bias: bias.bits(),
            ws: if scratch == 0 {
                0
            } else {
                ws.bits() + skip as u64
            },
        };
        let (input, output) = (p.input.size(), p.output.size());
        let a_stride = if p.a_transposed { p.rows } else { p.inner } + p.a_gap;
        let d_stride = p.cols + p.d_gap;
        let b_stride = if p.b_transposed { p.inner } else { p.cols };
        let key = Key {
            input: p.input,
            output: p.output,
            rows: p.rows,
            cols: p.cols,
            inner: p.inner,
            a_transposed: p.a_transposed,
            b_transposed: p.b_transposed,
            gaps: [p.a_gap, p.d_gap],
            add: match c {
                Plus::Nothing => Add::Nothing,
                Plus::Itself => Add::Itself,
                Plus::Other(_) => Add::Other,
            },
            bias: bias.is_some(),
            aligned: [
                alignment(at.a, a_stride * input),
                alignment(at.b, b_stride * input),
                alignment(at.c, d_stride * output),
                alignment(at.d, d_stride * output),
                // Without one the address is zero: a multiple of everything.
                alignment(at.bias, 0),
            ],
            scratch,
        };
        (key, at)
    }
}

/// Products of one GPU: what was chosen, and the library's descriptors, made once a key.
#[derive(Default)]
pub(super) struct Products {
    tuning: AtomicBool,
    /// Held during a call, because a descriptor holds that call's bias.
    state: Mutex<State>,
}

impl fmt::Debug for Products {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Products").finish_non_exhaustive()
    }
}

impl Products {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gpu {
    /// Lets products that have no measured choice be measured when they are first asked for, on
    /// the operands given, whose contents do not matter then: the output is written many times,
    /// and added to many times where it is added to. Off at the start.
    pub fn set_tuning(&self, on: bool) {
        self.products().tuning.store(on, Ordering::Relaxed);
    }

    /// Which algorithm computed which product in this process, and the library's version: what
    /// [`Gpu::set_choices`] takes. Empty when there was no product.
    #[must_use]
    pub fn choices(&self) -> BTreeMap<String, Vec<u64>> {
        let state = self.products().lock();
        let Some(opened) = &state.opened else {
            return BTreeMap::new();
        };
        let used = state.ready.iter().filter(|(_, r)| r.used);
        let used = used.map(|(key, ready)| (key.to_string(), ready.algos[0]));
        // A run that was resumed keeps the choices that it has not needed yet.
        let all = state.restored.iter().map(|(k, w)| (k.clone(), *w));
        let mut table: BTreeMap<String, Vec<u64>> =
            all.chain(used).map(|(k, w)| (k, w.to_vec())).collect();
        if !table.is_empty() {
            table.insert(VERSION.to_owned(), vec![opened.version as u64]);
        }
        table
    }

    /// Makes a run's choices this process's, before others and instead of what was used so far. An
    /// empty table leaves everything to be chosen.
    ///
    /// # Errors
    /// When the library is another version than the one that the choices are for, or cannot run
    /// one of them on this GPU. Nothing has changed then.
    pub fn set_choices(&self, choices: &BTreeMap<String, Vec<u64>>) -> Result<(), CudaError> {
        self.bind()?;
        let mut state = self.products().lock();
        let mut restored = BTreeMap::new();
        if !choices.is_empty() {
            let refused = |what: String| CudaError::Call {
                call: "restoring the choices of matrix products",
                what,
            };
            let opened = state.open(self)?;
            let have = opened.version;
            match choices.get(VERSION).map(Vec::as_slice) {
                Some([version]) if *version == have as u64 => {}
                other => {
                    return Err(refused(format!(
                        "they are of cublasLt {other:?}, and {} is {have}",
                        opened.lib.path.display()
                    )));
                }
            }
            for (name, words) in choices.iter().filter(|(name, _)| *name != VERSION) {
                let (Ok(key), Ok(algo)) = (name.parse::<Key>(), Words::try_from(words.as_slice()))
                else {
                    return Err(refused(format!("{name:?}: {words:?} is no choice")));
                };
                let described = Described::new(opened.lib, &key)?;
                opened
                    .check(&described, &key, &algo)
                    .map_err(|e| refused(format!("{name} on {}: {e}", self.name())))?;
                restored.insert(name.clone(), algo);
            }
        }
        state
            .ready
            .retain(|key, _| !restored.contains_key(&key.to_string()));
        state.restored = restored;
        Ok(())
    }
}

#[derive(Default)]
struct State {
    opened: Option<Opened>,
    ready: HashMap<Key, Ready>,
    restored: BTreeMap<String, Words>,
}

// SAFETY: the library's handle and descriptors may be used from every thread, one at a time, which
// the mutex sees to.
unsafe impl Send for State {}

/// A product that is ready to run.
struct Ready {
    described: Described,
    /// The choice; before it has run once, others after it, should the library not run it. Empty
    /// when there is none.
    algos: Vec<Words>,
    /// Measured or restored: tuning changes it no more.
    settled: bool,
    used: bool,
}

impl State {
    fn open(&mut self, gpu: &Gpu) -> Result<&mut Opened, CudaError> {
        if self.opened.is_none() {
            self.opened = Some(Opened::new(gpu)?);
        }
        Ok(self.opened.as_mut().expect("just opened"))
    }

    /// Whether it was launched; `false` when the library has no algorithm for it.
    fn product(
        &mut self,
        q: &Queue,
        key: &Key,
        at: &Operands,
        tuning: bool,
    ) -> Result<bool, CudaError> {
        q.gpu().bind()?;
        self.open(q.gpu())?;
        let opened = self.opened.as_mut().expect("just opened");
        if self.ready.get(key).is_none_or(|r| tuning && !r.settled) {
            let ready = opened.choose(q, key, at, tuning, &self.restored)?;
            self.ready.insert(*key, ready);
        }
        let ready = self.ready.get_mut(key).expect("just inserted");
        loop {
            let Some(algo) = ready.algos.first() else {
                return Ok(false);
            };
            let status = opened.launch(&ready.described, key, algo, at, q)?;
            // That an algorithm was proposed does not promise that it runs. One that was measured
            // or restored has run.
            let refused = [NOT_SUPPORTED, INVALID_VALUE].contains(&status);
            if refused && !ready.used && !ready.settled {
                ready.algos.remove(0);
                continue;
            }
            opened
                .lib
                .ok("cublasLtMatmul", status)
                .map_err(|e| CudaError::Call {
                    call: "cublasLtMatmul",
                    what: format!("{key}: {e}"),
                })?;
            ready.used = true;
            ready.algos.truncate(1);
            return Ok(true);
        }
    }
}

/// The library, opened for one GPU; for the life of the process.
struct Opened {
    lib: &'static CublasLt,
    handle: cublasLtHandle_t,
    version: usize,
    /// Measured choices on disk.
    path: Option<PathBuf>,
    kept: BTreeMap<String, Words>,
}

impl Opened {
    fn new(gpu: &Gpu) -> Result<Self, CudaError> {
        let lib = CublasLt::get()?;
        gpu.bind()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes one handle, of the context that is current.
        lib.ok("cublasLtCreate", unsafe {
            (lib.cublasLtCreate)(&raw mut handle)
        })?;
        // SAFETY: gives a number.
        let version = unsafe { (lib.cublasLtGetVersion)() };
        let path = cache_folder().map(|f| choice::file(&f, gpu.name(), version));
        let kept = path.as_deref().map(choice::read).unwrap_or_default();
        Ok(Self {
            lib,
            handle,
            version,
            path,
            kept,
        })
    }

    /// Chooses for a key that was not asked for before, or not while tuning.
    fn choose(
        &mut self,
        q: &Queue,
        key: &Key,
        at: &Operands,
        tuning: bool,
        restored: &BTreeMap<String, Words>,
    ) -> Result<Ready, CudaError> {
        let described = Described::new(self.lib, key)?;
        let ready = |described, algos: Vec<Words>, settled| Ready {
            described,
            algos,
            settled,
            used: false,
        };
        let name = key.to_string();
        if let Some(algo) = restored.get(&name) {
            return Ok(ready(described, vec![*algo], true));
        }
        if let Some(algo) = self.kept.get(&name)
            && self.check(&described, key, algo).is_ok()
        {
            return Ok(ready(described, vec![*algo], true));
        }
        let candidates = self.candidates(&described, key)?;
        if candidates.is_empty() || !tuning {
            let settled = candidates.is_empty();
            return Ok(ready(described, candidates, settled));
        }
        let Some(fastest) = self.fastest(&described, key, &candidates, at, q)? else {
            return Ok(ready(described, Vec::new(), true));
        };
        let mut algo = fastest;
        if let Some(path) = &self.path
            && let Some(table) = choice::keep(path, &name, fastest)
        {
            // Another process may have measured it meanwhile.
            if let Some(first) = table.get(&name)
                && self.check(&described, key, first).is_ok()
            {
                algo = *first;
            }
        }
        self.kept.insert(name, algo);
        Ok(ready(described, vec![algo], true))
    }

    /// Algorithms that may compute it, in the library's order.
    fn candidates(&self, of: &Described, key: &Key) -> Result<Vec<Words>, CudaError> {
        let preference = Preference::new(self.lib)?;
        preference.set(
            Prefer::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
            &(key.scratch as u64),
        )?;
        // Without a second pass is zero, and always among them.
        preference.set(
            Prefer::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
            &(Reduction::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32),
        )?;
        let [a, b, c, d, _] = key.aligned.map(u32::from);
        // Its first operand is our second: see `Described`.
        preference.set(Prefer::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &b)?;
        preference.set(Prefer::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &a)?;
        preference.set(Prefer::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &c)?;
        preference.set(Prefer::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &d)?;
        let mut found = [Found::default(); CANDIDATES];
        let mut count = 0;
        // SAFETY: our own descriptors; `found` has room for as many results as are asked for. It
        // reads no operand.
        let status = unsafe {
            (self.lib.cublasLtMatmulAlgoGetHeuristic)(
                self.handle,
                of.desc.0,
                of.b.0,
                of.a.0,
                of.d.0,
                of.d.0,
                preference.0,
                CANDIDATES as c_int,
                found.as_mut_ptr(),
                &raw mut count,
            )
        };
        if status == NOT_SUPPORTED {
            return Ok(Vec::new());
        }
        self.lib.ok("cublasLtMatmulAlgoGetHeuristic", status)?;
        let fits = |f: &&Found| f.state == SUCCESS && self.suits(key, f);
        let found = found[..(count as usize).min(CANDIDATES)].iter();
        Ok(found.filter(fits).map(|f| f.algo).collect())
    }

    /// Whether an algorithm keeps to the scratch, adds in a fixed order, and reads what is added
    /// from where it is.
    fn suits(&self, key: &Key, found: &Found) -> bool {
        let (mut scheme, mut apart, mut written) = (u32::MAX, 1i32, 0usize);
        // SAFETY: write one number of the size given.
        let (status, status_apart) = unsafe {
            (
                (self.lib.cublasLtMatmulAlgoConfigGetAttribute)(
                    &raw const found.algo,
                    Config::CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME,
                    (&raw mut scheme).cast(),
                    size_of::<u32>(),
                    &raw mut written,
                ),
                (self.lib.cublasLtMatmulAlgoCapGetAttribute)(
                    &raw const found.algo,
                    Cap::CUBLASLT_ALGO_CAP_OUT_OF_PLACE_RESULT_SUPPORT,
                    (&raw mut apart).cast(),
                    size_of::<i32>(),
                    &raw mut written,
                ),
            )
        };
        let ordered = status == SUCCESS
            && [
                Reduction::CUBLASLT_REDUCTION_SCHEME_NONE as u32,
                Reduction::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32,
            ]
            .contains(&scheme);
        let placed = key.add != Add::Other || status_apart != SUCCESS || apart != 0;
        ordered && placed && found.workspace <= key.scratch
    }

    /// Whether the library can run an algorithm that it did not just propose.
    fn check(&self, of: &Described, key: &Key, algo: &Words) -> Result<(), CudaError> {
        let mut found = Found {
            algo: *algo,
            ..Found::default()
        };
        // SAFETY: our own descriptors; writes one result; reads no operand.
        let status = unsafe {
            (self.lib.cublasLtMatmulAlgoCheck)(
                self.handle,
                of.desc.0,
                of.b.0,
                of.a.0,
                of.d.0,
                of.d.0,
                algo,
                &raw mut found,
            )
        };
        self.lib.ok("cublasLtMatmulAlgoCheck", status)?;
        found.algo = *algo;
        if self.suits(key, &found) {
            return Ok(());
        }
        Err(CudaError::Call {
            call: "cublasLtMatmulAlgoCheck",
            what: "its sums have no fixed order, or it needs more scratch than there is".to_owned(),
        })
    }

    /// Puts the product into the stream. What the library says of it.
    fn launch(
        &self,
        of: &Described,
        key: &Key,
        algo: &Words,
        at: &Operands,
        q: &Queue,
    ) -> Result<Status, CudaError> {
        if key.bias {
            of.desc
                .set(Desc::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &at.bias)?;
        }
        let alpha = 1.0f32;
        let beta: f32 = if key.add == Add::Nothing { 0.0 } else { 1.0 };
        let pointer = |address: u64| address as usize as *mut c_void;
        // SAFETY: the operands have the sizes of their layouts (`product` has compared them), lie
        // on this device, were borrowed for the call (`Src`, `Dst`) and are freed behind what is in the
        // stream; the two numbers are read before the call returns.
        Ok(unsafe {
            (self.lib.cublasLtMatmul)(
                self.handle,
                of.desc.0,
                (&raw const alpha).cast(),
                pointer(at.b),
                of.b.0,
                pointer(at.a),
                of.a.0,
                (&raw const beta).cast(),
                pointer(at.c),
                of.d.0,
                pointer(at.d),
                of.d.0,
                algo,
                pointer(at.ws),
                key.scratch,
                q.stream().cast(),
            )
        })
    }

    /// Measures candidates, the library's first before the others, which must be clearly faster:
    /// so the choice does not hang on noise. None when none of them runs.
    fn fastest(
        &self,
        of: &Described,
        key: &Key,
        candidates: &[Words],
        at: &Operands,
        q: &Queue,
    ) -> Result<Option<Words>, CudaError> {
        /// Seconds that one batch of repetitions takes.
        const BATCH: f64 = 2e-3;
        /// How much faster another one must be.
        const CLEARLY: f64 = 1.02;
        /// How much slower than the best a single run may be to be measured at all.
        const HOPEFUL: f64 = 1.5;
        let (start, end) = (Event::new(q.gpu())?, Event::new(q.gpu())?);
        // Seconds of one run; `None` when the library does not run it.
        let time = |algo: &Words, repeats: u32| -> Result<Option<f64>, CudaError> {
            q.record(&start)?;
            for _ in 0..repeats {
                if self.launch(of, key, algo, at, q)? != SUCCESS {
                    return Ok(None);
                }
            }
            q.record(&end)?;
            end.synchronize()?;
            Ok(Some(end.seconds_since(&start)? / f64::from(repeats)))
        };
        let mut best: Option<(f64, Words)> = None;
        let mut first: Option<(f64, Words)> = None;
        for algo in candidates {
            // Two to warm up; the second says how long it takes.
            let Some(_) = time(algo, 1)? else { continue };
            let Some(once) = time(algo, 1)? else { continue };
            if best.is_some_and(|(s, _)| once > HOPEFUL * s.max(20e-6)) {
                continue;
            }
            let repeats = (BATCH / once.max(1e-6)).ceil().clamp(1.0, 1000.0) as u32;
            let mut batches = Vec::new();
            for _ in 0..3 {
                batches.extend(time(algo, repeats)?);
            }
            if batches.len() < 3 {
                continue;
            }
            batches.sort_by(f64::total_cmp);
            let measured = (batches[1], *algo);
            first.get_or_insert(measured);
            if best.is_none_or(|(s, _)| measured.0 < s) {
                best = Some(measured);
            }
        }
        Ok(match (first, best) {
            (Some((s, _)), Some((t, algo))) if t * CLEARLY < s => Some(algo),
            (first, _) => first.map(|(_, algo)| algo),
        })
    }
}

/// The library's description of a product. It counts columns first: our row-major `d` is its `dᵀ`,
/// so it computes `dᵀ = bᵀ·aᵀ`, its first operand is our `b`, its second our `a`, and a matrix of
/// ours that is not stored transposed is not transposed for it either.
struct Described {
    desc: Operation,
    a: Layout,
    b: Layout,
    /// Of `c` too.
    d: Layout,
}

impl Described {
    fn new(lib: &'static CublasLt, key: &Key) -> Result<Self, CudaError> {
        let transposed = |t: bool| i32::from(t); // CUBLAS_OP_N, CUBLAS_OP_T
        let desc = Operation::new(lib)?;
        desc.set(
            Desc::CUBLASLT_MATMUL_DESC_TRANSA,
            &transposed(key.b_transposed),
        )?;
        desc.set(
            Desc::CUBLASLT_MATMUL_DESC_TRANSB,
            &transposed(key.a_transposed),
        )?;
        if key.bias {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as u32;
            desc.set(Desc::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
            // Only its alignment is read before a launch, which sets the true one.
            let like = u64::from(key.aligned[4]);
            desc.set(Desc::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &like)?;
        }
        let matrix = |format: Format, rows: usize, cols: usize, transposed: bool, gap: usize| {
            let (rows, cols) = if transposed {
                (cols, rows)
            } else {
                (rows, cols)
            };
            Layout::new(lib, format.library(), cols, rows, cols + gap)
        };
        let [a_gap, d_gap] = key.gaps;
        Ok(Self {
            desc,
            a: matrix(key.input, key.rows, key.inner, key.a_transposed, a_gap)?,
            b: matrix(key.input, key.inner, key.cols, key.b_transposed, 0)?,
            d: matrix(key.output, key.rows, key.cols, false, d_gap)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Needs the library, not a GPU: descriptors are the host's.
    #[test]
    fn the_library_takes_our_descriptors() {
        let lib = match CublasLt::get() {
            Ok(lib) => lib,
            Err(e) => {
                assert!(std::env::var_os("LOWTIDE_REQUIRE_CUDA").is_none(), "{e}");
                return;
            }
        };
        let names = [
            "bf16>bf16 7x9x5 nt add bias 2.2.2.2.2 1024",
            "bf16>f32 7x9x5 tn in-place - 2.2.4.4.256 0",
            "f32>f32 4096x4096x151936 nn new - 256.256.256.256.256 33554432",
        ];
        for name in names {
            Described::new(lib, &name.parse().unwrap()).unwrap();
        }
        let preference = Preference::new(lib).unwrap();
        for attribute in [
            Prefer::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
            Prefer::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
        ] {
            preference.set(attribute, &2u32).unwrap();
            assert!(preference.set(attribute, &2u64).is_err());
        }
        let workspace = Prefer::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        preference.set(workspace, &1024u64).unwrap();
    }
}
