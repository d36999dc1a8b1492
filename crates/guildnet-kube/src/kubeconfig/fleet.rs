//! The fleet's entries in a person's kubeconfig: put there, brought in step, taken out again; everything else in it stays
//! what it means. Pure: text comes in, text goes out; `guildnet-host` reads, locks and writes the files.
//!
//! - Each cluster has three entries of the name `guildnet-<id>`: cluster, user and context. One user for each, so that a
//!   context can be copied or deleted without the others.
//! - Ours are recognised by an extension that names the home folder they belong to, never by their name: what somebody
//!   else made under such a name is a conflict, not overwritten.
//! - No entry holds a secret: the user runs `guildnet kubeconfig credential` when a request is made.
//!
//! Absent: comments, which a changed file loses (`fleet/tree.rs` says what is kept). Format: kubectl's own,
//! `k8s.io/client-go/tools/clientcmd/api/v1`, fields in the order in which kubectl writes them.

mod error;
mod tree;

use std::collections::BTreeSet;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use guildnet_model::{ClusterId, Secret};

pub use self::error::FleetError;
use self::tree::Node;

/// What the names of our entries begin with.
const PREFIX: &str = "guildnet-";
/// The name of the extension by which ours are recognised.
const MARK: &str = "guildnet";
/// The largest kubeconfig that is changed, in bytes; the same as for one that is read.
const MAX_TEXT: usize = super::MAX_FILE as usize;

/// What all entries of one home folder have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetOwner {
    /// The home folder: whose entries they are, and where the credential is made from.
    pub home: String,
    /// Absolute path of the guildnet command.
    pub command: String,
    /// The Host App, like `https://127.0.0.1:8090`.
    pub host: String,
    /// Certificate of the authority to trust for it, PEM.
    pub ca_pem: String,
}

/// The three lists of a kubeconfig, and what an entry's own field is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Cluster,
    Context,
    User,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Cluster, Self::Context, Self::User];

    const fn list(self) -> &'static str {
        match self {
            Self::Cluster => "clusters",
            Self::Context => "contexts",
            Self::User => "users",
        }
    }

    const fn field(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Context => "context",
            Self::User => "user",
        }
    }
}

/// The context of a cluster: `guildnet-<id>`.
pub fn context_name(id: &ClusterId) -> String {
    format!("{PREFIX}{id}")
}

/// A kubeconfig that is being changed.
#[derive(Debug)]
pub struct FleetDocument {
    root: Node,
    /// As it was read, or would be begun.
    before: Node,
    comments: bool,
}

impl FleetDocument {
    /// Reads a kubeconfig, YAML or JSON; an empty text is one without entries.
    ///
    /// # Errors
    /// [`FleetError`]: it is no kubeconfig, or holds what could not be written again with the same meaning.
    pub fn parse(text: &str) -> Result<Self, FleetError> {
        if text.len() > MAX_TEXT {
            return Err(FleetError::Large { limit: MAX_TEXT });
        }
        let tree::Read { root, comments } = tree::parse(text)?;
        let root =
            root.unwrap_or_else(|| Node::map([("apiVersion", Node::word("v1")), ("kind", Node::word("Config"))]));
        let Node::Map(_) = root else { return Err(FleetError::Shape { what: "the whole of it is no map".into() }) };
        for (field, wanted) in [("apiVersion", "v1"), ("kind", "Config")] {
            if root.field(field).is_some_and(|value| !value.is_null() && value.scalar() != Some(wanted)) {
                return Err(FleetError::Shape { what: format!("its {field} is not {wanted}") });
            }
        }
        for kind in Kind::ALL {
            match root.field(kind.list()) {
                None | Some(Node::List(_)) => {}
                Some(null) if null.is_null() => {}
                Some(_) => return Err(FleetError::Shape { what: format!("its {} is no list", kind.list()) }),
            }
        }
        Ok(Self { before: root.clone(), root, comments })
    }

    /// Whether anything in it has the name of this cluster's entries, whoever made it.
    pub fn has_name(&self, id: &ClusterId) -> bool {
        let name = context_name(id);
        Kind::ALL.into_iter().any(|kind| self.entries(kind).iter().any(|entry| is_named(entry, &name)))
    }

