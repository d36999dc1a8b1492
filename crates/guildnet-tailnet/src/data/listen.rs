//! What becomes of a connection that somebody else wants to open to this node. The decision is pure.
//!
//! It must come from a peer that has a slot, in that peer's own name or in that of a network that it may carry, and the packet
//! filter must allow it; else nothing is answered. Then, if nobody listens on the port, it is refused by a reset. Source for
//! the order of these: tailscale `wgengine/filter/filter.go` (silent), then the host's TCP (a reset). What is too much is not
//! answered either: who has opened it tries again.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use guildnet_model::ListenError;
use tokio::sync::mpsc;

use super::{
    Node, Work,
    flows::{Role, Tuple},
    peers::SlotId,
};
use crate::{
    connector::{Accepted, DIAL_LIMIT},
    packet::{Flags, Head, Options, Segment},
    tcp::Tcp,
};

/// How long one may stay half open: as long as a dial of our own waits.
pub(super) const OPEN_LIMIT: Duration = DIAL_LIMIT;
/// Connections to one port that are not open yet, or that nobody has taken: as many as come from a cluster in the second or two
/// that one takes. There is room for each that is begun, so none is opened only to be closed.
const BACKLOG: usize = 64;
/// Ports that are listened on.
const MAX_PORTS: usize = 64;

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// A flow is made.
    Accept,
    /// A reset is sent.
    Refuse,
    /// Nothing is sent.
    Drop(Cause),
}

/// Why nothing is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// It is for another address: this node forwards nothing.
    NotOurs,
    /// The peer may not send from that address.
    NotTheirs,
    /// No rule of the packet filter allows it.
    Denied,
    /// There are as many flows as there may be, or one between the same ports with another of our addresses.
    NoFlow,
    /// The port has as many as it may have.
    Full,
}

/// What is known of it.
#[derive(Clone, Copy, Debug)]
struct Asked {
    is_ours: bool,
    is_theirs: bool,
    is_allowed: bool,
    /// There may be one more flow, and none has the same ports.
    has_room: bool,
}

/// The ports that are listened on.
#[derive(Default)]
pub(super) struct Listeners {
    ports: HashMap<u16, Port>,
}

struct Port {
    taker: mpsc::Sender<Accepted>,
    /// Flows that are not open yet.
    half_open: HashSet<u64>,
}

impl Listeners {
    /// Opens a port; the receiver's end closes it.
    pub(super) fn listen(&mut self, port: u16) -> Result<mpsc::Receiver<Accepted>, ListenError> {
        self.ports.retain(|_, port| !port.taker.is_closed());
        if port == 0 {
            return Err(ListenError::NoPort);
        }
        if self.ports.contains_key(&port) {
            return Err(ListenError::Taken { port });
        }
        if self.ports.len() >= MAX_PORTS {
            return Err(ListenError::TooMany { limit: MAX_PORTS });
        }
        let (taker, accepted) = mpsc::channel(BACKLOG);
        self.ports.insert(port, Port { taker, half_open: HashSet::new() });
        Ok(accepted)
    }

    fn decide(&self, port: u16, asked: Asked) -> Verdict {
        match asked {
            Asked { is_ours: false, .. } => return Verdict::Drop(Cause::NotOurs),
            Asked { is_theirs: false, .. } => return Verdict::Drop(Cause::NotTheirs),
            Asked { is_allowed: false, .. } => return Verdict::Drop(Cause::Denied),
            _ => {}
        }
        match self.ports.get(&port).filter(|port| !port.taker.is_closed()) {
            None => Verdict::Refuse,
            Some(_) if !asked.has_room => Verdict::Drop(Cause::NoFlow),
            Some(port) if port.half_open.len() >= port.taker.capacity() => Verdict::Drop(Cause::Full),
            Some(_) => Verdict::Accept,
        }
    }

    /// A flow was made for a connection to the port.
    pub(super) fn begun(&mut self, port: u16, flow: u64) {
        if let Some(port) = self.ports.get_mut(&port) {
            port.half_open.insert(flow);
        }
    }

    /// The flow is open: it is given to who listens. If nobody can take it the stream is dropped, and that ends the flow.
    pub(super) fn opened(&mut self, port: u16, flow: u64, accepted: Accepted) {
        // Who listens now may be another one than when the flow was made.
        if let Some(port) = self.ports.get_mut(&port)
            && port.half_open.remove(&flow)
        {
            drop(port.taker.try_send(accepted));
        }
    }

    /// The flow has ended, whether it was open or not.
    pub(super) fn ended(&mut self, port: u16, flow: u64) {
        if let Some(port) = self.ports.get_mut(&port) {
            port.half_open.remove(&flow);
        }
    }
}

/// What refuses a connection (RFC 9293, section 3.10.7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    from: SocketAddr,
    to: SocketAddr,
    ack: u32,
}

impl Refusal {
    fn of(syn: &Segment<'_>) -> Self {
        let len = u32::try_from(syn.data.len()).expect("it was in a packet");
        Self { from: syn.to, to: syn.from, ack: syn.seq.wrapping_add(1).wrapping_add(len) }
    }
}

/// Whether it opens a connection.
const fn is_syn(segment: &Segment<'_>) -> bool {
    segment.flags.any(Flags::SYN) && !segment.flags.any(Flags::ACK | Flags::RST | Flags::FIN)
}

