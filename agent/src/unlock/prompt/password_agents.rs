//! systemd's password agents: a file in `/run/systemd/ask-password` asks, a datagram answers.
//!
//! Protocol: systemd.io/PASSWORD_AGENTS. The answer goes straight into locked memory and never into the kernel keyring,
//! where systemd-cryptsetup keeps typed passphrases for minutes: only `AcceptCached=1` would look there.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use latchkey_secret::SecretBytes;
use tokio::net::UnixDatagram;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::{FAILURE_PAUSE, Failures, PASSPHRASE_LIMIT, PromptResult, Question, dead_splash};
use crate::failure::printable;
use crate::flow::PromptLoss;

/// Columns of a text that leave some to type in, of 80.
const TEXT_LIMIT: usize = 50;
const FOLDER: &str = "/run/systemd/ask-password";
/// In the name of every file of ours, so that those of a killed agent are found.
const MARK: &str = "latchkey-";

/// A question that lies there. Dropping it takes it away: the agents end their prompts.
#[derive(Debug)]
pub struct Query {
    place: Place,
    task: JoinHandle<()>,
}

/// The text that people see, systemd-cryptsetup's own; a shorter one for a long name. The agents add some 30 columns: a prompt
/// that goes over two lines would get what the agent says above it in between.
fn text(question: &Question) -> String {
    let name = printable(&question.name);
    let text = format!("Please enter passphrase for disk {name}:");
    if text.chars().count() <= TEXT_LIMIT {
        text
    } else {
        format!("Unlock {name}:")
    }
}

/// Takes questions away whose agent was killed.
pub fn end_left_over() {
    clear_all(Path::new(FOLDER));
}

fn clear_all(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name.to_string_lossy().contains(MARK) {
            remove(&entry.path());
        }
    }
}

fn remove(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            log::warn!("failed to remove '{}': {error}", path.display());
        }
        _ => {}
    }
}

impl Query {
    /// Asks; `answer` gets the result unless the query is dropped first.
    pub fn show(
        question: &Question,
        failures: &Failures,
        answer: impl FnOnce(PromptResult) + Send + 'static,
    ) -> Self {
        Self::show_in(Path::new(FOLDER), question, failures, answer)
    }

    fn show_in(
        folder: &Path,
        question: &Question,
        failures: &Failures,
        answer: impl FnOnce(PromptResult) + Send + 'static,
    ) -> Self {
        let place = Place::new(folder);
        let asked = place.ask(question);
        let failures = failures.clone();
        let task = tokio::spawn(async move {
            let answered = match asked {
                Ok(socket) => tokio::select! {
                    answered = receive(&socket) => answered,
                    never = dead_splash::replace() => match never {},
                },
                Err(error) => Err(error),
            };
            if answered.is_ok() {
                failures.reset();
            }
            answer(match answered {
                Ok(Some(passphrase)) if !passphrase.is_empty() => Ok(passphrase),
                Ok(Some(_)) => Err(PromptLoss::Again),
                Ok(None) => {
                    sleep(FAILURE_PAUSE).await; // somebody pressed Ctrl-C or Esc, or holds it down
                    Err(PromptLoss::Again)
                }
                Err(error) => {
                    log::warn!("failed to ask systemd's password agents: {error}");
                    sleep(FAILURE_PAUSE).await;
                    Err(failures.count())
                }
            });
        });
        Self { place, task }
    }
}

impl Drop for Query {
    fn drop(&mut self) {
        self.task.abort();
        self.place.clear();
    }
}

/// The files of one question. Each has a name of its own, beside those of the processes that ask for other volumes; an agent
/// that has not yet seen the last one go would take the next one for it.
#[derive(Debug)]
struct Place {
    query: PathBuf,
    /// The agents look at names that begin with `ask.` only.
    unfinished: PathBuf,
    socket: PathBuf,
}

impl Place {
    fn new(folder: &Path) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let process = std::process::id();
        let path = |kind: &str| folder.join(format!("{kind}{MARK}{process}-{number}"));
        Self {
            query: path("ask."),
            unfinished: path("new."),
            socket: path("sck."),
        }
    }

    fn clear(&self) {
        for path in [&self.query, &self.unfinished, &self.socket] {
            remove(path);
        }
    }

    fn ask(&self, question: &Question) -> io::Result<UnixDatagram> {
        if let Some(folder) = self.query.parent() {
            fs::create_dir_all(folder)?;
        }
        remove(&self.socket); // of a process that was killed and had this id before
        let socket = UnixDatagram::bind(&self.socket)?;
        // Nobody knows of it before the query lies there: only root may answer.
        fs::set_permissions(&self.socket, fs::Permissions::from_mode(0o600))?;
        let query = format!(
            "[Ask]\n\
             PID={}\n\
             Socket={}\n\
             AcceptCached=0\n\
             Echo=0\n\
             NotAfter=0\n\
             Silent=0\n\
             Message={}\n\
             Icon=drive-harddisk\n\
             Id=cryptsetup:{}\n",
            std::process::id(),
            self.socket.display(),
            text(question),
            printable(&question.device.display().to_string()),
        );
        fs::write(&self.unfinished, query)?;
        fs::rename(&self.unfinished, &self.query)?;
        Ok(socket)
    }
}

