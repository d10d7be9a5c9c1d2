//! What the tests of all operations share: seeded numbers, tensors of either dtype, poison,
//! comparisons that say where, thread counts, finite differences.

use half::bf16;
use lowtide_device::cuda::{self, Gpu};
use lowtide_device::{Dst, Memory, Queue, Src, memory};
use lowtide_units::Bytes;
use lowtide_workload::Dtype;

/// Both storage types.
pub(crate) const DTYPES: [Dtype; 2] = [Dtype::F32, Dtype::Bf16];

/// A file `golden.txt`: its first line, and its rows, `N` numbers each as their bits.
pub(crate) fn golden<const N: usize>(text: &str) -> ([f32; N], Vec<[f32; N]>) {
    let mut rows = text.lines().map(|line| {
        let bits = |x| f32::from_bits(u32::from_str_radix(x, 16).expect("hexadecimal"));
        let row: Vec<f32> = line.split(' ').map(bits).collect();
        <[f32; N]>::try_from(row).expect("as many numbers in each row")
    });
    let first = rows.next().expect("the factors");
    let rows: Vec<_> = rows.collect();
    assert!(rows.len() > 80, "golden.txt is cut short");
    (first, rows)
}

/// SplitMix64: a failure repeats, because the seed is fixed by the case.
pub(crate) struct Rng(pub u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [-1, 1).
    pub(crate) fn signed(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    }

    /// Uniform in 0..n.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// `n` values in [-1, 1).
    pub(crate) fn vec(&mut self, n: usize) -> Vec<f64> {
        (0..n).map(|_| self.signed()).collect()
    }

    /// A tensor of values in [-scale, scale).
    pub(crate) fn tensor(&mut self, n: usize, dtype: Dtype, scale: f64) -> Tensor {
        Tensor::of(
            &self.vec(n).iter().map(|x| x * scale).collect::<Vec<_>>(),
            dtype,
        )
    }
}

/// Numbers in memory as a kernel sees them.
#[derive(Debug)]
pub(crate) struct Tensor {
    dtype: Dtype,
    n: usize,
    words: Vec<u32>,
    /// Where [`Tensor::on`] put them.
    device: Option<Memory>,
}

impl Clone for Tensor {
    fn clone(&self) -> Self {
        Self {
            dtype: self.dtype,
            n: self.n,
            words: self.bits(),
            device: None,
        }
    }
}

impl PartialEq for Tensor {
    fn eq(&self, other: &Self) -> bool {
        self.dtype == other.dtype && self.n == other.n && self.bits() == other.bits()
    }
}

impl Tensor {
    /// `values`, rounded to `dtype`.
    pub(crate) fn of(values: &[f64], dtype: Dtype) -> Self {
        let mut t = Self::nan(values.len(), dtype);
        for (i, x) in values.iter().enumerate() {
            match dtype {
                Dtype::F32 => t.words[i] = (*x as f32).to_bits(),
                Dtype::Bf16 => {
                    let bits = u32::from(bf16::from_f64(*x).to_bits()) << (16 * (i % 2));
                    t.words[i / 2] = t.words[i / 2] & (0xffff_0000 >> (16 * (i % 2))) | bits;
                }
            }
        }
        t
    }

    /// Poison: what nobody writes stays NaN.
    pub(crate) fn nan(n: usize, dtype: Dtype) -> Self {
        Self {
            dtype,
            n,
            words: vec![0x7fc0_7fc0; (n * dtype.size() as usize).div_ceil(4)],
            device: None,
        }
    }

