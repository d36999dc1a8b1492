//! A YAML document as a tree that means the same when it is written again: order, unknown fields, and whether a scalar
//! was quoted are kept, so that no reader, of whichever YAML version, takes it for something else. Pure.
//!
//! Not kept: comments and layout. Not taken: anchors, aliases, tags, and more than one document, which kubeconfigs don't
//! need and which can't be kept in a tree. JSON is YAML, and is written again as YAML. Every scalar may be somebody's
//! key, so all of them are secrets.

use std::fmt::Write as _;

use guildnet_model::Secret;
use serde_saphyr::granit_parser::{Event, Marker, Parser, ScalarStyle};

/// How deep lists and maps may stand in each other: kubeconfigs have six levels, extensions of other tools a few more.
const MAX_DEPTH: usize = 64;

/// The longest key. YAML's own limit for a key without a mark of its own is 1,024 characters (1.2.2, section 7.4).
const MAX_KEY: usize = 1_000;

/// A node of the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Node {
    /// A scalar without quotes: what it is depends on its letters.
    Plain(Secret<String>),
    /// A scalar that is text whatever its letters are.
    Text(Secret<String>),
    /// A list.
    List(Vec<Node>),
    /// A map, in its order.
    Map(Vec<(Node, Node)>),
}

/// Why a text is no tree. Nothing of the text is in it: that may be a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Broken {
    #[error("line {line}, column {column} is not YAML")]
    Syntax { line: usize, column: usize },
    #[error("line {line} has {what}, which can't be kept")]
    Unkept { line: usize, what: &'static str },
    #[error("line {line} has a key that stands there twice")]
    Twice { line: usize },
    #[error("line {line} is nested deeper than {MAX_DEPTH} levels")]
    Deep { line: usize },
}

/// A text that was read.
pub(super) struct Read {
    /// The document; `None` if there is none, or nothing but null.
    pub(super) root: Option<Node>,
    /// Whether there are comments, which a tree does not keep.
    pub(super) comments: bool,
}

impl Node {
    /// A scalar that needs no quotes: the caller knows that its letters mean nothing else.
    pub(super) fn word(text: impl Into<String>) -> Self {
        Self::Plain(Secret::new(text.into()))
    }

