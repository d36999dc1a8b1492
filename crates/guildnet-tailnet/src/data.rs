//! The data task: everything of one connector that touches packets, run to completion on one shard thread.
//!
//! A turn takes what the socket has, decrypts it, hands it to its flow, wakes the application, collects what the flows put
//! out, encrypts it into one super-packet and sends that; then other connectors of the shard get theirs. Nothing here is
//! locked but a flow's buffers, nothing is queued without bound. Steps in detail: `ingress`, `listen`, `egress`, `dial`, `race`; what is
//! known of peers: `peers`; relays and own addresses: `relays`, `locate`; what is told: `report`.

mod dial;
mod egress;
mod flows;
mod ingress;
mod listen;
mod locate;
mod peers;
mod race;
mod relays;
mod report;
mod rtts;
#[cfg(test)]
mod tests;

use std::{
    cell::RefCell,
    collections::{HashSet, VecDeque},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use guildnet_model::{ConnectorSpec, ConnectorState, Dropped};
use tokio::{
    sync::{mpsc, watch},
    task::yield_now,
    time::sleep_until,
};
use tracing::Instrument as _;

pub(crate) use self::report::set_state;

use self::{
    dial::Ports,
    flows::{Flow, Flows},
    listen::Listeners,
    locate::Locator,
    peers::{Peers, SlotId},
    relays::Relays,
};
use crate::{
    connector::{Command, Ends},
    control::{self, ControlConfig, ControlEvent, Keys, LocalReport},
    health::{Control, Facts},
    machine::Machine,
    netmap::NetMap,
    packet::Packets,
    path::Action,
    relay::RelayEvent,
    routes::{Routes, Told},
    state::Identity,
    tcp::Budget,
    udp::{self, Batch, Link, Received},
    wg::OwnKey,
};

/// Packets that a connector may receive, and send, in one turn before others get theirs: about 0.3 ms of work.
const BUDGET: usize = 256;
/// Events taken in one turn from a channel that has many.
const EVENTS: usize = 64;
/// Events of the control connection that may wait; it waits if there are more.
const WAITING_CONTROL: usize = 16;
/// The largest datagram that can hold anything for us: a packet of the inner MTU and its overhead, with room to spare for
/// peers that pad.
const PLAIN: usize = 2048;

/// What a data task starts with.
pub(crate) struct Setup {
    pub(crate) spec: ConnectorSpec,
    pub(crate) tls: Arc<rustls::ClientConfig>,
    pub(crate) identity: Arc<Identity>,
    pub(crate) socket: std::net::UdpSocket,
    /// Where the control connection runs.
    pub(crate) control: tokio::runtime::Handle,
    /// What happens to the machine.
    pub(crate) machine: watch::Receiver<Machine>,
    pub(crate) window: usize,
    pub(crate) memory: usize,
    pub(crate) max_flows: usize,
}

/// Buffers that one turn uses: one set for all connectors of a thread.
struct Scratch {
    received: Received,
    work: Work,
}

/// The part of them that steps pass on.
struct Work {
    /// A decrypted packet, or a message about to be sent.
    plain: Box<[u8]>,
    /// What a flow put out.
    packets: Packets,
    batch: Batch,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch {
        received: Received::new(),
        work: Work { plain: vec![0; PLAIN].into_boxed_slice(), packets: Packets::new(), batch: Batch::new() },
    });
}

fn with_scratch<R>(step: impl FnOnce(&mut Scratch) -> R) -> R {
    SCRATCH.with_borrow_mut(step)
}

/// One connector's data side.
struct Node {
    spec: ConnectorSpec,
    identity: Arc<Identity>,
    own: Arc<OwnKey>,
    window: usize,
    budget: Arc<Budget>,
    max_flows: usize,
    link: Link,
    map: Option<Arc<NetMap>>,
    routes: Routes,
    /// Which of the map's networks were told to be ignored.
    told: Told,
    peers: Peers,
    flows: Flows,
    ports: Ports,
    listeners: Listeners,
    relays: Relays,
    locator: Locator,
    /// What paths want to be sent; emptied by the step that filled it.
    actions: Vec<Action>,
    /// Flows that have received something, whose applications were not woken yet.
    fed: Vec<u64>,
    /// Flows that want a turn.
    runnable: VecDeque<u64>,
    /// How many flows there were that no dialler knows.
    rivals: u64,
    /// When the routers were last judged.
    looked: Instant,
    /// Flows that wait until their relay takes packets again.
    relay_waiting: HashSet<u64>,
    rung: Vec<u64>,
    facts: Facts,
    /// Whether something changed that may change the state.
    changed: bool,
    status: watch::Sender<guildnet_model::ConnectorStatus>,
    reports: watch::Sender<LocalReport>,
    /// What had happened to the machine when that was last looked at.
    machine: Machine,
    /// The address from which the world is reached, once that was looked at.
    source: Option<IpAddr>,
    /// Tells the control connection that its way is gone.
    moved: watch::Sender<()>,
    dropped: Dropped,
}