    /// The clusters that have entries of this home folder.
    pub fn clusters_of(&self, home: &str) -> BTreeSet<ClusterId> {
        let all = Kind::ALL.into_iter().flat_map(|kind| self.entries(kind).iter().map(move |entry| (kind, entry)));
        all.filter(|(kind, entry)| owner(*kind, entry) == Some(home)).filter_map(|(kind, e)| subject(kind, e)).collect()
    }

    /// Whether it has any entry of this home folder.
    pub fn is_of(&self, home: &str) -> bool {
        Kind::ALL.into_iter().any(|kind| self.entries(kind).iter().any(|entry| owner(kind, entry) == Some(home)))
    }

    /// Puts a cluster's entries in, or brings those that are there in step. A context keeps what a person added to it, its
    /// namespace for example.
    ///
    /// # Errors
    /// [`FleetError::Conflict`]: an entry of that name is not of this home folder. Nothing was changed then.
    pub fn put(&mut self, owner: &FleetOwner, id: &ClusterId) -> Result<(), FleetError> {
        let name = context_name(id);
        for kind in Kind::ALL {
            let same = self.entries(kind).iter().filter(|entry| is_named(entry, &name));
            if let Some(foreign) = same.map(|entry| self::owner(kind, entry)).find(|of| *of != Some(&owner.home)) {
                let of = foreign.map(str::to_owned);
                return Err(FleetError::Conflict { kind: kind.field(), name, of });
            }
        }
        for kind in Kind::ALL {
            let wanted = value(kind, owner, id);
            let entries = self.entries_mut(kind);
            match entries.iter_mut().find(|entry| is_named(entry, &name)) {
                Some(entry) => renew(kind, entry, wanted),
                None => entries.push(Node::map([(kind.field(), wanted), ("name", Node::word(&name))])),
            }
        }
        Ok(())
    }

    /// Takes out this home folder's entries, those only whose cluster is not to stay (an entry whose cluster can't be told
    /// is asked for with `None`). Returns the names of the contexts that went.
    pub fn take_out(&mut self, home: &str, stays: impl Fn(Option<&ClusterId>) -> bool) -> Vec<String> {
        let mut gone = Vec::new();
        for kind in Kind::ALL {
            let leaves = |entry: &Node| owner(kind, entry) == Some(home) && !stays(subject(kind, entry).as_ref());
            if !self.entries(kind).iter().any(leaves) {
                continue;
            }
            self.entries_mut(kind).retain(|entry| {
                let leaves = leaves(entry);
                if leaves && kind == Kind::Context {
                    gone.extend(name_of(entry).map(str::to_owned));
                }
                !leaves
            });
        }
        gone
    }

    /// The context that is used when none is named.
    pub fn current(&self) -> Option<&str> {
        self.root.field("current-context")?.scalar().filter(|name| !name.is_empty() && *name != "~")
    }

    /// Makes a cluster's context the current one.
    pub fn set_current(&mut self, id: &ClusterId) {
        self.put_current(Node::word(context_name(id)));
    }

    /// Leaves no context current if it is one of these; `true` if it was.
    pub fn unset_current(&mut self, gone: &[String]) -> bool {
        let named = self.current().is_some_and(|name| gone.iter().any(|gone| gone == name));
        if named {
            self.put_current(Node::Text(Secret::new(String::new())));
        }
        named
    }

    fn put_current(&mut self, name: Node) {
        if let Some(current) = self.root.field_mut("current-context")
            && !current.means(&name)
        {
            *current = name;
        }
    }

    /// Whether it was changed.
    pub fn is_changed(&self) -> bool {
        self.before != self.root
    }

    /// Whether it has comments, which [`Self::text`] does not have any more.
    pub fn has_comments(&self) -> bool {
        self.comments
    }

    /// The text to write.
    ///
    /// # Errors
    /// [`FleetError::Lossy`] if it would not be read again as what it should be: then nothing may be written.
    pub fn text(&self) -> Result<Secret<String>, FleetError> {
        let text = tree::write(&self.root);
        let again = tree::parse(text.expose()).map_err(|_| FleetError::Lossy)?;
        if !again.root.is_some_and(|again| self.root.is_kept_in(&again)) {
            return Err(FleetError::Lossy);
        }
        Ok(text)
    }

