//! What goes out: what flows have to send is encrypted and sent by the path of the moment; small messages too.

use std::time::{Duration, Instant};

use bytes::Bytes;
use guildnet_model::DialError;

use super::{Node, Work, flows::Role, listen::OPEN_LIMIT, peers::SlotId, relays};
use crate::{
    packet::BATCH,
    path::Action,
    standing::WATCH,
    tcp::{End, Phase},
    wg::{MESSAGE, OVERHEAD},
};

/// How long a flow that is closed in good order still answers a repeated FIN. Real stacks wait a minute or more; here
/// ports and sequence numbers are random, so only the far end's peace of mind is at stake.
const LINGER: Duration = Duration::from_secs(2);
/// How long a flow that its application has left may take to deliver the rest.
const ORPHAN_LIMIT: Duration = Duration::from_secs(15);
/// When a flow that wants to send but could not is looked at again. Nothing is known to cause it; it must not spin.
const SECOND_LOOK: Duration = Duration::from_millis(1);
/// When a flow that waits for a session, or for its relay, is looked at again: its timers run meanwhile, and a handshake that
/// was given up is begun again.
const STALLED_LOOK: Duration = Duration::from_secs(1);

impl Node {
    /// Gives a flow its turn: collects and sends what it has, wakes its application, follows its life. Returns the number
    /// of packets sent.
    pub(super) fn pump(&mut self, id: u64, work: &mut Work, now: Instant) -> usize {
        let Some(flow) = self.flows.get_mut(id) else { return 0 };
        flow.queued = false;
        flow.cell.taken();
        let (peer, cell) = (flow.tuple.peer, flow.cell.clone());
        if flow.answer.as_ref().is_some_and(|answer| answer.is_closed()) {
            // Its dialler has gone.
            cell.tcp().abort();
        }
        let Some(slot) = self.peers.get_mut(peer) else { return 0 };
        let is_up = slot.tunnel.is_up();
        let by_relay = is_up && slot.path.via(now).direct.is_none();
        let room = match (is_up, by_relay) {
            (false, _) => 0,
            (true, false) => BATCH,
            (true, true) if self.relays.has_room(slot.relay, now) => relays::BATCH,
            (true, true) => 0,
        };
        // Without room nothing is put out, but the flow's own timers run: it ends if this lasts.
        work.packets.clear_to(room);
        let (due, wakers, phase, orphan) = {
            let mut tcp = cell.tcp();
            let due = tcp.output(now, &mut work.packets);
            (due, tcp.wakers(), tcp.phase(), tcp.is_detached())
        };
        wakers.into_iter().flatten().for_each(std::task::Waker::wake);
        let sent = work.packets.len();
        if sent > 0 {
            if by_relay {
                self.relays.pace(slot.relay, sent, now);
            }
            self.transmit(peer, work, now);
        }
        if !self.follow(id, phase, orphan, work, now) {
            return sent;
        }
        if room == 0 {
            if is_up {
                self.relay_waiting.insert(id);
            } else {
                self.stall(id, peer, work, now);
            }
            self.flows.schedule(id, now + STALLED_LOOK);
            return 0;
        }
        match due {
            Some(at) if at <= now && sent > 0 => self.make_runnable(id),
            Some(at) => self.flows.schedule(id, at.max(now + SECOND_LOOK)),
            None => {}
        }
        sent
    }

    /// Acts on where a flow is in its life. Returns whether it lives on.
    fn follow(&mut self, id: u64, phase: Phase, orphan: bool, work: &mut Work, now: Instant) -> bool {
        match phase {
            Phase::Connecting => self.run_race(id, now),
            Phase::Open => self.on_opened(id, now),
            Phase::Lingering => {}
            Phase::Closed(end) => {
                self.remove_flow(id, end, now);
                return false;
            }
        }
        let Some(flow) = self.flows.get_mut(id) else { return false };
        let watched = matches!(flow.role, Role::Watched { .. });
        let patience = match phase {
            Phase::Connecting if watched => Some(WATCH),
            Phase::Connecting if flow.role == Role::Accepted => Some(OPEN_LIMIT),
            Phase::Lingering => Some(LINGER),
            Phase::Open if orphan => Some(ORPHAN_LIMIT),
            _ => None,
        };
        if let Some(patience) = patience {
            let limit = *flow.limit.get_or_insert(now + patience);
            if limit <= now {
                if phase == Phase::Lingering {
                    self.remove_flow(id, End::Finished, now);
                    return false;
                }
                if phase == Phase::Connecting {
                    self.on_watch_over(id, work, now);
                    return false;
                }
                // Its reset goes out at the turn that this asks for.
                flow.cell.tcp().abort();
                self.make_runnable(id);
                return true;
            }
            self.flows.schedule(id, limit);
        }
        true
    }

