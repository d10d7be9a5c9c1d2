//! What can go wrong between a data file and a batch.
//!
//! One file because the facts of an error stand beside the words for them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lowtide_files::FileError;
use lowtide_units::Bytes;

use crate::place::Place;
use crate::{ForeignFile, ForeignRecord};

/// Why data, a tokenizer or a metrics file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// Records with a class, and a model that has none.
    #[error("{path}: the data have classes, and the model predicts the next token")]
    NoClasses {
        /// The tokenizer's file.
        path: PathBuf,
    },
    /// A file or directory does not exist.
    #[error("{path}: no such file or directory")]
    Missing {
        /// What was looked for.
        path: PathBuf,
    },
    /// Reading or writing failed.
    #[error("{path}: {source}")]
    Io {
        /// Path that could not be read.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not what its name says.
    #[error(transparent)]
    File(FileError),
    /// One record of a data file cannot be used.
    #[error("{path}{place}: {problem}")]
    Record {
        /// Path of the file.
        path: PathBuf,
        /// Where it stands.
        place: Place,
        /// What is wrong with it.
        problem: RecordProblem,
    },
    /// A data file is of another format.
    #[error(
        "{path}: {what}; data files are JSONL (one JSON object a line), JSON arrays of objects, CSV, Parquet and plain \
         text, tables and texts by the endings .csv, .tsv, .txt and .md"
    )]
    ForeignFile {
        /// Path of the file.
        path: PathBuf,
        /// What it looks like.
        what: ForeignFile,
    },
    /// A Parquet file is damaged, or has what is not read.
    #[error("{path}: this Parquet file cannot be read: {what}")]
    Parquet {
        /// Path of the file.
        path: PathBuf,
        /// What it is or has.
        what: String,
    },
    /// A system prompt was given for records that are no conversations.
    #[error(
        "{path}: {format} records are no conversations: the system prompt of data.system has no place in them"
    )]
    NoSystem {
        /// Path of the file.
        path: PathBuf,
        /// What its records are.
        format: &'static str,
    },
    /// A part of a Parquet file takes more memory than may be taken.
    #[error(
        "{path}: {part} takes up to {need} of host memory while it is read, and {have} are allowed"
    )]
    ParquetMemory {
        /// Path of the file.
        path: PathBuf,
        /// What of it: a row group, or what it says of itself.
        part: String,
        /// Bytes that reading it takes.
        need: Bytes,
        /// Bytes that may be taken (`budget.host`).
        have: Bytes,
    },
    /// The examples that are read take more memory than may be taken.
    #[error(
        "{path}{place}: the examples up to here take {need} of host memory, and {have} are allowed{}",
        and(unkept)
    )]
    Examples {
        /// The file that is being read.
        path: PathBuf,
        /// The record that is one too many.
        place: Place,
        /// Bytes of all tokens and their places.
        need: Bytes,
        /// Bytes that may be taken (`budget.host`).
        have: Bytes,
        /// Why their tokens are not kept on disk, where that was tried.
        unkept: Option<String>,
    },
    /// A data file was written to while it was read.
    #[error("{path}: this file was changed while it was read")]
    Changed {
        /// Path of the file.
        path: PathBuf,
    },
    /// What ended a stream: the error of each who waits for more of it.
    #[error(transparent)]
    Streamed(Arc<DataError>),
    /// Tokens that are kept on disk cannot be read or written, or are not what was written.
    #[error("{path}: tokens kept on disk: {reason}")]
    Kept {
        /// The file of the cache.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file's weight leaves none of its examples.
    #[error("{path}: 'data.train[{file}].weight: {weight}' leaves none of its {examples} examples")]
    WeightOfNone {
        /// Path of the file with the weight.
        path: PathBuf,
        /// Its number in the run file, from 0.
        file: usize,
        /// Weight as the run file has it.
        weight: f64,
        /// Examples of the file.
        examples: u64,
    },
    /// Weights make more examples than there may be.
    #[error(
        "{path}: 'data.train[{file}].weight: {weight}' makes {need} of examples' places, and {have} of host memory \
         are allowed"
    )]
    WeightTooLarge {
        /// The file with the largest number of examples, weighted.
        path: PathBuf,
        /// Its number in the run file, from 0.
        file: usize,
        /// Weight as the run file has it.
        weight: f64,
        /// Bytes that the places of all examples take.
        need: Bytes,
        /// Bytes that may be taken (`budget.host`).
        have: Bytes,
    },
    /// Records that cannot be used are left out, and there are no others.
    #[error("{path}: not one of {n} records can be used; the first: {first}")]
    AllSkipped {
        /// The (first) file.
        path: PathBuf,
        /// Records there are.
        n: u64,
        /// The first one's place and problem.
        first: String,
    },
    /// The files hold no record at all.
    #[error("{path}: no records")]
    NoRecords {
        /// The (first) file.
        path: PathBuf,
    },
    /// A tokenizer file exists but does not say what it must.
    #[error("{path}: not a usable tokenizer file: {reason}")]
    Corrupt {
        /// Path of the file.
        path: PathBuf,
        /// What its reader said.
        reason: String,
    },
    /// A tokenizer that is not in `tokenizer.json`.
    #[error("{path}: {found} is a tokenizer of another make; tokenizer.json is read")]
    OtherTokenizer {
        /// What was to be opened.
        path: PathBuf,
        /// Name of the file that is there instead.
        found: String,
    },
    /// A tokenizer that cannot be loaded within bounds of time and memory.
    #[error("{path}: this tokenizer cannot be used: {what}")]
    Hostile {
        /// Path of the file.
        path: PathBuf,
        /// What it does.
        what: String,
    },
    /// A chat template does not parse.
    #[error("{path}: chat template{}: {reason}", at_line(*line))]
    Template {
        /// The file that holds the template.
        path: PathBuf,
        /// Line of the template, from 1, if it is known.
        line: Option<usize>,
        /// What the template engine said.
        reason: String,
    },
    /// A token was named that the vocabulary does not have.
    #[error("{path}: the vocabulary has no token '{token}'")]
    UnknownToken {
        /// Path of the tokenizer's file.
        path: PathBuf,
        /// The token's text.
        token: String,
    },
    /// The data needs an end-of-sequence token and the tokenizer names none.
    #[error("{path}: no end-of-sequence token is named")]
    NoEosToken {
        /// Path of the tokenizer's file.
        path: PathBuf,
    },
    /// Chat data, and the tokenizer has no chat template.
    #[error("{path}: chat data needs a chat template and the tokenizer has none")]
    NoChatTemplate {
        /// Path of the tokenizer's file.
        path: PathBuf,
    },
    /// Not one token of the data would be trained on.
    #[error(
        "{path}: none of the {n_tokens} tokens in {n_records} records is supervised \
         ({n_cut} records lost theirs to the sequence length)"
    )]
    NothingSupervised {
        /// The (first) file.
        path: PathBuf,
        /// Records that were read.
        n_records: u64,
        /// Tokens in them.
        n_tokens: u64,
        /// Records whose supervised tokens all lie beyond the sequence length.
        n_cut: u64,
    },
    /// A share of the examples was to be kept for evaluation and none would be left to train on.
    #[error(
        "{path}: 'data.eval_split: {share}' keeps at least one example for evaluation, and there is only one that \
         can be trained on"
    )]
    SplitOfOne {
        /// The (first) file.
        path: PathBuf,
        /// The share as the run file has it.
        share: f64,
    },
    /// More examples were to be kept for evaluation than would leave one to train on.
    #[error(
        "{path}: 'data.eval_split: {split}' keeps {split} examples for evaluation, and {n} can be trained on"
    )]
    SplitOfAll {
        /// The (first) file.
        path: PathBuf,
        /// How many, as the run file has it.
        split: u64,
        /// Examples that there are.
        n: u64,
    },
    /// A share of the examples was to be kept for evaluation, and one file is there twice.
    #[error(
        "{path}: this file is in data.train before, as {first}: with 'data.eval_split: {share}' an example could be in \
         training and in evaluation"
    )]
    SplitOfTwice {
        /// The later one.
        path: PathBuf,
        /// The earlier one.
        first: PathBuf,
        /// The share as the run file has it.
        share: f64,
    },
    /// Prompts were to be left out of the loss and not one token was.
    #[error("{path}: all {n_tokens} tokens in {n_records} records are supervised, prompts too")]
    EverythingSupervised {
        /// The (first) file.
        path: PathBuf,
        /// Records that were read.
        n_records: u64,
        /// Tokens in them.
        n_tokens: u64,
    },
    /// A batch dimension is out of its range.
    #[error("{name} is {have}, must be {need}")]
    Shape {
        /// Name of the dimension that is wrong.
        name: &'static str,
        /// Value that was given.
        have: usize,
        /// The range it must lie in.
        need: &'static str,
    },
    /// No batch would ever be dealt out.
    #[error(
        "an epoch has {n_rows} rows, a batch needs {batch_rows}, and 'train.last_batch: drop' leaves out what \
         does not fill one"
    )]
    AllDropped {
        /// Rows in an epoch.
        n_rows: u64,
        /// Rows of a batch: micro-batch times accumulation.
        batch_rows: u64,
    },
    /// A stored position does not exist in this data.
    #[error("position {position} of epoch {epoch} does not exist: an epoch has {n_rows} rows")]
    Position {
        /// The stored epoch.
        epoch: u64,
        /// The stored position, in rows.
        position: u64,
        /// Rows in an epoch of this data.
        n_rows: u64,
    },
}

