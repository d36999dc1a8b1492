//! End-to-end tests on the lab's fleet: topology, then the user's act, then what the user sees.
//!
//! They drive the shipped `guildnet` command as a user would and need a running lab (`guildnet-lab up`) and root.
//! A test that finds no lab fails; none is skipped. They share one fleet, so the runner runs them one after another.

#[path = "it/bad_input.rs"]
mod bad_input;
#[path = "it/browser.rs"]
mod browser;
#[path = "it/clients.rs"]
mod clients;
#[path = "it/disturbances.rs"]
mod disturbances;
#[path = "it/fleet.rs"]
mod fleet;
#[path = "it/forward.rs"]
mod forward;
#[path = "it/host_app.rs"]
mod host_app;
#[path = "it/keys.rs"]
mod keys;
#[path = "it/main_job.rs"]
mod main_job;
#[path = "it/managed.rs"]
mod managed;
#[path = "it/managed_faults.rs"]
mod managed_faults;
#[path = "it/networks.rs"]
mod networks;
#[path = "it/policy.rs"]
mod policy;
#[path = "it/smoke.rs"]
mod smoke;
#[path = "it/units.rs"]
mod units;
#[path = "it/up_variants.rs"]
mod up_variants;
#[path = "it/verify_faults.rs"]
mod verify_faults;
