//! The schema of a Parquet file as what its columns write down together: JSON.

use parquet::basic::{ConvertedType, LogicalType, Repetition, Type as Physical};
use parquet::schema::types::Type;

use super::leaf::Leaf;
use crate::error::RecordProblem;

/// A part of a record.
pub(super) enum Node {
    /// A column's value.
    Leaf {
        /// Its column, among those that are read.
        leaf: usize,
    },
    /// An object of named fields.
    Group { fields: Vec<(String, Node)> },
    /// A list: elements at this level of definition or above, a further one at this level of repetition.
    List {
        element: Box<Node>,
        definition: i16,
        repetition: i16,
    },
    /// An object of which the file has the names too.
    Map {
        key: Box<Node>,
        value: Box<Node>,
        definition: i16,
        repetition: i16,
    },
    /// What may be missing: it is there at this level of definition or above.
    Optional { node: Box<Node>, definition: i16 },
}

/// Builds the nodes of a schema, and counts levels and columns on the way.
#[derive(Default)]
pub(super) struct Builder {
    /// Columns so far.
    pub leaves: usize,
    definition: i16,
    repetition: i16,
}

impl Builder {
    /// A field of the schema as a part of a record. `Err`: its name and what cannot be read about it.
    pub fn field(&mut self, field: &Type) -> Result<Node, String> {
        let info = field.get_basic_info();
        let before = (self.definition, self.repetition);
        let repetition = match info.has_repetition() {
            true => info.repetition(),
            false => Repetition::REQUIRED,
        };
        let node = match repetition {
            Repetition::REQUIRED => self.inside(field)?,
            Repetition::OPTIONAL => {
                self.definition += 1;
                let definition = self.definition;
                let node = Box::new(self.inside(field)?);
                Node::Optional { node, definition }
            }
            // A list without the name of one.
            Repetition::REPEATED => self.repeated(|builder| builder.inside(field))?,
        };
        (self.definition, self.repetition) = before;
        Ok(node)
    }

    fn repeated(
        &mut self,
        element: impl FnOnce(&mut Self) -> Result<Node, String>,
    ) -> Result<Node, String> {
        self.definition += 1;
        self.repetition += 1;
        let (definition, repetition) = (self.definition, self.repetition);
        let element = Box::new(element(self)?);
        Ok(Node::List {
            element,
            definition,
            repetition,
        })
    }

    /// A field, its own repetition aside.
    fn inside(&mut self, field: &Type) -> Result<Node, String> {
        if field.is_primitive() {
            readable(field)?;
            self.leaves += 1;
            let leaf = self.leaves - 1;
            return Ok(Node::Leaf { leaf });
        }
        let info = field.get_basic_info();
        let children = field.get_fields();
        let one = match children {
            [one] if is_repeated(one) => Some(one),
            _ => None,
        };
        let logical = info.logical_type_ref();
        let list = matches!(logical, Some(LogicalType::List))
            || info.converted_type() == ConvertedType::LIST;
        let map = matches!(logical, Some(LogicalType::Map))
            || matches!(
                info.converted_type(),
                ConvertedType::MAP | ConvertedType::MAP_KEY_VALUE
            );
        match one {
            Some(one) if list => self.list(field.name(), one),
            Some(one) if map && one.is_group() && one.get_fields().len() == 2 => self.map(one),
            _ => {
                let each = children.iter().map(|child| {
                    let node = self.field(child)?;
                    Ok((child.name().to_owned(), node))
                });
                let fields = each.collect::<Result<Vec<_>, String>>()?;
                if fields.is_empty() {
                    return Err(format!("'{}' is a group of nothing", field.name()));
                }
                Ok(Node::Group { fields })
            }
        }
    }

    /// The repeated field of a list is its element, or has the element as its only child (the format's rules for
    /// what older writers wrote).
    fn list(&mut self, name: &str, repeated: &Type) -> Result<Node, String> {
        let own = repeated.is_primitive()
            || repeated.get_fields().len() != 1
            || repeated.name() == "array"
            || repeated.name() == format!("{name}_tuple");
        self.repeated(|builder| match own {
            true => builder.inside(repeated),
            false => builder.field(&repeated.get_fields()[0]),
        })
    }

    fn map(&mut self, entry: &Type) -> Result<Node, String> {
        self.definition += 1;
        self.repetition += 1;
        let (definition, repetition) = (self.definition, self.repetition);
        let fields = entry.get_fields();
        Ok(Node::Map {
            key: Box::new(self.field(&fields[0])?),
            value: Box::new(self.field(&fields[1])?),
            definition,
            repetition,
        })
    }
}

fn is_repeated(field: &Type) -> bool {
    let info = field.get_basic_info();
    info.has_repetition() && info.repetition() == Repetition::REPEATED
}