/// What is wrong with one record of a data file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordProblem {
    /// A class that the model has not.
    #[error("the class {found} is none of the model's: {names}; or their numbers from 0 on")]
    NoSuchClass {
        /// The class, as it stands in the record.
        found: String,
        /// The first of the model's.
        names: String,
    },
    /// Texts of which the tokenizer makes no token.
    #[error("the tokenizer makes no token of the text")]
    NoTokens,
    /// The special tokens alone leave no room.
    #[error("{tokens} special tokens leave no room in {max} tokens")]
    NoRoom {
        /// Special tokens around the texts.
        tokens: usize,
        /// Most tokens of an example.
        max: usize,
    },
    /// `eval.generate.extract` finds nothing in the reference answer.
    #[error("nothing in the reference answer matches eval.generate.extract, '{pattern}'")]
    NothingExtracted {
        /// The regular expression.
        pattern: String,
    },
    /// The line is longer than the bound.
    #[error("line is longer than {max} bytes")]
    LineTooLong {
        /// The bound, in bytes.
        max: usize,
    },
    /// A plain text is longer than the bound.
    #[error("a text of more than {max} bytes")]
    TextTooLong {
        /// The bound, in bytes.
        max: usize,
    },
    /// A row of a table has another number of cells than there are columns.
    #[error("a row of {have} cells in a table of {need} columns")]
    Cells {
        /// Cells that the row has.
        have: usize,
        /// Columns of the header.
        need: usize,
    },
    /// A row of a table has more cells than a table may have.
    #[error("more than {max} columns")]
    Columns {
        /// The bound that it exceeds.
        max: usize,
    },
    /// Two columns of a table have one name.
    #[error("two columns are called '{field}'")]
    TwiceNamed {
        /// Name that both have.
        field: String,
    },
    /// A quote is opened in a table and not closed.
    #[error(
        "a quote that is opened in this row, or before, is not closed before the end of the file"
    )]
    OpenQuote,
    /// Something stands behind the end of a quoted cell.
    #[error(
        "{found:?} stands behind the end of a quoted cell, where a comma or the line's end belongs"
    )]
    BehindQuote {
        /// Character that stands there.
        found: char,
    },
    /// The line is not UTF-8.
    #[error("not UTF-8 after {valid} bytes")]
    NotUtf8 {
        /// Bytes of the line that are.
        valid: usize,
    },
    /// The line is not JSON.
    #[error("not JSON: {reason}")]
    NotJson {
        /// What the parser said; its column counts within this line.
        reason: String,
    },
    /// Python wrote what JSON does not have.
    #[error("'{found}' at column {column}: JSON has no such number")]
    NotANumber {
        /// Word that stands there.
        found: &'static str,
        /// Where it begins, in characters from 1.
        column: usize,
    },
    /// A string should hold JSON and does not.
    #[error("'{field}' is a string that is not JSON: {reason}")]
    InnerJson {
        /// Name of the field.
        field: String,
        /// What the parser said.
        reason: String,
    },
    /// A record of another trainer's format.
    #[error("no field '{field}': it looks like {like}")]
    Foreign {
        /// The field that is missing.
        field: String,
        /// What it looks like.
        like: ForeignRecord,
    },
    /// The line is JSON, but not an object.
    #[error("{found} where an object is expected")]
    NotAnObject {
        /// What stands there.
        found: &'static str,
    },
    /// A field is missing.
    #[error("no field '{field}' (fields: {have})")]
    MissingField {
        /// The field, with its place: `messages[2].role`.
        field: String,
        /// The fields that are there.
        have: String,
    },
    /// A field has another type.
    #[error("'{field}' is {found}, expected {expected}")]
    WrongType {
        /// Name of the field.
        field: String,
        /// The type it must have.
        expected: &'static str,
        /// The type it has.
        found: &'static str,
    },
    /// A field is empty.
    #[error("'{field}' is empty")]
    Empty {
        /// Name of the field.
        field: String,
    },
    /// A message has a role that chat data does not have.
    #[error("'{field}' is '{role}', expected system, developer, user, assistant or tool")]
    UnknownRole {
        /// Name of the field.
        field: String,
        /// Role that is unknown.
        role: String,
    },
    /// An element of a JSON array that has no end, and with it all that would follow.
    #[error(
        "a file that begins with '[' is read as one JSON array, and the element that begins here, or the array, \
         does not end"
    )]
    NoEnd,
    /// More than a JSON array is in its file.
    #[error(
        "a file that begins with '[' is read as one JSON array, and something stands behind its end"
    )]
    Behind,
    /// A content in parts has one that is no text.
    #[error("'{field}' is a part of type '{kind}', and only text is read")]
    Part {
        /// The part, with its place: `messages[2].content[0]`.
        field: String,
        /// Type that the part says.
        kind: String,
    },
    /// An Alpaca record tells of turns before its own.
    #[error("'history' of an Alpaca record is not read")]
    History,
    /// A message is marked for training, or against it, by something other than yes or no.
    #[error("'{field}' is {found}, expected 0 or 1, false or true")]
    Mark {
        /// The mark, with its place: `messages[2].weight`.
        field: String,
        /// What stands there, as JSON.
        found: String,
    },
    /// A message has two marks, one for training and one against it.
    #[error("{place}: '{one}' and '{other}' say the opposite of each other")]
    MarksDisagree {
        /// The message: `messages[2]`.
        place: String,
        /// One mark's key.
        one: &'static str,
        /// Field of the other format.
        other: &'static str,
    },
    /// A message that is not the assistant's is marked against training where everything is to be
    /// trained on.
    #[error(
        "message {message} ({role}) is marked not to be trained on, and 'data.train_on: all' can leave out \
         only what the assistant says"
    )]
    MarkedAgainst {
        /// Index of the message.
        message: usize,
        /// Who speaks it.
        role: String,
    },
    /// Some messages are marked, and it is unknown which of the template's generation blocks belong
    /// to which message.
    #[error(
        "a message is marked not to be trained on, and it is unclear which of the chat template's \
         {blocks} generation blocks message {message} is in ({turns} turns of the assistant)"
    )]
    BlocksOfTurn {
        /// Index of the message.
        message: usize,
        /// Blocks in the rendered conversation.
        blocks: usize,
        /// The assistant's messages.
        turns: usize,
    },
    /// Where the assistant speaks would take too long to find.
    #[error(
        "where the assistant's {turns} turns are under this chat template shows only by rendering the {messages} \
         messages again and again; {most} messages are rendered for it at most, and it takes about {need}"
    )]
    TooManyTurns {
        /// The assistant's turns that are looked for one by one.
        turns: usize,
        /// Messages of the conversation.
        messages: usize,
        /// Messages that are rendered at most, each as often as it is.
        most: u64,
        /// That many would be.
        need: u64,
    },
    /// The first record fits none of the known formats.
    #[error(
        "no known format has the fields {have}; looked for {looked_for}{}",
        like.as_ref().map_or(String::new(), |like| format!("; it looks like {like}"))
    )]
    UnknownFormat {
        /// The fields that are there.
        have: String,
        /// The field names of the known formats.
        looked_for: String,
        /// What it looks like.
        like: Option<ForeignRecord>,
    },
    /// The first record fits several formats.
    #[error("fits several formats: {formats}")]
    AmbiguousFormat {
        /// Names of those formats.
        formats: String,
    },
    /// A later record has another format than the first.
    #[error("{} record in data that began with {first} records", one(found))]
    MixedFormats {
        /// Format of the first record.
        first: &'static str,
        /// Format of this one.
        found: &'static str,
    },
    /// The chat template refused the messages or failed on them.
    #[error("chat template{}: {reason}", at_line(*line))]
    Render {
        /// Line of the template, from 1, if it is known.
        line: Option<usize>,
        /// What the template, or the engine, said; not longer than a few lines.
        reason: String,
        /// Whether it fails on a plain conversation of a user and an assistant too.
        always: bool,
    },
    /// The chat template went beyond what rendering this conversation may take.
    #[error(
        "chat template {}{}: {} {what}",
        template.display(),
        at_line(*line),
        if construct.is_empty() { "it" } else { construct }
    )]
    TemplateLimit {
        /// The file that holds the template.
        template: PathBuf,
        /// Line of the template, from 1, if it is known.
        line: Option<usize>,
        /// The filters, tests, functions, methods or operators that it was in; empty outside of them.
        construct: String,
        /// What it does, and the limit.
        what: String,
    },
    /// The chat template's renderings took too much work together; no later record can be rendered.
    #[error(
        "chat template {}: its renderings took over {mib} MiB of work more than the conversations account for{}",
        template.display(),
        if most.is_empty() { String::new() } else { format!(", most of it {most}") }
    )]
    TemplateWork {
        /// The file that holds the template.
        template: PathBuf,
        /// The limit of all records together, in MiB of text made and looked through.
        mib: u64,
        /// The construct that took most of the dearest rendering.
        most: String,
    },
    /// A string holds a character that is reserved for marking the assistant's text.
    #[error("a string holds the reserved character U+{code:04X}")]
    ReservedCharacter {
        /// Its code point.
        code: u32,
    },
    /// The template's generation markers do not come in pairs.
    #[error("the chat template's generation markers do not pair up")]
    UnpairedMarkers,
    /// The template renders a conversation's beginning differently from the conversation.
    #[error(
        "message {message}: where the answer begins is unclear: the chat template has no \
         generation markers, and what it renders to generate this turn from is not how the whole \
         conversation begins (they part at byte {parts_at}: {alone:?} alone, {whole:?} in the whole)"
    )]
    NotAPrefix {
        /// Index of the assistant's message.
        message: usize,
        /// First byte that differs.
        parts_at: usize,
        /// What stands around it in what the turn would be generated from.
        alone: String,
        /// What stands around it in the whole conversation.
        whole: String,
    },
    /// The end of an assistant's turn is unknown.
    #[error(
        "message {message}: which text is the assistant's is unclear: the chat template has no \
         generation markers, and {reason}"
    )]
    TurnEnd {
        /// Index of the assistant's message.
        message: usize,
        /// What the renderings were.
        reason: String,
    },
    /// A prompt was asked for and the record has no assistant turn to leave out.
    #[error("no assistant turn to use as the reference answer")]
    NoReference,
    /// A prompt was asked for and the format has none.
    #[error("{format} records have no prompt and no reference answer")]
    NoPrompt {
        /// Format that the data have.
        format: &'static str,
    },
    /// The completion cannot be tokenised as what follows the prompt.
    #[error(
        "the tokenizer puts a space before the completion, which a token of prompt and completion together \
         reaches into; move the characters at the border into the prompt or into the completion"
    )]
    Border,
    /// Reading the record would take more memory than the run may have.
    #[error(
        "{bytes} of text take up to {need} of host memory while they are read, and {have} are allowed"
    )]
    Memory {
        /// Bytes of the record, or of a text that it makes.
        bytes: Bytes,
        /// Bytes of memory for them.
        need: Bytes,
        /// Bytes that may be taken (`budget.host`).
        have: Bytes,
    },
    /// The tokenizer failed.
    #[error("tokenizer: {reason}")]
    Tokenize {
        /// What it said.
        reason: String,
    },
}

