//! From a graph to a plan, through cuDNN's descriptors.

use cudarc::cudnn::sys::{
    cudnnBackendAttributeName_t as Name, cudnnBackendAttributeType_t as Type,
    cudnnBackendDescriptor_t as Raw, cudnnBackendDescriptorType_t as Kind,
    cudnnBackendHeurMode_t as Mode, cudnnBackendNumericalNote_t as Note, cudnnHandle_t,
};

use super::Cudnn;
use super::graph::{Graph, Id, Node, Number, Role, Tensor};
use crate::cuda::CudaError;

/// A descriptor, destroyed with its owner.
pub(super) struct Descriptor {
    pub raw: Raw,
    lib: &'static Cudnn,
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: our own; what refers to it holds what it needs of it.
        let _ = unsafe { (self.lib.cudnnBackendDestroyDescriptor)(self.raw) };
    }
}

impl Descriptor {
    pub fn new(lib: &'static Cudnn, kind: Kind) -> Result<Self, CudaError> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: writes one pointer.
        lib.ok("cudnnBackendCreateDescriptor", unsafe {
            (lib.cudnnBackendCreateDescriptor)(kind, &raw mut raw)
        })
        .map_err(|e| because(e, format_args!("{kind:?}")))?;
        Ok(Self { raw, lib })
    }

    pub fn set<T: Copy>(&self, name: Name, kind: Type, values: &[T]) -> Result<(), CudaError> {
        // SAFETY: cuDNN copies `values.len()` values of the type that `kind` names, which each
        // caller passes.
        let status = unsafe {
            (self.lib.cudnnBackendSetAttribute)(
                self.raw,
                name,
                kind,
                values.len() as i64,
                values.as_ptr().cast(),
            )
        };
        self.lib
            .ok("cudnnBackendSetAttribute", status)
            .map_err(|e| because(e, format_args!("{name:?}")))
    }

    pub fn set_descriptor(&self, name: Name, of: &Self) -> Result<(), CudaError> {
        self.set(name, Type::CUDNN_TYPE_BACKEND_DESCRIPTOR, &[of.raw])
    }

    /// Fills `values`, and says how many there are.
    pub fn get<T: Copy>(
        &self,
        name: Name,
        kind: Type,
        values: &mut [T],
    ) -> Result<usize, CudaError> {
        let mut count = 0;
        let to = if values.is_empty() {
            std::ptr::null_mut()
        } else {
            values.as_mut_ptr().cast()
        };
        // SAFETY: cuDNN writes at most `values.len()` values of the type that `kind` names, which
        // each caller passes.
        let status = unsafe {
            (self.lib.cudnnBackendGetAttribute)(
                self.raw,
                name,
                kind,
                values.len() as i64,
                &raw mut count,
                to,
            )
        };
        self.lib
            .ok("cudnnBackendGetAttribute", status)
            .map_err(|e| because(e, format_args!("{name:?}")))?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    pub fn finalize(&self, what: &str) -> Result<(), CudaError> {
        // SAFETY: our own descriptor.
        let status = unsafe { (self.lib.cudnnBackendFinalize)(self.raw) };
        self.lib
            .ok("cudnnBackendFinalize", status)
            .map_err(|e| because(e, format_args!("{what}")))
    }
}

/// The error, with what it was about.
pub(super) fn because(error: CudaError, about: std::fmt::Arguments<'_>) -> CudaError {
    match error {
        CudaError::Call { call, what } => CudaError::Call {
            call,
            what: format!("{about}: {what}"),
        },
        other => other,
    }
}

/// For what a plan is made.
pub(super) enum Target<'a> {
    /// The device of a handle.
    Handle(cudnnHandle_t),
    /// A device that is described, not present.
    Described(&'a Descriptor),
}

/// A plan that can be executed.
pub(super) struct Plan {
    pub plan: Descriptor,
    /// Bytes that it wants.
    pub workspace: usize,
    /// What it was made of, which it may refer to.
    _parts: Vec<Descriptor>,
}

impl Plan {
    pub fn new(lib: &'static Cudnn, target: &Target<'_>, graph: &Graph) -> Result<Self, CudaError> {
        let mut parts = Vec::new();
        let operations = operations(lib, target, graph, &mut parts)?;
        let mut refused = Vec::new();
        for mode in [Mode::CUDNN_HEUR_MODE_A, Mode::CUDNN_HEUR_MODE_FALLBACK] {
            let found = match configurations(lib, target, &operations, mode) {
                Ok(found) => found,
                Err(e) => {
                    refused.push(e.to_string());
                    continue;
                }
            };
            for configuration in found {
                match Self::of(lib, target, &configuration) {
                    Ok((plan, workspace)) => {
                        parts.extend([operations, configuration]);
                        return Ok(Self {
                            plan,
                            workspace,
                            _parts: parts,
                        });
                    }
                    Err(e) => refused.push(e.to_string()),
                }
            }
        }
        refused.dedup();
        Err(CudaError::Call {
            call: "cuDNN",
            what: format!("no plan for this graph: {}", refused.join("; ")),
        })
    }

