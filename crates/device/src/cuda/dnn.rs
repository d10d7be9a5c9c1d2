//! cuDNN's graphs: tensors and the operations between them, planned once a shape and device, and
//! executed into a queue's stream.
//!
//! Only what attention needs is here, for four-dimensional tensors. A [`Graph`] is plain data and
//! the key of its own plan: equal graphs on one device share one. The plan is the first
//! configuration of cuDNN's own ranking (mode A, then its fallback) that says to give the same
//! bits every time and can be built, so that one version of cuDNN on one kind of device always
//! takes the same one. Building takes 0.03 to 0.6 s, executing some microseconds of the host.
//!
//! There is one handle a device, under a lock, for the life of the process. Everything but a
//! plan's workspace, which the caller gives, is cuDNN's own and allocated when it is first used.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, c_char, c_void};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::cudnn::sys::{
    cudnnBackendAttributeName_t as Name, cudnnBackendAttributeType_t as Type,
    cudnnBackendDescriptor_t as Raw, cudnnBackendDescriptorType_t as Kind, cudnnHandle_t,
    cudnnStatus_t,
};
use cudarc::driver::sys::CUstream;

use super::libraries::functions;
use super::{CudaError, Gpu, Queue};
use crate::view::{Dst, Place, Src};

mod graph;
mod plan;

use graph::Role;
pub use graph::{Graph, Id, Number, Op};
use plan::{Descriptor, Plan, Target, because};

functions!(
    /// The backend interface. A status is a number here: a newer library has others than the
    /// bindings know.
    Cudnn {
        fn cudnnGetVersion() -> usize;
        fn cudnnGetErrorString(status: u32) -> *const c_char;
        fn cudnnGetLastErrorString(message: *mut c_char, bytes: usize) -> ();
        fn cudnnCreate(handle: *mut cudnnHandle_t) -> u32;
        fn cudnnSetStream(handle: cudnnHandle_t, stream: CUstream) -> u32;
        fn cudnnBackendCreateDescriptor(kind: Kind, descriptor: *mut Raw) -> u32;
        fn cudnnBackendDestroyDescriptor(descriptor: Raw) -> u32;
        fn cudnnBackendSetAttribute(
            descriptor: Raw,
            name: Name,
            kind: Type,
            count: i64,
            values: *const c_void,
        ) -> u32;
        fn cudnnBackendGetAttribute(
            descriptor: Raw,
            name: Name,
            kind: Type,
            capacity: i64,
            count: *mut i64,
            values: *mut c_void,
        ) -> u32;
        fn cudnnBackendFinalize(descriptor: Raw) -> u32;
        fn cudnnBackendExecute(handle: cudnnHandle_t, plan: Raw, pack: Raw) -> u32;
    }
);

impl Cudnn {
    fn ok(&self, call: &'static str, status: u32) -> Result<(), CudaError> {
        if status == cudnnStatus_t::CUDNN_STATUS_SUCCESS as u32 {
            return Ok(());
        }
        let mut last = [0u8; 2048];
        // SAFETY: the first gives a string of the library's own that lives as long as it; the
        // second writes at most as many bytes as said, and the last stays a zero.
        let name = unsafe {
            (self.cudnnGetLastErrorString)(last.as_mut_ptr().cast(), last.len() - 1);
            let name = (self.cudnnGetErrorString)(status);
            if name.is_null() {
                String::new()
            } else {
                CStr::from_ptr(name).to_string_lossy().into_owned()
            }
        };
        let last = CStr::from_bytes_until_nul(&last)
            .map(|s| s.to_string_lossy().trim().to_owned())
            .unwrap_or_default();
        Err(CudaError::Call {
            call,
            what: format!("{name} ({status}) {last}").trim_end().to_owned(),
        })
    }
}

/// Where cuDNN was found, and its version: 91900 is 9.19.0.
///
/// # Errors
/// When it is not found or cannot be loaded.
pub fn library() -> Result<(&'static Path, usize), CudaError> {
    let lib = Cudnn::get()?;
    // SAFETY: takes nothing and gives a number.
    Ok((&lib.path, unsafe { (lib.cudnnGetVersion)() }))
}

