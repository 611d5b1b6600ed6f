//! Resolves the secrets of subscriptions: those that sign, and those in headers.
//!
//! Files are read on threads of their own, since a file system may hang: a worker that waited for one would stop all
//! subscribers of its partitions. What was read is kept for all workers and read again after a while, so that a rotated
//! secret takes effect. While it is read again, the former content is in effect.
//!
//! | what | limit | beyond it |
//! |---|---|---|
//! | size of a file | 64 KiB, [`MAX_SECRET_BYTES`] | error |
//! | time to read it | [`DEADLINE`] | error; while a former content is known, a warning, and that stays in effect |
//! | age of a content | [`SECRET_FILE`], of an error [`MISSING_SECRET`] | read again when it is needed |
//! | a file that no subscription uses | [`FORGET`] | forgotten |

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::edge::clock;
use crate::edge::fair_pool::FairPool;
use crate::edge::small_file::{self, MAX_SECRET_BYTES};
use crate::model::subscription::SecretSource;

/// How long the content of a file counts as current.
pub(super) const SECRET_FILE: Duration = Duration::from_secs(60);
/// How long the error of a secret counts as current.
pub(super) const MISSING_SECRET: Duration = Duration::from_secs(10);
/// The time limit for reading a file.
const DEADLINE: Duration = Duration::from_secs(5);
/// A file that nobody has asked for is forgotten after this time.
const FORGET: Duration = Duration::from_secs(600);

/// The state of a secret.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Secret {
    /// Its text, without surrounding blanks. If `again`, the file is being read again.
    Known { text: Arc<str>, again: bool },
    /// It is being read for the first time.
    Reading,
    /// It cannot be used, for this reason: names the source, never the value (**Secret**).
    Unusable(String),
}

/// Without the text.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known { again, .. } => write!(f, "Known(again: {again})"),
            Self::Reading => f.write_str("Reading"),
            Self::Unusable(why) => write!(f, "Unusable({why})"),
        }
    }
}

impl Secret {
    /// In the place of one that is not needed.
    pub(super) fn nothing() -> Self {
        known("")
    }
}

/// Called on another thread when the read that a [`Secret::Reading`] waits for has ended.
pub(super) type Wake = Arc<dyn Fn() + Send + Sync>;

/// Reads a file: [`small_file::read_text`], or a stub.
pub(super) type Reader = dyn Fn(&Path) -> Result<String, String> + Send + Sync;

/// A file, and the directory that it must really be in, if there is a limit.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Place {
    path: PathBuf,
    dir: Option<PathBuf>,
}

/// The secrets of all workers of a replica.
pub(super) struct Secrets {
    pool: FairPool,
    files: Arc<Mutex<Files>>,
    read: Arc<Reader>,
}

#[derive(Default)]
struct Files {
    all: HashMap<Place, Entry>,
    /// The number of reads so far.
    reads: u64,
}

/// A file: what was read last, and the read that is in progress.
struct Entry {
    last: Option<(Result<Arc<str>, String>, Instant)>,
    reading: Option<Reading>,
    asked: Instant,
}

struct Reading {
    since: Instant,
    waiting: Vec<Wake>,
    /// Whether it was logged that it takes too long.
    reported: bool,
}

impl Secrets {
    pub(super) fn new() -> Self {
        Self::over(Arc::new(|path: &Path| {
            small_file::read_text(path, MAX_SECRET_BYTES).map_err(|error| error.to_string())
        }))
    }

    pub(super) fn over(read: Arc<Reader>) -> Self {
        Self {
            pool: FairPool::new("secrets"),
            files: Arc::default(),
            read,
        }
    }

    /// The secret of a source; of a file, `dir` is the directory that it must be in. Does not block: `wake` is called when
    /// it is known after [`Secret::Reading`].
    pub(super) fn get(&self, source: &SecretSource, dir: Option<PathBuf>, wake: &Wake) -> Secret {
        match source {
            SecretSource::Env(name) => match std::env::var(&**name) {
                Ok(text) => known(&text),
                Err(_) => Secret::Unusable(format!(
                    "the environment variable {name}, which holds its secret, is not set or is not UTF-8"
                )),
            },
            SecretSource::File(path) => {
                let path = path.to_path_buf();
                self.file(&Place { path, dir }, wake)
            }
            SecretSource::Literal(secret) => known(secret.expose()),
            // Whoever has the keys decrypts it: `Directory`.
            SecretSource::Encrypted(_) => Secret::Unusable(format!("{source} is not decrypted")),
        }
    }