impl Node {
    /// A packet from a peer that belongs to no flow. Returns what is to be answered.
    pub(super) fn on_unknown(&mut self, peer: SlotId, segment: Option<&Segment<'_>>, now: Instant) -> Option<Refusal> {
        let Some(syn) = segment.filter(|segment| is_syn(segment)) else {
            self.dropped.no_flow += 1;
            return None;
        };
        match self.listeners.decide(syn.to.port(), self.asked(peer, syn)) {
            Verdict::Accept => {
                let id = self.next_own();
                self.listeners.begun(syn.to.port(), id);
                let tuple = Tuple { peer, remote: syn.from, local_port: syn.to.port() };
                let local = syn.to.ip();
                let tcp = Tcp::accept(self.tcp_setup(tuple, local), syn, now);
                self.insert_tcp(id, tcp, tuple, local, syn.from.into(), Role::Accepted);
                None
            }
            Verdict::Refuse => Some(Refusal::of(syn)),
            Verdict::Drop(cause) => {
                tracing::trace!(?cause, "a connection to this node is not answered");
                self.dropped.no_flow += 1;
                None
            }
        }
    }

    pub(super) fn refuse(&mut self, peer: SlotId, refusal: Refusal, work: &mut Work, now: Instant) {
        let Refusal { from, to, ack } = refusal;
        let flags = Flags::new(Flags::RST | Flags::ACK);
        work.packets.clear();
        work.packets.push(&Head { from, to, seq: 0, ack, flags, window: 0, options: &Options::default() }, 0, |_| ());
        self.transmit(peer, work, now);
    }

    fn asked(&self, peer: SlotId, syn: &Segment<'_>) -> Asked {
        let (from, to) = (syn.from.ip(), syn.to.ip());
        let map = self.map.as_ref();
        let is_ours = map.is_some_and(|map| map.self_node.info.addresses.contains(&to));
        let is_theirs = is_ours && self.may_come_from(peer, from);
        let is_allowed = is_theirs && map.is_some_and(|map| map.filter.allows(from, to, syn.to.port()));
        let tuple = Tuple { peer, remote: syn.from, local_port: syn.to.port() };
        let has_room = self.flows.len() < self.max_flows && self.flows.find(&tuple).is_none();
        Asked { is_ours, is_theirs, is_allowed, has_room }
    }

    /// Whether others may use this address through the peer: it is its own, or in a network that it may carry.
    pub(super) fn may_come_from(&self, peer: SlotId, ip: IpAddr) -> bool {
        self.peers.get(peer).is_some_and(|s| s.addresses.contains(&ip) || self.routes.may_carry(s.key, ip))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        stream::{Bell, FlowCell, TailStream},
        tcp::{Budget, Setup},
    };

    const FINE: Asked = Asked { is_ours: true, is_theirs: true, is_allowed: true, has_room: true };

    #[test]
    fn nothing_is_answered_that_the_filter_does_not_allow() {
        let mut listeners = Listeners::default();
        let _accepted = listeners.listen(80).expect("a port");
        for (asked, closed, open) in [
            (FINE, Verdict::Refuse, Verdict::Accept),
            (Asked { has_room: false, ..FINE }, Verdict::Refuse, Verdict::Drop(Cause::NoFlow)),
            (Asked { is_allowed: false, ..FINE }, Verdict::Drop(Cause::Denied), Verdict::Drop(Cause::Denied)),
            (Asked { is_theirs: false, ..FINE }, Verdict::Drop(Cause::NotTheirs), Verdict::Drop(Cause::NotTheirs)),
            (Asked { is_ours: false, ..FINE }, Verdict::Drop(Cause::NotOurs), Verdict::Drop(Cause::NotOurs)),
        ] {
            assert_eq!((listeners.decide(81, asked), listeners.decide(80, asked)), (closed, open), "{asked:?}");
        }
    }

    #[test]
    fn a_port_has_one_listener_and_is_free_again_without_it() {
        let mut listeners = Listeners::default();
        let first = listeners.listen(80).expect("a port");
        assert_eq!(listeners.listen(80).err(), Some(ListenError::Taken { port: 80 }));
        assert_eq!(listeners.listen(0).err(), Some(ListenError::NoPort));
        drop(first);
        assert_eq!(listeners.decide(80, FINE), Verdict::Refuse);
        let _all: Vec<_> = (1..=64).map(|port| listeners.listen(port).expect("a port")).collect();
        assert_eq!(listeners.listen(80).err(), Some(ListenError::TooMany { limit: MAX_PORTS }));
    }

    fn accepted(flow: u64) -> Accepted {
        let at: SocketAddr = "100.64.0.9:80".parse().expect("an address");
        let budget = Arc::new(Budget::new(1 << 20));
        let tcp = Tcp::connect(Setup { local: at, remote: at, window: 1024, budget, seed: 1 }, Instant::now());
        (TailStream::new(Arc::new(FlowCell::new(flow, tcp, Arc::new(Bell::default())))), at)
    }

    #[test]
    fn a_port_is_full_with_what_is_half_open_or_not_taken() {
        let mut listeners = Listeners::default();
        let mut taker = listeners.listen(80).expect("a port");
        let full = |listeners: &Listeners| listeners.decide(80, FINE) == Verdict::Drop(Cause::Full);
        for flow in 0..64 {
            assert!(!full(&listeners));
            listeners.begun(80, flow);
        }
        assert!(full(&listeners));
        listeners.ended(80, 0);
        assert!(!full(&listeners));
        listeners.begun(80, 64);
        for flow in 1..65 {
            listeners.opened(80, flow, accepted(flow));
        }
        assert!(full(&listeners), "nobody takes them");
        assert!(taker.try_recv().is_ok() && !full(&listeners));
        listeners.opened(80, 77, accepted(77));
        assert_eq!(taker.len(), 63, "it was of another listener");
    }
}
