//! The body of an answer: whole, or the stream of a running machine's proof of life.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http_body_util::Full;
use hyper::body::{Body, Bytes, Frame, SizeHint};
use latchkey_protocol::wire::LifeLine;
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::service::Service;
use crate::service::life::LifeStream;

/// The body of an answer.
pub enum AnswerBody {
    /// All of it is there.
    Whole(Full<Bytes>),
    /// It goes on until the machine leaves, opens another stream, or the server stops.
    Life(LifeBody),
}

/// Lines of a stream: a beat now and at each interval, and each challenge at once.
pub struct LifeBody {
    service: Arc<Service>,
    stream: LifeStream,
    beats: Interval,
    count: u64,
}

impl AnswerBody {
    /// Whether it goes on without an end of its own.
    pub fn is_stream(&self) -> bool {
        matches!(self, Self::Life(_))
    }
}

impl LifeBody {
    /// The lines of `stream`.
    pub fn new(service: Arc<Service>, stream: LifeStream) -> Self {
        let mut beats = interval(stream.beat);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            service,
            stream,
            beats,
            count: 0,
        }
    }

    fn poll_line(&mut self, context: &mut Context<'_>) -> Poll<Option<LifeLine>> {
        match self.stream.challenges.poll_recv(context) {
            Poll::Ready(challenge) => return Poll::Ready(challenge.map(LifeLine::Challenge)),
            Poll::Pending => {}
        }
        ready!(self.beats.poll_tick(context));
        let beat = LifeLine::Beat(self.count);
        self.count = self.count.wrapping_add(1);
        Poll::Ready(Some(beat))
    }
}

impl Drop for LifeBody {
    fn drop(&mut self) {
        self.service.close_life(&self.stream);
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(whole) => Pin::new(whole).poll_frame(context),
            Self::Life(life) => {
                let line = ready!(life.poll_line(context));
                Poll::Ready(line.map(|line| {
                    let mut text =
                        serde_json::to_vec(&line).expect("a line has only a number or bytes");
                    text.push(b'\n');
                    Ok(Frame::data(Bytes::from(text)))
                }))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(whole) => whole.is_end_stream(),
            Self::Life(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(whole) => whole.size_hint(),
            Self::Life(_) => SizeHint::default(),
        }
    }
}
