//! Questions to the cluster's DNS and its answers, as bytes (RFC 1035 section 4). Pure.

use std::net::Ipv4Addr;

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RData, RecordType},
};

/// Aliases that are followed within one answer: two are usual, and a ring of them must end.
const ALIASES: usize = 8;

/// What is wanted of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Its IPv4 addresses.
    Addresses,
    /// The name that it leads to: an address asked for backwards.
    Pointer,
}

/// What the cluster's DNS said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// The addresses, and for how many seconds they hold.
    Addresses(Vec<Ipv4Addr>, u32),
    /// The name.
    Pointer(String),
    /// There is no such name, or nothing of that kind at it.
    Nothing,
}

/// A question that was put, to which an answer must fit.
#[derive(Clone, Debug)]
pub(super) struct Question {
    id: u16,
    query: Query,
    wanted: Wanted,
}

impl Question {
    /// Asks for a full name, given without the dot at its end. `None` if it can't be a name.
    pub(super) fn new(id: u16, name: &str, wanted: Wanted) -> Option<Self> {
        let mut name = Name::from_ascii(name).ok()?;
        name.set_fqdn(true);
        let kind = match wanted {
            Wanted::Addresses => RecordType::A,
            Wanted::Pointer => RecordType::PTR,
        };
        Some(Self { id, query: Query::query(name, kind), wanted })
    }

    /// Asks which name stands at an address (RFC 1035 section 3.5).
    pub(super) fn backwards(id: u16, ip: Ipv4Addr) -> Option<Self> {
        let [a, b, c, d] = ip.octets();
        Self::new(id, &format!("{d}.{c}.{b}.{a}.in-addr.arpa"), Wanted::Pointer)
    }

    /// The message.
    pub(super) fn to_bytes(&self) -> Option<Vec<u8>> {
        let mut message = Message::new(self.id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(self.query.clone());
        message.to_vec().ok()
    }

    /// Reads an answer.
    ///
    /// # Errors
    /// It is no answer to this question, or says that the server failed: in words.
    pub(super) fn read(&self, bytes: &[u8]) -> Result<Said, String> {
        let message = Message::from_vec(bytes).map_err(|_| "its answer is no DNS message".to_owned())?;
        let head = &message.metadata;
        let fits = head.id == self.id
            && head.message_type == MessageType::Response
            && head.op_code == OpCode::Query
            && message.queries.first() == Some(&self.query)
            && message.queries.len() == 1;
        if !fits {
            return Err("its answer belongs to another question".into());
        }
        match head.response_code {
            ResponseCode::NoError => Ok(self.content(&message)),
            ResponseCode::NXDomain => Ok(Said::Nothing),
            code => Err(format!("it answered: {code}")),
        }
    }

    /// Follows the aliases from the name that was asked for.
    fn content(&self, message: &Message) -> Said {
        let (mut name, mut ttl) = (self.query.name().clone(), u32::MAX);
        for _ in 0..=ALIASES {
            let here = || message.answers.iter().filter(|record| record.name == name);
            let mut found = Vec::new();
            for record in here() {
                match (&record.data, self.wanted) {
                    (RData::A(a), Wanted::Addresses) => {
                        found.push(a.0);
                        ttl = ttl.min(record.ttl);
                    }
                    (RData::PTR(to), Wanted::Pointer) => return Said::Pointer(to.0.to_ascii()),
                    _ => {}
                }
            }
            if !found.is_empty() {
                return Said::Addresses(found, ttl);
            }
            let alias = here().find_map(|record| match &record.data {
                RData::CNAME(to) => Some((to.0.clone(), record.ttl)),
                _ => None,
            });
            let Some((to, holds)) = alias else { break };
            (name, ttl) = (to, ttl.min(holds));
        }
        Said::Nothing
    }
}

#[cfg(test)]
pub(super) mod tests {
    use hickory_proto::rr::{
        Record,
        rdata::{A, CNAME, PTR},
    };

    use super::*;

    pub(crate) fn full(name: &str) -> Name {
        Name::from_ascii(format!("{name}.")).expect("a name")
    }

