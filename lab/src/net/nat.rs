//! What a gateway does to addresses: the kinds of NAT, and a move to another network.

use super::{NODE_LAN, WAN, forget_udp, replace_chain};
use crate::{
    command::{finish, in_netns, run},
    error::LabError,
    plan::{Behind, Nat},
};

/// Sets what a gateway does to addresses, and forgets what it did before.
pub(crate) fn set_nat(behind: &Behind, nat: Nat) -> Result<(), LabError> {
    let Behind { host_ns, gateway_ns, gateway, host, open, .. } = behind;
    let [gateway, host] = [gateway, host].map(ToString::to_string);
    if let Some(open) = open.map(|open| open.to_string()) {
        let own = format!("{open}/32");
        if nat == Nat::None {
            run("ip", &["-n", host_ns, "address", "replace", &own, "dev", NODE_LAN])?;
            run("ip", &["-n", host_ns, "route", "replace", "default", "via", &gateway, "src", &open])?;
            run("ip", &["-n", gateway_ns, "route", "replace", &own, "via", &host])?;
            // The gateway answers for the host's address, and at once: the kernel would wait for up to 0.8 s.
            let mut delay = in_netns(gateway_ns, "sh");
            delay.args(["-euc", &format!("echo 0 > /proc/sys/net/ipv4/neigh/{WAN}/proxy_delay")]);
            finish(delay, None)?;
            run("ip", &["-n", gateway_ns, "neighbour", "replace", "proxy", &open, "dev", WAN])?;
        } else if run("ip", &["-n", gateway_ns, "route", "show", &own])?.contains(&open) {
            run("ip", &["-n", gateway_ns, "neighbour", "del", "proxy", &open, "dev", WAN])?;
            run("ip", &["-n", gateway_ns, "route", "del", &own])?;
            run("ip", &["-n", host_ns, "route", "replace", "default", "via", &gateway])?;
            run("ip", &["-n", host_ns, "address", "del", &own, "dev", NODE_LAN])?;
        }
    } else if nat == Nat::None {
        return Err(LabError::Usage { what: format!("no address is left for a host behind {gateway_ns} without NAT") });
    }
    for (table, chain, rules) in nat_rules(behind, nat) {
        replace_chain(gateway_ns, table, chain, &rules)?;
    }
    forget_udp(gateway_ns)
}

/// Gives a gateway and the host behind it other addresses, as when a person takes a machine to another network. What went
/// through is forgotten.
pub(crate) fn renumber(old: &Behind, new: &Behind, nat: Nat) -> Result<(), LabError> {
    let Behind { host_ns, gateway_ns, gateway, .. } = old;
    // Whatever it was: its addresses are the old ones.
    set_nat(old, Nat::default())?;
    for (namespace, link, from, to) in
        [(gateway_ns, WAN, old.outer, new.outer), (host_ns, NODE_LAN, old.host, new.host)]
    {
        run("ip", &["-n", namespace, "address", "del", &format!("{from}/24"), "dev", link])?;
        run("ip", &["-n", namespace, "address", "add", &format!("{to}/24"), "dev", link])?;
    }
    // It went with the address.
    run("ip", &["-n", host_ns, "route", "replace", "default", "via", &gateway.to_string()])?;
    let mut conntrack = in_netns(gateway_ns, "conntrack");
    conntrack.arg("-F");
    finish(conntrack, None)?;
    set_nat(new, nat)
}

/// Tables, chains and rules for a kind of NAT.
fn nat_rules(behind: &Behind, nat: Nat) -> [(&'static str, &'static str, String); 3] {
    let Behind { outer, host, open, .. } = behind;
    let open = open.map_or_else(String::new, |open| open.to_string());
    let (mut inward, mut outward, mut pass) = (String::new(), String::new(), String::new());
    match nat {
        Nat::None => {
            outward += &format!("-A GN-NAT ! -s {open} -j MASQUERADE\n");
            pass += &format!("-A GN-OPEN -d {open} -j ACCEPT\n");
        }
        Nat::FullCone => {
            inward += &format!("-A GN-CONE -p udp -j DNAT --to-destination {host}\n");
            outward += &format!("-A GN-NAT -s {host} -p udp -j SNAT --to-source {outer}\n-A GN-NAT -j MASQUERADE\n");
        }
        Nat::PortRestricted => outward += "-A GN-NAT -j MASQUERADE\n",
        Nat::Symmetric => outward += "-A GN-NAT -j MASQUERADE --random-fully\n",
    }
    [("nat", "GN-CONE", inward), ("nat", "GN-NAT", outward), ("filter", "GN-OPEN", pass)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Host, Plan};

    #[test]
    fn only_a_full_cone_and_no_nat_let_in_what_comes_unasked() {
        let mut plan = Plan::sample(&["a"]);
        plan.add_host(&Host::new("x")).expect("new");
        let rules = |name: &str, nat| nat_rules(&plan.behind(name).expect("there"), nat).map(|(_, _, rules)| rules);
        let cone = [
            "-A GN-CONE -p udp -j DNAT --to-destination 192.168.77.10\n",
            "-A GN-NAT -s 192.168.77.10 -p udp -j SNAT --to-source 10.99.0.11\n-A GN-NAT -j MASQUERADE\n",
            "",
        ];
        assert_eq!(rules("a", Nat::FullCone), cone);
        let none = ["", "-A GN-NAT ! -s 10.99.0.221 -j MASQUERADE\n", "-A GN-OPEN -d 10.99.0.221 -j ACCEPT\n"];
        assert_eq!(rules("x", Nat::None), none);
        assert_eq!(rules("x", Nat::PortRestricted), ["", "-A GN-NAT -j MASQUERADE\n", ""]);
        assert_eq!(rules("x", Nat::Symmetric), ["", "-A GN-NAT -j MASQUERADE --random-fully\n", ""]);
    }
}