/// Runs a connector until it is cancelled. All that it started has ended when it returns.
pub(crate) async fn run(setup: Setup, ends: Ends) {
    let Ends { mut commands, status, bell, cancel } = ends;
    let Setup { spec, tls, identity, socket, control, mut machine, window, memory, max_flows } = setup;
    let link = match Link::new(socket) {
        Ok(link) => link,
        Err(error) => {
            let why = format!("the UDP socket can't be used: {error}");
            report::set_state(&status, ConnectorState::Failed { why, retry_in: None });
            return;
        }
    };
    let (control_tx, mut control_rx) = mpsc::channel(WAITING_CONTROL);
    let (relays, mut relay_rx) = Relays::new(identity.clone(), tls.clone());
    let locator = Locator::new(link.port());
    let reports = watch::Sender::new(LocalReport { endpoints: locator.endpoints(), home_relay: None });
    let config = ControlConfig {
        login_server: spec.login_server.clone(),
        tls,
        hostname: spec.hostname.clone(),
        keys: Keys::new(spec.auth_keys.clone()),
        identity: identity.clone(),
        ephemeral: spec.ephemeral,
    };
    // A child of its own: the control connection is ended last, so that it can still say goodbye.
    let moved = watch::Sender::new(());
    let controlling = control::run(config, reports.subscribe(), moved.subscribe(), control_tx, cancel.child_token());
    let control_task = control.spawn(controlling.in_current_span());
    let mut node_key = identity.watch_node();
    let mut node = Node {
        own: OwnKey::new(&node_key.borrow_and_update()),
        spec,
        identity,
        window,
        budget: Arc::new(Budget::new(memory)),
        max_flows,
        link,
        map: None,
        routes: Routes::default(),
        told: Told::default(),
        peers: Peers::default(),
        flows: Flows::new(bell.clone()),
        ports: Ports::new(),
        listeners: Listeners::default(),
        relays,
        locator,
        actions: Vec::new(),
        fed: Vec::new(),
        runnable: VecDeque::new(),
        rivals: 0,
        looked: Instant::now(),
        relay_waiting: HashSet::new(),
        rung: Vec::new(),
        facts: Facts::new(),
        changed: false,
        status,
        reports,
        machine: *machine.borrow_and_update(),
        source: None,
        moved,
        dropped: Dropped::default(),
    };
    loop {
        let now = Instant::now();
        let busy = with_scratch(|scratch| node.turn(scratch, now));
        node.publish(now);
        if busy {
            yield_now().await;
        }
        let due = node.next_due();
        tokio::select! {
            biased;
            () = cancel.cancelled() => break,
            Some(command) = commands.recv() => {
                let mut next = Some(command);
                for _ in 0..EVENTS {
                    let Some(command) = next else { break };
                    node.command(command, Instant::now());
                    next = commands.try_recv().ok();
                }
                if let Some(command) = next {
                    node.command(command, Instant::now());
                }
            }
            Some(event) = control_rx.recv() => node.on_control(event, Instant::now()),
            Some(event) = relay_rx.recv() => with_scratch(|scratch| {
                let mut next = Some(event);
                for _ in 0..EVENTS {
                    let Some(event) = next else { break };
                    node.on_relay(event, &mut scratch.work, Instant::now());
                    next = relay_rx.try_recv().ok();
                }
                if let Some(event) = next {
                    node.on_relay(event, &mut scratch.work, Instant::now());
                }
            }),
            Ok(()) = node_key.changed() => {
                let pair = node_key.borrow_and_update().clone();
                node.on_node_key(&pair, Instant::now());
            }
            Ok(()) = machine.changed() => node.on_machine(*machine.borrow_and_update(), Instant::now()),
            resolved = node.locator.resolved() => {
                let now = Instant::now();
                node.locator.add_servers(resolved, now);
                node.ask_for_own_address(now);
            }
            () = node.link.readable() => {}
            () = node.link.writable() => {}
            () = node.relays.room() => node.wake_relay_waiting(),
            () = bell.rung() => {}
            () = std::future::ready(()), if busy => {}
            () = wait_until(due) => {}
        }
    }
    with_scratch(|scratch| node.reset_flows(&mut scratch.work, Instant::now()));
    node.relays.stop().await;
    if let Err(error) = control_task.await {
        tracing::error!(%error, "the control connection's task panicked");
    }
    node.locator.stop().await;
    report::set_state(&node.status, ConnectorState::Stopped);
    // Last: its end tells the handle that all has ended.
    drop(commands);
}

