//! Where somebody wants to go in a cluster: an address or a name there, and a port. Parsed once, pure.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use guildnet_model::{Class, Explain, Target};

/// Letters of a name, dots included (RFC 1035 section 2.3.4: 255 octets with the lengths and the root).
const NAME_LIMIT: usize = 253;
/// Letters of one label (RFC 1035 section 2.3.4).
const LABEL_LIMIT: usize = 63;

/// An address or a name in a cluster, and a port other than 0.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    place: Place,
    port: u16,
}

/// The host of a [`Destination`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// An address; whether it lies in the cluster is told by dialling.
    Address(IpAddr),
    /// A name, to be resolved in the cluster and nowhere else.
    Name(HostName),
}

/// A name of two labels at least, in small letters: a Service and its namespace, or anything longer. With a dot at its end
/// it is taken as it stands, without the cluster's search rules.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName(String);

/// Why a text is no [`Destination`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} leads nowhere in a cluster: {why}")]
pub struct DestinationError {
    text: String,
    why: &'static str,
}

impl Explain for DestinationError {
    fn class(&self) -> Class {
        Class::Usage
    }

    fn hint(&self) -> Option<String> {
        Some("give a Service, like grafana.monitoring:80, or an address in the cluster, like 10.96.0.1:443".into())
    }
}

impl Destination {
    /// From a host (an IPv6 address without brackets) and a port.
    ///
    /// # Errors
    /// The host is neither an address nor a name of two labels, or the port is 0.
    pub fn new(host: &str, port: u16) -> Result<Self, DestinationError> {
        let refuse = |why| DestinationError { text: format!("{host}:{port}"), why };
        if port == 0 {
            return Err(refuse("port 0 can't be dialled"));
        }
        let place = match host.parse::<IpAddr>() {
            Ok(address) => Place::Address(address),
            Err(_) => Place::Name(HostName::checked(host).map_err(refuse)?),
        };
        Ok(Self { place, port })
    }

    /// The host.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl From<Target> for Destination {
    fn from(target: Target) -> Self {
        Self { place: Place::Address(target.addr().ip()), port: target.addr().port() }
    }
}

impl FromStr for Destination {
    type Err = DestinationError;

    /// `NAME:PORT`, `IP:PORT`, `[IPv6]:PORT`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = |why| DestinationError { text: text.to_owned(), why };
        let (host, port) = text.rsplit_once(':').ok_or_else(|| refuse("the port is missing"))?;
        // Digits only: the number's own parser takes a sign too.
        let port = Some(port).filter(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()));
        let port = port.and_then(|p| p.parse().ok()).ok_or_else(|| refuse("the port must be 1 to 65535"))?;
        let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        match bracketed {
            Some(inside) if inside.parse::<std::net::Ipv6Addr>().is_err() => {
                Err(refuse("only an IPv6 address stands in brackets"))
            }
            None if host.contains(':') => Err(refuse("an IPv6 address stands in brackets")),
            _ => Self::new(bracketed.unwrap_or(host), port).map_err(|e| refuse(e.why)),
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Address(ip) => SocketAddr::new(*ip, self.port).fmt(f),
            Place::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

impl HostName {
    fn checked(text: &str) -> Result<Self, &'static str> {
        let relative = text.strip_suffix('.').unwrap_or(text);
        if relative.is_empty() {
            return Err("the host is missing");
        }
        if relative.len() > NAME_LIMIT {
            return Err("the name is longer than 253 letters");
        }
        let good = |label: &str| {
            // An underscore begins the labels of SRV records' names.
            let letters = label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
            (1..=LABEL_LIMIT).contains(&label.len()) && letters && !label.starts_with('-') && !label.ends_with('-')
        };
        if !relative.split('.').all(good) {
            return Err("the host is neither an address nor a name");
        }
        let Some((_, last)) = relative.rsplit_once('.') else {
            return Err("the namespace is missing, as in SERVICE.NAMESPACE");
        };
        // Others read 127.1 and 0x7f.1 as addresses (WHATWG URL, "ends in a number"): here nothing may have two readings.
        let hex = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
        if last.bytes().all(|b| b.is_ascii_digit()) || hex.is_some_and(|h| h.bytes().all(|b| b.is_ascii_hexdigit())) {
            return Err("the host is neither an address nor a name");
        }
        Ok(Self(text.to_ascii_lowercase()))
    }

    /// The name without a dot at its end.
    pub fn relative(&self) -> &str {
        self.0.strip_suffix('.').unwrap_or(&self.0)
    }

    /// Whether it is to be taken as it stands.
    pub fn is_absolute(&self) -> bool {
        self.0.ends_with('.')
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_are_parsed_and_printed_back() {
        for text in [
            "10.96.0.1:443",
            "[fd00::1]:443",
            "grafana.monitoring:80",
            "web-0.web.shop.svc.cluster.local:8080",
            "db.corp.example.:5432",
            "_http._tcp.web.shop.svc:1",
        ] {
            assert_eq!(text.parse::<Destination>().expect(text).to_string(), text);
        }
        let shouted = "Grafana.MONITORING:80".parse::<Destination>().expect("a name");
        assert_eq!(shouted.to_string(), "grafana.monitoring:80");
    }

    #[test]
    fn what_leads_nowhere_is_refused_with_its_reason() {
        for (text, why) in [
            ("grafana.monitoring", "the port is missing"),
            ("grafana.monitoring:", "the port must be"),
            ("grafana.monitoring:+80", "the port must be"),
            ("grafana.monitoring:65536", "the port must be"),
            ("grafana.monitoring:http", "the port must be"),
            ("grafana.monitoring:0", "port 0"),
            (":80", "the host is missing"),
            (".:80", "the host is missing"),
            ("echo:80", "the namespace is missing"),
            ("localhost:80", "the namespace is missing"),
            ("localhost.:80", "the namespace is missing"),
            ("fd00::1:80", "stands in brackets"),
            ("[grafana.monitoring]:80", "only an IPv6 address"),
            ("[10.96.0.1]:80", "only an IPv6 address"),
            ("a..b:80", "neither"),
            ("-a.b:80", "neither"),
            ("a b.c:80", "neither"),
            ("a@b.c:80", "neither"),
            ("a/b.c:80", "neither"),
            ("\u{e4}.b:80", "neither"),
            ("127.1:80", "neither"),
            ("10.96.0:80", "neither"),
            ("010.096.0.1:80", "neither"),
            ("a.0x7f:80", "neither"),
            ("fd00::1%eth0:80", "stands in brackets"),
        ] {
            let refused = text.parse::<Destination>().expect_err(text).to_string();
            assert!(refused.contains(why), "{text}: {refused}");
        }
        let long = format!("{}.b:80", "a".repeat(64));
        assert!(long.parse::<Destination>().is_err(), "a label of 64 letters");
        let long = format!("{}b:80", "a.".repeat(127));
        assert!(long.parse::<Destination>().is_err(), "255 letters");
    }

    #[test]
    fn no_text_panics_and_what_is_taken_comes_back() {
        proptest::proptest!(|(text in "[\\[\\]a-z0-9.:_%-]{0,40}")| {
            if let Ok(taken) = text.parse::<Destination>() {
                proptest::prop_assert_eq!(taken.to_string().parse::<Destination>(), Ok(taken));
            }
        });
    }
}