    fn entries(&self, kind: Kind) -> &[Node] {
        match self.root.field(kind.list()) {
            Some(Node::List(entries)) => entries,
            _ => &[],
        }
    }

    fn entries_mut(&mut self, kind: Kind) -> &mut Vec<Node> {
        let list = self.root.field_mut(kind.list()).expect("the root was found to be a map");
        if !matches!(list, Node::List(_)) {
            *list = Node::List(Vec::new());
        }
        let Node::List(entries) = list else { unreachable!("it was made a list just now") };
        entries
    }
}

fn name_of(entry: &Node) -> Option<&str> {
    entry.field("name")?.scalar()
}

fn is_named(entry: &Node, name: &str) -> bool {
    name_of(entry) == Some(name)
}

/// The home folder of an entry that is marked as GuildNet's.
fn owner(kind: Kind, entry: &Node) -> Option<&str> {
    let Node::List(extensions) = entry.field(kind.field())?.field("extensions")? else { return None };
    extensions.iter().find(|e| is_named(e, MARK))?.field("extension")?.field("home")?.scalar()
}

/// The cluster of an entry of ours. A context may have been renamed: what it leads to decides.
fn subject(kind: Kind, entry: &Node) -> Option<ClusterId> {
    let name = match kind {
        Kind::Context => entry.field("context")?.field("cluster")?.scalar()?,
        Kind::Cluster | Kind::User => name_of(entry)?,
    };
    name.strip_prefix(PREFIX)?.parse().ok()
}

/// Puts the wanted value in the place of an entry's, unless it means the same already.
fn renew(kind: Kind, entry: &mut Node, wanted: Node) {
    let Some(there) = entry.field_mut(kind.field()) else { return };
    match (kind, &mut *there, wanted) {
        (Kind::Context, there @ Node::Map(_), Node::Map(fields)) => {
            for (key, value) in fields {
                let Some(place) = key.scalar().and_then(|name| there.field_mut(name)) else { continue };
                // Ours was recognised by its mark: that stays, and so do other extensions.
                if key.scalar() != Some("extensions") && !place.means(&value) {
                    *place = value;
                }
            }
        }
        (_, there, wanted) => {
            if !there.means(&wanted) {
                *there = wanted;
            }
        }
    }
}

/// What an entry of ours says.
fn value(kind: Kind, owner: &FleetOwner, id: &ClusterId) -> Node {
    let name = context_name(id);
    let mark = Node::map([("extension", Node::map([("home", Node::text(&owner.home))])), ("name", Node::word(MARK))]);
    let extensions = Node::List(vec![mark]);
    match kind {
        Kind::Cluster => Node::map([
            ("certificate-authority-data", Node::word(BASE64_STANDARD.encode(&owner.ca_pem))),
            ("extensions", extensions),
            ("server", Node::word(format!("{}/k8s/{id}", owner.host))),
        ]),
        Kind::Context => {
            Node::map([("cluster", Node::word(&name)), ("extensions", extensions), ("user", Node::word(&name))])
        }
        Kind::User => Node::map([("exec", exec(owner)), ("extensions", extensions)]),
    }
}

/// The program that makes the credential. The home folder is always named: the variable that may name it for a shell need
/// not be there, or be another, where kubectl runs.
fn exec(owner: &FleetOwner) -> Node {
    let args = ["kubeconfig", "credential", "--home"].map(Node::word);
    let args = args.into_iter().chain([Node::text(&owner.home)]).collect();
    let hint = "GuildNet is not where it was when this file was written. Install it there, or run 'guildnet kubeconfig write' with the one that you have.";
    Node::map([
        ("apiVersion", Node::word("client.authentication.k8s.io/v1")),
        ("args", Node::List(args)),
        ("command", Node::text(&owner.command)),
        ("env", Node::word("null")),
        ("installHint", Node::Text(Secret::new(hint.into()))),
        ("interactiveMode", Node::word("Never")),
        ("provideClusterInfo", Node::word("false")),
    ])
}

#[cfg(test)]
mod tests;
