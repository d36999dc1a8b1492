//! How long work tells what it is doing. The words come from here; times, colours and where they go are the caller's.

use guildnet_model::ClusterId;

/// Hears each step of long work, as it happens.
pub trait Progress: Send + Sync {
    /// Something was done or is now waited for; `cluster` is `None` for what concerns the server or the Host App.
    fn step(&self, cluster: Option<&ClusterId>, text: &str);
}

/// Hears nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn step(&self, _cluster: Option<&ClusterId>, _text: &str) {}
}
