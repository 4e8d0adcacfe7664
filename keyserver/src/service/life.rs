//! Proof of life: streams to running machines, and what they answered when somebody booted as them.
//!
//! All boot sessions of a client share one question for each interval, and one answer is for all that wait for it: whoever
//! has a copy of the boot key may begin as many sessions as it likes and makes the running machine no slower to answer.
//! Nothing here is stored: a key server that starts anew asks anew. Time is told by a clock that nobody sets, so that
//! none who sets a clock makes a machine seem silent.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use latchkey_protocol::encoding::Bytes;
use latchkey_protocol::ids::{ClientName, RequestId};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::admission::STREAMS_LIMIT;
use crate::policy::{Life, Range};

/// Between two beats of a stream, unless the configuration says otherwise.
pub const BEAT: Duration = Duration::from_secs(10);
/// Beats after the key server's start in which a machine that has not come back yet may still do so.
pub(super) const GRACE_BEATS: u32 = 8;
/// The shortest time after which a machine is called silent or gone, however short the beats are: more than the longest pause
/// between two attempts of an agent.
const SHORTEST: Duration = Duration::from_secs(16);
/// Boot sessions of one client that are being asked about; of the network that has most of them, the one that was looked at longest
/// ago gives way.
const ASKED_LIMIT: usize = 32;
/// How long a boot session is remembered that does not ask any more.
pub(super) const FORGOTTEN: Duration = Duration::from_secs(900);
/// A boot session that did not ask for so long, and for two beats, begins anew. More than an agent's pause while it waits.
const LAPSED: Duration = Duration::from_secs(15);
/// Challenges that wait on one stream.
const WAITING_LIMIT: usize = 64;
/// Questions of one client that an answer is taken for, the newest ones: a slow machine may answer the one before.
const QUESTIONS_LIMIT: usize = 2;

/// A challenge, as it goes over a stream.
pub type Challenge = Bytes<32>;

/// Streams and questions of all clients.
pub(super) struct Lives {
    beat: Duration,
    limit: AtomicUsize,
    state: Mutex<HashMap<ClientName, OfClient>>,
    /// When the key server began to listen.
    began: Duration,
}

#[derive(Default)]
struct OfClient {
    stream: Option<Stream>,
    /// When the last stream ended.
    ended: Option<Duration>,
    /// Counts streams.
    streams: u64,
    /// Not answered yet, the oldest first.
    questions: Vec<Question>,
    /// Over which stream came the question that was answered last, and when it was answered.
    answered: Option<(u64, Duration)>,
    asked: Vec<Asked>,
}

impl OfClient {
    /// A stream whose reader is gone counts no more, though nobody has told of its end.
    fn is_connected(&self) -> bool {
        self.stream
            .as_ref()
            .is_some_and(|stream| !stream.challenges.is_closed())
    }
}

/// A challenge that was sent over a stream.
struct Question {
    stream: u64,
    at: Duration,
    challenge: Challenge,
}

struct Stream {
    number: u64,
    challenges: Sender<Challenge>,
}

/// A boot session because of which the running machine is asked.
struct Asked {
    request: RequestId,
    ephemeral_key: Bytes<32>,
    /// Where it comes from.
    peer: IpAddr,
    began: Duration,
    looked: Duration,
    /// Over which stream the machine was asked last, and since when this session waits for the answer.
    question: Option<(u64, Duration)>,
    answered: bool,
}

/// A boot session of which the running machine's answer says that it is a copy's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copied {
    /// Its request id.
    pub request: RequestId,
    /// Where it comes from.
    pub peer: IpAddr,
}

/// The key server's end of a stream: what to send. Dropping it ends the stream.
pub struct LifeStream {
    /// Challenges for the machine.
    pub challenges: Receiver<Challenge>,
    /// Between two beats.
    pub beat: Duration,
    number: u64,
    client: ClientName,
}

impl LifeStream {
    /// Whose stream it is.
    pub fn client(&self) -> &ClientName {
        &self.client
    }
}

impl Lives {
    /// No streams; `now` is the time by which all others are measured.
    pub fn new(now: Duration) -> Self {
        Self {
            beat: BEAT,
            limit: AtomicUsize::new(STREAMS_LIMIT),
            state: Mutex::default(),
            began: now,
        }
    }

    /// Sets the time between two beats.
    pub fn set_beat(&mut self, beat: Duration) {
        self.beat = beat;
    }

