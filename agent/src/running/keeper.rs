//! What is done for one key server while the machine runs: a stream that is kept open, and heartbeats with what hangs on
//! them. The two go on side by side; neither ends.

use std::cell::{Cell, RefCell};
use std::fs;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use latchkey_protocol::ServerId;
use latchkey_protocol::encoding::{Bytes, hex};
use latchkey_protocol::wire::{HeartbeatAnswer, LifeAnswer, LifeLine, Version};
use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep, timeout};

use super::answers::Answers;
use super::board::Board;
use super::rest::{Rest, spread};
use super::{head, heartbeat, renewal, report, tickets};
use crate::failure::chain;
use crate::files::{self, Files, ServerFiles};
use crate::server::{ClientError, KeyServer, Life, Unreachable};

/// Between two beats of the stream, until the key server says otherwise, and within which limits it may.
const BEAT: Duration = Duration::from_secs(10);
const BEATS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(300)];
/// Between two heartbeats, as above.
const HEARTBEATS: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(24 * 3600)];
/// When a key server has spoken, and the answer is no; and when something was left undone.
const AFTER_REFUSAL: Duration = Duration::from_secs(900);
const AFTER_TROUBLE: Duration = Duration::from_secs(300);
/// A stream that stood for so long is no sign of trouble when it ends.
const STEADY: Duration = Duration::from_secs(60);
/// How often a challenge is answered, when no answer gets through, and after which pause.
const ANSWERS: u32 = 3;
const ANSWER_PAUSE: Duration = Duration::from_secs(1);

/// One key server, and who asks it.
#[derive(Debug)]
pub struct Keeper {
    files: Files,
    joined: ServerFiles,
    /// Replaced when the host certificate is.
    server: RefCell<Rc<KeyServer>>,
    board: Rc<Board>,
    life_every: Cell<Duration>,
    /// A heartbeat is due now.
    due: Notify,
    /// Whether one was taken since the last stream ended.
    heard: Cell<bool>,
    /// Under which epoch of the audit the tickets were looked after: headers are not read again, so that disks may sleep.
    settled: RefCell<Option<String>>,
    answers: Answers,
}

