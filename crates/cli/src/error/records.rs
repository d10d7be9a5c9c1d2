//! What to do about a data file or a record that cannot be used.

use std::path::Path;

use lowtide_data::RecordProblem;
use lowtide_data::{ForeignFile, ForeignRecord};

/// What to do about one record. Long because each problem has its arm.
pub fn advice(problem: &RecordProblem) -> Vec<String> {
    let mut lines = match problem {
        RecordProblem::UnknownFormat {
            like: Some(like), ..
        }
        | RecordProblem::Foreign { like, .. } => mapping(like),
        RecordProblem::UnknownFormat { like: None, .. } => vec![names()],
        RecordProblem::MissingField { field, .. } if !field.contains('[') => vec![names()],
        RecordProblem::NoSuchClass { .. } => {
            vec!["model.labels names the classes in their order; data.fields.label names the field".to_owned()]
        }
        RecordProblem::NoRoom { .. } => vec!["raise train.seq".to_owned()],
        RecordProblem::AmbiguousFormat { .. } => {
            vec!["say which with data.format: chat, completion or text".to_owned()]
        }
        RecordProblem::MixedFormats { .. } => {
            return vec![
                "all records of a run have one layout, that of the first: write the others so too, a prompt with its \
                 completion as {\"messages\": [{\"role\": \"user\", \"content\": PROMPT}, {\"role\": \"assistant\", \
                 \"content\": COMPLETION}]}"
                    .to_owned(),
                "single records of another layout, --set data.on_error=skip leaves out; a file that begins with one is \
                 refused anyway"
                    .to_owned(),
            ];
        }
        RecordProblem::LineTooLong { .. } => {
            vec!["--set data.max_line=SIZE allows longer lines, where it is one record".to_owned()]
        }
        RecordProblem::TextTooLong { .. } => {
            vec!["--set data.text_by=paragraph, or line, cuts a text into records; --set data.max_line=SIZE allows longer ones".to_owned()]
        }
        RecordProblem::InnerJson { .. } => {
            vec!["lists and objects in a text must be JSON: write them with json.dumps, not with Python's str".to_owned()]
        }
        RecordProblem::Cells { .. } | RecordProblem::OpenQuote | RecordProblem::BehindQuote { .. } => {
            vec!["a cell with a comma, a quote or a line end in it stands in quotes, and a quote in it is written twice".to_owned()]
        }
        RecordProblem::Memory { .. } => {
            return vec![
                "raise budget.host, cut the record into several, or leave it out of the file".to_owned(),
            ];
        }
        RecordProblem::NotANumber { .. } => vec![
            "write null or leave the field out; Python's json.dumps(..., allow_nan=False) refuses to write it"
                .to_owned(),
        ],
        RecordProblem::MarkedAgainst { .. } => {
            vec!["set data.train_on: assistant, which trains on no other role".to_owned()]
        }
        RecordProblem::NotAPrefix { .. }
        | RecordProblem::TurnEnd { .. }
        | RecordProblem::TooManyTurns { .. } => vec![
            "give data.chat_template a copy of the template with {% generation %} and {% endgeneration %} \
             around what the assistant says, its end of turn included: then the template decides by itself"
                .to_owned(),
        ],
        RecordProblem::BlocksOfTurn { .. } => vec![
            "give data.chat_template one generation block a turn, or leave the marks out".to_owned(),
        ],
        RecordProblem::Render { always: true, .. } => {
            return vec![
                "it fails on every conversation, also on a plain one: correct the template, or give another with \
                 data.chat_template"
                    .to_owned(),
            ];
        }
        RecordProblem::Render { always: false, .. } => vec![
            "other conversations it renders: change this one as the template asks, or give another with \
             data.chat_template"
                .to_owned(),
        ],
        RecordProblem::TemplateLimit { .. } | RecordProblem::TemplateWork { .. } => {
            return vec![
                "templates as models are published with stay far below this limit: fetch the template again, or \
                 give another with data.chat_template"
                    .to_owned(),
            ];
        }
        _ => Vec::new(),
    };
    lines.push(
        "--set data.on_error=skip leaves out records that cannot be used, and counts them"
            .to_owned(),
    );
    lines
}

fn names() -> String {
    "say what your fields are called: --set data.fields.prompt=NAME --set data.fields.completion=NAME, or \
     data.fields.messages, or data.fields.text"
        .to_owned()
}

/// How records of another format are read, or turned into what is read.
fn mapping(like: &ForeignRecord) -> Vec<String> {
    let text = match like {
        ForeignRecord::Conversation { field } => format!("--set data.fields.messages={field}"),
        ForeignRecord::Pair { prompt, completion } => {
            format!("--set data.fields.prompt={prompt} --set data.fields.completion={completion}")
        }
        ForeignRecord::Preference => {
            "lowtide trains on answers; make prompt and completion, or messages, of the chosen ones"
                .to_owned()
        }
    };
    vec![text]
}

/// How to turn a file into JSONL.
pub fn conversion(what: ForeignFile, path: &Path) -> Vec<String> {
    let (file, new) = (path.display(), path.with_extension("jsonl"));
    // A new name where the old one is a .jsonl already.
    let new = if new == path {
        path.with_extension("lines.jsonl")
    } else {
        new
    };
    let new = new.display();
    let text = match what {
        ForeignFile::JsonObject => {
            format!(
                "jq -c . {file} > {new} where each object is a record; jq -c '.NAME[]' where a list in it is"
            )
        }
        ForeignFile::Csv => format!(
            "a table is read by its ending: mv {file} {}",
            path.with_extension("csv").display()
        ),
        ForeignFile::Arrow => format!(
            "python3 -c 'import datasets; datasets.Dataset.from_file(\"{file}\").to_json(\"{new}\", \
             force_ascii=False)'"
        ),
        ForeignFile::Compressed => {
            "decompress it first (gunzip, zstd -d, bunzip2, unxz)".to_owned()
        }
        ForeignFile::Zip => format!("unzip {file} first"),
        ForeignFile::Html => {
            "a download gave a page in place of the file: take the file's own address".to_owned()
        }
        ForeignFile::LfsPointer => "git lfs pull brings the file itself".to_owned(),
        ForeignFile::CarriageReturns => format!("tr '\\r' '\\n' < {file} > {new}"),
        ForeignFile::Utf16(name) => format!("iconv -f {name} -t UTF-8 {file} > {new}"),
    };
    vec![text]
}
