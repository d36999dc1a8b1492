//! Names that were resolved a moment ago. Pure: callers pass `now`.

use std::{
    collections::HashMap,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use super::HostName;

/// How long an answer is used at most, whatever its record says: a Service that was made anew is found within it.
const LONGEST: Duration = Duration::from_secs(30);
/// Names of one cluster that are remembered: more than a person opens in [`LONGEST`].
const NAMES: usize = 256;

/// What names led to, and until when that holds.
#[derive(Debug, Default)]
pub(super) struct Cache(HashMap<HostName, (Vec<Ipv4Addr>, Instant)>);

impl Cache {
    /// What a name leads to, if that is known and still holds.
    pub(super) fn get(&self, name: &HostName, now: Instant) -> Option<Vec<Ipv4Addr>> {
        self.0.get(name).filter(|(_, until)| now < *until).map(|(found, _)| found.clone())
    }

    /// Remembers an answer for as long as it holds. Where there is no room, what ends first goes.
    pub(super) fn put(&mut self, name: &HostName, found: Vec<Ipv4Addr>, holds: Duration, now: Instant) {
        if self.0.len() >= NAMES && !self.0.contains_key(name) {
            self.0.retain(|_, (_, until)| now < *until);
            if self.0.len() >= NAMES
                && let Some(first) = self.0.iter().min_by_key(|(_, (_, until))| *until).map(|(name, _)| name.clone())
            {
                self.0.remove(&first);
            }
        }
        self.0.insert(name.clone(), (found, now + holds.min(LONGEST)));
    }

    /// Forgets a name whose addresses turned out to be of no use.
    pub(super) fn forget(&mut self, name: &HostName) {
        self.0.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::tests::name;

    #[test]
    fn an_answer_holds_for_its_time_and_thirty_seconds_at_most() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        let ip = vec![Ipv4Addr::new(10, 96, 0, 80)];
        cache.put(&name("a.b"), ip.clone(), Duration::from_secs(5), now);
        cache.put(&name("c.d"), ip.clone(), Duration::from_secs(3600), now);
        cache.put(&name("e.f"), ip.clone(), Duration::ZERO, now);
        let at = |secs| now + Duration::from_secs(secs);
        assert_eq!(cache.get(&name("a.b"), at(4)), Some(ip.clone()));
        assert_eq!(cache.get(&name("a.b"), at(5)), None);
        assert_eq!(cache.get(&name("c.d"), at(29)), Some(ip));
        assert_eq!(cache.get(&name("c.d"), at(30)), None);
        assert_eq!(cache.get(&name("e.f"), now), None, "for this once only");
    }

    #[test]
    fn it_has_a_bound_and_what_ends_first_goes() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        for n in 0..=NAMES {
            let holds = Duration::from_secs(if n == 5 { 1 } else { 20 });
            cache.put(&name(&format!("n{n}.x")), vec![], holds, now);
        }
        assert_eq!(cache.0.len(), NAMES);
        assert_eq!(cache.get(&name("n5.x"), now), None);
        assert!(cache.get(&name(&format!("n{NAMES}.x")), now).is_some());
    }
}
