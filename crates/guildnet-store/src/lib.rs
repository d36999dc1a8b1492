//! What the Host App remembers: cluster records with the forwards and proxies that lead into them, the Headscale server
//! and the policies that were replaced there, in one SQLite file, secrets sealed.
//!
//! [`Store::open`] is the way in. The folder is private to its owner (0700, files 0600; [`private`] makes and checks such
//! files for the Host App too); kubeconfigs and keys are sealed with a key that lies beside the database (`seal.rs`,
//! `key.rs`), so a copy of the database alone gives nothing away.
//!
//! No network, no policy, no knowledge of what the records mean. SQL stays in `store.rs`, `schema.rs` and `copy.rs`.

mod copy;
mod error;
mod key;
pub mod private;
mod record;
mod schema;
mod seal;
mod store;

pub use copy::copy_database;
pub use error::StoreError;
pub use record::{ClusterRecord, ForwardRecord, HeadscaleRecord, ProxiesRecord, ReplacedPolicy};
pub use store::{Added, Store};
