//! The house's arrows: which crate may name which, told by `cargo metadata`, so that a wrong line in a manifest fails here.

#[path = "it/arrows.rs"]
mod arrows;