    /// A text of whatever letters: without quotes where they can mean nothing else.
    pub(super) fn text(text: &str) -> Self {
        let harmless = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '-' | '_');
        // A path can't be taken for a number, a date, a truth value or null.
        if text.starts_with('/') && text.chars().all(harmless) {
            return Self::word(text);
        }
        Self::Text(Secret::new(text.to_owned()))
    }

    /// A map with these fields.
    pub(super) fn map<const N: usize>(fields: [(&str, Node); N]) -> Self {
        Self::Map(fields.into_iter().map(|(name, value)| (Self::word(name), value)).collect())
    }

    /// The scalar's letters.
    pub(super) fn scalar(&self) -> Option<&str> {
        match self {
            Self::Plain(text) | Self::Text(text) => Some(text.expose()),
            _ => None,
        }
    }

    /// Whether it means that nothing is there.
    pub(super) fn is_null(&self) -> bool {
        matches!(self, Self::Plain(text) if matches!(text.expose().as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// A field of a map.
    pub(super) fn field(&self, name: &str) -> Option<&Node> {
        match self {
            Self::Map(fields) => fields.iter().find(|(key, _)| key.scalar() == Some(name)).map(|(_, value)| value),
            _ => None,
        }
    }

    /// A field of a map, made null if it is not there; `None` if this is no map.
    pub(super) fn field_mut(&mut self, name: &str) -> Option<&mut Node> {
        let Self::Map(fields) = self else { return None };
        let at = match fields.iter().position(|(key, _)| key.scalar() == Some(name)) {
            Some(at) => at,
            None => {
                fields.push((Self::word(name), Self::word("null")));
                fields.len() - 1
            }
        };
        Some(&mut fields[at].1)
    }

    /// Whether both mean the same: the order of fields, quotes, and fields that are null make no difference.
    pub(super) fn means(&self, other: &Node) -> bool {
        match (self, other) {
            (Self::List(one), Self::List(two)) => {
                one.len() == two.len() && one.iter().zip(two).all(|(one, two)| one.means(two))
            }
            (Self::Map(one), Self::Map(two)) => {
                let covers = |one: &[(Node, Node)], two: &Node| {
                    one.iter().filter(|(_, value)| !value.is_null()).all(|(key, value)| {
                        key.scalar().and_then(|key| two.field(key)).is_some_and(|other| value.means(other))
                    })
                };
                covers(one, other) && covers(two, self)
            }
            _ if self.is_null() => other.is_null(),
            _ => self.scalar().is_some() && self.scalar() == other.scalar(),
        }
    }

    /// Whether `again`, read from what was written of this, is the same: order, letters and quotes.
    pub(super) fn is_kept_in(&self, again: &Node) -> bool {
        match (self, again) {
            (Self::List(one), Self::List(two)) => {
                one.len() == two.len() && one.iter().zip(two).all(|(one, two)| one.is_kept_in(two))
            }
            (Self::Map(one), Self::Map(two)) => {
                let same = |((key, value), (key2, value2)): (&(Node, Node), &(Node, Node))| {
                    key.is_kept_in(key2) && value.is_kept_in(value2)
                };
                one.len() == two.len() && one.iter().zip(two).all(same)
            }
            // Nulls are written in one way, and what has a line break is text either way.
            (one, two) if one.is_null() => two.is_null(),
            (Self::Plain(one), two) if one.expose().contains(['\n', '\r']) => two.scalar() == Some(one.expose()),
            (one, two) => one == two,
        }
    }
}

/// Reads a text.
pub(super) fn parse(text: &str) -> Result<Read, Broken> {
    let mut documents = 0;
    let mut comments = false;
    let mut root = None;
    let mut open: Vec<Open> = Vec::new();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|e| syntax(e.marker()))?;
        let line = span.start.line();
        let unkept = |what| Err(Broken::Unkept { line, what });
        let node = match event {
            Event::DocumentStart(..) => {
                documents += 1;
                if documents > 1 {
                    return unkept("a second document");
                }
                continue;
            }
            Event::Comment(..) => {
                comments = true;
                continue;
            }
            Event::Alias(_) => return unkept("an alias"),
            Event::Scalar(_, _, anchor, _) | Event::SequenceStart(_, anchor, _) | Event::MappingStart(_, anchor, _)
                if anchor != 0 =>
            {
                return unkept("an anchor");
            }
            Event::Scalar(_, _, _, Some(_))
            | Event::SequenceStart(_, _, Some(_))
            | Event::MappingStart(_, _, Some(_)) => {
                return unkept("a tag");
            }
            Event::Scalar(text, style, ..) => {
                let text = Secret::new(text.into_owned());
                if style == ScalarStyle::Plain { Node::Plain(text) } else { Node::Text(text) }
            }
            Event::SequenceStart(..) | Event::MappingStart(..) => {
                if open.len() == MAX_DEPTH {
                    return Err(Broken::Deep { line });
                }
                let map = matches!(event, Event::MappingStart(..));
                open.push(if map { Open::Map { done: Vec::new(), key: None } } else { Open::List(Vec::new()) });
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some(Open::List(items)) => Node::List(items),
                Some(Open::Map { done, .. }) => Node::Map(done),
                None => return Err(syntax(&span.start)),
            },
            _ => continue,
        };
        match open.last_mut() {
            Some(open) => open.take(node, line)?,
            None => root = Some(node),
        }
    }
    Ok(Read { root: root.filter(|node| !node.is_null()), comments })
}

fn syntax(at: &Marker) -> Broken {
    Broken::Syntax { line: at.line(), column: at.col() + 1 }
}

/// A list or map that is being read.
enum Open {
    List(Vec<Node>),
    Map { done: Vec<(Node, Node)>, key: Option<Node> },
}