    /// Sets how many streams there may be.
    pub fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Ends a client's stream.
    pub fn end(&self, client: &ClientName, now: Duration) {
        if let Some(of) = self.lock().get_mut(client)
            && of.stream.take().is_some()
        {
            of.ended = Some(now);
        }
    }

    /// Whether a running machine of the client is connected.
    pub fn is_open(&self, client: &ClientName) -> bool {
        self.lock().get(client).is_some_and(OfClient::is_connected)
    }

    /// How long it is not known yet whether a running machine of the client comes back; `None` once it had the time. For where
    /// none is connected.
    pub fn may_return(&self, client: &ClientName, now: Duration) -> Option<Duration> {
        let mut state = self.lock();
        let mut of = state.get_mut(client);
        // Its reader is gone, and nobody has told of its end.
        if let Some(of) = &mut of
            && !of.is_connected()
            && of.stream.take().is_some()
        {
            of.ended = Some(now);
        }
        self.returns(of.as_deref(), now)
    }

    /// How long one that has no stream may be about to come back: its line was cut, or it was the key server that was away.
    fn returns(&self, of: Option<&OfClient>, now: Duration) -> Option<Duration> {
        let ended = of.and_then(|of| of.ended);
        let until = ended.map(|ended| ended + self.silence());
        let never_came = of.is_none_or(|of| of.streams == 0);
        let until = until.max(never_came.then(|| self.began + self.grace()));
        until?.checked_sub(now).filter(|left| !left.is_zero())
    }

    /// The time between two beats.
    pub fn beat(&self) -> Duration {
        self.beat
    }

    /// How long a machine may say nothing, or be without a stream, before it is called silent.
    fn silence(&self) -> Duration {
        (self.beat * 2).max(SHORTEST)
    }

    /// How long after the key server's start a machine may take to come back.
    fn grace(&self) -> Duration {
        (self.beat * GRACE_BEATS).max(SHORTEST)
    }

    /// Opens a stream, in place of the one that the client had; `None` if there are too many.
    pub fn open(&self, client: &ClientName) -> Option<LifeStream> {
        let mut state = self.lock();
        let open = state.values().filter(|of| of.is_connected()).count();
        let of = state.entry(client.clone()).or_default();
        if of.stream.is_none() && open >= self.limit.load(Ordering::Relaxed) {
            return None;
        }
        let (sender, challenges) = channel(WAITING_LIMIT);
        of.streams += 1;
        of.stream = Some(Stream {
            number: of.streams,
            challenges: sender,
        });
        Some(LifeStream {
            challenges,
            beat: self.beat,
            number: of.streams,
            client: client.clone(),
        })
    }

    /// Notes that a stream ended.
    pub fn close(&self, stream: &LifeStream, now: Duration) {
        let mut state = self.lock();
        if let Some(of) = state.get_mut(&stream.client)
            && of
                .stream
                .as_ref()
                .is_some_and(|open| open.number == stream.number)
        {
            of.stream = None;
            of.ended = Some(now);
        }
    }

    /// What is known of the running machine because of a boot session. Asks nobody.
    pub fn view(
        &self,
        client: &ClientName,
        request: RequestId,
        ephemeral_key: &Bytes<32>,
        now: Duration,
    ) -> Life {
        let mut state = self.lock();
        let silence = self.silence();
        let since = |then: Duration| now.saturating_sub(then);
        let returns = self.returns(state.get(client), now).is_some();
        let Some(of) = state.get_mut(client) else {
            return if returns { Life::Waiting } else { Life::Gone };
        };
        let open = of.stream.as_ref().map(|stream| stream.number);
        let found = of
            .asked
            .iter_mut()
            .find(|asked| asked.is(request, ephemeral_key));
        let Some(asked) = found else {
            return if open.is_some() || returns {
                Life::Waiting
            } else {
                Life::Gone
            };
        };
        // What was asked for it then says nothing of now.
        if !asked.answered && since(asked.looked) > silence.max(LAPSED) {
            asked.began = now;
            asked.question = None;
        }
        asked.looked = now;
        if asked.answered {
            return Life::Alive;
        }
        let last = asked.question.map_or(asked.began, |(_, at)| at);
        // However long the session waits: a stream that stands is asked before its machine is called silent.
        let unasked = open.is_some() && asked.question.map(|(stream, _)| stream) != open;
        if unasked || returns {
            return Life::Waiting;
        }
        if since(last) < silence {
            return if open.is_some() || asked.question.is_some() {
                Life::Waiting
            } else {
                Life::Gone
            };
        }
        Life::Silent
    }

