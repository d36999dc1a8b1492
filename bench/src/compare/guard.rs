//! What must be undone even if this process is told to end.

use std::sync::{Arc, Mutex, PoisonError};

use guildnet_model::BoxFuture;
use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
};

use crate::figures::Failure;

type Undo = BoxFuture<'static, Result<(), Failure>>;

/// Ends this process when a signal asks for it, after what is to be undone.
#[derive(Clone, Default)]
pub(super) struct Ends(Arc<Mutex<Option<Undo>>>);

/// While it lives, something is to be undone.
pub(super) struct Guard(Ends);

impl Ends {
    pub(super) fn watch(runtime: &Runtime) -> Result<Self, Failure> {
        let ends = Self::default();
        let _inside = runtime.enter();
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let watched = ends.clone();
        runtime.spawn(async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            let undo = watched.set(None);
            if let Some(undo) = undo {
                // Nobody is there any more to be told.
                let _failed = undo.await;
            }
            std::process::exit(130);
        });
        Ok(ends)
    }

    /// From now on, until the guard is dropped.
    pub(super) fn after(&self, undo: impl Future<Output = Result<(), Failure>> + Send + 'static) -> Guard {
        self.set(Some(Box::pin(undo)));
        Guard(self.clone())
    }

    fn set(&self, undo: Option<Undo>) -> Option<Undo> {
        std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), undo)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.set(None);
    }
}