/// `+` and the passphrase, ended by a zero byte; or `-`, somebody does not want to answer: `None`.
async fn receive(socket: &UnixDatagram) -> io::Result<Option<SecretBytes>> {
    let mut packet = SecretBytes::zeroed(PASSPHRASE_LIMIT).map_err(io::Error::other)?;
    loop {
        let length = socket.recv(packet.expose_secret_mut()).await?;
        let bytes = packet.expose_secret_mut();
        match bytes[..length].first() {
            Some(b'+') => {
                let end = bytes[1..length].iter().position(|byte| *byte == 0);
                let end = end.unwrap_or(length - 1);
                bytes.copy_within(1..=end, 0);
                packet.truncate(end);
                return Ok(Some(packet));
            }
            Some(b'-') => return Ok(None),
            _ => {} // no agent speaks like this
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram as Sender;

    use tokio::sync::oneshot;

    use super::*;

    fn question() -> Question {
        Question {
            name: "vda2_crypt".to_owned(),
            device: PathBuf::from("/dev/vda2"),
            options: "luks".to_owned(),
            wrong: 0,
        }
    }

    /// Asks and answers with `packet`.
    async fn answered(packet: &[u8]) -> Result<Vec<u8>, PromptLoss> {
        let folder = tempfile::tempdir().unwrap();
        let (sender, receiver) = oneshot::channel();
        let query = Query::show_in(
            folder.path(),
            &question(),
            &Failures::default(),
            move |result| {
                let bytes = result.map(|secret| secret.expose_secret().to_vec());
                sender.send(bytes).unwrap();
            },
        );
        let text = fs::read_to_string(&query.place.query).unwrap();
        let name = query.place.query.file_name().unwrap().to_owned();
        // Other processes ask for other volumes.
        let begin = format!("ask.latchkey-{}-", std::process::id());
        assert!(name.to_string_lossy().starts_with(&begin), "{name:?}");
        let socket = text
            .lines()
            .find_map(|line| line.strip_prefix("Socket="))
            .unwrap();
        let mode = fs::metadata(socket).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(text.contains("\nMessage=Please enter passphrase for disk vda2_crypt:\n"));
        assert!(text.contains("\nAcceptCached=0\n"));
        Sender::unbound().unwrap().send_to(packet, socket).unwrap();
        let result = receiver.await.unwrap();
        drop(query);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        result
    }

    #[test]
    fn the_question_and_what_the_agents_add_fit_into_a_line() {
        let mut question = question();
        assert_eq!(
            text(&question),
            "Please enter passphrase for disk vda2_crypt:"
        );
        question.name = "luks-8a3d7d0e-0d5b-4f3c-9d52-1e1fa2a1c0de".to_owned();
        assert_eq!(
            text(&question),
            "Unlock luks-8a3d7d0e-0d5b-4f3c-9d52-1e1fa2a1c0de:"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_what_stands_between_plus_and_zero() {
        assert_eq!(answered(b"+secret\0").await, Ok(b"secret".to_vec()));
        assert_eq!(answered(b"+secret").await, Ok(b"secret".to_vec()));
        assert_eq!(answered(b"+one\0two\0").await, Ok(b"one".to_vec()));
        assert_eq!(answered(b"+\0").await, Err(PromptLoss::Again));
        assert_eq!(answered(b"+").await, Err(PromptLoss::Again));
        assert_eq!(answered(b"-").await, Err(PromptLoss::Again));
    }

    #[tokio::test]
    async fn a_dropped_question_goes_and_so_does_one_that_was_left() {
        let folder = tempfile::tempdir().unwrap();
        let query = Query::show_in(folder.path(), &question(), &Failures::default(), |_| {
            panic!("nobody answered")
        });
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
        std::mem::forget(query);
        clear_all(folder.path());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn the_questions_of_others_stay_as_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let others = [
            ("ask.Xq3bTz", "[Ask]\nMessage=the dog's name\n"),
            ("ask.latchkey", "[Ask]\nId=cryptsetup:/dev/vdb\n"),
            ("sck.1d0f8a", ""),
        ];
        for (name, text) in others {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let ask = || Query::show_in(folder.path(), &question(), &Failures::default(), |_| {});
        drop(ask());
        std::mem::forget(ask());
        clear_all(folder.path());
        for (name, text) in others {
            let found = fs::read_to_string(folder.path().join(name)).unwrap();
            assert_eq!(found, text, "{name}");
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), others.len());
    }

    #[tokio::test(start_paused = true)]
    async fn a_folder_that_cannot_be_used_makes_prompting_impossible_in_the_end() {
        let folder = tempfile::NamedTempFile::new().unwrap();
        let failures = Failures::default();
        let mut losses = Vec::new();
        for _ in 0..=super::super::FAILURES_LIMIT {
            let (sender, receiver) = oneshot::channel();
            let _query = Query::show_in(folder.path(), &question(), &failures, move |result| {
                sender.send(result.map(drop)).unwrap();
            });
            losses.push(receiver.await.unwrap());
        }
        assert_eq!(losses.pop(), Some(Err(PromptLoss::Impossible)));
        assert!(losses.iter().all(|loss| *loss == Err(PromptLoss::Again)));
    }
}
