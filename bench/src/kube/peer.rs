//! `kubectl proxy`: what a person has without us, for one cluster that is reached directly, and what it costs.

use std::{net::SocketAddr, path::Path, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    time::timeout,
};

use crate::figures::Failure;

/// How long it may take until it serves.
const START: Duration = Duration::from_secs(20);

/// A `kubectl proxy` on a free port of this machine.
pub(super) struct KubectlProxy {
    pub(super) at: SocketAddr,
    child: Child,
}

impl KubectlProxy {
    /// Starts one with the rights of a kubeconfig, also to exec (which it refuses unless told), and waits until it serves.
    pub(super) async fn start(kubectl: &Path, kubeconfig: &Path) -> Result<Self, Failure> {
        let mut child = Command::new(kubectl)
            .arg("proxy")
            .arg(format!("--kubeconfig={}", kubeconfig.display()))
            .args(["--port=0", "--reject-paths=^$"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|why| format!("{}: {why}", kubectl.display()))?;
        let mut line = String::new();
        let mut said = BufReader::new(child.stdout.take().ok_or("kubectl proxy has no output")?);
        timeout(START, said.read_line(&mut line)).await.map_err(|_| "kubectl proxy says nothing")??;
        let at = line.trim().strip_prefix("Starting to serve on ").and_then(|at| at.parse().ok());
        Ok(Self { at: at.ok_or_else(|| format!("kubectl proxy does not serve: {line:?}"))?, child })
    }

    pub(super) async fn end(mut self) -> Result<(), Failure> {
        Ok(self.child.kill().await?)
    }
}
