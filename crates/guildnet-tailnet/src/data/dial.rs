//! Dials and probes: the choice of the router, and the making of a flow.

use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use guildnet_model::{DialError, PeerContact, Target};

use super::{
    HEARD, Node, Work,
    flows::{Flow, Role, Tuple},
    peers::SlotId,
    race::MAX_TRIED,
};
use crate::{
    connector::Dial,
    health::Control,
    netmap::Key,
    routes::{Choice, Liveness, Unserved},
    stream::FlowCell,
    tcp::{self, Tcp},
};

/// Local ports of flows: the dynamic range (RFC 6335, section 6).
const PORTS: std::ops::RangeInclusive<u16> = 49_152..=65_535;
/// Tries to find a free port. The far end is part of what must be unique, so even the first is nearly always free.
const PORT_TRIES: usize = 64;

/// Local ports, one after the other from a random one on: so one comes back to the same target as late as can be. A far end that
/// has closed a flow remembers its ports for a minute (TIME-WAIT, RFC 9293 section 3.6.1); chosen at random, ports of several
/// thousand short connections a minute met such a memory every thirtieth time.
#[derive(Debug)]
pub(super) struct Ports(u16);

impl Ports {
    pub(super) fn new() -> Self {
        Self(rand::random_range(PORTS))
    }

    fn next(&mut self) -> u16 {
        let next = self.0.checked_add(1).unwrap_or(*PORTS.start());
        std::mem::replace(&mut self.0, next)
    }
}

impl Node {
    /// Opens a flow to a target in the cluster's networks; the answer comes when it is open or has failed.
    pub(super) fn dial(&mut self, dial: Dial, now: Instant) {
        let Dial { to: target, flow: id, answer } = dial;
        let opened = self.route(target, now).and_then(|mut ways| {
            let Some((peer, inner)) = ways.pop_front() else { return Err(DialError::RouterOffline { target }) };
            let (tuple, local) = self.place(peer, inner, target)?;
            Ok((tuple, local, self.race(peer, ways, now)))
        });
        match opened {
            Ok((tuple, local, race)) => {
                let at = race.as_ref().map(|race| race.at);
                let flow = self.insert_flow(id, tuple, local, target, Role::Dialled, now);
                (flow.answer, flow.race) = (Some(answer), race);
                if let Some(at) = at {
                    self.flows.schedule(id, at);
                }
            }
            // Nobody waits any more: fine.
            Err(error) => drop(answer.send(Err(error))),
        }
    }

    /// The routers that may carry a dial, the best first, and the target's address through each.
    fn route(&self, target: Target, now: Instant) -> Result<VecDeque<(SlotId, IpAddr)>, DialError> {
        if self.map.is_none() || matches!(self.facts.control, Control::NeedsKey { .. }) {
            return Err(self.status.borrow().as_dial_error());
        }
        let IpAddr::V4(ip) = target.addr().ip() else { return Err(DialError::NoRoute { target }) };
        let choices = self.routes.choose(ip, |key| self.liveness(key, now)).map_err(|why| match why {
            Unserved::NoRoute => DialError::NoRoute { target },
            Unserved::Offline => DialError::RouterOffline { target },
        })?;
        let place = |choice: Choice| Some((self.peers.by_node(choice.router)?, choice.inner));
        Ok(choices.into_iter().filter_map(place).take(MAX_TRIED).collect())
    }

    pub(super) fn liveness(&self, key: Key, now: Instant) -> Liveness {
        let Some(slot) = self.peers.by_node(key).and_then(|id| self.peers.get(id)) else { return Liveness::default() };
        let heard = slot.path.last_received().is_some_and(|at| now.saturating_duration_since(at) < HEARD);
        let (doubted, rtt) = (slot.standing.is_doubted(), slot.path.rtt());
        Liveness { heard, direct: slot.path.is_trusted(now), doubted, rtt }
    }

    /// Opens a flow through the named peer, past the route and peer filters. A peer without a slot gets one for as long as
    /// the flow lives.
    pub(super) fn probe(&mut self, through: &PeerContact, dial: Dial, now: Instant) {
        if self.map.is_none() || matches!(self.facts.control, Control::NeedsKey { .. }) {
            let error = self.status.borrow().as_dial_error();
            drop(dial.answer.send(Err(error)));
            return;
        }
        let key = Key(through.node_key);
        let peer = self.peers.by_node(key).unwrap_or_else(|| {
            let id = self.peers.insert(&self.own, key, through.disco_key.map(Key), now);
            if let Some(slot) = self.peers.get_mut(id) {
                slot.probe = true;
                slot.relay.home = through.home_relay;
                slot.path.set_map_addresses(&through.endpoints);
            }
            id
        });
        let reachable =
            self.relays.is_connected() || self.peers.get(peer).is_some_and(|s| s.path.addrs().next().is_some());
        let Dial { to: target, flow: id, answer } = dial;
        let placed = if reachable {
            self.place(peer, target.addr().ip(), target)
        } else {
            let why = "no relay is connected and no address of the peer is known".to_owned();
            Err(DialError::Io { target, why })
        };
        match placed {
            Ok((tuple, local)) => self.insert_flow(id, tuple, local, target, Role::Probe, now).answer = Some(answer),
            Err(error) => {
                self.remove_probe(peer);
                // Nobody waits any more: fine.
                drop(answer.send(Err(error)));
            }
        }
    }