/// Refuses what JSON has no word for.
fn readable(field: &Type) -> Result<(), String> {
    let info = field.get_basic_info();
    let physical = field.get_physical_type();
    let what = match (physical, info.logical_type_ref()) {
        (_, Some(LogicalType::Decimal { .. })) => "a decimal",
        (_, Some(LogicalType::Float16)) => "a number of 16 bits",
        (_, Some(LogicalType::Uuid)) => "a UUID",
        _ if info.converted_type() == ConvertedType::DECIMAL => "a decimal",
        (Physical::INT96, _) => "a time of 96 bits",
        (Physical::FIXED_LEN_BYTE_ARRAY, _) => "bytes",
        _ => return Ok(()),
    };
    Err(format!("'{}' is {what}", field.name()))
}

/// Writes a record's part behind what is written, and passes over its values. Nothing is written of what is missing;
/// whether something was. No more is written than fits below `most` bytes. Long because it has an arm for each make of
/// part.
pub(super) fn write(
    node: &Node,
    leaves: &mut [Leaf],
    out: &mut Vec<u8>,
    most: usize,
) -> Result<bool, Stop> {
    match node {
        Node::Leaf { leaf } => return leaves[*leaf].write(out, most),
        Node::Optional { node, definition } => {
            if leaves[first(node)].definition()? < *definition {
                pass(node, leaves)?;
                return Ok(false);
            }
            return write(node, leaves, out, most);
        }
        Node::Group { fields } => {
            out.push(b'{');
            let begun = out.len();
            for (name, node) in fields {
                let before = out.len();
                if before > begun {
                    out.push(b',');
                }
                string(name, out);
                out.push(b':');
                if !write(node, leaves, out, most)? {
                    out.truncate(before);
                }
            }
            out.push(b'}');
        }
        Node::List {
            element,
            definition,
            repetition,
        } => {
            out.push(b'[');
            if leaves[first(element)].definition()? < *definition {
                pass(element, leaves)?;
            } else {
                loop {
                    if !write(element, leaves, out, most)? {
                        out.extend(b"null");
                    }
                    if leaves[first(element)].next_repetition() != Some(*repetition) {
                        break;
                    }
                    out.push(b',');
                    bound(out, most)?;
                }
            }
            out.push(b']');
        }
        Node::Map {
            key,
            value,
            definition,
            repetition,
        } => {
            out.push(b'{');
            if leaves[first(key)].definition()? < *definition {
                pass(key, leaves)?;
                pass(value, leaves)?;
            } else {
                loop {
                    let before = out.len();
                    if !write(key, leaves, out, most)? || out.get(before) != Some(&b'"') {
                        return Err(Stop::Damaged("a name in a map is no text".into()));
                    }
                    out.push(b':');
                    if !write(value, leaves, out, most)? {
                        out.extend(b"null");
                    }
                    if leaves[first(key)].next_repetition() != Some(*repetition) {
                        break;
                    }
                    out.push(b',');
                    bound(out, most)?;
                }
            }
            out.push(b'}');
        }
    }
    bound(out, most)?;
    Ok(true)
}

fn bound(out: &[u8], most: usize) -> Result<(), Stop> {
    match out.len() > most {
        true => Err(Stop::Record(RecordProblem::LineTooLong { max: most })),
        false => Ok(()),
    }
}

/// Why a record was not written to its end.
#[derive(Debug)]
pub(super) enum Stop {
    /// This record cannot be used.
    Record(RecordProblem),
    /// The file contradicts itself.
    Damaged(String),
}

impl From<parquet::errors::ParquetError> for Stop {
    fn from(e: parquet::errors::ParquetError) -> Self {
        Self::Damaged(e.to_string())
    }
}

/// The first column of a part: all of a part's columns have the levels of what is above it.
fn first(node: &Node) -> usize {
    match node {
        Node::Leaf { leaf } => *leaf,
        Node::Optional { node, .. }
        | Node::List { element: node, .. }
        | Node::Map { key: node, .. } => first(node),
        Node::Group { fields } => first(&fields[0].1),
    }
}

/// Passes over one level of each of a part's columns.
fn pass(node: &Node, leaves: &mut [Leaf]) -> Result<(), Stop> {
    match node {
        Node::Leaf { leaf } => leaves[*leaf].pass(),
        Node::Optional { node, .. } | Node::List { element: node, .. } => pass(node, leaves),
        Node::Map { key, value, .. } => {
            pass(key, leaves)?;
            pass(value, leaves)
        }
        Node::Group { fields } => fields.iter().try_for_each(|f| pass(&f.1, leaves)),
    }
}

/// A text as JSON.
pub(super) fn string(text: &str, out: &mut Vec<u8>) {
    serde_json::to_writer(out, text).expect("memory takes what is written");
}
