//! A stream, and launches into it.

use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cudarc::driver::sys;

use super::error::ok;
use super::pace::{Pace, Pacer};
use super::{CudaError, Event, Gpu, Source};
use crate::view::{Dst, Place, Src};

/// One stream of a device. Work given to it runs in order; calls return before it is done.
///
/// Launches return nothing, so that kernels have one face on both devices: the first error is kept
/// until [`Queue::take_error`] is called, and what is given after an error is dropped.
#[derive(Debug)]
pub struct Queue {
    gpu: Gpu,
    stream: Stream,
    error: Mutex<Option<CudaError>>,
    pace: Option<Pace>,
    /// Made with the first copy over a link that has a pace.
    pacer: Mutex<Option<Pacer>>,
}

#[derive(Debug)]
struct Stream(sys::CUstream);

/// Which kernels get a multiprocessor first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Priority {
    Usual,
    First,
}

// SAFETY: the driver's handle may be used from every thread.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Queue {
    /// A new stream, which does not wait for the default one.
    ///
    /// # Errors
    /// The driver's.
    pub fn new(gpu: &Gpu) -> Result<Self, CudaError> {
        Self::paced(gpu, gpu.pace())
    }

    /// The same, whose copies take no less time than `pace` says.
    ///
    /// # Errors
    /// The driver's.
    pub fn paced(gpu: &Gpu, pace: Option<Pace>) -> Result<Self, CudaError> {
        Self::made(gpu, pace, Priority::Usual)
    }

    /// A queue whose kernels go before those of other queues: where both have blocks of threads that wait for a
    /// multiprocessor, its own come first. For short kernels that others wait for, beside long ones.
    ///
    /// # Errors
    /// The driver's.
    pub fn first(gpu: &Gpu) -> Result<Self, CudaError> {
        Self::made(gpu, gpu.pace(), Priority::First)
    }

    fn made(gpu: &Gpu, pace: Option<Pace>, priority: Priority) -> Result<Self, CudaError> {
        gpu.bind()?;
        let flags = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32;
        let (mut stream, mut greatest) = (std::ptr::null_mut(), 0);
        if priority == Priority::First {
            // SAFETY: writes one number (the least priority is not asked for); the context is current.
            ok("cuCtxGetStreamPriorityRange", unsafe {
                sys::cuCtxGetStreamPriorityRange(std::ptr::null_mut(), &raw mut greatest)
            })?;
        }
        // SAFETY: writes one handle; the context is current. 0 is the usual priority.
        ok("cuStreamCreateWithPriority", unsafe {
            sys::cuStreamCreateWithPriority(&raw mut stream, flags, greatest)
        })?;
        Ok(Self {
            gpu: gpu.clone(),
            stream: Stream(stream),
            error: Mutex::default(),
            pace,
            pacer: Mutex::default(),
        })
    }

    /// The GPU that it is a queue of.
    #[must_use]
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// The driver's handle, for libraries that launch into it.
    pub(super) fn stream(&self) -> sys::CUstream {
        self.stream.0
    }

    /// Keeps the first error.
    pub(super) fn keep(&self, result: Result<(), CudaError>) {
        if let Err(e) = result {
            self.lock().get_or_insert(e);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<CudaError>> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that something given to this queue could not be started.
    pub fn fail(&self, error: CudaError) {
        self.keep(Err(error));
    }

    /// The first error since the last call.
    pub fn take_error(&self) -> Option<CudaError> {
        self.lock().take()
    }

    /// Blocks until everything given to it is done.
    ///
    /// # Errors
    /// The first error of a launch, or what went wrong on the device.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        if let Some(e) = self.take_error() {
            return Err(e);
        }
        self.gpu.bind()?;
        // SAFETY: our own stream.
        ok("cuStreamSynchronize", unsafe {
            sys::cuStreamSynchronize(self.stream.0)
        })
    }

    /// Whether everything given to it is done.
    ///
    /// # Errors
    /// As [`Self::synchronize`].
    pub(crate) fn is_done(&self) -> Result<bool, CudaError> {
        if let Some(e) = self.take_error() {
            return Err(e);
        }
        self.gpu.bind()?;
        // SAFETY: our own stream.
        match unsafe { sys::cuStreamQuery(self.stream.0) } {
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            status => ok("cuStreamQuery", status).map(|()| true),
        }
    }

    /// Copies all bytes of `from` to `to`, both in this device's memory.
    ///
    /// # Panics
    /// When the lengths differ, or one of them is elsewhere.
    pub fn copy(&self, to: Dst<'_>, from: Src<'_>) {
        let here = Place::Cuda(self.gpu.ordinal());
        assert!(
            to.place() == here && from.place() == here,
            "a copy within {here:?} from {:?} to {:?}",
            from.place(),
            to.place()
        );
        // SAFETY: a device's memory is freed behind all that was given before, and no reference to it
        // exists: what else uses it is ordered by streams, or finds other numbers in it.
        unsafe { self.transfer(to, from) }
    }

    /// Copies all bytes of `from` to `to`, between any two places; beside other work only where
    /// host memory is pinned.
    ///
    /// # Safety
    /// The copy is done when the stream has come past it: until then both ranges stay allocated, nobody
    /// writes `from` and nobody uses `to`.
    ///
    /// # Panics
    /// When the lengths differ.
    pub unsafe fn transfer(&self, to: Dst<'_>, from: Src<'_>) {
        assert_eq!(
            to.bytes(),
            from.bytes(),
            "copy between views of different lengths"
        );
        if to.bytes() == 0 {
            return;
        }
        let copy = || {
            // SAFETY: valid ranges, which stay so and have no other user meanwhile (caller).
            ok("cuMemcpyAsync", unsafe {
                sys::cuMemcpyAsync(to.address(), from.address(), to.bytes(), self.stream.0)
            })
        };
        let least = (self.pace).and_then(|p| p.least(to.place(), from.place(), to.bytes() as u64));
        let done = self.gpu.bind().and_then(|()| match least {
            None => copy(),
            Some(least) => self.slowly(least, copy),
        });
        self.keep(done);
    }

    /// Gives a copy that takes so long at least.
    fn slowly(
        &self,
        least: Duration,
        copy: impl FnOnce() -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        let mut pacer = self.pacer.lock().unwrap_or_else(PoisonError::into_inner);
        let pacer = match &mut *pacer {
            Some(pacer) => pacer,
            none => none.insert(Pacer::new(&self.gpu)?),
        };
        pacer.copy(self.stream.0, least, copy)
    }

    /// Fills device memory.
    ///
    /// # Panics
    /// When it is not a device's.
    pub fn fill(&self, to: Dst<'_>, byte: u8) {
        assert_ne!(to.place(), Place::Host, "a fill of host memory");
        // SAFETY: as `copy`.
        unsafe { self.fill_later(to, byte) }
    }

    /// Fills memory of this device, or pinned memory of the host.
    ///
    /// # Safety
    /// Until the stream has come past it the range stays allocated and nobody uses it.
    pub unsafe fn fill_later(&self, to: Dst<'_>, byte: u8) {
        if to.bytes() == 0 {
            return;
        }
        let done = self.gpu.bind().and_then(|()| {
            // SAFETY: a valid range, which stays so and has no other user meanwhile (caller).
            ok("cuMemsetD8Async", unsafe {
                sys::cuMemsetD8Async(to.address(), byte, to.bytes(), self.stream.0)
            })
        });
        self.keep(done);
    }

    /// Blocks until everything given to it is done, also where something could not be given.
    pub(super) fn finish(&self) -> Result<(), CudaError> {
        self.gpu.bind()?;
        // SAFETY: our own stream.
        let done = ok("cuStreamSynchronize", unsafe {
            sys::cuStreamSynchronize(self.stream.0)
        });
        self.take_error().map_or(done, Err)
    }

    /// Lets `event` happen when everything given so far is done.
    ///
    /// # Errors
    /// The driver's.
    pub fn record(&self, event: &Event) -> Result<(), CudaError> {
        // SAFETY: our own handles of one context, which this thread has made current by every
        // launch; recording does not need it.
        ok("cuEventRecord", unsafe {
            sys::cuEventRecord(event.handle, self.stream.0)
        })
    }

    /// Lets everything given from now on wait for the last record of `event`. An event that was
    /// never recorded holds nothing up: record first.
    ///
    /// # Errors
    /// The driver's.
    pub fn wait(&self, event: &Event) -> Result<(), CudaError> {
        // SAFETY: our own handles.
        ok("cuStreamWaitEvent", unsafe {
            sys::cuStreamWaitEvent(self.stream.0, event.handle, 0)
        })
    }

    /// A launch of kernel `function` of `source`, compiled with `define` (`BF16` or `F32`) defined.
    pub fn kernel(
        &self,
        source: &'static Source,
        define: &'static str,
        function: &'static str,
    ) -> Launch<'_> {
        Launch {
            queue: self,
            source,
            define,
            function,
            grid: [1, 1, 1],
            block: [1, 1, 1],
            shared: 0,
            args: Vec::with_capacity(16),
        }
    }
}

