//! Names of clusters, and their site numbers. The types are the proof that the text was checked.

use std::{fmt, num::NonZeroU16, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{Class, Explain};

/// A cluster's name: a DNS label (RFC 1123, lower case) that begins with a letter, at most 40 characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClusterId(String);

/// Why a text is no cluster id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cluster id {text:?} {why}")]
pub struct ClusterIdError {
    text: String,
    why: String,
}

impl Explain for ClusterIdError {
    fn class(&self) -> Class {
        Class::Usage
    }

    fn hint(&self) -> Option<String> {
        Some("use a DNS label that begins with a letter: a-z, 0-9 and '-', at most 40 characters, like 'home' or 'prod-eu'".into())
    }
}

impl ClusterId {
    /// Longest id. Headscale user `cluster-<id>`, DNS labels and file names built from it stay below 63 characters.
    pub const MAX_LEN: usize = 40;

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The cluster whose namespace has this name; `None` if it is none of a cluster.
    pub fn of_namespace(name: &str) -> Option<Self> {
        name.strip_prefix("cluster-")?.parse().ok()
    }

    /// The name of the cluster's namespace (Headscale calls it user): `cluster-<id>`.
    pub fn namespace(&self) -> String {
        format!("cluster-{}", self.0)
    }

    /// The id as the end of a variable's name: `prod-eu` is `PROD_EU`. No two ids have the same one.
    pub fn variable(&self) -> String {
        self.0.to_ascii_uppercase().replace('-', "_")
    }

    /// The tag that the cluster's routers carry: `tag:gn-<id>-router`.
    pub fn router_tag(&self) -> String {
        format!("tag:gn-{}-router", self.0)
    }

    /// The tag that the cluster's connectors carry: `tag:gn-<id>-client`.
    pub fn client_tag(&self) -> String {
        format!("tag:gn-{}-client", self.0)
    }
}

impl FromStr for ClusterId {
    type Err = ClusterIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = |why: String| Err(ClusterIdError { text: text.to_owned(), why });
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        match text.chars().next() {
            None => return refuse("is empty".into()),
            Some(first) if !first.is_ascii_lowercase() => {
                return refuse(format!("begins with {first:?}, not with a letter a-z"));
            }
            Some(_) => {}
        }
        if let Some((at, bad)) = text.chars().enumerate().find(|(_, c)| !allowed(*c)) {
            return refuse(format!("has {bad:?} at position {}", at + 1));
        }
        if text.len() > Self::MAX_LEN {
            return refuse(format!("has {} characters, {} are allowed", text.len(), Self::MAX_LEN));
        }
        if text.ends_with('-') {
            return refuse("ends with '-'".into());
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for ClusterId {
    type Error = ClusterIdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ClusterId> for String {
    fn from(id: ClusterId) -> Self {
        id.0
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Makes equal networks of many clusters distinct in 4via6 addresses (see [`crate::via6`]): 1 to 65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SiteNumber(NonZeroU16);

/// Why a number is no site number.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("site number {0} is not between 1 and 65535")]
pub struct SiteNumberError(String);

impl Explain for SiteNumberError {
    fn class(&self) -> Class {
        Class::Usage
    }

    fn hint(&self) -> Option<String> {
        Some("give another one with --site; it must differ from every other cluster's".into())
    }
}

impl SiteNumber {
    /// The number itself.
    pub const fn get(self) -> u16 {
        self.0.get()
    }
}

impl TryFrom<u64> for SiteNumber {
    type Error = SiteNumberError;

    fn try_from(n: u64) -> Result<Self, Self::Error> {
        u16::try_from(n).ok().and_then(NonZeroU16::new).map(Self).ok_or_else(|| SiteNumberError(n.to_string()))
    }
}

impl FromStr for SiteNumber {
    type Err = SiteNumberError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<u64>().map_err(|_| SiteNumberError(format!("{text:?}"))).and_then(Self::try_from)
    }
}

impl fmt::Display for SiteNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_accepted() {
        for ok in ["a", "b2", "prod-eu", &"x".repeat(40)] {
            assert_eq!(ok.parse::<ClusterId>().expect("a label").as_str(), ok);
        }
    }

    #[test]
    fn the_offending_character_is_named() {
        let said = |text: &str| text.parse::<ClusterId>().expect_err("no label").to_string();
        assert_eq!(said(""), "cluster id \"\" is empty");
        assert_eq!(said("1a"), "cluster id \"1a\" begins with '1', not with a letter a-z");
        assert_eq!(said("aB"), "cluster id \"aB\" has 'B' at position 2");
        assert_eq!(said("a/../b"), "cluster id \"a/../b\" has '/' at position 2");
        assert_eq!(said("a-"), "cluster id \"a-\" ends with '-'");
        assert_eq!(said(&"x".repeat(41)), format!("cluster id {:?} has 41 characters, 40 are allowed", "x".repeat(41)));
    }

    #[test]
    fn json_checks_too() {
        assert!(serde_json::from_str::<ClusterId>("\"A\"").is_err());
        assert!(serde_json::from_str::<SiteNumber>("0").is_err());
    }

    #[test]
    fn site_numbers_have_bounds() {
        assert_eq!("65535".parse::<SiteNumber>().expect("in range").get(), 65535);
        for bad in ["0", "65536", "-1", "x"] {
            assert!(bad.parse::<SiteNumber>().is_err(), "{bad}");
        }
    }
}