/// cuDNN on one device.
struct Device {
    lib: &'static Cudnn,
    handle: cudnnHandle_t,
    /// Plans that were made, and graphs that were refused.
    plans: HashMap<Graph, Result<Plan, CudaError>>,
}

// SAFETY: cuDNN's objects are bound to no thread; a lock keeps two from using them at once.
unsafe impl Send for Device {}

impl Device {
    /// cuDNN on `gpu`, whose context becomes the calling thread's.
    fn get(gpu: &Gpu) -> Result<Arc<Mutex<Self>>, CudaError> {
        static OPEN: Mutex<BTreeMap<u8, Arc<Mutex<Device>>>> = Mutex::new(BTreeMap::new());
        gpu.bind()?;
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(device) = open.get(&gpu.ordinal()) {
            return Ok(device.clone());
        }
        let lib = Cudnn::get()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes one handle, for the device whose context is current.
        lib.ok("cudnnCreate", unsafe { (lib.cudnnCreate)(&raw mut handle) })
            .map_err(|e| because(e, format_args!("{}", lib.path.display())))?;
        let device = Arc::new(Mutex::new(Self {
            lib,
            handle,
            plans: HashMap::new(),
        }));
        open.insert(gpu.ordinal(), device.clone());
        Ok(device)
    }

    fn plan(&mut self, graph: &Graph) -> Result<&Plan, CudaError> {
        if !self.plans.contains_key(graph) {
            let plan = Plan::new(self.lib, &Target::Handle(self.handle), graph);
            self.plans.insert(graph.clone(), plan);
        }
        self.plans[graph].as_ref().map_err(Clone::clone)
    }
}

/// Makes the plan of a graph, if it is not there yet. Gives the bytes of workspace that it wants.
///
/// # Errors
/// When cuDNN cannot be loaded, or refuses the graph.
pub fn prepare(gpu: &Gpu, graph: &Graph) -> Result<usize, CudaError> {
    let device = Device::get(gpu)?;
    let mut device = device.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(device.plan(graph)?.workspace)
}

/// A real tensor of a graph in memory.
#[derive(Clone, Copy, Debug)]
pub struct Operand<'a> {
    id: Id,
    place: Place,
    address: u64,
    bytes: usize,
    life: std::marker::PhantomData<&'a ()>,
}

impl<'a> Operand<'a> {
    /// A tensor that the graph reads.
    #[must_use]
    pub fn read(id: Id, from: Src<'a>) -> Self {
        Self {
            id,
            place: from.place(),
            address: from.address(),
            bytes: from.bytes(),
            life: std::marker::PhantomData,
        }
    }

    /// A tensor that the graph writes, from byte `at` on of what is borrowed for it. Tensors with
    /// strides lie between each other's rows, so several of one graph may have one range.
    #[must_use]
    pub fn write(id: Id, to: &'a Dst<'_>, at: usize) -> Self {
        assert!(at <= to.bytes(), "byte {at} of a view of {}", to.bytes());
        Self {
            id,
            place: to.place(),
            address: to.address() + at as u64,
            bytes: to.bytes() - at,
            life: std::marker::PhantomData,
        }
    }
}

