//! Fail-over: dials that are tried through more than one router, and routers that carry no more.
//!
//! A dial that its router does not answer soon is tried through the next one as well; the first that opens is the
//! dialler's, and is the proof that the router carries to that very target. The others are watched for a moment: one that
//! opens late clears its router and is closed again. What it all means is judged in `standing.rs`.

use std::{collections::VecDeque, net::IpAddr, time::Instant};

use guildnet_model::DialError;

use super::{
    Node, Work,
    flows::{Flow, Role},
    peers::{Slot, SlotId},
};
use crate::{
    standing::{self, Doubt, Verdict, WATCH},
    stream::TailStream,
    tcp::{End, Phase},
};

/// Routers through which one dial is tried: a cluster with more is not searched whole.
pub(super) const MAX_TRIED: usize = 4;

/// What is still to be tried for a dial.
pub(super) struct Race {
    /// Routers that were not tried, the best first, and the target's address through each.
    pub(super) rest: VecDeque<(SlotId, IpAddr)>,
    /// When the next one is.
    pub(super) at: Instant,
    /// Flows through other routers.
    pub(super) rivals: Vec<u64>,
}

impl Node {
    /// The race of a dial that goes through `peer` first.
    pub(super) fn race(&self, peer: SlotId, rest: VecDeque<(SlotId, IpAddr)>, now: Instant) -> Option<Race> {
        let at = now + standing::race_after(self.peers.get(peer).and_then(|slot| slot.path.rtt()));
        (!rest.is_empty()).then_some(Race { rest, at, rivals: Vec::new() })
    }

