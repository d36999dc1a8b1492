//! What comes in: a datagram is told apart, opened, checked and given to its flow.
//!
//! Accepted are: STUN answers to our own requests; disco messages and WireGuard of peers that have a slot; of WireGuard's
//! content only TCP packets of flows that were dialled through that very peer, and SYNs, of which `listen` decides. Everything
//! else is dropped and counted.

use std::{net::SocketAddr, time::Instant};

use super::{Node, PLAIN, Work, flows::Tuple, peers::SlotId};
use crate::{
    disco::{self, Message},
    netmap::Key,
    packet::Segment,
    stun,
    wg::{self, Kind, Opened},
};

/// Where a datagram came from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source {
    /// The socket.
    Direct(SocketAddr),
    /// A relay, which has it from the connection of this node key. Disco and WireGuard prove themselves who has sent it.
    Relay { region: u16, from: Key },
}

impl Node {
    /// Takes one datagram.
    pub(super) fn on_datagram(&mut self, source: Source, datagram: &[u8], work: &mut Work, now: Instant) {
        if let Some(kind) = wg::classify(datagram) {
            self.on_wireguard(source, kind, datagram, work, now);
        } else if disco::is_disco(datagram) {
            self.on_disco(source, datagram, work, now);
        } else if stun::is_answer(datagram) {
            self.on_stun(datagram, now);
        } else {
            self.dropped.unknown_kind += 1;
        }
    }

    fn on_stun(&mut self, datagram: &[u8], now: Instant) {
        let Some(answer) = stun::parse(datagram) else { return };
        if let Some((region, rtt)) = self.locator.on_answer(answer, now) {
            self.relays.on_rtt(region, rtt, now);
        }
        if self.report_addresses() {
            // Whoever looks for a path to us should know where we are now.
            for id in self.peers.ids() {
                if self.peers.get(id).is_some_and(|slot| slot.is_wanted(now) && !slot.path.is_trusted(now)) {
                    self.send_call(id);
                }
            }
        }
    }

    fn on_disco(&mut self, source: Source, datagram: &[u8], work: &mut Work, now: Instant) {
        let id = disco::sender(datagram).and_then(|key| self.peers.by_disco(key));
        let Some((id, slot)) = id.and_then(|id| Some((id, self.peers.get_mut(id)?))) else {
            self.dropped.unknown_peer += 1;
            return;
        };
        let peer = slot.key;
        let Some(disco) = slot.disco(self.identity.disco()) else { return };
        let is_due = |message: &Message| match (message, source) {
            (Message::Ping { .. } | Message::Pong { .. }, Source::Direct(_)) => true,
            // Only the relay, where the peer has proved its node key, shows that the peer itself sends it now: nobody else can
            // replay a call that was recorded (tailscale `wgengine/magicsock/magicsock.go`, `handleDiscoMessage`).
            (Message::Call { .. }, Source::Relay { from, .. }) => from == peer,
            _ => false,
        };
        let message = disco.open(datagram, &mut work.plain).filter(is_due);
        let Some(message) = message.filter(|message| disco.admit(now, datagram, message)) else {
            self.dropped.refused += 1;
            return;
        };
        match (message, source) {
            (Message::Ping { id: ping }, Source::Direct(from)) => {
                let pong = disco.pong(ping, from);
                slot.path.on_ping(now, from, &mut self.actions);
                self.link.send_one(from, &pong);
            }
            (Message::Pong { id: ping }, Source::Direct(_)) => {
                if slot.path.on_pong(now, ping, &mut self.actions) {
                    tracing::debug!(peer = ?slot.key, via = ?slot.path.via(now), "direct path trusted");
                    self.changed = true;
                    if !std::mem::replace(&mut slot.met, true) {
                        slot.tunnel.begin_soon(now);
                    }
                    // They need no relay any more.
                    self.wake_relay_waiting();
                }
            }
            (Message::Call { addrs }, Source::Relay { region, .. }) => {
                slot.relay.heard = Some((region, now));
                slot.path.on_call(now, &addrs, &mut self.actions);
            }
            (Message::Call { .. }, Source::Direct(_)) => {}
            (Message::Ping { .. } | Message::Pong { .. }, Source::Relay { .. }) => {}
        }
        self.act(id, now);
    }