    fn of(
        lib: &'static Cudnn,
        target: &Target<'_>,
        configuration: &Descriptor,
    ) -> Result<(Descriptor, usize), CudaError> {
        if !repeats(lib, configuration)? {
            return Err(CudaError::Call {
                call: "cuDNN",
                what: "an engine whose bits differ between runs".to_owned(),
            });
        }
        let plan = Descriptor::new(lib, Kind::CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR)?;
        match target {
            Target::Handle(handle) => plan.set(
                Name::CUDNN_ATTR_EXECUTION_PLAN_HANDLE,
                Type::CUDNN_TYPE_HANDLE,
                &[*handle],
            )?,
            Target::Described(device) => {
                plan.set_descriptor(Name::CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, device)?;
            }
        }
        plan.set_descriptor(Name::CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, configuration)?;
        plan.finalize("plan")?;
        let mut bytes = [0i64];
        plan.get(
            Name::CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE,
            Type::CUDNN_TYPE_INT64,
            &mut bytes,
        )?;
        Ok((plan, usize::try_from(bytes[0]).unwrap_or(0)))
    }
}

/// Whether the engine of a configuration says to give the same bits every time.
fn repeats(lib: &'static Cudnn, configuration: &Descriptor) -> Result<bool, CudaError> {
    let engine = Descriptor::new(lib, Kind::CUDNN_BACKEND_ENGINE_DESCRIPTOR)?;
    configuration.get(
        Name::CUDNN_ATTR_ENGINECFG_ENGINE,
        Type::CUDNN_TYPE_BACKEND_DESCRIPTOR,
        &mut [engine.raw],
    )?;
    let mut notes = [0u32; 64];
    let n = engine.get(
        Name::CUDNN_ATTR_ENGINE_NUMERICAL_NOTE,
        Type::CUDNN_TYPE_NUMERICAL_NOTE,
        &mut notes,
    )?;
    let differs = Note::CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC as u32;
    Ok(!notes[..n.min(notes.len())].contains(&differs))
}

/// The configurations that cuDNN proposes, the best first.
fn configurations(
    lib: &'static Cudnn,
    target: &Target<'_>,
    operations: &Descriptor,
    mode: Mode,
) -> Result<Vec<Descriptor>, CudaError> {
    let ranking = Descriptor::new(lib, Kind::CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR)?;
    ranking.set_descriptor(Name::CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, operations)?;
    ranking.set(
        Name::CUDNN_ATTR_ENGINEHEUR_MODE,
        Type::CUDNN_TYPE_HEUR_MODE,
        &[mode],
    )?;
    if let Target::Described(device) = target {
        ranking.set_descriptor(Name::CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, device)?;
    }
    ranking.finalize("ranking of engines")?;
    let n = ranking.get::<Raw>(
        Name::CUDNN_ATTR_ENGINEHEUR_RESULTS,
        Type::CUDNN_TYPE_BACKEND_DESCRIPTOR,
        &mut [],
    )?;
    let mut found = Vec::new();
    for _ in 0..n {
        found.push(Descriptor::new(
            lib,
            Kind::CUDNN_BACKEND_ENGINECFG_DESCRIPTOR,
        )?);
    }
    let mut raw: Vec<Raw> = found.iter().map(|d| d.raw).collect();
    if n > 0 {
        let n = ranking.get(
            Name::CUDNN_ATTR_ENGINEHEUR_RESULTS,
            Type::CUDNN_TYPE_BACKEND_DESCRIPTOR,
            &mut raw,
        )?;
        found.truncate(n);
    }
    Ok(found)
}

/// The finalized graph; what it is made of goes to `parts`.
fn operations(
    lib: &'static Cudnn,
    target: &Target<'_>,
    graph: &Graph,
    parts: &mut Vec<Descriptor>,
) -> Result<Descriptor, CudaError> {
    for (i, t) in graph.tensors.iter().enumerate() {
        parts.push(tensor(lib, Id(i), t)?);
    }
    let tensors: Vec<Raw> = parts.iter().map(|d| d.raw).collect();
    let mut nodes = Vec::new();
    for n in &graph.nodes {
        let (descriptor, how) = node(lib, n, &tensors)?;
        nodes.push(descriptor.raw);
        parts.push(descriptor);
        parts.extend(how);
    }
    let operations = Descriptor::new(lib, Kind::CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR)?;
    operations.set(
        Name::CUDNN_ATTR_OPERATIONGRAPH_OPS,
        Type::CUDNN_TYPE_BACKEND_DESCRIPTOR,
        &nodes,
    )?;
    if let Target::Handle(handle) = target {
        operations.set(
            Name::CUDNN_ATTR_OPERATIONGRAPH_HANDLE,
            Type::CUDNN_TYPE_HANDLE,
            &[*handle],
        )?;
    }
    operations.finalize("graph")?;
    Ok(operations)
}

fn tensor(lib: &'static Cudnn, id: Id, t: &Tensor) -> Result<Descriptor, CudaError> {
    use Type::{CUDNN_TYPE_BOOLEAN, CUDNN_TYPE_DATA_TYPE, CUDNN_TYPE_INT64};
    let d = Descriptor::new(lib, Kind::CUDNN_BACKEND_TENSOR_DESCRIPTOR)?;
    let align = match t.role {
        Role::Real { align } => align as i64,
        Role::Virtual | Role::Scalar(_) => 16,
    };
    d.set(
        Name::CUDNN_ATTR_TENSOR_UNIQUE_ID,
        CUDNN_TYPE_INT64,
        &[id.uid()],
    )?;
    d.set(
        Name::CUDNN_ATTR_TENSOR_DATA_TYPE,
        CUDNN_TYPE_DATA_TYPE,
        &[t.number.data()],
    )?;
    d.set(
        Name::CUDNN_ATTR_TENSOR_DIMENSIONS,
        CUDNN_TYPE_INT64,
        &t.dims.map(|x| x as i64),
    )?;
    d.set(
        Name::CUDNN_ATTR_TENSOR_STRIDES,
        CUDNN_TYPE_INT64,
        &t.strides.map(|x| x as i64),
    )?;
    d.set(
        Name::CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT,
        CUDNN_TYPE_INT64,
        &[align],
    )?;
    d.set(
        Name::CUDNN_ATTR_TENSOR_IS_VIRTUAL,
        CUDNN_TYPE_BOOLEAN,
        &[t.role == Role::Virtual],
    )?;
    d.set(
        Name::CUDNN_ATTR_TENSOR_IS_BY_VALUE,
        CUDNN_TYPE_BOOLEAN,
        &[matches!(t.role, Role::Scalar(_))],
    )?;
    d.finalize("tensor")?;
    Ok(d)
}

/// An operation, and the descriptor that says how it is done.
fn node(
    lib: &'static Cudnn,
    node: &Node,
    tensors: &[Raw],
) -> Result<(Descriptor, Option<Descriptor>), CudaError> {
    let put = |d: &Descriptor, name: Name, id: Id| {
        d.set(name, Type::CUDNN_TYPE_BACKEND_DESCRIPTOR, &[tensors[id.0]])
    };
    let how = how(lib, node)?;
    let kind = match node {
        Node::Pointwise { .. } => Kind::CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR,
        Node::Product { .. } => Kind::CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR,
        Node::Reduce { .. } => Kind::CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR,
        Node::Reshape { .. } => Kind::CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR,
    };
    let d = Descriptor::new(lib, kind)?;
    let named = match node {
        Node::Pointwise { .. } => Some(Name::CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR),
        Node::Product { .. } => Some(Name::CUDNN_ATTR_OPERATION_MATMUL_DESC),
        Node::Reduce { .. } => Some(Name::CUDNN_ATTR_OPERATION_REDUCTION_DESC),
        Node::Reshape { .. } => None,
    };
    if let (Some(name), Some(how)) = (named, &how) {
        d.set_descriptor(name, how)?;
    }
    match *node {
        Node::Pointwise { x, b, t, y, .. } => {
            put(&d, Name::CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x)?;
            if let Some(b) = b {
                put(&d, Name::CUDNN_ATTR_OPERATION_POINTWISE_BDESC, b)?;
            }
            if let Some(t) = t {
                put(&d, Name::CUDNN_ATTR_OPERATION_POINTWISE_TDESC, t)?;
            }
            put(&d, Name::CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y)?;
        }
        Node::Product { a, b, c } => {
            put(&d, Name::CUDNN_ATTR_OPERATION_MATMUL_ADESC, a)?;
            put(&d, Name::CUDNN_ATTR_OPERATION_MATMUL_BDESC, b)?;
            put(&d, Name::CUDNN_ATTR_OPERATION_MATMUL_CDESC, c)?;
        }
        Node::Reduce { x, y, .. } => {
            put(&d, Name::CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x)?;
            put(&d, Name::CUDNN_ATTR_OPERATION_REDUCTION_YDESC, y)?;
        }
        Node::Reshape { x, y } => {
            put(&d, Name::CUDNN_ATTR_OPERATION_RESHAPE_XDESC, x)?;
            put(&d, Name::CUDNN_ATTR_OPERATION_RESHAPE_YDESC, y)?;
        }
    }
    d.finalize("operation")?;
    Ok((d, how))
}

/// How an operation is done; a change of shape needs no saying.
fn how(lib: &'static Cudnn, node: &Node) -> Result<Option<Descriptor>, CudaError> {
    use Type::CUDNN_TYPE_DATA_TYPE;
    let float = [Number::F32.data()];
    let (how, what) = match *node {
        Node::Pointwise { op, math, axis, .. } => {
            let how = Descriptor::new(lib, Kind::CUDNN_BACKEND_POINTWISE_DESCRIPTOR)?;
            how.set(
                Name::CUDNN_ATTR_POINTWISE_MODE,
                Type::CUDNN_TYPE_POINTWISE_MODE,
                &[op],
            )?;
            how.set(
                Name::CUDNN_ATTR_POINTWISE_MATH_PREC,
                CUDNN_TYPE_DATA_TYPE,
                &[math.data()],
            )?;
            if let Some(axis) = axis {
                how.set(
                    Name::CUDNN_ATTR_POINTWISE_AXIS,
                    Type::CUDNN_TYPE_INT64,
                    &[axis],
                )?;
            }
            (how, "pointwise")
        }
        Node::Product { .. } => {
            let how = Descriptor::new(lib, Kind::CUDNN_BACKEND_MATMUL_DESCRIPTOR)?;
            how.set(
                Name::CUDNN_ATTR_MATMUL_COMP_TYPE,
                CUDNN_TYPE_DATA_TYPE,
                &float,
            )?;
            (how, "product")
        }
        Node::Reduce { op, .. } => {
            let how = Descriptor::new(lib, Kind::CUDNN_BACKEND_REDUCTION_DESCRIPTOR)?;
            how.set(
                Name::CUDNN_ATTR_REDUCTION_OPERATOR,
                Type::CUDNN_TYPE_REDUCTION_OPERATOR_TYPE,
                &[op],
            )?;
            how.set(
                Name::CUDNN_ATTR_REDUCTION_COMP_TYPE,
                CUDNN_TYPE_DATA_TYPE,
                &float,
            )?;
            (how, "reduction")
        }
        Node::Reshape { .. } => return Ok(None),
    };
    how.finalize(what)?;
    Ok(Some(how))
}
