//! The challenges that are yet to be answered, beside the stream over which they came.
//!
//! A flood of boots must not hold up the answer that counts: a few are sent at once, the newest first, because what was
//! asked long ago is forgotten at the key server, and reading never waits for any of them.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use latchkey_protocol::encoding::Bytes;

/// How many answers are being sent at once.
pub const AT_ONCE: usize = 8;
/// How many challenges wait; the oldest gives way. A key server asks about fewer boot sessions at once.
const WAITING_LIMIT: usize = 64;

/// Challenges that wait, and how many are being answered.
#[derive(Debug, Default)]
pub struct Answers {
    waiting: RefCell<VecDeque<Bytes<32>>>,
    senders: Cell<usize>,
}

impl Answers {
    /// Takes `challenge`. Whether one more has to begin to send: it goes on until [`Answers::next`] has none.
    #[must_use]
    pub fn add(&self, challenge: Bytes<32>) -> bool {
        let mut waiting = self.waiting.borrow_mut();
        waiting.push_back(challenge);
        if waiting.len() > WAITING_LIMIT {
            waiting.pop_front();
        }
        let begins = self.senders.get() < AT_ONCE;
        if begins {
            self.senders.set(self.senders.get() + 1);
        }
        begins
    }

    /// The newest; if there is none, the one who asks sends no more.
    pub fn next(&self) -> Option<Bytes<32>> {
        let newest = self.waiting.borrow_mut().pop_back();
        if newest.is_none() {
            self.senders.set(self.senders.get().saturating_sub(1));
        }
        newest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_is_next_and_of_too_many_the_oldest_are_dropped() {
        let answers = Answers::default();
        for number in 0..100 {
            let _ = answers.add(Bytes([number; 32]));
        }
        let left: Vec<u8> = std::iter::from_fn(|| answers.next())
            .map(|challenge| challenge.0[0])
            .collect();
        assert_eq!(left, (36..100).rev().collect::<Vec<u8>>());
    }

    #[test]
    fn a_few_send_at_once_and_each_begins_anew_when_there_is_work() {
        let answers = Answers::default();
        let begun = (0..20).filter(|_| answers.add(Bytes([1; 32]))).count();
        assert_eq!(begun, AT_ONCE);
        while answers.next().is_some() {}
        assert!(answers.add(Bytes([2; 32])), "one has ended");
        assert!(!answers.add(Bytes([3; 32])), "the others have not");
    }
}
