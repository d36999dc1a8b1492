//! Fakes for tests: connectors whose state the test sets, a kubeconfig that points nowhere, and a record with it.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use guildnet_kube::{Allow, ClusterAccess, Kubeconfig};
use guildnet_model::{
    BoxFuture, ClusterId, Connector, ConnectorError, ConnectorSnapshot, ConnectorSpec, ConnectorState, ConnectorStatus,
    DialError, Dialer, Dropped, FixedKey, Io, ListenError, Listener, PeerContact, ProbeOutcome, StartConnector, Target,
};
use guildnet_store::ClusterRecord;
use jiff::Timestamp;
use tokio::sync::watch;

use crate::{cluster::ClusterSpec, fleet};

/// Connectors by cluster; the first `refusals` starts fail.
#[derive(Default)]
pub(crate) struct FakeConnectors {
    pub(crate) refusals: Mutex<usize>,
    pub(crate) started: Mutex<Vec<Arc<FakeConnector>>>,
}

pub(crate) struct FakeConnector {
    status: watch::Sender<ConnectorStatus>,
}

/// A dialer whose far end answers nothing: it only says that it was asked.
#[derive(Debug)]
struct NoDialer;

impl Dialer for NoDialer {
    fn dial(&self, to: Target) -> BoxFuture<'_, Result<Box<dyn Io>, DialError>> {
        Box::pin(async move { Err(DialError::Refused { target: to }) })
    }
}

impl FakeConnector {
    /// Sets the state.
    pub(crate) fn becomes(&self, state: ConnectorState) {
        self.status.send_modify(|s| s.state = state);
    }
}

impl Connector for FakeConnector {
    fn dialer(&self) -> Arc<dyn Dialer> {
        Arc::new(NoDialer)
    }

    fn status(&self) -> watch::Receiver<ConnectorStatus> {
        self.status.subscribe()
    }

    fn snapshot(&self) -> BoxFuture<'_, ConnectorSnapshot> {
        let status = self.status.borrow().clone();
        Box::pin(async {
            ConnectorSnapshot { status, peers: vec![], home_relay: None, flows: 0, dropped: Dropped::default() }
        })
    }

    fn probe(&self, _through: PeerContact, _to: Target, _within: Duration) -> BoxFuture<'_, ProbeOutcome> {
        Box::pin(async { ProbeOutcome::Silent })
    }

    fn listen(&self, _port: u16) -> BoxFuture<'_, Result<Box<dyn Listener>, ListenError>> {
        Box::pin(async { Err(ListenError::Stopped) })
    }

    fn stop(&self, _grace: Duration) -> BoxFuture<'_, ()> {
        Box::pin(async { self.becomes(ConnectorState::Stopped) })
    }
}

impl FakeConnectors {
    /// The connector that was started last.
    pub(crate) fn last(&self) -> Option<Arc<FakeConnector>> {
        self.started.lock().expect("not poisoned").last().cloned()
    }
}

impl StartConnector for FakeConnectors {
    fn start(&self, spec: ConnectorSpec) -> Result<Arc<dyn Connector>, ConnectorError> {
        let mut refusals = self.refusals.lock().expect("not poisoned");
        if *refusals > 0 {
            *refusals -= 1;
            return Err(ConnectorError::State { path: spec.state_dir, why: "No space left on device".into() });
        }
        let status = watch::Sender::new(ConnectorStatus::now_in(ConnectorState::Starting));
        let connector = Arc::new(FakeConnector { status });
        self.started.lock().expect("not poisoned").push(Arc::clone(&connector));
        Ok(connector)
    }
}

/// A credential for an API server that is not there.
pub(crate) fn access() -> ClusterAccess {
    let text = "apiVersion: v1\nkind: Config\ncurrent-context: x\n\
                contexts: [{name: x, context: {cluster: x, user: x}}]\n\
                clusters: [{name: x, cluster: {server: 'https://192.0.2.1:6443'}}]\n\
                users: [{name: x, user: {token: t}}]\n";
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), text).expect("written");
    Kubeconfig::read(file.path()).and_then(|k| k.access(None, &Allow::default())).expect("a credential")
}

/// What is wanted of a cluster in a test.
pub(crate) fn spec(id: &str) -> ClusterSpec {
    ClusterSpec {
        connector: ConnectorSpec {
            cluster: id.parse().expect("an id"),
            login_server: "https://192.0.2.2:8443".parse().expect("a URL"),
            ca_pem: None,
            hostname: format!("guildnet-{id}"),
            state_dir: PathBuf::from("/nonexistent"),
            auth_keys: Arc::new(FixedKey(None)),
            routes: "10.96.0.0/16,10.244.0.0/16".parse().expect("networks"),
            site: None,
            ephemeral: false,
        },
        access: access(),
        api_address: Some("10.96.0.1:443".parse().expect("a target")),
        uid: None,
        routes_given: false,
    }
}

/// A cluster as the store has it in a test.
pub(crate) fn record(id: &str) -> ClusterRecord {
    let now = Timestamp::from_second(1_000_000_000).expect("in range");
    let id: ClusterId = id.parse().expect("an id");
    ClusterRecord {
        kubeconfig: fleet::sealed_text(&access()).expect("text"),
        context: "x".into(),
        login_server: "https://192.0.2.2:8443".parse().expect("a URL"),
        ca_pem: None,
        client_auth_key: None,
        router_auth_key: None,
        routes: "10.96.0.0/16,10.244.0.0/16".parse().expect("networks"),
        routes_given: true,
        state_path: PathBuf::from("/nonexistent"),
        namespace: id.namespace(),
        namespace_id: None,
        site: None,
        api_address: None,
        cluster_uid: None,
        disconnected: false,
        read_only: false,
        created: now,
        updated: now,
        id,
    }
}
