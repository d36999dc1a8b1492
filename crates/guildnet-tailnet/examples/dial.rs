//! Joins a cluster's tailnet, dials an address in it, asks it for a page and prints what comes.
//!
//! ```sh
//! TS_AUTHKEY=... cargo run -p guildnet-tailnet --example dial -- https://headscale.example 10.96.0.80:80
//! ```

use std::{error::Error, sync::Arc, time::Duration};

use guildnet_model::{ConnectorSpec, FixedKey, Secret, StartConnector as _};
use guildnet_tailnet::{Engine, EngineConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, stdout};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(server), Some(target)) = (args.next(), args.next()) else {
        return Err("usage: dial LOGIN_SERVER ADDRESS:PORT".into());
    };
    let engine = Engine::new(EngineConfig::default())?;
    let connector = engine.start(ConnectorSpec {
        cluster: "a".parse()?,
        login_server: server.parse()?,
        ca_pem: None,
        hostname: "dial-example".into(),
        state_dir: std::env::temp_dir().join("dial-example"),
        auth_keys: Arc::new(FixedKey(std::env::var("TS_AUTHKEY").ok().map(Secret::new))),
        routes: "10.96.0.0/16,10.244.0.0/16".parse()?,
        site: None,
        ephemeral: true,
    })?;

    let mut status = connector.status();
    tokio::time::timeout(Duration::from_secs(30), status.wait_for(guildnet_model::ConnectorStatus::is_usable))
        .await??;
    let mut stream = connector.dialer().dial(target.parse()?).await?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    stdout().write_all(&answer).await?;

    connector.stop(Duration::from_secs(3)).await;
    Ok(())
}
