//! The flows of a connector: how they are found by a packet's addresses, and when they want a turn.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

// Asked for every packet: the standard library's hash took a twentieth of a download.
use foldhash::fast::RandomState;
use guildnet_model::{DialError, Target};
use tokio::sync::oneshot;

use super::{peers::SlotId, race::Race};
use crate::stream::{Bell, FlowCell, TailStream};

/// Who waits for a flow to open.
pub(super) type Answer = oneshot::Sender<Result<TailStream, DialError>>;

/// What a packet must match to belong to a flow. The peer is part of it: a flow takes packets only from the peer through
/// which it was dialled, whatever their addresses say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Tuple {
    pub(super) peer: SlotId,
    pub(super) remote: SocketAddr,
    pub(super) local_port: u16,
}

/// Why a flow is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// For a dialler.
    Dialled,
    /// For a dialler who has named the peer, past the route filter.
    Probe,
    /// Opened by the far end, for who listens on its local port.
    Accepted,
    /// Beside another flow of the same dial, through another router.
    Rival(u64),
    /// For nobody: whether it opens tells whether its router carries. Since when it is behind another one, if it is.
    Watched {
        /// When the other one opened.
        lost: Option<Instant>,
    },
}

/// A flow.
pub(super) struct Flow {
    pub(super) cell: Arc<FlowCell>,
    pub(super) tuple: Tuple,
    pub(super) local: IpAddr,
    /// As its dialler named it; who has opened it.
    pub(super) target: Target,
    pub(super) role: Role,
    pub(super) answer: Option<Answer>,
    /// Other routers that may be tried for the same dial.
    pub(super) race: Option<Race>,
    /// Whether it has opened.
    pub(super) opened: bool,
    /// Whether it is in line for a turn.
    pub(super) queued: bool,
    /// Whether it waits for a session.
    pub(super) stalled: bool,
    /// When it is given up, once its end has begun.
    pub(super) limit: Option<Instant>,
    due: Option<Instant>,
}

impl Flow {
    /// A flow for which nobody waits yet.
    pub(super) const fn new(cell: Arc<FlowCell>, tuple: Tuple, local: IpAddr, target: Target, role: Role) -> Self {
        let (answer, race, opened) = (None, None, false);
        let (queued, stalled, limit, due) = (false, false, None, None);
        Self { cell, tuple, local, target, role, answer, race, opened, queued, stalled, limit, due }
    }

    /// Takes a place in line for a turn. Returns whether it had none.
    pub(super) const fn queue(&mut self) -> bool {
        !std::mem::replace(&mut self.queued, true)
    }

    /// Gives the open flow to its dialler. If nobody takes the stream it is dropped, and that closes the flow.
    pub(super) fn deliver(&mut self) {
        if let Some(answer) = self.answer.take() {
            drop(answer.send(Ok(TailStream::new(self.cell.clone()))));
        }
    }
}

/// All of them.
pub(super) struct Flows {
    flows: HashMap<u64, Flow, RandomState>,
    by_tuple: HashMap<Tuple, u64, RandomState>,
    /// About one entry per flow; an entry that is not its flow's `due` any more is void.
    due: BinaryHeap<Reverse<(Instant, u64)>>,
    bell: Arc<Bell>,
}

impl Flows {
    pub(super) fn new(bell: Arc<Bell>) -> Self {
        Self { flows: HashMap::default(), by_tuple: HashMap::default(), due: BinaryHeap::new(), bell }
    }

    pub(super) const fn bell(&self) -> &Arc<Bell> {
        &self.bell
    }

    pub(super) fn len(&self) -> usize {
        self.flows.len()
    }

    pub(super) fn get_mut(&mut self, id: u64) -> Option<&mut Flow> {
        self.flows.get_mut(&id)
    }

    pub(super) fn find(&self, tuple: &Tuple) -> Option<u64> {
        self.by_tuple.get(tuple).copied()
    }

    pub(super) fn ids(&self) -> Vec<u64> {
        self.flows.keys().copied().collect()
    }

    /// The flows through a peer.
    pub(super) fn of(&self, peer: SlotId) -> Vec<u64> {
        self.flows.iter().filter(|(_, flow)| flow.tuple.peer == peer).map(|(id, _)| *id).collect()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &Flow)> {
        self.flows.iter().map(|(id, flow)| (*id, flow))
    }

    pub(super) fn insert(&mut self, id: u64, flow: Flow) -> &mut Flow {
        self.by_tuple.insert(flow.tuple, id);
        self.flows.entry(id).insert_entry(flow).into_mut()
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<Flow> {
        let flow = self.flows.remove(&id)?;
        self.by_tuple.remove(&flow.tuple);
        Some(flow)
    }

    /// The flow wants a turn at `at`, or earlier if it said so before.
    pub(super) fn schedule(&mut self, id: u64, at: Instant) {
        if let Some(flow) = self.flows.get_mut(&id)
            && flow.due.is_none_or(|due| at < due)
        {
            flow.due = Some(at);
            self.due.push(Reverse((at, id)));
        }
    }

    /// The next flow whose time has come.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<u64> {
        while let Some(Reverse((at, id))) = self.due.peek().copied() {
            if at > now {
                return None;
            }
            self.due.pop();
            if let Some(flow) = self.flows.get_mut(&id)
                && flow.due == Some(at)
            {
                flow.due = None;
                return Some(id);
            }
        }
        None
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.peek().map(|Reverse((at, _))| *at)
    }
}