    /// The answer to a question, with these records.
    pub(crate) fn answer(question: &[u8], code: ResponseCode, records: Vec<Record>) -> Vec<u8> {
        let asked = Message::from_vec(question).expect("a question");
        let mut message = Message::response(asked.metadata.id, OpCode::Query);
        message.metadata.response_code = code;
        message.add_query(asked.queries[0].clone());
        message.add_answers(records);
        message.to_vec().expect("a message")
    }

    pub(crate) fn a(name: &str, ttl: u32, ip: [u8; 4]) -> Record {
        Record::from_rdata(full(name), ttl, RData::A(A(ip.into())))
    }

    fn cname(name: &str, ttl: u32, to: &str) -> Record {
        Record::from_rdata(full(name), ttl, RData::CNAME(CNAME(full(to))))
    }

    fn asked(name: &str) -> (Question, Vec<u8>) {
        let question = Question::new(7, name, Wanted::Addresses).expect("a question");
        let bytes = question.to_bytes().expect("bytes");
        (question, bytes)
    }

    #[test]
    fn addresses_come_with_the_shortest_time_on_the_way() {
        let (question, bytes) = asked("echo.default.svc.cluster.local");
        let name = "echo.default.svc.cluster.local";
        let records = vec![cname(name, 5, "other.cluster.local"), a("other.cluster.local", 30, [10, 96, 0, 80])];
        let said = question.read(&answer(&bytes, ResponseCode::NoError, records));
        assert_eq!(said, Ok(Said::Addresses(vec![[10, 96, 0, 80].into()], 5)));
        let stray = vec![a("elsewhere.cluster.local", 30, [10, 96, 0, 80])];
        assert_eq!(question.read(&answer(&bytes, ResponseCode::NoError, stray)), Ok(Said::Nothing), "of another name");
        assert_eq!(question.read(&answer(&bytes, ResponseCode::NXDomain, vec![])), Ok(Said::Nothing));
        let failed = question.read(&answer(&bytes, ResponseCode::ServFail, vec![]));
        assert!(failed.expect_err("failed").contains("it answered"));
    }

    #[test]
    fn a_ring_of_aliases_ends() {
        let (question, bytes) = asked("a.b");
        let ring = vec![cname("a.b", 5, "c.d"), cname("c.d", 5, "a.b")];
        assert_eq!(question.read(&answer(&bytes, ResponseCode::NoError, ring)), Ok(Said::Nothing));
    }

    #[test]
    fn an_address_is_asked_for_backwards() {
        let question = Question::backwards(1, [10, 96, 0, 10].into()).expect("a question");
        let name = "kube-dns.kube-system.svc.cluster.local";
        let record = Record::from_rdata(full("10.0.96.10.in-addr.arpa"), 30, RData::PTR(PTR(full(name))));
        let bytes = answer(&question.to_bytes().expect("bytes"), ResponseCode::NoError, vec![record]);
        assert_eq!(question.read(&bytes), Ok(Said::Pointer(format!("{name}."))));
    }

    #[test]
    fn what_answers_another_question_is_refused() {
        let (question, bytes) = asked("a.b");
        let good = answer(&bytes, ResponseCode::NoError, vec![a("a.b", 1, [10, 96, 0, 1])]);
        assert!(question.read(&good).is_ok());
        let other = Question::new(8, "a.b", Wanted::Addresses).expect("a question");
        assert!(other.read(&good).is_err(), "another number");
        let other = Question::new(7, "a.c", Wanted::Addresses).expect("a question");
        assert!(other.read(&good).is_err(), "another name");
        let other = Question::new(7, "a.b", Wanted::Pointer).expect("a question");
        assert!(other.read(&good).is_err(), "another kind");
        assert!(question.read(&bytes).is_err(), "the question itself");
    }

    #[test]
    fn no_bytes_panic() {
        let (question, bytes) = asked("a.b");
        let good = answer(&bytes, ResponseCode::NoError, vec![cname("a.b", 5, "c.d"), a("c.d", 1, [10, 96, 0, 1])]);
        proptest::proptest!(|(at in 0..good.len(), with: u8, cut in 0..good.len(), noise: Vec<u8>)| {
            let mut changed = good.clone();
            changed[at] = with;
            let _ = question.read(&changed);
            let _ = question.read(&good[..cut]);
            let _ = question.read(&noise);
        });
    }
}
