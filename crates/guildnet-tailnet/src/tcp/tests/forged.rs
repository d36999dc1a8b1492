//! Segments made by hand: what no far end in its right mind would send, and what one link alone would seldom bring.

use super::*;

/// A segment of the far end as somebody could forge it.
fn forged(seq: u32, ack: u32, flags: u8) -> Vec<u8> {
    segment(seq, ack, flags, 0)
}

/// The same with so much data.
fn segment(seq: u32, ack: u32, flags: u8, len: usize) -> Vec<u8> {
    let mut packets = Packets::new();
    let options = Options::default();
    let (from, to, flags) = (far_addr(), near_addr(), Flags::new(flags));
    packets.push(&Head { from, to, seq, ack, flags, window: 1000, options: &options }, len, |_| {});
    packets.iter().next().expect("one").to_vec()
}

#[test]
fn a_reset_must_hit_the_very_place() {
    let mut world = ours(22, Way::default(), Way::default()).open();
    let next = world.near.tcp().receive.as_ref().expect("open").acknowledged();
    let send = &world.near.tcp().send;
    let ack = send.number(send.next());
    for off in [1, 1000, 0xffff_0000] {
        world.near.take(world.now, &forged(next.wrapping_add(off), ack, Flags::RST));
        assert_eq!(world.near.tcp().phase(), Phase::Open, "{off}");
    }
    world.near.take(world.now, &forged(next, ack, Flags::SYN));
    assert_eq!(world.near.tcp().phase(), Phase::Open);
    world.near.take(world.now, &forged(next, ack.wrapping_add(100_000), Flags::ACK));
    world.exchange(1000, 1000, 10_000 * MS);
    let next = world.near.tcp().receive.as_ref().expect("open").acknowledged();
    world.near.take(world.now, &forged(next, ack, Flags::RST));
    assert_eq!(world.near.tcp().phase(), Phase::Closed(End::Reset));
}

#[test]
fn an_answer_to_another_syn_is_not_taken() {
    let now = Instant::now();
    let mut tcp = Tcp::connect(setup(near_addr(), far_addr(), 7), now);
    let mut packets = Packets::new();
    tcp.output(now, &mut packets);
    for (ack, flags) in [(7, Flags::SYN | Flags::ACK), (9, Flags::RST | Flags::ACK), (8, Flags::SYN)] {
        let segment = forged(1, ack, flags);
        tcp.input(now, &Segment::read(&segment).expect("TCP"));
        assert_eq!(tcp.phase(), Phase::Connecting);
    }
    let refusal = forged(1, 8, Flags::RST | Flags::ACK);
    tcp.input(now, &Segment::read(&refusal).expect("TCP"));
    assert_eq!(tcp.phase(), Phase::Closed(End::Refused));
}

#[test]
fn a_far_end_that_remembers_an_older_flow_hears_that_there_is_none() {
    let now = Instant::now();
    let mut tcp = Tcp::connect(setup(near_addr(), far_addr(), 7), now);
    let put_out = |tcp: &mut Tcp| {
        let mut out = Packets::new();
        tcp.output(now, &mut out);
        let said = |packet: &[u8]| {
            let segment = Segment::read(packet).expect("TCP");
            (segment.seq, [Flags::SYN, Flags::RST, Flags::ACK].map(|flag| segment.flags.any(flag)))
        };
        out.iter().map(said).collect::<Vec<_>>()
    };
    let (syn, reset) = ((7, [true, false, false]), (12_345, [false, true, false]));
    assert_eq!(put_out(&mut tcp), [syn]);
    // The reset first, and what it makes way for. Only once: a far end that does not care is asked by the clock.
    let remembered = forged(500, 12_345, Flags::ACK);
    for said in [vec![reset, syn], vec![reset]] {
        tcp.input(now, &Segment::read(&remembered).expect("TCP"));
        assert_eq!(put_out(&mut tcp), said);
        assert_eq!(put_out(&mut tcp), []);
    }
    let answer = forged(1, 8, Flags::SYN | Flags::ACK);
    tcp.input(now, &Segment::read(&answer).expect("TCP"));
    assert_eq!(tcp.phase(), Phase::Open);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever comes with the right addresses: no panic, nothing kept beyond the window, and the flow answers to the end.
    #[test]
    fn any_segments_are_survived(
        seed: u64,
        segments in prop::collection::vec((any::<i32>(), any::<i32>(), any::<u8>(), any::<u16>(), prop::collection::vec((any::<i16>(), any::<i16>()), 0..4), 0_usize..1200), 1..60),
        near in any::<bool>(),
    ) {
        let mut world = ours(seed, Way::default(), Way::default()).open();
        world.near.write(&[1; 20_000]);
        for (seq, ack, flags, window, blocks, len) in segments {
            let (from, to) = (far_addr(), near_addr());
            let tcp = world.near.tcp();
            // Mostly near what is waited for.
            let shift = if near { 12 } else { 0 };
            let seq = tcp.receive.as_ref().expect("open").acknowledged().wrapping_add((seq >> shift) as u32);
            let una = tcp.send.number(tcp.send.una());
            let ack = una.wrapping_add((ack >> (shift * 2)) as u32);
            let mut options = Options::default();
            for (start, end) in blocks {
                options.add_sack(una.wrapping_add(start as u32), una.wrapping_add(end as u32));
            }
            let flags = Flags::new(flags & !(Flags::RST));
            let len = if options.sack().is_empty() { len } else { len / 2 };
            let mut packets = Packets::new();
            packets.push(&Head { from, to, seq, ack, flags, window, options: &options }, len, |data| data.fill(3));
            world.near.take(world.now, packets.iter().next().expect("one"));
            world.run(7 * MS);
            while world.near.read(world.now).is_some() {}
        }
        prop_assert!(world.near.tcp().budget.used() <= 4 << 20);
    }
}

/// The ranges that a packet names.
fn ranges(packet: &[u8]) -> Vec<(u32, u32)> {
    Segment::read(packet).expect("TCP").options.sack().to_vec()
}

#[test]
fn all_that_came_out_of_order_in_one_turn_is_told() {
    const LEN: usize = 1000;
    let mut world = ours(23, Way::default(), Way::default()).open();
    world.near.tcp().sacks = true;
    let next = world.near.tcp().receive.as_ref().expect("open").acknowledged();
    let sender = &world.near.tcp().send;
    let ack = sender.number(sender.next());
    let send = |world: &mut World<Ours>, number: u32| {
        let seq = next.wrapping_add(number * LEN as u32);
        world.near.take(world.now, &segment(seq, ack, Flags::ACK, LEN));
    };
    // Every second one is lost.
    for number in 0..10 {
        send(&mut world, 2 * number + 1);
    }
    let range = |number: u32| {
        let start = next.wrapping_add(number * LEN as u32);
        (start, start.wrapping_add(LEN as u32))
    };
    let mut out = Packets::new();
    world.near.put(world.now, &mut out);
    let told: Vec<_> = out.iter().map(ranges).collect();
    let newest_first = |numbers: [u32; 4]| numbers.map(range).to_vec();
    assert_eq!(told, [newest_first([7, 5, 3, 1]), newest_first([15, 13, 11, 9]), newest_first([19, 17, 15, 13])]);

    // One that comes again, and one more: an acknowledgement names both, and then there is nothing more to say.
    send(&mut world, 19);
    send(&mut world, 21);
    out.clear();
    world.near.put(world.now, &mut out);
    let told: Vec<_> = out.iter().map(ranges).collect();
    assert_eq!(told, [newest_first([19, 21, 19, 17])]);
}
