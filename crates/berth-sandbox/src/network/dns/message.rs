//! The little of a DNS message that a forwarder has to look at (RFC 1035, section 4.1): the header and the one question.
//!
//! Everything behind the question is passed on unread.

/// Bytes of a header.
const HEADER: usize = 12;
/// The longest name there is, with its lengths.
const LONGEST_NAME: usize = 255;

/// Answer codes that mean "ask somebody else": the server failed, does not know the kind, or does not serve us.
const ELSEWHERE: [u8; 3] = [2, 4, 5];

/// A query as it came from a sandbox: a header and one question at least.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Query {
    bytes: Vec<u8>,
    /// Where the question ends.
    question_end: usize,
}

impl Query {
    /// Takes a message that is a query with one question; `None` for anything else, which deserves no answer.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let is_query = bytes.get(2)? & 0x80 == 0;
        let question_end = question_end(bytes)?;
        (is_query && count(bytes)? == 1).then(|| Self {
            bytes: bytes.to_vec(),
            question_end,
        })
    }

    /// The query under another id, so that the one sent out is ours and not an app's choice.
    pub(super) fn with_id(&self, id: u16) -> Vec<u8> {
        with_id(self.bytes.clone(), id)
    }

    /// `reply` under the id the sandbox used.
    pub(super) fn answered_by(&self, reply: Vec<u8>) -> Vec<u8> {
        with_id(reply, id(&self.bytes))
    }

    /// Whether `reply` answers this query, sent as `sent_id`: same id, a response, and the same question (letter case aside). A
    /// refusal may leave the question out.
    pub(super) fn is_answer(&self, reply: &[u8], sent_id: u16) -> bool {
        if reply.len() < HEADER || id(reply) != sent_id || reply[2] & 0x80 == 0 {
            return false;
        }
        let asked = &self.bytes[HEADER..self.question_end];
        match count(reply) {
            Some(1) => reply
                .get(HEADER..self.question_end)
                .is_some_and(|question| question.eq_ignore_ascii_case(asked)),
            Some(0) => code(reply) != 0,
            _ => false,
        }
    }

    /// "The server failed", for when no server gave an answer.
    pub(super) fn failed(&self) -> Vec<u8> {
        let mut reply = self.bytes[..self.question_end].to_vec();
        // A response, with the query's opcode and wish for recursion; recursion is available; SERVFAIL; one question, nothing else.
        reply[2] = 0x80 | (reply[2] & 0x79);
        reply[3] = 0x80 | 2;
        reply[6..HEADER].fill(0);
        reply
    }
}

/// Whether a reply says that another server might know more.
pub(super) fn ask_elsewhere(reply: &[u8]) -> bool {
    ELSEWHERE.contains(&code(reply))
}

fn id(message: &[u8]) -> u16 {
    u16::from_be_bytes([message[0], message[1]])
}

fn with_id(mut message: Vec<u8>, id: u16) -> Vec<u8> {
    message[..2].copy_from_slice(&id.to_be_bytes());
    message
}

fn code(message: &[u8]) -> u8 {
    message.get(3).map_or(0, |byte| byte & 0x0f)
}

/// How many questions the header announces.
fn count(message: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes([*message.get(4)?, *message.get(5)?]))
}

/// Where the first question ends: a name of labels (no pointers: there is nothing before it to point to), a type and a class.
fn question_end(message: &[u8]) -> Option<usize> {
    let mut at = HEADER;
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1 + length;
        if length == 0 {
            break;
        }
        if length > 63 || at - HEADER > LONGEST_NAME {
            return None;
        }
    }
    let end = at + 4;
    (end <= message.len()).then_some(end)
}

#[cfg(test)]
pub(in crate::network) mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use proptest::prelude::*;

    use super::*;

    /// A query for the A record of `name`.
    pub(in crate::network) fn query(id: u16, name: &str) -> Vec<u8> {
        let mut bytes = id.to_be_bytes().to_vec();
        bytes.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        for label in name.split('.') {
            bytes.push(label.len() as u8);
            bytes.extend(label.as_bytes());
        }
        bytes.extend([0, 0, 1, 0, 1]);
        bytes
    }

    /// The answer to `query` with one address.
    pub(in crate::network) fn reply(query: &[u8], address: [u8; 4]) -> Vec<u8> {
        let mut bytes = query.to_vec();
        bytes[2] |= 0x80;
        bytes[7] = 1;
        bytes.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        bytes.extend(address);
        bytes
    }

    #[test]
    fn only_the_answer_to_the_question_asked_is_taken() {
        let asked = Query::parse(&query(7, "app.example")).unwrap();
        let good = reply(&asked.with_id(99), [1, 2, 3, 4]);
        assert!(asked.is_answer(&good, 99));
        assert!(!asked.is_answer(&good, 98), "another id");
        assert!(!asked.is_answer(&asked.with_id(99), 99), "not a response");
        assert!(
            !asked.is_answer(&reply(&query(99, "abb.example"), [1, 2, 3, 4]), 99),
            "another question"
        );
        assert!(
            asked.is_answer(&reply(&query(99, "APP.example"), [1, 2, 3, 4]), 99),
            "letter case"
        );
        assert_eq!(asked.answered_by(good)[..2], 7u16.to_be_bytes());
    }

    #[test]
    fn a_failure_repeats_the_question_under_its_id() {
        let bytes = query(0x1234, "app.example");
        let failed = Query::parse(&bytes).unwrap().failed();
        assert_eq!(failed[..6], [0x12, 0x34, 0x81, 0x82, 0, 1]);
        assert_eq!(failed[12..], bytes[12..]);
        assert!(ask_elsewhere(&failed));
    }

    #[test]
    fn what_is_no_query_is_not_taken() {
        let good = query(1, "a.b");
        assert!(Query::parse(&good[..good.len() - 1]).is_none(), "cut short");
        assert!(Query::parse(&reply(&good, [1, 1, 1, 1])).is_none(), "a response");
        let mut two = good.clone();
        two[5] = 2;
        assert!(Query::parse(&two).is_none(), "two questions");
        let mut pointer = good;
        pointer[12] = 0xc0;
        assert!(Query::parse(&pointer).is_none(), "a compressed question");
    }

    proptest! {
        #[test]
        fn no_bytes_upset_it(bytes in proptest::collection::vec(any::<u8>(), 0..600), reply in proptest::collection::vec(any::<u8>(), 0..600), id: u16) {
            ask_elsewhere(&reply);
            if let Some(asked) = Query::parse(&bytes) {
                asked.is_answer(&reply, id);
                prop_assert!(asked.is_answer(&with_id(asked.failed(), id), id));
                prop_assert_eq!(asked.with_id(id).len(), bytes.len());
            }
        }

        #[test]
        fn a_query_with_any_tail_is_taken(name in "[a-z]{1,63}(\\.[a-z0-9-]{1,20}){0,5}", tail in proptest::collection::vec(any::<u8>(), 0..60)) {
            let mut bytes = query(5, &name);
            bytes.extend(tail);
            prop_assert!(Query::parse(&bytes).is_some());
        }
    }
}