    fn on_wireguard(&mut self, source: Source, kind: Kind, datagram: &[u8], work: &mut Work, now: Instant) {
        let id = match kind {
            Kind::Initiation => self.admit(source, datagram, work),
            Kind::For(number) => self.peers.by_number(number),
        };
        let Some(id) = id else {
            self.dropped.unknown_peer += 1;
            return;
        };
        let Some(slot) = self.peers.get_mut(id) else { return };
        if datagram.len() > PLAIN {
            self.dropped.too_large += 1;
            return;
        }
        let (was_up, was_trying) = (slot.tunnel.is_up(), slot.tunnel.is_trying());
        let opened = slot.tunnel.open(now, datagram, &mut work.plain);
        let reply = match opened {
            Opened::Refused => {
                self.dropped.refused += 1;
                return;
            }
            Opened::Cookie => return,
            Opened::Empty => None,
            Opened::Reply(message) => {
                tracing::debug!(peer = ?slot.key, ?kind, ?source, "handshake answered");
                Some(message.len())
            }
            Opened::Packet(packet) => {
                slot.rx_bytes += packet.len() as u64;
                let length = packet.len();
                slot.path.on_received(now);
                self.on_packet(id, length, work, now);
                None
            }
        };
        let Some(slot) = self.peers.get_mut(id) else { return };
        slot.path.on_received(now);
        if let Source::Relay { region, .. } = source {
            slot.relay.heard = Some((region, now));
        }
        if slot.standing.on_heard() {
            tracing::info!(router = ?slot.key, "the router is heard again");
        }
        let renewed = was_trying && !slot.tunnel.is_trying();
        if let Some(len) = reply {
            self.send_message(id, &work.plain[..len], now);
        }
        if !was_up || renewed {
            self.on_session(id, now);
        }
    }

    /// Whose handshake begins, if we let it.
    fn admit(&mut self, source: Source, datagram: &[u8], work: &mut Work) -> Option<SlotId> {
        let from = match source {
            Source::Direct(from) => Some(from),
            Source::Relay { .. } => None,
        };
        match self.own.admit(from.map(|addr| addr.ip()), datagram, &mut work.plain) {
            Ok(()) => self.peers.by_node(self.own.initiator(datagram)?),
            Err(cookie) => {
                if let (Some(from), Some(len)) = (from, cookie) {
                    self.link.send_one(from, &work.plain[..len]);
                }
                None
            }
        }
    }

    /// There may be a new session now: what waited for one goes on, and what was sent with a lost one is sent again.
    fn on_session(&mut self, id: SlotId, now: Instant) {
        let Some(slot) = self.peers.get_mut(id) else { return };
        if !slot.tunnel.is_up() {
            return;
        }
        self.changed = true;
        for id in self.flows.of(id) {
            let Some(flow) = self.flows.get_mut(id) else { continue };
            let stalled = std::mem::replace(&mut flow.stalled, false);
            let connecting = !flow.opened;
            let mut tcp = flow.cell.tcp();
            if connecting {
                tcp.repeat_syn(now);
            }
            let hurries = tcp.hurry(now);
            drop(tcp);
            if stalled || connecting || hurries {
                self.make_runnable(id);
            }
        }
    }

    /// There is a way to the peer again: what was lost is not waited for.
    pub(super) fn hurry_flows(&mut self, peer: SlotId, now: Instant) {
        for id in self.flows.of(peer) {
            if self.flows.get_mut(id).is_some_and(|flow| flow.cell.tcp().hurry(now)) {
                self.make_runnable(id);
            }
        }
    }

    /// An IP packet from a peer, in the first `length` bytes of the scratch buffer.
    fn on_packet(&mut self, peer: SlotId, length: usize, work: &mut Work, now: Instant) {
        let segment = Segment::read(&work.plain[..length]);
        let flow = segment.as_ref().and_then(|segment| {
            let tuple = Tuple { peer, remote: segment.from, local_port: segment.to.port() };
            let id = self.flows.find(&tuple)?;
            self.flows.get_mut(id).filter(|flow| flow.local == segment.to.ip()).map(|flow| (id, segment, flow))
        });
        let Some((id, segment, flow)) = flow else {
            if let Some(refusal) = self.on_unknown(peer, segment.as_ref(), now) {
                self.refuse(peer, refusal, work, now);
            }
            return;
        };
        flow.cell.tcp().input(now, segment);
        if flow.queue() {
            self.runnable.push_back(id);
        }
        if self.fed.last() != Some(&id) {
            self.fed.push(id);
        }
    }
}
