//! Reads the files that settings and subscriptions name: secrets, certificates, configuration.
//!
//! A path may lead to anything: a FIFO blocks whoever opens it, a device such as `/dev/zero` never ends, and opening some
//! devices has effects. So only regular files are read. The type is checked before the file is opened and again on the
//! open descriptor, and the file is opened without blocking, because it may be replaced in between.
//!
//! A regular file on a file system that hangs still blocks its reader: threads that must not block read on a
//! [`FairPool`](super::fair_pool::FairPool).

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use thiserror::Error;

/// The maximum size of a file with one secret or one value, in bytes.
pub const MAX_SECRET_BYTES: u64 = 64 * 1024;
/// The maximum size of a file with certificates or settings, in bytes. A bundle of all public certificate authorities
/// has a quarter of a megabyte.
pub const MAX_BUNDLE_BYTES: u64 = 4 * 1024 * 1024;

/// Why a file was not read. It says neither the path, which the caller names, nor any content.
#[derive(Debug, Error)]
pub enum FileError {
    /// It cannot be opened or read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is not a regular file.
    #[error("it is {0}; must be a regular file")]
    NotRegular(&'static str),
    /// It is too large.
    #[error("it is too large; at most {limit} bytes are read")]
    TooLarge {
        /// The maximum, in bytes.
        limit: u64,
    },
    /// It is elsewhere, by way of links.
    #[error("it leads outside of {0}, where it must be")]
    Outside(PathBuf),
    /// It is not text.
    #[error("it is not UTF-8")]
    NotUtf8,
}

/// Where a path really leads, all links resolved: beneath `dir`, whose own links are resolved too.
///
/// # Errors
/// [`FileError::Outside`] when it leads elsewhere; the error of the file system when it leads nowhere.
pub fn beneath(dir: &Path, path: &Path) -> Result<PathBuf, FileError> {
    let real = std::fs::canonicalize(path)?;
    if real.starts_with(std::fs::canonicalize(dir)?) {
        Ok(real)
    } else {
        Err(FileError::Outside(dir.to_owned()))
    }
}

/// Reads a regular file of at most `limit` bytes.
///
/// # Errors
/// [`FileError`] when it cannot be read, is not a regular file, or is larger.
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>, FileError> {
    check(&std::fs::metadata(path)?, limit)?;
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(i32::try_from(flags.bits()).unwrap_or_default())
        .open(path)?;
    read_open(&file, limit)
}

/// Reads a regular file of at most `limit` bytes as text.
///
/// # Errors
/// [`FileError`] as for [`read`], or when it is not UTF-8.
pub fn read_text(path: &Path, limit: u64) -> Result<String, FileError> {
    String::from_utf8(read(path, limit)?).map_err(|_| FileError::NotUtf8)
}

fn read_open(file: &File, limit: u64) -> Result<Vec<u8>, FileError> {
    check(&file.metadata()?, limit)?;
    let mut content = Vec::new();
    // Files of /proc and files that grow are longer than their metadata say.
    let read = file.take(limit + 1).read_to_end(&mut content)?;
    if u64::try_from(read).unwrap_or(u64::MAX) > limit {
        return Err(FileError::TooLarge { limit });
    }
    Ok(content)
}

fn check(found: &Metadata, limit: u64) -> Result<(), FileError> {
    let kind = found.file_type();
    if !kind.is_file() {
        return Err(FileError::NotRegular(match () {
            () if kind.is_dir() => "a directory",
            () if kind.is_fifo() => "a FIFO",
            () if kind.is_socket() => "a socket",
            () if kind.is_char_device() || kind.is_block_device() => "a device",
            () => "a special file",
        }));
    }
    if found.len() > limit {
        return Err(FileError::TooLarge { limit });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 16;

    fn error(path: &Path) -> String {
        read(path, LIMIT).unwrap_err().to_string()
    }

    #[test]
    fn only_regular_files_are_read_and_nothing_blocks() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        assert!(
            std::process::Command::new("mkfifo")
                .arg(at("fifo"))
                .status()
                .unwrap()
                .success()
        );
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        std::os::unix::fs::symlink(at("fifo"), at("link")).unwrap();
        for (path, reason) in [
            (at("fifo"), "it is a FIFO; must be a regular file"),
            (at("link"), "it is a FIFO; must be a regular file"),
            (at("socket"), "it is a socket; must be a regular file"),
            (
                place.path().to_owned(),
                "it is a directory; must be a regular file",
            ),
            ("/dev/zero".into(), "it is a device; must be a regular file"),
            ("/dev/tty".into(), "it is a device; must be a regular file"),
        ] {
            assert_eq!(error(&path), reason, "{}", path.display());
        }
        assert!(error(&at("none")).contains("No such file"));
        std::os::unix::fs::symlink(at("loop"), at("loop")).unwrap();
        assert!(matches!(read(&at("loop"), LIMIT), Err(FileError::Io(_))));
    }

    #[test]
    fn no_link_leads_out_of_a_directory() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        for dir in ["own", "own/..v1", "other"] {
            std::fs::create_dir(at(dir)).unwrap();
        }
        for file in ["own/..v1/key", "own/plain", "other/key"] {
            std::fs::write(at(file), file).unwrap();
        }
        let link = |to: &str, at: PathBuf| std::os::unix::fs::symlink(to, at).unwrap();
        // As Kubernetes mounts a Secret.
        link("..v1", at("own/..data"));
        link("..data/key", at("own/key"));
        link("../other/key", at("own/relative"));
        link(at("other/key").to_str().unwrap(), at("own/absolute"));
        link("../other", at("own/dir"));
        link("own", at("alias"));
        let leads = |path: &str| {
            let real = beneath(&at("own"), &at(path)).map_err(|error| error.to_string())?;
            std::fs::read_to_string(real).map_err(|error| error.to_string())
        };
        assert_eq!(leads("own/key").unwrap(), "own/..v1/key");
        assert_eq!(leads("own/plain").unwrap(), "own/plain");
        assert_eq!(leads("alias/plain").unwrap(), "own/plain");
        for path in [
            "own/relative",
            "own/absolute",
            "own/dir/key",
            "own/../other/key",
        ] {
            let error = leads(path).unwrap_err();
            assert!(error.starts_with("it leads outside of"), "{path}: {error}");
        }
        assert!(leads("own/none").unwrap_err().contains("No such file"));
        assert!(beneath(&at("none"), &at("own/key")).is_err());
    }

    #[test]
    fn a_file_that_becomes_a_fifo_after_the_check_is_refused_when_it_is_open() {
        let place = tempfile::tempdir().unwrap();
        let fifo = place.path().join("fifo");
        std::process::Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap();
        let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap();
        let open = OpenOptions::new().read(true).custom_flags(flags).open(fifo);
        assert!(matches!(
            read_open(&open.unwrap(), LIMIT),
            Err(FileError::NotRegular("a FIFO"))
        ));
    }

    #[test]
    fn a_file_is_read_up_to_its_limit() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("secret");
        std::fs::write(&path, [b'a'; 16]).unwrap();
        assert_eq!(read_text(&path, LIMIT).unwrap(), "a".repeat(16));
        std::fs::write(&path, [b'a'; 17]).unwrap();
        assert_eq!(error(&path), "it is too large; at most 16 bytes are read");
        // Its metadata say that it is empty.
        assert_eq!(
            error(Path::new("/proc/self/status")),
            "it is too large; at most 16 bytes are read"
        );
        std::fs::write(&path, [0xff]).unwrap();
        assert_eq!(
            read_text(&path, LIMIT).unwrap_err().to_string(),
            "it is not UTF-8"
        );
    }
}
