//! What a forward is to be: a port of this device, and where it leads. Pure.

use std::{fmt, net::Ipv4Addr, str::FromStr};

use guildnet_model::{Class, Explain};
use serde::{Deserialize, Serialize};

use crate::names::{Destination, DestinationError};

/// The host of the Host App's door and page. What comes out of a cluster never shares it: browsers keep cookies and logins
/// by host, whatever the port.
pub(crate) const DOOR: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// A forward that is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Wire", into = "Wire")]
pub struct ForwardSpec {
    /// Where it is to listen.
    pub local: Local,
    /// Where it leads in the cluster; a name is resolved anew for each connection.
    pub to: Destination,
}

/// Where a forward listens on this device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Local {
    /// The address; the cluster's own if none is given. In 127.0.0.0/8, and never 127.0.0.1.
    pub ip: Option<Ipv4Addr>,
    /// The port; 0 for any that is free.
    pub port: u16,
}

/// Why a text is no forward.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForwardSpecError {
    /// The local part is wrong.
    #[error("{text:?} is no forward: {why}")]
    Local {
        /// What was given.
        text: String,
        /// The cause.
        why: &'static str,
    },
    /// The rest leads nowhere.
    #[error(transparent)]
    To(#[from] DestinationError),
}

impl Explain for ForwardSpecError {
    fn class(&self) -> Class {
        Class::Usage
    }

    fn hint(&self) -> Option<String> {
        Some("give LOCAL:HOST:PORT, like 3000:grafana.monitoring:80; LOCAL is a port, 0 for a free one, or IP:PORT with an IP from 127.0.0.2 on".into())
    }
}

/// A forward as the API has it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    local: String,
    target: String,
}

impl From<ForwardSpec> for Wire {
    fn from(spec: ForwardSpec) -> Self {
        Self { local: spec.local.to_string(), target: spec.to.to_string() }
    }
}

impl TryFrom<Wire> for ForwardSpec {
    type Error = ForwardSpecError;

    fn try_from(wire: Wire) -> Result<Self, Self::Error> {
        Ok(Self { local: wire.local.parse()?, to: wire.target.parse()? })
    }
}

impl FromStr for Local {
    type Err = ForwardSpecError;

    /// `PORT` or `IP:PORT`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = |why| ForwardSpecError::Local { text: text.to_owned(), why };
        let (ip, port) = match text.rsplit_once(':') {
            Some((ip, port)) => {
                let ip = ip.parse::<Ipv4Addr>().map_err(|_| refuse("the local address must be an IPv4 address"))?;
                (Some(ip), port)
            }
            None => (None, text),
        };
        match ip {
            Some(ip) if !ip.is_loopback() => return Err(refuse("the local address must be in 127.0.0.0/8")),
            Some(DOOR) => return Err(refuse("127.0.0.1 is the Host App's own address")),
            Some(_) | None => {}
        }
        let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        match port.parse() {
            Ok(port) if digits => Ok(Self { ip, port }),
            _ => Err(refuse("the local port must be 0 to 65535")),
        }
    }
}

impl fmt::Display for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip {
            Some(ip) => write!(f, "{ip}:{}", self.port),
            None => self.port.fmt(f),
        }
    }
}

impl FromStr for ForwardSpec {
    type Err = ForwardSpecError;

    /// `PORT:HOST:PORT` or `IP:PORT:HOST:PORT`; an IPv6 host stands in brackets.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = |why| ForwardSpecError::Local { text: text.to_owned(), why };
        let (first, rest) = text.split_once(':').ok_or_else(|| refuse("where it leads is missing"))?;
        let (local, to) = match first.contains('.') {
            true => {
                let (port, rest) = rest.split_once(':').ok_or_else(|| refuse("where it leads is missing"))?;
                (text.get(..first.len() + 1 + port.len()).unwrap_or_default(), rest)
            }
            false => (first, rest),
        };
        Ok(Self { local: local.parse()?, to: to.parse()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forward_is_a_local_port_and_where_it_leads() {
        for (text, local, to) in [
            ("3000:grafana.monitoring:80", "3000", "grafana.monitoring:80"),
            ("0:10.96.0.5:80", "0", "10.96.0.5:80"),
            ("127.0.0.9:3000:grafana.monitoring:80", "127.0.0.9:3000", "grafana.monitoring:80"),
            ("127.1.2.3:0:[fd00::1]:80", "127.1.2.3:0", "[fd00::1]:80"),
            ("3000:[fd00::1]:80", "3000", "[fd00::1]:80"),
        ] {
            let spec: ForwardSpec = text.parse().expect(text);
            assert_eq!((spec.local.to_string().as_str(), spec.to.to_string().as_str()), (local, to), "{text}");
            let json = serde_json::to_string(&spec).expect("JSON");
            assert_eq!(serde_json::from_str::<ForwardSpec>(&json).expect("the same"), spec);
        }
    }

    #[test]
    fn what_is_no_forward_is_refused_with_its_reason() {
        for (text, why) in [
            ("3000", "where it leads is missing"),
            ("3000:80", "the port is missing"),
            ("3000:grafana:80", "the namespace is missing"),
            ("x:grafana.monitoring:80", "the local port"),
            (":grafana.monitoring:80", "the local port"),
            ("65536:grafana.monitoring:80", "the local port"),
            ("+1:grafana.monitoring:80", "the local port"),
            ("127.0.0.1:3000:grafana.monitoring:80", "the Host App's own"),
            ("0.0.0.0:3000:grafana.monitoring:80", "in 127.0.0.0/8"),
            ("192.168.1.5:3000:grafana.monitoring:80", "in 127.0.0.0/8"),
            ("host.example:3000:grafana.monitoring:80", "must be an IPv4 address"),
            ("127.0.0.9:3000", "where it leads is missing"),
        ] {
            let refused = text.parse::<ForwardSpec>().expect_err(text).to_string();
            assert!(refused.contains(why), "{text}: {refused}");
        }
    }

    #[test]
    fn no_text_panics() {
        proptest::proptest!(|(text in "[\\[\\]a-z0-9.:\u{e4}-]{0,40}")| {
            let _ = text.parse::<ForwardSpec>();
        });
    }
}
