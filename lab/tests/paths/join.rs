//! How long it takes from the start of a connector to its first answer, on a host behind a gateway.

use std::time::Instant;

use guildnet_lab::{Host, Talk};

use crate::{
    member::{Member, on_host},
    site::Site,
};

#[test]
fn a_member_gets_its_first_answer_when_it_joins_and_when_it_comes_again() {
    let site = Site::up(1);
    site.router("a", 1);
    site.device.fleet.lab.host(&Host::new("x"), &Talk::start()).expect("a client host");
    for what in ["new", "again", "again"] {
        let seconds = on_host(&site, "x", async || {
            let begun = Instant::now();
            let member = Member::join(&site, "a").await;
            let joined = begun.elapsed().as_secs_f64();
            member.talk().await.expect("a flow").say().await.expect("an answer");
            member.leave().await;
            joined
        });
        eprintln!("{what}: {seconds:.2} s until the first connection");
    }
}