impl Open {
    fn take(&mut self, node: Node, line: usize) -> Result<(), Broken> {
        match self {
            Self::List(items) => items.push(node),
            Self::Map { done, key } => match key.take() {
                Some(key) => done.push((key, node)),
                None => {
                    let Some(name) = node.scalar().filter(|name| name.chars().count() <= MAX_KEY) else {
                        return Err(Broken::Unkept { line, what: "a key that is no short text" });
                    };
                    if done.iter().any(|(other, _)| other.scalar() == Some(name)) {
                        return Err(Broken::Twice { line });
                    }
                    *key = Some(node);
                }
            },
        }
        Ok(())
    }
}

/// Writes a tree in block style, as kubectl does.
pub(super) fn write(root: &Node) -> Secret<String> {
    // Room for nearly all trees: a growing buffer would leave copies of secrets behind.
    let mut text = String::with_capacity(room(root, 0));
    match root {
        Node::Map(fields) if !fields.is_empty() => write_fields(fields, 0, &mut text),
        Node::List(items) if !items.is_empty() => write_items(items, 0, &mut text),
        other => write_flat(other, &mut text),
    }
    Secret::new(text)
}

/// Letters that a node may need at most, short of escapes.
fn room(node: &Node, depth: usize) -> usize {
    let line = 2 * depth + 8;
    match node {
        Node::Plain(text) => text.expose().len() + line,
        Node::Text(text) => 2 * text.expose().len() + line,
        Node::List(items) => items.iter().map(|item| room(item, depth + 1)).sum::<usize>() + line,
        Node::Map(fields) => {
            fields.iter().map(|(key, value)| room(key, depth) + room(value, depth + 1)).sum::<usize>() + line
        }
    }
}

/// Each field on lines of its own; the first begins where the text stands.
fn write_fields(fields: &[(Node, Node)], indent: usize, text: &mut String) {
    for (n, (key, value)) in fields.iter().enumerate() {
        if n > 0 {
            pad(indent, text);
        }
        write_scalar(key, text);
        text.push(':');
        match value {
            Node::Map(fields) if !fields.is_empty() => {
                text.push('\n');
                pad(indent + 2, text);
                write_fields(fields, indent + 2, text);
            }
            Node::List(items) if !items.is_empty() => {
                text.push('\n');
                pad(indent, text);
                write_items(items, indent, text);
            }
            other => {
                text.push(' ');
                write_flat(other, text);
            }
        }
    }
}

fn write_items(items: &[Node], indent: usize, text: &mut String) {
    for (n, item) in items.iter().enumerate() {
        if n > 0 {
            pad(indent, text);
        }
        text.push_str("- ");
        match item {
            Node::Map(fields) if !fields.is_empty() => write_fields(fields, indent + 2, text),
            Node::List(items) if !items.is_empty() => write_items(items, indent + 2, text),
            other => write_flat(other, text),
        }
    }
}

/// A node that takes no further line.
fn write_flat(node: &Node, text: &mut String) {
    match node {
        Node::List(_) => text.push_str("[]"),
        Node::Map(_) => text.push_str("{}"),
        scalar => write_scalar(scalar, text),
    }
    text.push('\n');
}

fn write_scalar(node: &Node, text: &mut String) {
    let quoted = match node {
        Node::Plain(_) if node.is_null() => return text.push_str("null"),
        // With a line break it can be nothing but text.
        Node::Plain(plain) if !plain.expose().contains(['\n', '\r']) => return text.push_str(plain.expose()),
        Node::Plain(quoted) | Node::Text(quoted) => quoted,
        Node::List(_) | Node::Map(_) => return,
    };
    text.push('"');
    for letter in quoted.expose().chars() {
        match letter {
            '"' | '\\' => text.extend(['\\', letter]),
            '\n' => text.push_str("\\n"),
            '\t' => text.push_str("\\t"),
            // What editors and parsers may take for a line's end or a mark, or refuse.
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}') => {
                write!(text, "\\u{:04x}", u32::from(c)).expect("a string grows");
            }
            c => text.push(c),
        }
    }
    text.push('"');
}

fn pad(indent: usize, text: &mut String) {
    text.extend(std::iter::repeat_n(' ', indent));
}