    /// Tries a dial through the next router if its time has come.
    pub(super) fn run_race(&mut self, id: u64, now: Instant) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        let target = flow.target;
        let Some(race) = &mut flow.race else { return };
        if race.at > now {
            let at = race.at;
            return self.flows.schedule(id, at);
        }
        let Some((peer, inner)) = race.rest.pop_front() else { return };
        tracing::debug!(%target, "no answer yet: the dial is tried through another router as well");
        let rival = self.next_own();
        let placed = self.place(peer, inner, target);
        let rtt = self.peers.get(peer).and_then(|slot| slot.path.rtt());
        if let Ok((tuple, local)) = placed {
            self.insert_flow(rival, tuple, local, target, Role::Rival(id), now);
        }
        let Some(race) = self.flows.get_mut(id).and_then(|flow| flow.race.as_mut()) else { return };
        if placed.is_ok() {
            race.rivals.push(rival);
        }
        race.at = now + standing::race_after(rtt);
        if !race.rest.is_empty() {
            let at = race.at;
            self.flows.schedule(id, at);
        }
    }

    /// A flow has opened: its dialler gets it, or it has told what it was to tell.
    pub(super) fn on_opened(&mut self, id: u64, now: Instant) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        if flow.opened {
            return;
        }
        flow.opened = true;
        let peer = flow.tuple.peer;
        match flow.role {
            Role::Dialled | Role::Probe => {
                let race = flow.race.take();
                flow.deliver();
                race.into_iter().flat_map(|race| race.rivals).for_each(|rival| self.watch(rival, None, now));
            }
            Role::Rival(first) => self.on_rival_opened(id, first, now),
            Role::Watched { .. } => self.give_up(id),
            Role::Accepted => {
                // Of what the router carries for us it tells nothing.
                flow.limit = None;
                let accepted = (TailStream::new(flow.cell.clone()), flow.tuple.remote);
                return self.listeners.opened(flow.tuple.local_port, id, accepted);
            }
        }
        if let Some(slot) = self.peers.get_mut(peer)
            && slot.standing.on_carried()
        {
            tracing::info!(router = ?slot.key, "the router carries again");
        }
    }

    fn on_rival_opened(&mut self, id: u64, first: u64, now: Instant) {
        let dialled = self.flows.get_mut(first).map(|flow| (flow.answer.take(), flow.race.take(), flow.tuple));
        let Some((Some(answer), race, tuple)) = dialled else { return self.give_up(id) };
        if let Some(flow) = self.flows.get_mut(id) {
            flow.role = Role::Dialled;
            flow.answer = Some(answer);
            flow.deliver();
        }
        // Those that were tried before it have had more time and are behind; what was tried after it has lost nothing.
        let rivals = race.map(|race| race.rivals).unwrap_or_default();
        let before = rivals.iter().take_while(|rival| **rival != id).copied().collect::<Vec<_>>();
        for behind in std::iter::once(first).chain(before.iter().copied()) {
            if let Some(flow) = self.flows.get_mut(behind)
                && let Some(slot) = self.peers.get_mut(flow.tuple.peer)
                && slot.standing.doubt(Doubt::CutOff(tuple.remote), now)
            {
                tracing::info!(router = ?slot.key, target = %tuple.remote, "the router brings no answer, another one does");
            }
            self.watch(behind, Some(now), now);
        }
        rivals
            .into_iter()
            .filter(|rival| *rival != id && !before.contains(rival))
            .for_each(|r| self.watch(r, None, now));
    }

    /// Nobody waits for this flow any more, but whether it opens is of interest.
    fn watch(&mut self, id: u64, lost: Option<Instant>, now: Instant) {
        if let Some(flow) = self.flows.get_mut(id) {
            flow.role = Role::Watched { lost };
            flow.limit = Some(now + WATCH);
            self.flows.schedule(id, now + WATCH);
        }
    }

    fn give_up(&mut self, id: u64) {
        if let Some(flow) = self.flows.get_mut(id) {
            // Its reset goes out at the turn that this asks for.
            flow.cell.tcp().abort();
            self.make_runnable(id);
        }
    }

    /// A watched flow did not open in time. Flows to the same address through the same router, if they wait for something,
    /// wait in vain.
    pub(super) fn on_watch_over(&mut self, id: u64, work: &mut Work, now: Instant) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        let (role, tuple) = (flow.role, flow.tuple);
        self.remove_flow(id, End::Silent, now);
        let lost = matches!(role, Role::Watched { lost: Some(_) });
        if !lost || !self.peers.get(tuple.peer).is_some_and(|slot| slot.standing.is_doubted()) {
            return;
        }
        let waits = |flow: &Flow| {
            flow.role == Role::Dialled && flow.tuple.remote.ip() == tuple.remote.ip() && flow.cell.tcp().is_owed()
        };
        for id in self.flows.of(tuple.peer) {
            if self.flows.get_mut(id).is_some_and(|flow| waits(flow)) {
                self.reset_flow(id, work, now);
            }
        }
    }

    /// A flow is gone. Returns whether somebody still waits for what it was to be: a rival has taken its place then.
    pub(super) fn hand_over(&mut self, flow: &mut Flow, end: End, now: Instant) -> bool {
        if let Role::Rival(first) = flow.role {
            if end == End::Refused
                && let Some(answer) = self.flows.get_mut(first).and_then(|flow| flow.answer.take())
            {
                // The target itself has answered, by whatever way.
                drop(answer.send(Err(DialError::Refused { target: flow.target })));
                self.give_up(first);
            }
            return false;
        }
        let Some(Race { rest, at, rivals }) = flow.race.take() else { return false };
        let mut alive: Vec<u64> = rivals.into_iter().filter(|id| self.flows.get_mut(*id).is_some()).collect();
        if flow.answer.as_ref().is_none_or(|answer| answer.is_closed()) || end == End::Refused || alive.is_empty() {
            alive.into_iter().for_each(|rival| self.watch(rival, None, now));
            return false;
        }
        let heir = alive.remove(0);
        for rival in &alive {
            if let Some(flow) = self.flows.get_mut(*rival) {
                flow.role = Role::Rival(heir);
            }
        }
        if let Some(heir) = self.flows.get_mut(heir) {
            heir.role = Role::Dialled;
            heir.answer = flow.answer.take();
            heir.race = Some(Race { rest, at, rivals: alive });
        }
        self.flows.schedule(heir, at);
        true
    }

    /// Looks at the routers that are or could be in use: gives up those that are silent while another one answers, and asks those that
    /// are doubted.
    pub(super) fn fail_over(&mut self, work: &mut Work, now: Instant) {
        self.looked = now;
        let routers: Vec<SlotId> =
            self.peers.routers().filter(|(_, slot)| slot.is_watched()).map(|(id, _)| id).collect();
        for id in routers.iter().copied() {
            let heard = |other: &SlotId| self.peers.get(*other).and_then(|slot| slot.path.last_received());
            let others = routers.iter().filter(|other| **other != id).map(heard);
            let silent = self.peers.get(id).and_then(|slot| slot.path.silent_since());
            match standing::judge(silent, others, now) {
                Verdict::Sound => {}
                // It itself, too: it may have nothing to say because its targets have not.
                Verdict::Overdue if routers.len() > 1 => routers.iter().for_each(|asked| self.ask(*asked, work, now)),
                Verdict::Overdue => {}
                Verdict::Silent => self.on_silent(id, work, now),
            }
        }
        for id in routers {
            let doubt = self.peers.get_mut(id).and_then(|slot| slot.standing.probe(now));
            match doubt {
                None => {}
                Some(Doubt::Silent) => self.ask(id, work, now),
                Some(Doubt::CutOff(remote)) => {
                    let target = guildnet_model::Target::from(remote);
                    let rival = self.next_own();
                    if let Ok((tuple, local)) = self.place(id, remote.ip(), target) {
                        self.insert_flow(rival, tuple, local, target, Role::Watched { lost: None }, now);
                        self.watch(rival, None, now);
                    }
                }
            }
        }
    }

    /// When [`Node::fail_over`] has something to do.
    pub(super) fn fail_over_due(&self) -> Option<Instant> {
        let several = self.peers.routers().nth(1).is_some();
        let due = |(_, slot): (SlotId, &Slot)| {
            let judged = slot.path.silent_since().filter(|_| several).map(|at| standing::next_look(at, self.looked));
            judged.into_iter().chain(slot.standing.next()).min()
        };
        self.peers.awake().filter(|(_, slot)| !slot.probe).filter_map(due).min()
    }

    /// Asks a router for a sign of life, unless there was one just now.
    fn ask(&mut self, id: SlotId, work: &mut Work, now: Instant) {
        let Some(slot) = self.peers.get_mut(id) else { return };
        if slot.path.last_received().is_some_and(|at| standing::is_of_now(at, now)) {
            return;
        }
        // Nothing if that is being tried already.
        if let Some(length) = slot.tunnel.begin(now, &mut work.plain) {
            slot.path.search(now, &mut self.actions);
            self.send_message(id, &work.plain[..length], now);
        }
    }

    /// A router is given up: its flows are reset, so that their applications dial again at once.
    fn on_silent(&mut self, id: SlotId, work: &mut Work, now: Instant) {
        let Some(slot) = self.peers.get_mut(id) else { return };
        if slot.standing.doubt(Doubt::Silent, now) {
            tracing::info!(router = ?slot.key, flows = slot.flows, "the router is silent, another one is not");
        }
        for flow_id in self.flows.of(id) {
            let Some(flow) = self.flows.get_mut(flow_id) else { continue };
            if flow.cell.tcp().phase() != Phase::Connecting {
                self.reset_flow(flow_id, work, now);
            } else if let Some(race) = &mut flow.race {
                race.at = now;
                self.make_runnable(flow_id);
            }
        }
    }

    /// A number for a flow that no dialler knows: theirs count up from one.
    pub(super) fn next_own(&mut self) -> u64 {
        const OWN: u64 = 1 << 63;
        self.rivals += 1;
        OWN | self.rivals
    }
}