    /// A view for kernels of `q`: of host memory for a CPU queue, of a copy on the device for a
    /// CUDA queue, which [`Tensor::values`] and comparisons then read.
    pub(crate) fn on(&mut self, q: &Queue) -> Dst<'_> {
        let bytes = self.n * self.dtype.size() as usize;
        let Some(q) = q.cuda() else {
            return self.view();
        };
        let device = self.device.get_or_insert_with(|| {
            let bytes = Bytes(4 * self.words.len() as u64);
            let mut device = Memory::cuda(q.gpu(), bytes).unwrap();
            memory::store(device.all(), &self.words);
            device
        });
        device.part(0, bytes as u64)
    }

    /// As [`Tensor::on`], to read.
    pub(crate) fn src(&mut self, q: &Queue) -> Src<'_> {
        self.on(q).into_src()
    }

    /// The words, from wherever they are.
    fn bits(&self) -> Vec<u32> {
        let mut words = self.words.clone();
        if let Some(device) = &self.device {
            // SAFETY: views of it borrow `self`, so there is none.
            let all = unsafe { device.src(0, 4 * words.len() as u64) };
            memory::load(all, &mut words);
        }
        words
    }

    pub(crate) fn view(&mut self) -> Dst<'_> {
        let bytes = self.n * self.dtype.size() as usize;
        Dst::of(&mut self.words).part(0, bytes)
    }

    pub(crate) fn values(&self) -> Vec<f64> {
        let words = self.bits();
        let value = |i: usize| match self.dtype {
            Dtype::F32 => f64::from(f32::from_bits(words[i])),
            Dtype::Bf16 => bf16::from_bits((words[i / 2] >> (16 * (i % 2))) as u16).to_f64(),
        };
        (0..self.n).map(value).collect()
    }
}

/// Poisoned scratch of exactly `bytes` bytes.
pub(crate) struct Scratch(Vec<f64>, usize, Option<Memory>);

impl Scratch {
    pub(crate) fn new(bytes: usize) -> Self {
        // NaN as bf16 and as f32, huge as f64 and as an index.
        let poison = f64::from_bits(0x7fc0_7fc0_7fc0_7fc0);
        Self(vec![poison; bytes.div_ceil(8)], bytes, None)
    }

    /// A view for kernels of `q`, poisoned on the device too.
    pub(crate) fn on(&mut self, q: &Queue) -> Dst<'_> {
        let Some(q) = q.cuda() else {
            return self.view();
        };
        let device = self.2.get_or_insert_with(|| {
            let mut device = Memory::cuda(q.gpu(), Bytes(8 * self.0.len() as u64)).unwrap();
            memory::store(device.all(), &self.0);
            device
        });
        device.part(0, self.1 as u64)
    }

    pub(crate) fn view(&mut self) -> Dst<'_> {
        Dst::of(&mut self.0).part(0, self.1)
    }
}

/// Plain numbers (indices, flags, sums in f64) for kernels of either device.
pub(crate) struct Numbers<T>(Vec<T>, Option<Memory>);

impl<T: lowtide_device::Plain> Numbers<T> {
    pub(crate) fn of(numbers: &[T]) -> Self {
        Self(numbers.to_vec(), None)
    }

    /// As [`Tensor::on`].
    pub(crate) fn on(&mut self, q: &Queue) -> Dst<'_> {
        let bytes = size_of_val(self.0.as_slice()) as u64;
        let Some(q) = q.cuda() else {
            return Dst::of(&mut self.0);
        };
        let device = self.1.get_or_insert_with(|| {
            let mut device = Memory::cuda(q.gpu(), Bytes(bytes)).unwrap();
            memory::store(device.all(), &self.0);
            device
        });
        device.part(0, bytes)
    }

    /// As [`Tensor::src`].
    pub(crate) fn src(&mut self, q: &Queue) -> Src<'_> {
        self.on(q).into_src()
    }

    /// The numbers, from wherever they are.
    pub(crate) fn values(&self) -> Vec<T> {
        let mut numbers = self.0.clone();
        if let Some(device) = &self.1 {
            // SAFETY: as in `Tensor::bits`.
            let all = unsafe { device.src(0, size_of_val(self.0.as_slice()) as u64) };
            memory::load(all, &mut numbers);
        }
        numbers
    }
}

/// A queue of the first CUDA device. Without one, says that a test is skipped; with
/// `LOWTIDE_REQUIRE_CUDA` set, panics.
#[allow(clippy::print_stderr, reason = "what is skipped must be seen")]
pub(crate) fn gpu() -> Option<Queue> {
    if cfg!(miri) {
        return None; // it opens no libraries
    }
    match Gpu::open(0).and_then(|gpu| cuda::Queue::new(&gpu)) {
        Ok(q) => Some(Queue::Cuda(q)),
        Err(e) => {
            assert!(
                std::env::var_os("LOWTIDE_REQUIRE_CUDA").is_none(),
                "a CUDA device is required: {e}"
            );
            eprintln!("skipped on CUDA: {e}");
            None
        }
    }
}