    /// Removes a probed peer that has no flow.
    fn remove_probe(&mut self, peer: SlotId) {
        if self.peers.get(peer).is_some_and(|slot| slot.probe && slot.flows == 0) {
            self.peers.remove(peer);
        }
    }

    /// The addresses and ports of a flow to `target` that goes to `inner` through `peer`.
    pub(super) fn place(&mut self, peer: SlotId, inner: IpAddr, target: Target) -> Result<(Tuple, IpAddr), DialError> {
        let full = DialError::TooMany { limit: self.max_flows };
        if self.flows.len() >= self.max_flows {
            return Err(full);
        }
        let own = self.map.as_ref().map(|map| map.self_node.info.addresses.as_slice()).unwrap_or_default();
        let Some(local) = own.iter().find(|ip| ip.is_ipv4() == inner.is_ipv4()).copied() else {
            let why = "this node has no address of that family".to_owned();
            return Err(DialError::Io { target, why });
        };
        let remote = SocketAddr::new(inner, target.addr().port());
        let tuples = std::iter::repeat_with(|| Tuple { peer, remote, local_port: self.ports.next() });
        let free = tuples.take(PORT_TRIES).find(|tuple| self.flows.find(tuple).is_none());
        free.map(|tuple| (tuple, local)).ok_or(full)
    }

    /// Makes the flow. Its SYN goes out at its first turn, once there is a session.
    pub(super) fn insert_flow(
        &mut self,
        id: u64,
        tuple: Tuple,
        local: IpAddr,
        target: Target,
        role: Role,
        now: Instant,
    ) -> &mut Flow {
        let tcp = Tcp::connect(self.tcp_setup(tuple, local), now);
        self.insert_tcp(id, tcp, tuple, local, target, role)
    }

    pub(super) fn tcp_setup(&self, tuple: Tuple, local: IpAddr) -> tcp::Setup {
        tcp::Setup {
            local: SocketAddr::new(local, tuple.local_port),
            remote: tuple.remote,
            window: self.window,
            budget: self.budget.clone(),
            seed: rand::random(),
        }
    }

    /// Makes the flow of this TCP. Its first packet goes out at its first turn.
    pub(super) fn insert_tcp(
        &mut self,
        id: u64,
        tcp: Tcp,
        tuple: Tuple,
        local: IpAddr,
        target: Target,
        role: Role,
    ) -> &mut Flow {
        let cell = Arc::new(FlowCell::new(id, tcp, self.flows.bell().clone()));
        if let Some(slot) = self.peers.get_mut(tuple.peer) {
            slot.flows += 1;
        }
        self.runnable.push_back(id);
        let flow = self.flows.insert(id, Flow::new(cell, tuple, local, target, role));
        flow.queued = true;
        flow
    }

    /// Resets flows whose router or network is no longer the cluster's.
    pub(super) fn drop_unserved_flows(&mut self, work: &mut Work, now: Instant) {
        let unserved = |flow: &super::flows::Flow| {
            let Tuple { peer, remote, .. } = flow.tuple;
            let router = self.peers.get(peer).map(|slot| slot.key);
            match flow.role {
                Role::Probe => false,
                Role::Accepted => !self.may_come_from(peer, remote.ip()),
                _ => !router.is_some_and(|key| self.routes.may_carry(key, remote.ip())),
            }
        };
        let gone: Vec<u64> = self.flows.iter().filter(|(_, flow)| unserved(flow)).map(|(id, _)| id).collect();
        for id in gone {
            self.reset_flow(id, work, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_local_port_comes_back_after_all_others() {
        let mut ports = Ports::new();
        let first = ports.next();
        let others: HashSet<u16> = (1..PORTS.len()).map(|_| ports.next()).collect();
        assert_eq!(others.len(), PORTS.len() - 1);
        assert!(!others.contains(&first) && others.iter().all(|port| PORTS.contains(port)));
        assert_eq!(ports.next(), first);
    }
}
