//! What can be wrong with a model that a user brings.

use std::io;
use std::path::PathBuf;

use lowtide_files::FileError;

/// Why a model cannot be described, read or written.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The model gives a document's class, and no token after it.
    #[error("the model classifies: it has no next token")]
    Classifies,
    /// The system refused a file operation.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is not there, or is not what its name says.
    #[error(transparent)]
    File(#[from] FileError),
    /// Something is wrong with what a configuration says.
    #[error("{}: {source}", path.display())]
    Config {
        /// The configuration's file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<Self>,
    },
    /// A key that the configuration must have is absent.
    #[error("config key '{key}' is missing")]
    MissingKey {
        /// Name of the missing key.
        key: String,
    },
    /// A key of the configuration has a value that makes no sense.
    #[error("config key '{key}' is {value}, need {need}")]
    BadValue {
        /// Name of the key.
        key: String,
        /// Its value as written.
        value: String,
        /// What it must be.
        need: &'static str,
    },
    /// The configuration asks for something that is not implemented.
    #[error("config key '{key}' is {value}, which is not supported (supported: {supported})")]
    Unsupported {
        /// Name of the key.
        key: String,
        /// Its value as written.
        value: String,
        /// The values that are.
        supported: &'static str,
    },
    /// Dimensions or batch sizes that do not go together.
    #[error("{what} is {have}, need {need}")]
    Dimensions {
        /// What is out of range, in words.
        what: &'static str,
        /// Its value, in the quantity's own unit.
        have: u64,
        /// What it must be.
        need: String,
    },
    /// A pattern of names that is the name of no tensor.
    #[error("{key}: `{pattern}` names no tensor of the model, which has {}", names.join(", "))]
    NothingLike {
        /// The key of the run file that has it.
        key: &'static str,
        /// The pattern as the run file has it.
        pattern: String,
        /// Its tensors' names; of those that differ in numbers only the first.
        names: Vec<String>,
    },
    /// Two tensors of one computation of which one is to be frozen.
    #[error("{frozen} is frozen and {trained} is not, but their gradients are one computation")]
    Partly {
        /// The tensor that is frozen.
        frozen: String,
        /// The one that is not.
        trained: String,
    },
    /// Two tensors of one matrix that are to be updated with different settings.
    #[error("{one} and {other} are of different groups, but one matrix here")]
    Split {
        /// The first tensor of the matrix.
        one: String,
        /// The first that is of another group.
        other: String,
    },
    /// A group of tensors with settings of their own of which none is trained by them.
    #[error(
        "the group of {names} decides nothing: these tensors are frozen, or in a group before it"
    )]
    NoEffect {
        /// The group's patterns.
        names: String,
    },
    /// Every parameter is frozen.
    #[error("every parameter is frozen: there is nothing to train")]
    NothingTrained,
    /// No matrix of the blocks can be trained in a subspace: those that are trained have shorter sides of at most
    /// `shorter` features, of which a multiple of 8 has to be left.
    #[error(
        "no matrix of the blocks can be trained in a subspace: {}",
        match shorter {
            0 => "all of them are frozen".to_owned(),
            _ => format!(
                "1/{compression} of {shorter} features, the most that the shorter side of a trained one has, is less \
                 than 8"
            ),
        }
    )]
    NothingProjected {
        /// The longest of the shorter sides; 0: nothing of the blocks is trained.
        shorter: u64,
        /// How many times fewer directions are kept.
        compression: u32,
    },
    /// A mixture of experts is to be trained in subspaces.
    #[error("the model is a mixture of experts, whose matrices are not trained in subspaces")]
    ExpertsProjected,
    /// A model of two stacks is to do what it cannot yet.
    #[error("a model with an encoder and a decoder is not {what} yet")]
    StacksLack {
        /// What, as in "trained in subspaces".
        what: &'static str,
    },
    /// Rows are to be computed in chunks where that does not exist yet.
    #[error("{what} is not computed in chunks of rows (train.rows_chunk) yet")]
    NotInChunks {
        /// What, as in "a mixture of experts".
        what: &'static str,
    },
    /// The system does not start the threads that matrices are made on.
    #[error("{threads} threads cannot be started: {why}")]
    Threads {
        /// How many were to be started.
        threads: usize,
        /// What the system said.
        why: String,
    },
    /// A directory without `config.json`.
    #[error("{}: no config.json{}", dir.display(), instead(found))]
    NoConfig {
        /// The directory that was to be a model.
        dir: PathBuf,
        /// A file that says what it is the directory of.
        found: Option<String>,
    },
    /// A weight that is no number.
    #[error("{}: tensor '{tensor}' has {value} at {place:?}", file.display())]
    NonFinite {
        /// The file that the weight is in.
        file: PathBuf,
        /// Name of the tensor in the file.
        tensor: String,
        /// NaN or an infinity.
        value: f32,
        /// Its indices in the tensor as stored, from 0.
        place: Vec<u64>,
    },
    /// A weight that is no number, or that the type of an export has no finite number for.
    #[error("tensor '{tensor}' has {value:e} at {place:?}, {}", beyond(*value, dtype))]
    Beyond {
        /// The tensor, as the file would name it.
        tensor: String,
        /// The weight in f32, before it is rounded.
        value: f32,
        /// The type, as safetensors calls it.
        dtype: &'static str,
        /// Its indices in the tensor as it would be stored, from 0.
        place: Vec<u64>,
    },
    /// A head of its own in the files of a model whose configuration has none.
    #[error(
        "{}: tensor '{tensor}' differs from the embedding, and config key 'tie_word_embeddings' says \
         that they are one",
        file.display()
    )]
    TiedHead {
        /// The file that has the head.
        file: PathBuf,
        /// Name of the head's tensor.
        tensor: String,
    },
    /// Neither `model.safetensors` nor `model.safetensors.index.json` is there.
    #[error(
        "{}: neither model.safetensors nor model.safetensors.index.json{}",
        dir.display(),
        instead(found)
    )]
    NoWeights {
        /// The directory that was to be a model.
        dir: PathBuf,
        /// A file with weights of another make.
        found: Option<String>,
    },
    /// The header's length, a file's first eight bytes, is impossible.
    #[error("{}: the header takes {need} bytes, at most {have} are possible", file.display())]
    HeaderLength {
        /// The safetensors file.
        file: PathBuf,
        /// The length it states.
        need: u64,
        /// Bytes behind the length field, or the largest header that is accepted.
        have: u64,
    },
    /// The header is not the JSON that the format asks for.
    #[error("{}: header: {source}", file.display())]
    Header {
        /// The safetensors file.
        file: PathBuf,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// A tensor's bytes do not begin where the bytes of the one before it end.
    #[error("{}: tensor '{tensor}' begins at byte {have}, need {need}", file.display())]
    Offset {
        /// The safetensors file.
        file: PathBuf,
        /// Name of the tensor that is out of place.
        tensor: String,
        /// Where it must begin: where the one before ends.
        need: u64,
        /// Where it says that it begins.
        have: u64,
    },
    /// A tensor's bytes are not as many as its shape and type need.
    #[error("{}: tensor '{tensor}' has {have} bytes, its shape needs {need}", file.display())]
    TensorBytes {
        /// The safetensors file.
        file: PathBuf,
        /// Name of the tensor in the file.
        tensor: String,
        /// Bytes by shape and type.
        need: u64,
        /// Bytes by its offsets.
        have: u64,
    },
    /// The file is shorter or longer than its header says.
    #[error("{}: the tensors take {need} bytes, the file holds {have}", file.display())]
    DataLength {
        /// The safetensors file.
        file: PathBuf,
        /// Bytes of all tensors.
        need: u64,
        /// Bytes behind the header.
        have: u64,
    },
    /// A tensor is stored in a type that cannot be a weight here.
    #[error(
        "{}: tensor '{tensor}' is stored as {dtype} (supported: BF16, F16, F32)",
        file.display()
    )]
    TensorDtype {
        /// The safetensors file.
        file: PathBuf,
        /// Name of the tensor in the file.
        tensor: String,
        /// Its type as written.
        dtype: String,
    },
    /// A tensor has another shape than the configuration asks for.
    #[error("{}: tensor '{tensor}' has shape {have:?}, need {need:?}", file.display())]
    TensorShape {
        /// The safetensors file.
        file: PathBuf,
        /// Name of the tensor in the file.
        tensor: String,
        /// The shape that the configuration asks for.
        need: Vec<u64>,
        /// The shape in the file.
        have: Vec<u64>,
    },
    /// Tensors that the model has and no file does.
    #[error("{}: {} tensors are missing: {}", dir.display(), tensors.len(), some(tensors))]
    MissingTensors {
        /// The model's directory.
        dir: PathBuf,
        /// Names of the tensors, as files call them.
        tensors: Vec<String>,
    },
    /// Tensors in the files that the model has no use for: another model than its configuration.
    #[error("{}: {} tensors have no place in the model: {}", dir.display(), tensors.len(), some(tensors))]
    UnexpectedTensors {
        /// The model's directory.
        dir: PathBuf,
        /// Names of the tensors in the files.
        tensors: Vec<String>,
    },
    /// A tensor that is there twice.
    #[error("{}: tensor '{tensor}' is there twice", file.display())]
    DuplicateTensor {
        /// The file with the second one.
        file: PathBuf,
        /// Name that both tensors have.
        tensor: String,
    },
    /// The index names a file by a path, or a tensor that its file does not have.
    #[error("{}: tensor '{tensor}' is not in '{shard}'", file.display())]
    Index {
        /// The index file, `model.safetensors.index.json`.
        file: PathBuf,
        /// Name of the tensor in the index.
        tensor: String,
        /// The file that should have it.
        shard: String,
    },
    /// The directory of an export has weights already.
    #[error("{} is there already", path.display())]
    ExportExists {
        /// The file that is in the way.
        path: PathBuf,
    },
}

/// A file that is there instead.
fn instead(found: &Option<String>) -> String {
    found
        .as_ref()
        .map_or(String::new(), |name| format!(" ({name} is there)"))
}

/// What a type has in place of a number that is beyond it.
fn beyond(value: f32, dtype: &str) -> String {
    match dtype {
        _ if !value.is_finite() => "which is no number".to_owned(),
        "F16" => "and f16 ends at 65504".to_owned(),
        other => format!("beyond what {} has", other.to_lowercase()),
    }
}

/// The first names of a list that may be long.
fn some(names: &[String]) -> String {
    let shown = names
        .iter()
        .take(8)
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(", ");
    if names.len() > 8 {
        format!("{shown}, ...")
    } else {
        shown
    }
}

impl ModelError {
    /// For `map_err` behind a file operation on `path`.
    pub(crate) fn io(path: &std::path::Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}
