//! The link: two network namespaces joined in user space, as a cable with delay, jitter, loss, reordering, duplication and a
//! rate. The kernels that the lab runs on need no queueing discipline for it.
//!
//! What happens to a packet is decided by `queue.rs`, pure and seeded; `settings.rs` are its knobs, which may be turned
//! while packets flow. `frame.rs` takes the kernel's large packets apart and puts them together again, `tap.rs` has the
//! system calls, `run.rs` joins all of that, `ceiling.rs` measures what the whole can pass on.

mod ceiling;
mod frame;
mod queue;
mod run;
mod settings;
mod tap;

pub use ceiling::{Ceiling, ceiling};
pub use queue::Counts;
pub(crate) use run::request;
pub use run::{LinkAnswer, RunLink, WayAnswer, run_link};
pub use settings::LinkChange;