impl From<FileError> for DataError {
    fn from(e: FileError) -> Self {
        match e {
            FileError::Missing { path } => Self::Missing { path },
            e => Self::File(e),
        }
    }
}

/// A format's name behind its article.
fn one(format: &str) -> String {
    let article = if format.starts_with(['A', 'a']) {
        "an"
    } else {
        "a"
    };
    format!("{article} {format}")
}

impl RecordProblem {
    /// Whether the record is of another layout than those before it.
    pub(crate) fn is_of_layout(&self) -> bool {
        matches!(self, Self::MixedFormats { .. })
    }

    /// Whether the record may be of another layout, or only lack what others of its file have.
    pub(crate) fn may_be_of_layout(&self) -> bool {
        matches!(
            self,
            Self::MixedFormats { .. } | Self::Foreign { .. } | Self::MissingField { .. }
        )
    }

    /// Whether there is no record to speak of: no text, or nothing that has fields.
    pub(crate) fn is_no_record(&self) -> bool {
        matches!(
            self,
            Self::LineTooLong { .. }
                | Self::TextTooLong { .. }
                | Self::Cells { .. }
                | Self::Columns { .. }
                | Self::NotUtf8 { .. }
                | Self::NotJson { .. }
                | Self::NotANumber { .. }
                | Self::NotAnObject { .. }
        )
    }

