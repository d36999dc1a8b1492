//! Wide tests on light clusters: ten equal clusters at once, and the matrix of versions.
//!
//! Each brings up a lab of its own and takes it down; the instance must be free before. They take minutes and build older
//! peers, so they run only when asked for by name: `make lab-ten`, `make lab-matrix`. None passes without having run.

#![allow(clippy::print_stderr, reason = "the tables and times are what people run these for")]

#[path = "it/fleet.rs"]
#[expect(dead_code, reason = "shared with the other end-to-end tests, which use the rest of it")]
mod fleet;
#[path = "wide/isolation.rs"]
mod isolation;
#[path = "wide/light.rs"]
mod light;
#[path = "wide/matrix.rs"]
mod matrix;
#[path = "wide/ten.rs"]
mod ten;