    /// Asks the running machine because of a boot session, unless it was asked over the stream that is open now. A question
    /// of this interval serves all sessions; where the machine has answered within two intervals nothing is asked, and the
    /// session, which is returned, counts as answered.
    ///
    /// # Errors
    /// getrandom(2)'s.
    pub fn ask(
        &self,
        client: &ClientName,
        request: RequestId,
        ephemeral_key: &Bytes<32>,
        peer: IpAddr,
        now: Duration,
    ) -> Result<Option<Copied>, getrandom::Error> {
        let mut state = self.lock();
        let of = state.entry(client.clone()).or_default();
        let at = of.remember(request, ephemeral_key, peer, now);
        let Some(open) = of.stream.as_ref().map(|stream| stream.number) else {
            return Ok(None);
        };
        let asked = &of.asked[at];
        if asked.answered || asked.question.is_some_and(|(number, _)| number == open) {
            return Ok(None);
        }
        let heard = |(stream, at): (u64, Duration)| {
            stream == open && now.saturating_sub(at) < self.beat * 2
        };
        if of.answered.is_some_and(heard) {
            of.asked[at].answered = true;
            return Ok(Some(of.asked[at].copied()));
        }
        if of.question(open, now, self.beat)? {
            of.asked[at].question = Some((open, now));
        }
        Ok(None)
    }

    /// Whether an answer to this challenge is waited for.
    pub fn asks(&self, client: &ClientName, challenge: &Challenge) -> bool {
        let state = self.lock();
        let asks = |of: &OfClient| of.questions.iter().any(|sent| sent.challenge == *challenge);
        state.get(client).is_some_and(asks)
    }

    /// Takes a running machine's answer; the boot sessions that waited for it. `None` if nobody asked: each answer counts
    /// once.
    pub fn answer(
        &self,
        client: &ClientName,
        challenge: &Challenge,
        now: Duration,
    ) -> Option<Vec<Copied>> {
        let mut state = self.lock();
        let of = state.get_mut(client)?;
        let at = of
            .questions
            .iter()
            .position(|sent| sent.challenge == *challenge)?;
        let stream = of.questions.remove(at).stream;
        of.answered = Some((stream, now));
        let waiting = of.asked.iter_mut().filter(|asked| {
            !asked.answered && asked.question.is_some_and(|(over, _)| over == stream)
        });
        Some(
            waiting
                .map(|asked| {
                    asked.answered = true;
                    asked.copied()
                })
                .collect(),
        )
    }

    /// Forgets a boot session: something was released to it, and the machine that comes up by it is no copy.
    pub fn forget(&self, client: &ClientName, request: RequestId, ephemeral_key: &Bytes<32>) {
        if let Some(of) = self.lock().get_mut(client) {
            of.asked.retain(|asked| !asked.is(request, ephemeral_key));
        }
    }

    /// Removes clients of which there is nothing to remember.
    pub fn maintain(&self, now: Duration) {
        let silence = self.silence();
        let started = self.starts(now);
        self.lock().retain(|_, of| {
            of.asked
                .retain(|asked| now.saturating_sub(asked.looked) < FORGOTTEN);
            let ended = of
                .ended
                .is_some_and(|ended| now.saturating_sub(ended) < silence);
            of.stream.is_some() || ended || started || !of.asked.is_empty()
        });
    }