    /// Whether the load ends here, whatever becomes of records that cannot be used.
    pub(crate) fn ends_all(&self) -> bool {
        // Which records fit in memory is not for the data to change from start to start, and how many records are
        // lost with an array's end nobody knows.
        matches!(
            self,
            Self::TemplateWork { .. }
                | Self::Memory { .. }
                | Self::NoEnd
                | Self::Behind
                | Self::OpenQuote
                | Self::BehindQuote { .. }
        )
    }
}

impl DataError {
    /// The error itself, where many get the same one.
    #[must_use]
    pub fn itself(&self) -> &Self {
        match self {
            Self::Streamed(e) => e.itself(),
            e => e,
        }
    }

    /// An I/O error with its file; a missing file becomes [`DataError::Missing`].
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            std::io::ErrorKind::NotFound => Self::Missing { path },
            _ => Self::Io { path, source },
        }
    }

    /// A problem with its file and line.
    #[must_use]
    pub fn record(path: &Path, place: Place, problem: RecordProblem) -> Self {
        Self::Record {
            path: path.to_owned(),
            place,
            problem,
        }
    }
}

/// A line of a template, as errors show it.
fn and(more: &Option<String>) -> String {
    more.as_ref()
        .map_or_else(String::new, |more| format!("; {more}"))
}

fn at_line(line: Option<usize>) -> String {
    line.map_or(String::new(), |line| format!(", line {line}"))
}
