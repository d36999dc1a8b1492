//! The actor with fake connectors.

use guildnet_model::Degraded;

use super::*;
use crate::fake::{FakeConnectors, spec};

/// Long enough for a task that is ready to run, short enough to wait for in vain.
const SOON: Duration = Duration::from_millis(100);

async fn started(connectors: &Arc<FakeConnectors>) -> (ClusterActor, Arc<crate::fake::FakeConnector>) {
    let actor = ClusterActor::spawn(spec("a"), Arc::clone(connectors) as Arc<dyn StartConnector>);
    let mut seen = actor.handle.0.seen.clone();
    seen.wait_for(|s| s.connector.is_some()).await.expect("the actor runs");
    let connector = connectors.last().expect("started");
    (actor, connector)
}

/// Sets the connector's state and waits until the actor has seen it.
async fn becomes(actor: &ClusterActor, connector: &crate::fake::FakeConnector, state: ConnectorState) {
    connector.becomes(state.clone());
    let mut seen = actor.handle.0.seen.clone();
    seen.wait_for(|s| s.status.state == state).await.expect("the actor runs");
}

#[tokio::test]
async fn spawning_returns_before_anything_is_known() {
    let actor = ClusterActor::spawn(spec("a"), Arc::new(FakeConnectors::default()));
    assert_eq!(actor.handle.status().state, ConnectorState::Starting);
    actor.stop().await;
}

#[tokio::test]
async fn the_client_is_kept_until_the_connector_was_lost_in_between() {
    let connectors = Arc::new(FakeConnectors::default());
    let (actor, connector) = started(&connectors).await;
    becomes(&actor, &connector, ConnectorState::Ready).await;
    actor.handle.api(SOON).await.expect("a client");
    let epoch = |h: &ClusterHandle| h.0.api.try_lock().expect("free").as_ref().map(|(epoch, _)| *epoch);
    let first = epoch(&actor.handle);
    becomes(&actor, &connector, ConnectorState::Degraded { why: Degraded::ControlDown { why: "x".into() } }).await;
    actor.handle.api(SOON).await.expect("still usable");
    assert_eq!(epoch(&actor.handle), first, "a path was there all the time");

    becomes(&actor, &connector, ConnectorState::Degraded { why: Degraded::NoRouter { why: "x".into() } }).await;
    let refused = actor.handle.api(SOON).await.expect_err("no router");
    assert_eq!(refused.class(), Class::Unreachable);
    becomes(&actor, &connector, ConnectorState::Ready).await;
    actor.handle.api(SOON).await.expect("a client");
    assert_ne!(epoch(&actor.handle), first);
    actor.stop().await;
}

#[tokio::test]
async fn a_connector_that_could_not_start_is_started_again_and_its_cause_is_shown_meanwhile() {
    let connectors = Arc::new(FakeConnectors { refusals: 1.into(), ..Default::default() });
    let wait = (Duration::from_millis(20), Duration::from_millis(20));
    let actor =
        ClusterActor::spawn_with(spec("a"), Arc::clone(&connectors) as Arc<dyn StartConnector>, Arc::default(), wait);
    let mut seen = actor.handle.0.seen.clone();
    let failed =
        seen.wait_for(|s| matches!(s.status.state, ConnectorState::Failed { .. })).await.expect("runs").status.clone();
    assert!(failed.state.to_string().contains("No space left"), "{}", failed.state);
    seen.wait_for(|s| s.connector.is_some()).await.expect("started again");
    actor.stop().await;
}

#[tokio::test]
async fn waiting_ends_at_once_when_a_person_is_needed() {
    let connectors = Arc::new(FakeConnectors::default());
    let (actor, connector) = started(&connectors).await;
    connector.becomes(ConnectorState::NeedsKey { why: "expired".into() });
    let an_hour = Duration::from_secs(3600);
    assert!(matches!(actor.handle.settled(an_hour).await.state, ConnectorState::NeedsKey { .. }));
    actor.stop().await;
}

#[tokio::test]
async fn stopping_leaves_no_connector() {
    let connectors = Arc::new(FakeConnectors::default());
    let (actor, connector) = started(&connectors).await;
    let handle = actor.handle.clone();
    actor.stop().await;
    assert_eq!(connector.status().borrow().state, ConnectorState::Stopped);
    assert_eq!(handle.status().state, ConnectorState::Stopped);
    assert!(handle.connector().is_none());
}

#[test]
fn the_api_server_is_looked_for_where_services_begin_and_where_the_kubeconfig_points() {
    let networks: Networks = "10.96.0.0/16,10.244.0.0/16".parse().expect("networks");
    let of = |url: &str| {
        candidates(&networks, &url.parse().expect("a URL")).iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(of("https://api.example:6443"), ["10.96.0.1:443", "10.244.0.1:443"]);
    assert_eq!(of("https://10.244.3.3:6443"), ["10.244.3.3:6443", "10.96.0.1:443", "10.244.0.1:443"]);
}

#[test]
fn an_answer_beats_a_wrong_certificate_and_that_beats_a_refusal() {
    let error = |cause| KubeError { server: "x".into(), cause };
    let of = |cause| likelihood(Some(&error(cause)));
    let refused = guildnet_model::DialError::Refused { target: "10.96.0.1:443".parse().expect("a target") };
    assert!(likelihood(None) < of(KubeCause::WrongAuthority));
    assert!(of(KubeCause::WrongAuthority) < of(KubeCause::Dial(refused.clone())));
    assert!(of(KubeCause::Dial(refused)) >= UNLIKELY);
    assert_eq!(of(KubeCause::Unauthorized { why: String::new() }), 0);
}