    fn file(&self, place: &Place, wake: &Wake) -> Secret {
        let now = clock::instant();
        let mut files = files(&self.files);
        let entry = files.entry(place, now);
        if let Some(Reading { since, .. }) = entry.reading
            && now.saturating_duration_since(since) >= OVERDUE_CHECK
        {
            self.pool.nudge();
        }
        if entry.reading.is_none() {
            if let Some(current) = entry.current(now) {
                return of(&place.path, current, false);
            }
            entry.reading = Some(Reading {
                since: now,
                waiting: Vec::new(),
                reported: false,
            });
            files.reads += 1;
            self.start(place);
        }
        files.entry(place, now).while_read(&place.path, wake, now)
    }

    fn start(&self, place: &Place) {
        let (files, read) = (Arc::clone(&self.files), Arc::clone(&self.read));
        let own = place.clone();
        let job = Box::new(move || {
            let real = match &own.dir {
                None => Ok(own.path.clone()),
                Some(dir) => small_file::beneath(dir, &own.path).map_err(|error| error.to_string()),
            };
            let found = real.and_then(|path| read(&path));
            let found = found.map(|text| Arc::from(text.trim()));
            let now = clock::instant();
            let waiting = self::files(&files).ended(&own, found, now);
            waiting.iter().for_each(|wake| wake());
        });
        // A file system hangs as a whole, and all that is known of it is the directory.
        let path = &place.path;
        let directory = path.parent().unwrap_or(path).to_string_lossy();
        self.pool.submit(&directory, &directory, job);
    }

    /// The number of reads so far.
    #[cfg(test)]
    pub(super) fn reads(&self) -> u64 {
        files(&self.files).reads
    }

    /// Lets a file be read again at once.
    #[cfg(test)]
    pub(super) fn expire(&self, path: &Path) {
        for (place, entry) in &mut files(&self.files).all {
            if place.path == path {
                entry.last = None;
            }
        }
    }
}

/// A read that waits for longer may wait for other reads that hang.
const OVERDUE_CHECK: Duration = crate::edge::fair_pool::OVERDUE;

fn files(files: &Mutex<Files>) -> MutexGuard<'_, Files> {
    files.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Files {
    fn entry(&mut self, place: &Place, now: Instant) -> &mut Entry {
        if !self.all.contains_key(place) {
            self.all.retain(|_, entry| {
                entry.reading.is_some() || now.saturating_duration_since(entry.asked) < FORGET
            });
        }
        let entry = self.all.entry(place.clone()).or_insert(Entry {
            last: None,
            reading: None,
            asked: now,
        });
        entry.asked = now;
        entry
    }

    /// Keeps the result of a read; returns those who wait for it.
    fn ended(&mut self, place: &Place, found: Result<Arc<str>, String>, now: Instant) -> Vec<Wake> {
        let Some(entry) = self.all.get_mut(place) else {
            return Vec::new();
        };
        entry.last = Some((found, now));
        entry
            .reading
            .take()
            .map(|reading| reading.waiting)
            .unwrap_or_default()
    }
}

impl Entry {
    /// What was read last, while it counts as current.
    fn current(&self, now: Instant) -> Option<&Result<Arc<str>, String>> {
        let (last, at) = self.last.as_ref()?;
        let holds = if last.is_ok() {
            SECRET_FILE
        } else {
            MISSING_SECRET
        };
        (now.saturating_duration_since(*at) < holds).then_some(last)
    }

    /// The state during a read.
    fn while_read(&mut self, path: &Path, wake: &Wake, now: Instant) -> Secret {
        let Some(reading) = &mut self.reading else {
            // It has ended meanwhile.
            return match &self.last {
                Some((last, _)) => of(path, last, false),
                None => Secret::Reading,
            };
        };
        let is_late = now.saturating_duration_since(reading.since) >= DEADLINE;
        let late = || format!("it was not read within {DEADLINE:?}");
        if let Some((Ok(text), _)) = &self.last {
            if is_late && !std::mem::replace(&mut reading.reported, true) {
                tracing::warn!(path = %path.display(), "the former secret stays in effect: {}", late());
            }
            return Secret::Known {
                text: Arc::clone(text),
                again: true,
            };
        }
        if is_late {
            return of(path, &Err(late()), false);
        }
        if !reading.waiting.iter().any(|known| Arc::ptr_eq(known, wake)) {
            reading.waiting.push(Arc::clone(wake));
        }
        Secret::Reading
    }
}

fn known(text: &str) -> Secret {
    Secret::Known {
        text: text.into(),
        again: false,
    }
}