/// Why the stream ended.
#[derive(Debug, thiserror::Error)]
enum StreamEnd {
    #[error(transparent)]
    NotOpened(#[from] Unreachable),
    #[error(transparent)]
    Broken(#[from] ClientError),
    #[error("nothing came for {} s", .0.as_secs())]
    Silent(Duration),
}

impl Keeper {
    /// For `server`, made of the files `joined`.
    pub fn new(files: &Files, joined: ServerFiles, server: KeyServer, board: Rc<Board>) -> Self {
        board.link(&server.settings.id, "connecting");
        Self {
            files: files.clone(),
            joined,
            server: RefCell::new(Rc::new(server)),
            board,
            life_every: Cell::new(BEAT),
            due: Notify::new(),
            heard: Cell::new(false),
            settled: RefCell::new(None),
            answers: Answers::default(),
        }
    }

    /// Keeps the stream open and answers challenges. To be run within a [`tokio::task::LocalSet`].
    pub async fn listen(self: Rc<Self>) {
        let mut rest = Rest::of_stream();
        let mut told = false;
        loop {
            let begin = Instant::now();
            let end = self.follow_stream(&mut told).await;
            self.heard.set(false);
            if begin.elapsed() >= STEADY {
                rest.reset();
            }
            let why = chain(&end);
            self.board
                .link(&self.id(), &format!("not connected ({})", one_line(&why)));
            if !std::mem::replace(&mut told, true) {
                let id = self.id().short();
                log::warn!("key server {id}: {why}; trying on");
            }
            sleep(match end {
                StreamEnd::NotOpened(Unreachable::Final(_)) => spread(AFTER_REFUSAL),
                StreamEnd::NotOpened(error) => rest.next(error.retry_after()),
                StreamEnd::Broken(_) | StreamEnd::Silent(_) => rest.next(None),
            })
            .await;
        }
    }

    async fn follow_stream(self: &Rc<Self>, told: &mut bool) -> StreamEnd {
        match self.hear(told).await {
            Err(end) => end,
            Ok(never) => match never {},
        }
    }

    async fn hear(self: &Rc<Self>, told: &mut bool) -> Result<std::convert::Infallible, StreamEnd> {
        let server = self.server();
        let mut life = server
            .ask(async |client, address| client.life(address).await)
            .await?;
        let mut line = self.line(&mut life).await?;
        self.board.link(&self.id(), "connected");
        log::info!(
            "key server {} hears that this machine lives",
            self.id().short()
        );
        *told = false;
        if !self.heard.get() {
            self.due.notify_one(); // it may have been restarted, or put back to an earlier copy
        }
        let mut images = self.images_changed();
        loop {
            match line {
                LifeLine::Challenge(challenge) => {
                    if self.answers.add(challenge) {
                        spawn_local(self.clone().send_answers());
                    }
                }
                LifeLine::Beat(_) => {
                    let now = self.images_changed();
                    if std::mem::replace(&mut images, now) != now {
                        self.due.notify_one(); // before a reboot into the new image
                    }
                }
            }
            line = self.line(&mut life).await?;
        }
    }

    async fn line(&self, life: &mut Life) -> Result<LifeLine, StreamEnd> {
        let limit = 2 * self.life_every.get();
        match timeout(limit, life.next()).await {
            Ok(line) => Ok(line?),
            Err(_) => Err(StreamEnd::Silent(limit)),
        }
    }

    /// Answers what waits, until nothing does; also when the stream ends meanwhile, because an answer has its own connection.
    async fn send_answers(self: Rc<Self>) {
        while let Some(challenge) = self.answers.next() {
            self.answer(challenge).await;
        }
    }

    /// Somebody boots as this machine. That is worth a line in the journal, whatever comes of it.
    async fn answer(&self, challenge: Bytes<32>) {
        let (server, id) = (self.server(), self.id().short());
        log::warn!(
            "key server {id} asks whether this machine runs: another one boots with its boot key; answering that it does"
        );
        let answer = LifeAnswer {
            version: Version::default(),
            challenge,
        };
        for _ in 0..ANSWERS {
            let answered = server
                .ask(async |client, address| client.answer_challenge(address, &answer).await)
                .await;
            match answered {
                Ok(_) => return,
                Err(error @ Unreachable::Final(_)) => {
                    log::warn!("key server {id} did not take the answer: {}", chain(&error));
                    return;
                }
                Err(error) => log::warn!("key server {id} was not reached: {}", chain(&error)),
            }
            sleep(ANSWER_PAUSE).await;
        }
    }

    /// Sends heartbeats, and does what they lead to.
    pub async fn beat(self: Rc<Self>) {
        let mut rest = Rest::of_heartbeats();
        let mut told = None;
        loop {
            let (pause, trouble) = self.beat_once(&mut rest).await;
            if trouble != told {
                if let Some(trouble) = &trouble {
                    log::warn!("key server {}: {trouble}", self.id().short());
                }
                self.board.trouble(&self.id(), trouble.as_deref());
                told = trouble;
            }
            let _ = timeout(pause, self.due.notified()).await;
        }
    }

    /// The pause until the next one, and what was left undone.
    async fn beat_once(&self, rest: &mut Rest) -> (Duration, Option<String>) {
        match heartbeat::beat(&self.files, &self.server()).await {
            Ok(answer) => {
                rest.reset();
                self.heard.set(true);
                let seconds = |seconds: u32| Duration::from_secs(seconds.into());
                self.life_every
                    .set(seconds(answer.life_every).clamp(BEATS[0], BEATS[1]));
                let pause = seconds(answer.heartbeat_every).clamp(HEARTBEATS[0], HEARTBEATS[1]);
                match self.follow_up(&answer).await {
                    Ok(()) => (spread(pause), None),
                    Err(trouble) => (spread(pause.min(AFTER_TROUBLE)), Some(trouble)),
                }
            }
            Err(error @ Unreachable::Final(_)) => {
                // A key server of an earlier version has no heartbeats, but takes reports.
                let reported = report::send_once(&self.files, &self.server()).await;
                let why = reported.map_or_else(|error| chain(&error), |()| chain(&error));
                (spread(AFTER_REFUSAL), Some(why))
            }
            Err(error) => (rest.next(error.retry_after()), Some(chain(&error))),
        }
    }

    /// Each of them is tried, whatever becomes of the others; the first trouble is told.
    async fn follow_up(&self, answer: &HeartbeatAnswer) -> Result<(), String> {
        let head = head::take(&self.files, &self.id(), answer).map_err(|error| chain(&error));
        let reported = report::send_once(&self.files, &self.server()).await;
        let reported = reported.map_err(|error| chain(&error));
        let moved = self.move_tickets_on().await;
        let renewed = if answer.renew {
            self.renew().await
        } else {
            Ok(())
        };
        head.and(moved).and(renewed).and(reported)
    }

    /// Once in each boot, when a volume has none yet, and when the store was put back: it may not know what the headers hold.
    /// `bind` starts the service anew.
    async fn move_tickets_on(&self) -> Result<(), String> {
        let id = self.id();
        let epoch = head::load(&self.files, &id).map(|kept| hex(&kept.head.epoch.0));
        let epoch = epoch.unwrap_or_default();
        if self.settled.borrow().as_ref() == Some(&epoch) {
            return Ok(());
        }
        let mark = self.files.moved_on(&id);
        let is_moved = fs::read(&mark).is_ok_and(|under| under == epoch.as_bytes());
        if !is_moved || tickets::is_missing(&self.files, id).map_err(|error| chain(&error))? {
            let moved = tickets::move_on(&self.files, &self.server(), None).await;
            let moved = moved.map_err(|error| chain(&error))?;
            log::info!(
                "key server {}: tickets moved on in {} volumes",
                id.short(),
                moved.volumes
            );
            files::make_dir(&self.files.runtime())
                .and_then(|()| files::replace(&mark, epoch.as_bytes()))
                .map_err(|error| chain(&error))?;
        }
        self.settled.replace(Some(epoch));
        Ok(())
    }

    async fn renew(&self) -> Result<(), String> {
        let renewed = renewal::renew(&self.joined, &self.server()).await;
        let renewed = renewed.map_err(|error| chain(&error))?;
        *self.server.borrow_mut() = Rc::new(renewed);
        Ok(())
    }

    /// When the list of images was last written.
    fn images_changed(&self) -> Option<SystemTime> {
        fs::metadata(self.files.images()).ok()?.modified().ok()
    }

    fn server(&self) -> Rc<KeyServer> {
        self.server.borrow().clone()
    }

    fn id(&self) -> ServerId {
        self.joined.settings.id
    }
}

fn one_line(text: &str) -> String {
    text.lines().collect::<Vec<_>>().join("; ")
}