/// Results of `run` on each device there is, named: the CPU's as [`on_threads`] gives them, and the
/// GPU's, which must be the same bits twice. `run` uses [`Tensor::on`], [`Scratch::on`] and
/// [`Numbers::on`].
#[track_caller]
pub(crate) fn everywhere<R: PartialEq + std::fmt::Debug>(
    run: impl Fn(&Queue) -> R,
) -> Vec<(&'static str, R)> {
    let mut all = vec![("cpu", on_threads(&run))];
    all.extend(on_gpu(run).map(|r| ("cuda", r)));
    all
}

/// As [`everywhere`], on the GPU alone, if there is one.
#[track_caller]
pub(crate) fn on_gpu<R: PartialEq + std::fmt::Debug>(run: impl Fn(&Queue) -> R) -> Option<R> {
    let q = gpu()?;
    let done = |r: R| {
        let stream = q.cuda().expect("it is one");
        stream.synchronize().unwrap_or_else(|e| panic!("{e}"));
        r
    };
    let (one, two) = (done(run(&q)), done(run(&q)));
    assert!(one == two, "other bits in a second run on the GPU");
    Some(one)
}

/// Results of `run` on one thread; panics unless two and three threads give the same bits.
#[track_caller]
pub(crate) fn on_threads<R: PartialEq + std::fmt::Debug>(run: impl Fn(&Queue) -> R) -> R {
    let one = run(&Queue::new("test", 1));
    for threads in 2..=3 {
        assert!(
            run(&Queue::new("test", threads)) == one,
            "other bits on {threads} threads"
        );
    }
    one
}

/// Panics at the first number further from `want` than one rounding to `dtype` and `slack`.
#[track_caller]
pub(crate) fn close(what: &str, got: &Tensor, want: &[f64], slack: f64) {
    // Half a unit in the last place is at most 2^-8 (bf16) of a number; f32 gets its own below.
    let unit = match got.dtype {
        Dtype::Bf16 => 1.01 * 2.0_f64.powi(-8),
        Dtype::F32 => 2.0_f64.powi(-22),
    };
    let got = got.values();
    assert_eq!(got.len(), want.len(), "{what}: length");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let limit = unit * want.abs() + slack;
        assert!(
            (got - want).abs() <= limit,
            "{what}[{i}]: {got}, want {want} within {limit:e}"
        );
    }
}

/// Compares `gradient` with central differences of `f` at `x`, at some forty positions.
#[track_caller]
pub(crate) fn differences(what: &str, x: &[f64], gradient: &[f64], f: impl Fn(&[f64]) -> f64) {
    const H: f64 = 1e-5;
    assert_eq!(x.len(), gradient.len(), "{what}: length");
    for i in (0..x.len()).step_by((x.len() / 40).max(1)) {
        let at = |h: f64| {
            let mut x = x.to_vec();
            x[i] += h;
            f(&x)
        };
        let slope = (at(H) - at(-H)) / (2.0 * H);
        let limit = 1e-6 * (1.0 + slope.abs());
        assert!(
            (gradient[i] - slope).abs() <= limit,
            "{what}[{i}]: gradient {}, slope {slope}",
            gradient[i]
        );
    }
}

/// `Σ a·b`: the scalar whose gradient a test follows.
pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `a + b`.
pub(crate) fn plus(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

/// Documents of random lengths packed into `batch` rows of `seq`: the first index of each token's
/// document, and its position in it.
pub(crate) fn packed(rng: &mut Rng, batch: usize, seq: usize) -> (Vec<i32>, Vec<i32>) {
    let (mut starts, mut positions) = (Vec::new(), Vec::new());
    for _ in 0..batch {
        let mut start = 0;
        for t in 0..seq {
            if t > 0 && rng.below(1 + seq / 3) == 0 {
                start = t;
            }
            starts.push(start as i32);
            positions.push((t - start) as i32);
        }
    }
    (starts, positions)
}
