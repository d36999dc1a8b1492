//! What stands between a client and a cluster, and what can happen to it: two routers and their faults, links that delay and
//! lose, kinds of NAT; what a flow lives through, and how a member is admitted and reached.
//!
//! Each brings up a lab of its own and takes it down; the instance must be free before. They run when asked for by name:
//! `make lab-nat`. None passes without having run.

#![allow(clippy::print_stderr, reason = "the tables are what people run these for")]

#[path = "paths/admitted.rs"]
mod admitted;
#[path = "paths/fail_over.rs"]
mod fail_over;
#[path = "it/fleet.rs"]
#[expect(dead_code, reason = "shared with the other end-to-end tests, which use the rest of it")]
mod fleet;
#[path = "paths/join.rs"]
mod join;
#[path = "paths/life.rs"]
mod life;
#[path = "wide/light.rs"]
#[expect(dead_code, reason = "shared with the wide tests, which use the rest of it")]
mod light;
#[path = "paths/link.rs"]
mod link;
#[path = "paths/member.rs"]
mod member;
#[path = "paths/moved.rs"]
mod moved;
#[path = "paths/nat.rs"]
mod nat;
#[path = "paths/routers.rs"]
mod routers;
#[path = "paths/site.rs"]
mod site;
#[path = "paths/transfer.rs"]
mod transfer;