/// Ranges that are copied from one to the other, again and again.
pub type Pairs<'a> = Vec<(Dst<'a>, Src<'a>)>;

/// Copies in `rounds` turns, in each of which every queue is given the next of its pairs, round and
/// round, wherever they lie. Done when it returns.
///
/// # Errors
/// The first error of a copy.
///
/// # Panics
/// When the lengths of a pair differ, or a queue has no pair.
pub fn copy_rounds(jobs: &mut [(&Queue, Pairs<'_>)], rounds: u64) -> Result<(), CudaError> {
    for (_, pairs) in &*jobs {
        assert!(!pairs.is_empty(), "a queue without copies");
        for (to, from) in pairs {
            assert_eq!(to.bytes(), from.bytes(), "copy between different lengths");
        }
    }
    for round in 0..rounds {
        for (queue, pairs) in &mut *jobs {
            let at = (round % pairs.len() as u64) as usize;
            let (to, from) = &mut pairs[at];
            // SAFETY: the ranges are borrowed until this returns, which it does when the queues are done;
            // nothing panics before. What is written belongs to one pair, whose queue keeps its copies in
            // order.
            unsafe { queue.transfer(to.again(), *from) };
        }
    }
    let done: Vec<_> = jobs.iter().map(|(queue, _)| queue.finish()).collect();
    done.into_iter().collect()
}

impl Drop for Queue {
    fn drop(&mut self) {
        if self.gpu.bind().is_ok() {
            if (self.pacer.get_mut()).is_ok_and(|pacer| pacer.is_some()) {
                // Its copies wait for the pacer, which goes with this.
                // SAFETY: our own stream.
                let _ = unsafe { sys::cuStreamSynchronize(self.stream.0) };
            }
            // SAFETY: our own stream; what is in it still runs to its end.
            let _ = unsafe { sys::cuStreamDestroy_v2(self.stream.0) };
        }
    }
}

/// What a kernel takes: an address or a number, as its bytes.
pub trait KernelArg {
    /// Its 8 bytes at most, little end first; a kernel reads as many as its parameter has.
    fn bits(&self) -> u64;
}

/// Where a range of device memory starts.
fn device_address(place: Place, address: u64) -> u64 {
    assert!(
        matches!(place, Place::Cuda(_)),
        "a kernel was given host memory"
    );
    address
}

impl KernelArg for Src<'_> {
    fn bits(&self) -> u64 {
        device_address(self.place(), self.address())
    }
}

impl KernelArg for &Dst<'_> {
    fn bits(&self) -> u64 {
        device_address(self.place(), self.address())
    }
}