async fn wait_until(due: Option<Instant>) {
    match due {
        Some(at) => sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

impl Node {
    /// One turn: receive, run timers, let flows send. Returns whether there is more to do at once.
    fn turn(&mut self, scratch: &mut Scratch, now: Instant) -> bool {
        let Scratch { received, work } = scratch;
        self.link.retry();
        let mut count = 0;
        while count < BUDGET && self.link.receive(received) {
            // An empty datagram costs a call, too.
            count += 1;
            for (from, datagram) in received.datagrams() {
                self.on_datagram(ingress::Source::Direct(from), datagram, work, now);
                count += 1;
            }
        }
        self.wake_fed();
        self.run_timers(work, now);
        let mut rung = std::mem::take(&mut self.rung);
        self.flows.bell().take(&mut rung);
        for id in rung.drain(..) {
            self.make_runnable(id);
        }
        self.rung = rung;
        let mut sent = 0;
        // At most one round, so that a flow that makes itself runnable again waits for the next turn.
        for _ in 0..self.runnable.len() {
            if sent >= BUDGET || self.link.is_blocked() {
                break;
            }
            let Some(id) = self.runnable.pop_front() else { break };
            sent += self.pump(id, work, now);
        }
        self.link.send(&mut work.batch);
        count >= BUDGET || (!self.runnable.is_empty() && !self.link.is_blocked())
    }

    fn run_timers(&mut self, work: &mut Work, now: Instant) {
        while let Some(id) = self.flows.pop_due(now) {
            self.make_runnable(id);
        }
        if self.peers.next_due().is_some_and(|at| at <= now) {
            let awake: Vec<_> = self.peers.awake().map(|(id, _)| id).collect();
            for id in awake {
                self.tick_peer(id, work, now);
            }
            self.peers.rest(now);
            self.changed = true;
        }
        if self.locator.next_due(self.peers.any_active(now)).is_some_and(|at| at <= now) {
            self.ask_for_own_address(now);
        }
        if self.fail_over_due().is_some_and(|at| at <= now) {
            self.fail_over(work, now);
        }
        self.relays.close_idle(now);
        self.choose_home(now);
    }

    fn tick_peer(&mut self, id: SlotId, work: &mut Work, now: Instant) {
        let Some(slot) = self.peers.get_mut(id) else { return };
        if slot.path.next().is_some_and(|at| at <= now) {
            slot.path.on_tick(now, &mut self.actions);
            self.act(id, now);
        }
        let Some(slot) = self.peers.get_mut(id) else { return };
        if slot.tunnel.next().is_some_and(|at| at <= now)
            && let Some(len) = slot.tunnel.on_tick(now, &mut work.plain)
        {
            self.send_message(id, &work.plain[..len], now);
        }
    }

    fn next_due(&self) -> Option<Instant> {
        [
            self.flows.next_due(),
            self.peers.next_due(),
            self.locator.next_due(self.peers.any_active(Instant::now())),
            self.relays.next_due(),
            self.fail_over_due(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Wakes the applications of flows that have received something.
    fn wake_fed(&mut self) {
        let mut fed = std::mem::take(&mut self.fed);
        for id in fed.drain(..) {
            if let Some(flow) = self.flows.get_mut(id) {
                flow.cell.wake();
            }
        }
        self.fed = fed;
    }

    fn make_runnable(&mut self, id: u64) {
        if self.flows.get_mut(id).is_some_and(Flow::queue) {
            self.runnable.push_back(id);
        }
    }

    /// Flows that wait for their relay get another look.
    fn wake_relay_waiting(&mut self) {
        for id in std::mem::take(&mut self.relay_waiting) {
            self.make_runnable(id);
        }
    }

    fn command(&mut self, command: Command, now: Instant) {
        match command {
            Command::Dial(dial) => self.dial(dial, now),
            Command::Probe { through, dial } => self.probe(&through, dial, now),
            // Who does not wait any more drops what it would get, and that closes the port again.
            Command::Listen { port, answer } => drop(answer.send(self.listeners.listen(port))),
            Command::Snapshot(answer) => {
                // Nobody waits any more: fine.
                let _ = answer.send(self.snapshot(now));
            }
        }
    }

    fn on_control(&mut self, event: ControlEvent, now: Instant) {
        self.changed = true;
        match event {
            // After a loss the cause is more telling than that it is tried again.
            ControlEvent::Connecting => {}
            ControlEvent::NeedsKey { why } => self.facts.control = Control::NeedsKey { why },
            ControlEvent::Registered => {
                if !self.facts.has_map {
                    self.facts.control = Control::Up;
                }
            }
            ControlEvent::Map(map) => {
                self.facts.control = Control::Up;
                self.facts.has_map = true;
                let expiry = |map: &NetMap| map.self_node.info.key_expiry;
                if self.map.as_deref().is_some_and(|known| expiry(known) != expiry(&map)) {
                    // It is told if the new one is near, too.
                    self.facts.key_expires = None;
                }
                with_scratch(|scratch| self.apply_map(map, &mut scratch.work, now));
            }
            ControlEvent::KeyExpiring { at } => {
                self.facts.on_key_expiring(at.into_std().duration_since(now), SystemTime::now());
            }
            ControlEvent::Down { why, retry_in } => self.facts.control = Control::Down { why, retry_in },
        }
    }

    fn on_relay(&mut self, event: RelayEvent, work: &mut Work, now: Instant) {
        match event {
            RelayEvent::Packet { region, from, data } => {
                self.on_datagram(ingress::Source::Relay { region, from }, &data, work, now);
            }
            RelayEvent::Connected { region } => {
                self.changed = true;
                self.relays.on_connected(region);
                self.search_paths(region, work, now);
            }
            RelayEvent::Down { region, why } => {
                self.changed = true;
                self.relays.on_down(region, why, now);
            }
        }
    }

    /// The relay is there: whatever was sent into the void before is sent again.
    fn search_paths(&mut self, region: u16, work: &mut Work, now: Instant) {
        for id in self.peers.ids() {
            let home = self.relays.home();
            let Some(slot) = self.peers.get_mut(id) else { continue };
            if slot.relay.home.or(home) != Some(region) && home != Some(region) {
                continue;
            }
            if slot.is_wanted(now) {
                slot.path.search(now, &mut self.actions);
                if (slot.tunnel.is_trying() || !slot.tunnel.is_up())
                    && let Some(len) = slot.tunnel.begin_again(now, &mut work.plain)
                {
                    self.send_message(id, &work.plain[..len], now);
                }
                self.act(id, now);
                self.hurry_flows(id, now);
            }
        }
    }

    /// The server made us take another node key: no session and no flow outlives it.
    fn on_node_key(&mut self, pair: &ts_keys::NodeKeyPair, now: Instant) {
        self.own = OwnKey::new(pair);
        with_scratch(|scratch| self.reset_flows(&mut scratch.work, now));
        self.peers.clear();
        if let Some(map) = self.map.take() {
            with_scratch(|scratch| self.apply_map(map, &mut scratch.work, now));
        }
    }

    fn choose_home(&mut self, now: Instant) {
        let Some(map) = &self.map else { return };
        if let Some(region) = self.relays.choose_home(map, self.identity.home_relay(), now) {
            self.changed = true;
            tracing::debug!(region, "home relay chosen");
            self.reports.send_modify(|report| report.home_relay = Some(region));
        }
    }

    /// Something has happened to the machine. What matters is whether the world is reached from another address now, or was
    /// not heard for long: then nothing that was found before is worth anything. Other changes, as of a container's bridge,
    /// only add or remove addresses that are told.
    fn on_machine(&mut self, machine: Machine, now: Instant) {
        let slept = machine.sleeps != self.machine.sleeps;
        self.machine = machine;
        let source = self.locator.somebody().map(udp::source_towards);
        // With nobody known to ask for, any change may be the one.
        if slept || source.is_none_or(|source| source != self.source) {
            tracing::info!(slept, "this machine has moved: paths and connections are made anew");
            self.rebind(now);
        } else {
            self.locator.look();
            self.report_addresses();
        }
    }

    /// Another socket, and everything that was found by the old one anew. Sessions and flows live on.
    fn rebind(&mut self, now: Instant) {
        match udp::bind().and_then(Link::new) {
            Ok(link) => self.link = link,
            Err(error) => tracing::warn!(%error, "no new UDP socket: the old one is kept"),
        }
        self.locator.on_moved(self.link.port());
        self.source = None;
        self.ask_for_own_address(now);
        self.relays.reconnect(now);
        self.moved.send_replace(());
        for id in self.peers.ids() {
            if let Some(slot) = self.peers.get_mut(id) {
                slot.path.on_moved(now, &mut self.actions);
                self.act(id, now);
            }
        }
        self.changed = true;
    }

    /// Asks the STUN servers where we are seen, and looks at the machine's own addresses.
    fn ask_for_own_address(&mut self, now: Instant) {
        if self.source.is_none() {
            self.source = self.locator.somebody().and_then(udp::source_towards);
        }
        for (to, request) in self.locator.ask(now, &self.relays.near(now)) {
            self.link.send_one(to, &request);
        }
        self.report_addresses();
    }

    /// Tells the server our addresses if they changed. Returns whether they did.
    fn report_addresses(&mut self) -> bool {
        let endpoints = self.locator.endpoints();
        self.reports.send_if_modified(|report| {
            let changed = report.endpoints != endpoints;
            report.endpoints = endpoints;
            changed
        })
    }
}

/// How long after the last sign of life a router counts as there, whatever the map says.
const HEARD: Duration = Duration::from_secs(10);