    /// The flow waits until there is a session; one is begun if none is under way.
    fn stall(&mut self, id: u64, peer: SlotId, work: &mut Work, now: Instant) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        flow.stalled = true;
        let Some(slot) = self.peers.get_mut(peer) else { return };
        if let Some(len) = slot.tunnel.begin(now, &mut work.plain) {
            self.send_message(peer, &work.plain[..len], now);
        }
    }

    /// Forgets a flow. Its application, if it is still there, learns the end from the flow's own state.
    pub(super) fn remove_flow(&mut self, id: u64, end: End, now: Instant) {
        let Some(mut flow) = self.flows.remove(id) else { return };
        if flow.role == Role::Accepted {
            self.listeners.ended(flow.tuple.local_port, id);
        }
        self.relay_waiting.remove(&id);
        flow.cell.wake();
        if !self.hand_over(&mut flow, end, now)
            && let Some(answer) = flow.answer
        {
            let error = match end {
                End::Refused => DialError::Refused { target: flow.target },
                End::Silent => DialError::Timeout { target: flow.target, after: crate::connector::DIAL_LIMIT },
                _ => DialError::Io { target: flow.target, why: "the connection was given up".into() },
            };
            // Nobody waits any more: fine.
            let _ = answer.send(Err(error));
        }
        let peer = flow.tuple.peer;
        if let Some(slot) = self.peers.get_mut(peer) {
            slot.flows -= 1;
            if slot.probe && slot.flows == 0 {
                self.peers.remove(peer);
            }
        }
    }

    /// Resets a flow and forgets it.
    pub(super) fn reset_flow(&mut self, id: u64, work: &mut Work, now: Instant) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        let peer = flow.tuple.peer;
        work.packets.clear();
        {
            let mut tcp = flow.cell.tcp();
            tcp.abort();
            tcp.output(now, &mut work.packets);
        }
        if !work.packets.is_empty() {
            self.transmit(peer, work, now);
        }
        self.remove_flow(id, End::Reset, now);
    }

    /// Resets all flows.
    pub(super) fn reset_flows(&mut self, work: &mut Work, now: Instant) {
        for id in self.flows.ids() {
            self.reset_flow(id, work, now);
        }
        self.link.send(&mut work.batch);
    }

    /// Encrypts the scratch buffer's packets and sends them to a peer. The last of them stay in the batch, to which other flows
    /// may add; the turn's end sends it.
    pub(super) fn transmit(&mut self, peer: SlotId, work: &mut Work, now: Instant) {
        let Some(slot) = self.peers.get_mut(peer) else { return };
        let Work { plain, packets, batch } = work;
        let wants_answer = packets.wants_answer();
        let was_trusted = slot.path.is_trusted(now);
        let via = slot.path.on_send(now, wants_answer, &mut self.actions);
        if was_trusted && via.relay {
            tracing::debug!(peer = ?slot.key, ?via, "direct path in doubt");
        }
        slot.tunnel.on_send(now, wants_answer);
        let max_segments = self.link.max_segments();
        for packet in packets.iter() {
            slot.tx_bytes += packet.len() as u64;
            let Some(to) = via.direct else {
                if let Some(len) = slot.tunnel.seal(packet, plain)
                    && !self.relays.send(slot.relay, slot.key, Bytes::copy_from_slice(&plain[..len]), now)
                {
                    self.dropped.relay_full += 1;
                }
                continue;
            };
            if !batch.fits(to, packet.len() + OVERHEAD, max_segments) {
                self.link.send(batch);
            }
            let Some(len) = slot.tunnel.seal(packet, batch.room()) else { continue };
            if via.relay {
                // A second copy beside the direct one: the peer's replay window drops whichever comes later.
                let copy = Bytes::copy_from_slice(&batch.room()[..len]);
                self.relays.send(slot.relay, slot.key, copy, now);
            }
            batch.add(to, len);
        }
        self.act(peer, now);
    }

    /// Sends a WireGuard message that is no data: a handshake's part, a keep-alive.
    pub(super) fn send_message(&mut self, peer: SlotId, message: &[u8], now: Instant) {
        let Some(slot) = self.peers.get_mut(peer) else { return };
        let is_initiation = message.len() == MESSAGE;
        if is_initiation {
            tracing::debug!(peer = ?slot.key, up = slot.tunnel.is_up(), "handshake begun");
        }
        let via = if is_initiation { slot.path.on_send(now, true, &mut self.actions) } else { slot.path.via(now) };
        if let Some(to) = via.direct {
            self.link.send_one(to, message);
        } else if slot.probe {
            // A probe must try everything: no pong will ever name a path to a peer that does not know us.
            for to in slot.path.addrs() {
                self.link.send_one(to, message);
            }
        }
        // Initiations always go by the relay too: they are what finds out whether the peer is there.
        if via.relay || is_initiation {
            self.relays.send(slot.relay, slot.key, Bytes::copy_from_slice(message), now);
        }
        self.act(peer, now);
    }

    /// Does what a path asked for.
    pub(super) fn act(&mut self, peer: SlotId, now: Instant) {
        let mut actions = std::mem::take(&mut self.actions);
        for action in actions.drain(..) {
            match action {
                Action::Ping { to, id } => self.send_ping(peer, to, id),
                Action::Call => {
                    if !self.locator.is_fresh(now) {
                        // The answer, if it brings another address, makes one more call.
                        self.ask_for_own_address(now);
                    }
                    self.send_call(peer);
                }
                Action::Withdraw => self.send_addresses(peer, &[]),
                Action::Resend => self.hurry_flows(peer, now),
            }
        }
        self.actions = actions;
    }

    fn send_ping(&mut self, peer: SlotId, to: std::net::SocketAddr, id: crate::path::PingId) {
        let Some(disco) = self.peers.get_mut(peer).and_then(|slot| slot.disco(self.identity.disco())) else { return };
        let ping = disco.ping(self.identity.node().public, id);
        self.link.send_one(to, &ping);
    }

    /// Tells a peer our addresses, through the relay.
    pub(super) fn send_call(&mut self, peer: SlotId) {
        let addresses = self.locator.endpoints();
        self.send_addresses(peer, &addresses);
    }

    fn send_addresses(&mut self, peer: SlotId, addresses: &[std::net::SocketAddr]) {
        let Some(slot) = self.peers.get_mut(peer) else { return };
        let Some(disco) = slot.disco(self.identity.disco()) else { return };
        let call = disco.call(addresses);
        self.relays.send(slot.relay, slot.key, call.into(), Instant::now());
    }
}
