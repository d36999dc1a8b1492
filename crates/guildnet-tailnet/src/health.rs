//! The connector's state as a person is told it, judged from what was observed. Pure.

use std::time::{Duration, SystemTime};

use guildnet_model::{ConnectorState, Degraded};

/// What was last heard of the control connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Control {
    /// Being reached; nothing was refused yet.
    Connecting,
    /// The server accepts the node.
    Up,
    /// The server refuses the node.
    NeedsKey { why: String },
    /// Lost, or never reached.
    Down { why: String, retry_in: Duration },
}

/// What was observed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) control: Control,
    /// Whether a network map was ever received.
    pub(crate) has_map: bool,
    /// Why there is no router to dial through, if so.
    pub(crate) no_router: Option<String>,
    /// Whether a relay is connected.
    pub(crate) relay: bool,
    /// Why not, if it was tried.
    pub(crate) relay_trouble: Option<String>,
    /// Whether there is a direct path to a router.
    pub(crate) direct: bool,
    /// When the node key expires, by this machine's clock, if that is soon.
    pub(crate) key_expires: Option<SystemTime>,
}

/// The clocks of server and machine are compared anew with each connection: less than this is no other expiry.
const SAME_MOMENT: Duration = Duration::from_secs(60);

impl Facts {
    /// At the start.
    pub(crate) const fn new() -> Self {
        Self {
            control: Control::Connecting,
            has_map: false,
            no_router: None,
            relay: false,
            relay_trouble: None,
            direct: false,
            key_expires: None,
        }
    }

    /// The node key expires in `left`, seen `now`.
    pub(crate) fn on_key_expiring(&mut self, left: Duration, now: SystemTime) {
        let at = now + left;
        let apart = |known: SystemTime| known.duration_since(at).unwrap_or_else(|e| e.duration());
        if self.key_expires.is_none_or(|known| apart(known) >= SAME_MOMENT) {
            self.key_expires = Some(at);
        }
    }

    /// The state: the worst thing that is true, and ready only if everything that a dial needs was observed.
    pub(crate) fn state(&self) -> ConnectorState {
        if let Control::NeedsKey { why } = &self.control {
            return ConnectorState::NeedsKey { why: why.clone() };
        }
        if !self.has_map {
            return match &self.control {
                Control::Up => ConnectorState::Syncing,
                Control::Down { why, retry_in } => {
                    ConnectorState::Failed { why: why.clone(), retry_in: Some(*retry_in) }
                }
                _ => ConnectorState::Starting,
            };
        }
        let why = if let Some(why) = &self.no_router {
            Degraded::NoRouter { why: why.clone() }
        } else if !self.relay && !self.direct {
            let Some(why) = &self.relay_trouble else { return ConnectorState::Syncing };
            Degraded::RelayDown { why: why.clone() }
        } else if let Control::Down { why, .. } = &self.control {
            Degraded::ControlDown { why: why.clone() }
        } else if let Some(at) = self.key_expires {
            Degraded::KeyExpiring { at }
        } else {
            return ConnectorState::Ready;
        };
        ConnectorState::Degraded { why }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn working() -> Facts {
        Facts { control: Control::Up, has_map: true, relay: true, ..Facts::new() }
    }

    fn down() -> Control {
        Control::Down { why: "gone".into(), retry_in: Duration::from_secs(1) }
    }

    #[test]
    fn ready_needs_map_router_and_a_path() {
        assert_eq!(working().state(), ConnectorState::Ready);
        assert_eq!(Facts { relay: false, direct: true, ..working() }.state(), ConnectorState::Ready);
        assert_eq!(Facts { has_map: false, ..working() }.state(), ConnectorState::Syncing);
        assert_eq!(Facts { relay: false, ..working() }.state(), ConnectorState::Syncing);
        assert_eq!(Facts::new().state(), ConnectorState::Starting);
    }

    #[test]
    fn the_worst_thing_is_told() {
        let no_router = Facts { no_router: Some("offline".into()), control: down(), relay: false, ..working() };
        assert_eq!(no_router.state().to_string(), "degraded: no router: offline");
        let no_path = Facts { relay: false, relay_trouble: Some("refused".into()), control: down(), ..working() };
        assert_eq!(no_path.state().to_string(), "degraded: no relay: refused");
        let no_control = Facts { control: down(), ..working() };
        assert_eq!(no_control.state().to_string(), "degraded: login server not connected: gone");
        let mut expiring = no_control;
        let start = SystemTime::now();
        expiring.on_key_expiring(Duration::from_secs(3600), start);
        assert_eq!(expiring.state().to_string(), "degraded: login server not connected: gone");
        let at = start + Duration::from_secs(3600);
        let state = ConnectorState::Degraded { why: Degraded::KeyExpiring { at } };
        assert_eq!(Facts { control: Control::Up, ..expiring }.state(), state);
    }

    #[test]
    fn an_expiry_that_is_told_again_is_the_same_until_it_is_another_one() {
        let (mut facts, start, hour) = (working(), SystemTime::now(), Duration::from_secs(3600));
        facts.on_key_expiring(hour, start);
        facts.on_key_expiring(hour - Duration::from_secs(600), start + Duration::from_secs(603));
        assert_eq!(facts.key_expires, Some(start + hour));
        facts.on_key_expiring(2 * hour, start);
        assert_eq!(facts.key_expires, Some(start + 2 * hour));
    }

    #[test]
    fn a_refused_node_needs_a_key_even_with_an_old_map() {
        let refused = Facts { control: Control::NeedsKey { why: "expired".into() }, ..working() };
        assert_eq!(refused.state(), ConnectorState::NeedsKey { why: "expired".into() });
    }

    #[test]
    fn a_server_that_was_never_reached_is_a_failure() {
        let never = Facts { control: down(), ..Facts::new() };
        let state = ConnectorState::Failed { why: "gone".into(), retry_in: Some(Duration::from_secs(1)) };
        assert_eq!(never.state(), state);
    }
}
