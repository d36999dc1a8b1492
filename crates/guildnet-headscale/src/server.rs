//! What the server is: its version and what it can do. Pure; the client asks.

use std::fmt;

use serde::Serialize;

/// A Headscale release, as far as GuildNet tells them apart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(into = "String")]
pub enum ServerVersion {
    /// It names its release.
    Release {
        /// First number.
        major: u32,
        /// Second number.
        minor: u32,
        /// Third number.
        patch: u32,
    },
    /// It does not name its release because it has no `/version`: 0.26 or earlier.
    Before027,
    /// Built without a release number, for example from a branch; its features were found by asking.
    Unnamed {
        /// What it calls itself.
        says: String,
    },
}

/// What a server can do; the form of the policy follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ServerFeatures {
    /// Grants with `via` (0.29 and later): every client gets its own cluster's router although networks are equal.
    pub via_grants: bool,
    /// `POST /api/v1/policy/check` runs a policy's `tests` without storing anything (0.29 and later).
    pub policy_tests: bool,
}

impl ServerFeatures {
    /// Headscale 0.29 and later.
    pub const CURRENT: Self = Self { via_grants: true, policy_tests: true };
    /// Headscale 0.26 to 0.28.
    pub const BEFORE_029: Self = Self { via_grants: false, policy_tests: false };
}

/// The server's version and features.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServerInfo {
    /// The release.
    pub version: ServerVersion,
    /// What it can do.
    pub features: ServerFeatures,
}

/// The oldest release whose API has what is used here: routes in the node list, users by number (Headscale 0.26.0 notes).
const OLDEST: (u32, u32) = (0, 26);
/// The first release with `via` in grants and with `policy/check` (Headscale 0.29.0 notes).
const FIRST_WITH_VIA: (u32, u32) = (0, 29);

impl ServerVersion {
    /// Reads what `/version` says: `v0.29.2`, `0.28.0-beta.1`, or a word for a build that is no release.
    pub fn parse(says: &str) -> Self {
        let unnamed = || Self::Unnamed { says: says.to_owned() };
        let core = says.trim().trim_start_matches('v').split(['-', '+']).next().unwrap_or_default();
        let numbers: Option<Vec<u32>> = core.split('.').map(|n| n.parse().ok()).collect();
        match numbers.as_deref() {
            // A Go build outside of a release is stamped v0.0.0-<time>-<commit>.
            Some([0, 0, 0]) => unnamed(),
            Some(&[major, minor, patch]) => Self::Release { major, minor, patch },
            _ => unnamed(),
        }
    }

    /// Whether it is older than anything supported.
    pub fn is_too_old(&self) -> bool {
        matches!(self, Self::Release { major, minor, .. } if (*major, *minor) < OLDEST)
    }

    /// The features, if the version alone tells them.
    pub fn features(&self) -> Option<ServerFeatures> {
        match self {
            Self::Release { major, minor, .. } if (*major, *minor) >= FIRST_WITH_VIA => Some(ServerFeatures::CURRENT),
            Self::Release { .. } | Self::Before027 => Some(ServerFeatures::BEFORE_029),
            Self::Unnamed { .. } => None,
        }
    }
}

impl fmt::Display for ServerVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Release { major, minor, patch } => write!(f, "{major}.{minor}.{patch}"),
            Self::Before027 => f.write_str("0.26 or earlier"),
            Self::Unnamed { says } => write!(f, "unreleased ({says})"),
        }
    }
}

impl From<ServerVersion> for String {
    fn from(version: ServerVersion) -> Self {
        version.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_told_apart_by_their_numbers() {
        let features = |says| ServerVersion::parse(says).features();
        assert_eq!(features("v0.29.2"), Some(ServerFeatures::CURRENT));
        assert_eq!(features("0.29.0-beta.1"), Some(ServerFeatures::CURRENT));
        assert_eq!(features("1.0.0"), Some(ServerFeatures::CURRENT));
        assert_eq!(features("v0.28.0"), Some(ServerFeatures::BEFORE_029));
        assert_eq!(features("dev"), None);
        assert_eq!(features("v0.0.0-20260101000000-abcdef012345"), None);
    }

    #[test]
    fn only_releases_below_026_are_too_old() {
        assert!(ServerVersion::parse("v0.25.1").is_too_old());
        assert!(!ServerVersion::parse("v0.26.0").is_too_old());
        assert!(!ServerVersion::parse("dev").is_too_old());
        assert!(!ServerVersion::Before027.is_too_old());
    }
}