    /// Whether the key server has only just begun, and not every machine has had the time to come back.
    fn starts(&self, now: Duration) -> bool {
        now.saturating_sub(self.began) < self.grace()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ClientName, OfClient>> {
        // No code that holds the lock leaves a client half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OfClient {
    /// The place of a boot session among those that are asked about.
    fn remember(
        &mut self,
        request: RequestId,
        ephemeral_key: &Bytes<32>,
        peer: IpAddr,
        now: Duration,
    ) -> usize {
        self.asked
            .retain(|asked| now.saturating_sub(asked.looked) < FORGOTTEN);
        let known = |asked: &Asked| asked.is(request, ephemeral_key);
        if let Some(at) = self.asked.iter().position(known) {
            return at;
        }
        if self.asked.len() >= ASKED_LIMIT
            && let Some(at) = self.gives_way()
        {
            self.asked.remove(at);
        }
        self.asked.push(Asked {
            request,
            ephemeral_key: *ephemeral_key,
            peer,
            began: now,
            looked: now,
            question: None,
            answered: false,
        });
        self.asked.len() - 1
    }

    /// The place of the boot session that gives way to another: whoever begins a great many from one network loses his own.
    fn gives_way(&self) -> Option<usize> {
        let beside = |peer| {
            let network = Range::around(peer);
            let asked = self.asked.iter();
            asked.filter(|asked| network.contains(asked.peer)).count()
        };
        let places = self.asked.iter().enumerate();
        places
            .max_by_key(|(at, asked)| (beside(asked.peer), Reverse((asked.looked, *at))))
            .map(|(at, _)| at)
    }

    /// Sends a challenge over the stream `open`, unless one of this interval waits for its answer there. Whether there is a
    /// question now that an answer can come to.
    fn question(
        &mut self,
        open: u64,
        now: Duration,
        beat: Duration,
    ) -> Result<bool, getrandom::Error> {
        let there = |sent: &Question| sent.stream == open;
        let fresh = |sent: &Question| there(sent) && now.saturating_sub(sent.at) < beat;
        if self.questions.iter().any(fresh) {
            return Ok(true);
        }
        let mut challenge = Bytes([0; 32]);
        getrandom::fill(&mut challenge.0)?;
        let sent = self
            .stream
            .as_ref()
            .map(|stream| stream.challenges.try_send(challenge));
        match sent {
            Some(Ok(())) => {
                if self.questions.len() >= QUESTIONS_LIMIT {
                    self.questions.remove(0);
                }
                self.questions.push(Question {
                    stream: open,
                    at: now,
                    challenge,
                });
                Ok(true)
            }
            // The machine does not read: those that lie there for it are asked of it as well.
            Some(Err(TrySendError::Full(_))) => Ok(self.questions.iter().any(there)),
            Some(Err(TrySendError::Closed(_))) => {
                self.stream = None;
                self.ended = Some(now);
                Ok(false)
            }
            None => Ok(false),
        }
    }
}

impl Asked {
    fn copied(&self) -> Copied {
        Copied {
            request: self.request,
            peer: self.peer,
        }
    }

    fn is(&self, request: RequestId, ephemeral_key: &Bytes<32>) -> bool {
        self.request == request && self.ephemeral_key == *ephemeral_key
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(number: u8) -> (RequestId, Bytes<32>) {
        let request = format!("{number:032x}").parse().unwrap();
        (request, Bytes([number; 32]))
    }

    #[test]
    fn a_question_that_could_not_be_sent_was_not_asked() {
        let client: ClientName = "web-1".parse().unwrap();
        let lives = Lives::new(Duration::ZERO);
        let ask = |number, now| {
            let ((request, key), peer) = (session(number), IpAddr::from([192, 0, 2, 1]));
            lives.ask(&client, request, &key, peer, now).unwrap();
            let state = lives.lock();
            let asked = state[&client].asked.iter().find(|a| a.request == request);
            asked.unwrap().question.is_some()
        };
        let closed = lives.open(&client).unwrap();
        drop(closed);
        assert!(!ask(1, BEAT), "nobody is there to read it");
        // Unread ones that lie in the stream are asked of a later session as well.
        let _unread = lives.open(&client).unwrap();
        for number in 2..=u8::try_from(WAITING_LIMIT).unwrap() + 3 {
            assert!(ask(number, BEAT * u32::from(number)), "{number}");
        }
    }

    #[test]
    fn short_beats_call_no_machine_silent_that_an_agent_is_about_to_bring_back() {
        let client: ClientName = "web-1".parse().unwrap();
        let ((request, key), peer) = (session(1), IpAddr::from([192, 0, 2, 1]));
        for seconds in [1, 7, 10] {
            let mut lives = Lives::new(Duration::ZERO);
            lives.set_beat(Duration::from_secs(seconds));
            let view = |at: u64| lives.view(&client, request, &key, Duration::from_secs(at));
            let ask = |at: u64| {
                lives
                    .ask(&client, request, &key, peer, Duration::from_secs(at))
                    .unwrap()
            };
            let grace = (8 * seconds).max(16);
            assert_eq!(view(grace - 1), Life::Waiting, "{seconds}");
            assert_eq!(view(grace), Life::Gone, "{seconds}");
            // The line is cut while a copy boots: the agent has 15 s to be back.
            let stream = lives.open(&client).unwrap();
            lives.close(&stream, Duration::from_secs(100));
            ask(100);
            let silence = (2 * seconds).max(16);
            for at in 101..100 + silence {
                assert_eq!(view(at), Life::Waiting, "{seconds} {at}");
            }
            assert_eq!(view(100 + silence), Life::Silent, "{seconds}");
        }
    }
}
