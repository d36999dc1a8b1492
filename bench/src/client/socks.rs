//! The way through a tailscaled without a device: its process, and SOCKS5 to it.

use std::{net::SocketAddr, path::Path, process::Stdio, time::Duration};

use guildnet_model::{BoxFuture, DialError, Dialer, Io, Secret, Target};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};
use url::Url;

use crate::{
    figures::Failure,
    tailnet::{JOIN_LIMIT, JOIN_PAUSE},
};

/// How long tailscaled may take to end when it is asked to.
const END_LIMIT: Duration = Duration::from_secs(5);

/// A tailscaled of this process. Dropped, it is killed.
#[derive(Debug)]
pub(super) struct Daemon {
    child: Child,
    proxy: SocketAddr,
    _folder: TempDir,
}

impl Daemon {
    /// Starts it, and has it join. `programs` is the folder with tailscaled and tailscale.
    pub(super) async fn start(
        programs: &Path,
        login_server: &Url,
        hostname: &str,
        auth_key: Option<Secret<String>>,
    ) -> Result<Self, Failure> {
        let folder = tempfile::tempdir()?;
        // Free a moment ago: nothing else of this machine asks for one in between.
        let proxy = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
        let (socket, key) = (folder.path().join("socket"), folder.path().join("key"));
        std::fs::write(&key, auth_key.ok_or("TS_AUTHKEY is not set")?.expose())?;
        let child = Command::new(programs.join("tailscaled"))
            .args(["--tun=userspace-networking", "--port=0", "--no-logs-no-support"])
            .arg(format!("--socks5-server={proxy}"))
            .arg(format!("--statedir={}", folder.path().display()))
            .arg(format!("--socket={}", socket.display()))
            .env_remove("TS_AUTHKEY")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let daemon = Self { child, proxy, _folder: folder };
        let begun = Instant::now();
        while !socket.exists() {
            if begun.elapsed() > JOIN_LIMIT {
                return Err("tailscaled does not listen".into());
            }
            sleep(JOIN_PAUSE).await;
        }
        let up = Command::new(programs.join("tailscale"))
            .arg(format!("--socket={}", socket.display()))
            .args(["up", "--accept-routes", "--accept-dns=false", "--timeout=60s"])
            .arg(format!("--login-server={login_server}"))
            .arg(format!("--hostname={hostname}"))
            .arg(format!("--auth-key=file:{}", key.display()))
            .env_remove("TS_AUTHKEY")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let up = up.await?;
        if up.status.success() {
            Ok(daemon)
        } else {
            Err(format!("tailscale up: {}", String::from_utf8_lossy(&up.stderr).trim()).into())
        }
    }

    pub(super) fn dialer(&self) -> Socks {
        Socks { proxy: self.proxy }
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Ends it, so that it takes its leave.
    pub(super) async fn end(mut self) {
        let pid = self.child.id().and_then(|pid| rustix::process::Pid::from_raw(i32::try_from(pid).ok()?));
        if let Some(pid) = pid {
            // It may have ended by itself.
            let _gone = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        // Past the limit it is killed as it is dropped.
        let _late = timeout(END_LIMIT, self.child.wait()).await;
    }
}

/// Dials through a SOCKS5 server that asks for no password.
#[derive(Debug)]
pub(super) struct Socks {
    proxy: SocketAddr,
}

impl Dialer for Socks {
    fn dial(&self, to: Target) -> BoxFuture<'_, Result<Box<dyn Io>, DialError>> {
        Box::pin(async move {
            let opened = self.open(to).await;
            opened.map_err(|why| DialError::Io { target: to, why: format!("by SOCKS5: {why}") })
        })
    }
}

impl Socks {
    async fn open(&self, to: Target) -> std::io::Result<Box<dyn Io>> {
        let mut stream = TcpStream::connect(self.proxy).await?;
        stream.set_nodelay(true)?;
        stream.write_all(&[5, 1, 0]).await?;
        stream.read_exact(&mut [0; 2]).await?;
        stream.write_all(&request(to.addr())).await?;
        let mut head = [0; 4];
        stream.read_exact(&mut head).await?;
        if head[1] != 0 {
            return Err(std::io::Error::other(format!("refused with code {}", head[1])));
        }
        // The address that it is bound to, of no use to us, and a port.
        let rest = match head[3] {
            1 => 4,
            4 => 16,
            _ => usize::from(stream.read_u8().await?),
        };
        stream.read_exact(&mut vec![0; rest + 2]).await?;
        Ok(Box::new(stream))
    }
}

/// CONNECT to an address.
fn request(to: SocketAddr) -> Vec<u8> {
    let mut out = vec![5, 1, 0];
    match to {
        SocketAddr::V4(v4) => {
            out.push(1);
            out.extend(v4.ip().octets());
        }
        SocketAddr::V6(v6) => {
            out.push(4);
            out.extend(v6.ip().octets());
        }
    }
    out.extend(to.port().to_be_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::request;

    #[test]
    fn a_request_holds_the_address_and_the_port() {
        assert_eq!(request("10.96.0.80:9000".parse().expect("address")), [5, 1, 0, 1, 10, 96, 0, 80, 0x23, 0x28]);
        assert_eq!(request("[::1]:80".parse().expect("address")).len(), 4 + 16 + 2);
    }
}
