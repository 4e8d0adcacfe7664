//! Proof of life: streams to running machines, and what they answered when somebody booted as them.
//!
//! Nothing here is stored: a key server that starts anew asks anew. Time is told by a clock that nobody sets, so that
//! none who sets a clock makes a machine seem silent.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use latchkey_protocol::encoding::Bytes;
use latchkey_protocol::ids::{ClientName, RequestId};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::admission::STREAMS_LIMIT;
use crate::policy::Life;

/// Between two beats of a stream, unless the configuration says otherwise.
pub const BEAT: Duration = Duration::from_secs(10);
/// Boot sessions of one client that are being asked about; the one that was looked at longest ago gives way.
const ASKED_LIMIT: usize = 32;
/// How long a boot session is remembered that does not ask any more.
pub(super) const FORGOTTEN: Duration = Duration::from_secs(900);
/// Challenges that wait on one stream; a machine that reads none is as good as silent.
const WAITING_LIMIT: usize = 64;

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
    asked: Vec<Asked>,
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
    /// The last question: over which stream, when, and what.
    question: Option<(u64, Duration, Challenge)>,
    answered: bool,
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

    /// The time between two beats.
    pub fn beat(&self) -> Duration {
        self.beat
    }

    /// Opens a stream, in place of the one that the client had; `None` if there are too many.
    pub fn open(&self, client: &ClientName) -> Option<LifeStream> {
        let mut state = self.lock();
        let open = state.values().filter(|of| of.stream.is_some()).count();
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
        let Some(of) = state.get_mut(client) else {
            return Life::Gone;
        };
        let open = of.stream.as_ref().map(|stream| stream.number);
        let found = of
            .asked
            .iter_mut()
            .find(|asked| asked.is(request, ephemeral_key));
        let Some(asked) = found else {
            return if open.is_some() {
                Life::Waiting
            } else {
                Life::Gone
            };
        };
        asked.looked = now;
        if asked.answered {
            return Life::Alive;
        }
        let (two, four) = (self.beat * 2, self.beat * 4);
        let since = |then: Duration| now.saturating_sub(then);
        // It could still come, or come back: also when it was the key server that was away.
        let last = asked.question.map_or(asked.began, |(_, at, _)| at);
        let unasked = open.is_some() && asked.question.map(|(stream, ..)| stream) != open;
        let waits = unasked || since(last) < two || since(self.began) < two;
        if waits && since(asked.began) < four.max(two) {
            return if open.is_some() || asked.question.is_some() {
                Life::Waiting
            } else {
                Life::Gone
            };
        }
        Life::Silent
    }

    /// Asks the running machine because of a boot session, unless it was asked over the stream that is open now.
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
    ) -> Result<(), getrandom::Error> {
        let mut state = self.lock();
        let of = state.entry(client.clone()).or_default();
        of.asked
            .retain(|asked| now.saturating_sub(asked.looked) < FORGOTTEN);
        if !of
            .asked
            .iter()
            .any(|asked| asked.is(request, ephemeral_key))
        {
            if of.asked.len() >= ASKED_LIMIT
                && let Some(oldest) = (0..of.asked.len()).min_by_key(|at| of.asked[*at].looked)
            {
                of.asked.remove(oldest);
            }
            of.asked.push(Asked {
                request,
                ephemeral_key: *ephemeral_key,
                peer,
                began: now,
                looked: now,
                question: None,
                answered: false,
            });
        }
        let found = of
            .asked
            .iter_mut()
            .find(|asked| asked.is(request, ephemeral_key));
        let (Some(asked), Some(stream)) = (found, &of.stream) else {
            return Ok(());
        };
        if asked.answered
            || asked
                .question
                .is_some_and(|(number, ..)| number == stream.number)
        {
            return Ok(());
        }
        let mut challenge = Bytes([0; 32]);
        getrandom::fill(&mut challenge.0)?;
        asked.question = Some((stream.number, now, challenge));
        // Full or closed: the machine does not read, and so does not answer.
        let _ = stream.challenges.try_send(challenge);
        Ok(())
    }

    /// Takes a running machine's answer; the boot session because of which it was asked, and where that comes from. Each
    /// answer counts once.
    pub fn answer(
        &self,
        client: &ClientName,
        challenge: &Challenge,
    ) -> Option<(RequestId, IpAddr)> {
        let mut state = self.lock();
        let of = state.get_mut(client)?;
        let asked = of.asked.iter_mut().find(|asked| {
            !asked.answered && asked.question.is_some_and(|(.., sent)| sent == *challenge)
        })?;
        asked.answered = true;
        Some((asked.request, asked.peer))
    }

    /// Forgets a boot session: something was released to it, and the machine that comes up by it is no copy.
    pub fn forget(&self, client: &ClientName, request: RequestId, ephemeral_key: &Bytes<32>) {
        if let Some(of) = self.lock().get_mut(client) {
            of.asked.retain(|asked| !asked.is(request, ephemeral_key));
        }
    }

    /// Removes clients of which there is nothing to remember.
    pub fn maintain(&self, now: Duration) {
        let two = self.beat * 2;
        self.lock().retain(|_, of| {
            of.asked
                .retain(|asked| now.saturating_sub(asked.looked) < FORGOTTEN);
            let ended = of
                .ended
                .is_some_and(|ended| now.saturating_sub(ended) < two);
            of.stream.is_some() || ended || !of.asked.is_empty()
        });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ClientName, OfClient>> {
        // No code that holds the lock leaves a client half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Asked {
    fn is(&self, request: RequestId, ephemeral_key: &Bytes<32>) -> bool {
        self.request == request && self.ephemeral_key == *ephemeral_key
    }
}