/// Executes a graph with its real tensors in `views`, each of which may be longer than its tensor;
/// returns when the work is in the queue's stream, which runs it in order. Workspace is garbage
/// before and after. What goes wrong is the queue's error.
///
/// # Panics
/// When a real tensor has no view or more than one, or a view is shorter than its tensor or not
/// aligned as the tensor says.
pub fn execute(q: &Queue, graph: &Graph, views: &[Operand<'_>], workspace: Dst<'_>) {
    q.keep(start(q, graph, views, workspace));
}

fn start(
    q: &Queue,
    graph: &Graph,
    views: &[Operand<'_>],
    workspace: Dst<'_>,
) -> Result<(), CudaError> {
    let here = Place::Cuda(q.gpu().ordinal());
    assert_eq!(workspace.place(), here, "workspace of another device");
    // Scalars are read from host memory while the call runs.
    let scalars = checked(graph, views, here);
    let uids: Vec<i64> = views
        .iter()
        .map(|v| v.id.uid())
        .chain(scalars.iter().map(|(id, _)| id.uid()))
        .collect();
    let pointers: Vec<u64> = views
        .iter()
        .map(|v| v.address)
        .chain(scalars.iter().map(|(_, x)| (&raw const *x).addr() as u64))
        .collect();

    let device = Device::get(q.gpu())?;
    let mut device = device.lock().unwrap_or_else(PoisonError::into_inner);
    let (lib, handle) = (device.lib, device.handle);
    let plan = device.plan(graph)?;
    if plan.workspace > workspace.bytes() {
        return Err(CudaError::Call {
            call: "cuDNN",
            what: format!(
                "it wants {} bytes of workspace, {} were planned",
                plan.workspace,
                workspace.bytes()
            ),
        });
    }
    let pack = pack(lib, &uids, &pointers, workspace.address())?;
    // SAFETY: our own handle, plan and stream, of one device whose context is current; every
    // address is valid for its tensor's extent (asserted), was borrowed for the call and is freed behind
    // what is in the stream; scalars live until the call returns, which copies them.
    unsafe {
        lib.ok("cudnnSetStream", (lib.cudnnSetStream)(handle, q.stream()))?;
        lib.ok(
            "cudnnBackendExecute",
            (lib.cudnnBackendExecute)(handle, plan.plan.raw, pack.raw),
        )
    }
}

/// Holds the views against the graph's tensors, and gives its scalars.
///
/// # Panics
/// As [`execute`].
fn checked(graph: &Graph, views: &[Operand<'_>], here: Place) -> Vec<(Id, f32)> {
    let mut scalars = Vec::new();
    for (i, t) in graph.tensors.iter().enumerate() {
        let mut given = views.iter().filter(|v| v.id.0 == i);
        match t.role {
            Role::Real { align } => {
                let view = given.next().expect("a real tensor has a view");
                assert!(
                    view.bytes >= t.extent()
                        && view.address.is_multiple_of(align as u64)
                        && view.place == here,
                    "{} bytes at {:#x} of {:?} for {t:?}",
                    view.bytes,
                    view.address,
                    view.place
                );
            }
            Role::Scalar(bits) => scalars.push((Id(i), f32::from_bits(bits))),
            Role::Virtual => {}
        }
        assert!(given.next().is_none(), "tensor {i} has no use for a view");
    }
    scalars
}

/// The addresses of one execution.
fn pack(
    lib: &'static Cudnn,
    uids: &[i64],
    pointers: &[u64],
    workspace: u64,
) -> Result<Descriptor, CudaError> {
    let pack = Descriptor::new(lib, Kind::CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR)?;
    pack.set(
        Name::CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS,
        Type::CUDNN_TYPE_INT64,
        uids,
    )?;
    pack.set(
        Name::CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS,
        Type::CUDNN_TYPE_VOID_PTR,
        pointers,
    )?;
    pack.set(
        Name::CUDNN_ATTR_VARIANT_PACK_WORKSPACE,
        Type::CUDNN_TYPE_VOID_PTR,
        &[workspace],
    )?;
    pack.finalize("addresses")?;
    Ok(pack)
}

/// Plans a graph for a device that is not present, described as cuDNN's
/// `CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION` has it. Gives the bytes of workspace that the plan
/// wants. For checks on machines without a GPU, where a `libcuda.so.1` must be found all the same
/// whose calls may do nothing.
///
/// # Errors
/// When cuDNN cannot be loaded, or refuses the description or the graph.
pub fn plan_without_device(properties: &str, graph: &Graph) -> Result<usize, CudaError> {
    let lib = Cudnn::get()?;
    let device = Descriptor::new(lib, Kind::CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR)?;
    device.set(
        Name::CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION,
        Type::CUDNN_TYPE_CHAR,
        properties.as_bytes(),
    )?;
    device.finalize("device")?;
    Ok(Plan::new(lib, &Target::Described(&device), graph)?.workspace)
}