/// Without one, the null pointer.
impl<T: KernelArg> KernelArg for Option<T> {
    fn bits(&self) -> u64 {
        self.as_ref().map_or(0, KernelArg::bits)
    }
}

macro_rules! number_args {
    ($($t:ty => $x:ident, $bits:expr;)*) => {$(
        impl KernelArg for $t {
            fn bits(&self) -> u64 {
                let $x = *self;
                $bits
            }
        }
    )*};
}
number_args! {
    i32 => x, u64::from(x.cast_unsigned());
    u32 => x, u64::from(x);
    i64 => x, x.cast_unsigned();
    u64 => x, x;
    usize => x, x as u64;
    bool => x, u64::from(x);
    f32 => x, u64::from(x.to_bits());
    f64 => x, x.to_bits();
}

/// A launch in the making. Arguments come in the kernel's order and with its types: `usize` is
/// `unsigned long long` there, `bool` is `int`.
#[derive(Debug)]
#[must_use = "nothing is launched before `launch`"]
pub struct Launch<'a> {
    queue: &'a Queue,
    source: &'static Source,
    define: &'static str,
    function: &'static str,
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    args: Vec<u64>,
}

impl Launch<'_> {
    /// How many blocks run, in each direction.
    pub fn grid(mut self, x: usize, y: usize, z: usize) -> Self {
        self.grid = [x, y, z].map(|n| u32::try_from(n).expect("a grid fits 32 bits"));
        self
    }

    /// Threads of a block.
    pub fn block(mut self, x: u32) -> Self {
        self.block = [x, 1, 1];
        self
    }

    /// Bytes of dynamic shared memory of a block.
    pub fn shared(mut self, bytes: usize) -> Self {
        self.shared = u32::try_from(bytes).expect("shared memory fits 32 bits");
        self
    }

    /// The next argument.
    pub fn arg(mut self, x: impl KernelArg) -> Self {
        self.args.push(x.bits());
        self
    }

    /// Launches. A grid without blocks is no work.
    ///
    /// # Safety
    /// Nothing of this can be seen from here:
    /// 1. The arguments are those of the kernel, in number, order and type. Of a missing one the driver
    ///    reads past the end of the list; of one of another type the kernel reads other bits.
    /// 2. The kernel stays inside the ranges that its addresses are the starts of, for this grid, these
    ///    blocks and these sizes, and writes only those that were given to it to write. An address may
    ///    also be a plain number, which nothing ties to a range.
    /// 3. It runs when the stream comes to it, after this has returned: until then and while it runs its
    ///    ranges stay allocated, and what else uses them is ordered by the same stream or by events.
    ///
    /// ```compile_fail,E0133
    /// fn f(launch: lowtide_device::cuda::Launch<'_>) {
    ///     launch.arg(0u64).launch();
    /// }
    /// ```
    pub unsafe fn launch(mut self) {
        if self.grid.contains(&0) || self.queue.lock().is_some() {
            return;
        }
        let done = self.start();
        self.queue.keep(done);
    }

    fn start(&mut self) -> Result<(), CudaError> {
        let gpu = &self.queue.gpu;
        gpu.bind()?;
        let function =
            gpu.modules()
                .function(gpu, self.source, self.define, self.function, self.shared)?;
        let mut pointers: Vec<*mut c_void> =
            self.args.iter_mut().map(|a| (&raw mut *a).cast()).collect();
        let ([gx, gy, gz], [bx, by, bz]) = (self.grid, self.block);
        // SAFETY: the arguments are those of the kernel, which stays inside its ranges (`launch`); their
        // storage lives until the call returns, which copies them.
        let status = unsafe {
            sys::cuLaunchKernel(
                function.0,
                gx,
                gy,
                gz,
                bx,
                by,
                bz,
                self.shared,
                self.queue.stream.0,
                pointers.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        ok("cuLaunchKernel", status).map_err(|e| CudaError::Call {
            call: self.function,
            what: e.to_string(),
        })
    }
}