fn of(path: &Path, found: &Result<Arc<str>, String>, again: bool) -> Secret {
    match found {
        Ok(text) => Secret::Known {
            text: Arc::clone(text),
            again,
        },
        Err(reason) => Secret::Unusable(format!(
            "its secret cannot be read from {}: {reason}",
            path.display()
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn waker() -> (Wake, Receiver<()>) {
        let (woken, wakes) = channel();
        let wake = Arc::new(move || woken.send(()).unwrap_or_default());
        (wake, wakes)
    }

    fn file(path: impl Into<PathBuf>) -> SecretSource {
        SecretSource::File(path.into().into_boxed_path())
    }

    /// Asks, waits for the read, and asks again.
    fn settled(secrets: &Secrets, source: &SecretSource) -> Secret {
        let (wake, wakes) = waker();
        match secrets.get(source, None, &wake) {
            Secret::Reading => {
                wakes.recv_timeout(PATIENCE).unwrap();
                secrets.get(source, None, &wake)
            }
            other => other,
        }
    }

    #[test]
    fn its_debug_does_not_show_it() {
        let shown = format!(
            "{:?} {:?}",
            known("hunter2"),
            Secret::Unusable("why".to_owned())
        );
        assert_eq!(shown, "Known(again: false) Unusable(why)");
    }

    #[test]
    fn a_file_is_read_once_for_all_who_use_it() {
        let secret = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(secret.path(), " whsec_abc\n").unwrap();
        let secrets = Secrets::new();
        let source = file(secret.path());
        assert_eq!(settled(&secrets, &source), known("whsec_abc"));
        for _ in 0..100 {
            assert_eq!(settled(&secrets, &source), known("whsec_abc"));
        }
        assert_eq!(secrets.reads(), 1);
    }

    #[test]
    fn what_is_no_small_regular_file_is_named_with_its_reason_and_never_quoted() {
        let place = tempfile::tempdir().unwrap();
        let fifo = place.path().join("fifo");
        std::process::Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap();
        let large = place.path().join("large");
        std::fs::write(&large, "s3cret".repeat(20_000)).unwrap();
        let binary = place.path().join("binary");
        std::fs::write(&binary, b"s3cret\xff").unwrap();
        let secrets = Secrets::new();
        for (path, reason) in [
            (fifo, "a FIFO"),
            (large, "at most 65536 bytes"),
            (binary, "not UTF-8"),
            ("/dev/zero".into(), "a device"),
            (place.path().join("none"), "No such file"),
        ] {
            let Secret::Unusable(error) = settled(&secrets, &file(&path)) else {
                panic!("{} must not be usable", path.display());
            };
            assert!(error.contains(&path.display().to_string()), "{error}");
            assert!(error.contains(reason), "{error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn a_file_system_that_hangs_delays_only_those_who_use_it() {
        let (hold, held) = channel::<()>();
        let held = Mutex::new(held);
        let secrets = Secrets::over(Arc::new(move |path: &Path| {
            if path.starts_with("/hangs") {
                held.lock().unwrap().recv().unwrap_or_default();
            }
            Ok("text".to_owned())
        }));
        let (wake, _wakes) = waker();
        for number in 0..100 {
            let source = file(format!("/hangs/{number}"));
            assert_eq!(secrets.get(&source, None, &wake), Secret::Reading);
        }
        assert_eq!(settled(&secrets, &file("/well/1")), known("text"));
        let late = |number: u64| {
            let mut files = files(&secrets.files);
            let now = clock::instant() + DEADLINE;
            let place = Place {
                path: format!("/hangs/{number}").into(),
                dir: None,
            };
            let entry = files.entry(&place, now);
            entry.while_read(&place.path, &wake, now)
        };
        assert_eq!(
            late(7),
            Secret::Unusable(
                "its secret cannot be read from /hangs/7: it was not read within 5s".to_owned()
            )
        );
        drop(hold);
    }

    #[test]
    fn a_former_content_stays_in_effect_while_the_file_is_read_again() {
        let reads = Arc::new(AtomicUsize::new(0));
        let (hold, held) = channel::<()>();
        let held = Mutex::new(held);
        let counted = Arc::clone(&reads);
        let secrets = Secrets::over(Arc::new(move |_: &Path| {
            let number = counted.fetch_add(1, Ordering::SeqCst);
            if number > 0 {
                held.lock().unwrap().recv().unwrap_or_default();
            }
            Ok(format!("text {number}"))
        }));
        let source = file("/secret");
        assert_eq!(settled(&secrets, &source), known("text 0"));
        for entry in files(&secrets.files).all.values_mut() {
            if let Some((_, at)) = &mut entry.last {
                *at = at.checked_sub(SECRET_FILE).unwrap();
            }
        }
        let (wake, _wakes) = waker();
        let again = Secret::Known {
            text: "text 0".into(),
            again: true,
        };
        assert_eq!(secrets.get(&source, None, &wake), again);
        assert_eq!(secrets.get(&source, None, &wake), again);
        drop(hold);
        let deadline = clock::instant() + PATIENCE;
        while secrets.get(&source, None, &wake) != known("text 1") {
            assert!(clock::instant() < deadline, "the new content never came");
            std::thread::yield_now();
        }
        assert_eq!(secrets.reads(), 2);
    }
}
