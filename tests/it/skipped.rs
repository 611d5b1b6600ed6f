//! Checks that need a tool which is missing: skipped, and listed at the end of `make test` (`scripts/skipped`).

use std::io::Write as _;
use std::panic::Location;
use std::path::Path;
use std::process::{Command, Stdio};

/// Whether a tool is there. A test without it skips the check, which is recorded.
#[track_caller]
pub fn have(tool: &str) -> bool {
    let found = is_installed(tool);
    if !found {
        skip(&format!("without {tool}"));
    }
    found
}

/// Records that the calling test skips a check, on stderr past what `cargo test` captures, and in the file that
/// `SKIPPED_CHECKS` names.
#[track_caller]
pub fn skip(reason: &str) {
    let line = line(Location::caller(), reason);
    std::io::stderr()
        .write_all(format!("skipped: {line}").as_bytes())
        .unwrap();
    if let Some(file) = std::env::var_os("SKIPPED_CHECKS") {
        append(Path::new(&file), &line);
    }
}

fn is_installed(tool: &str) -> bool {
    Command::new(tool)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok()
}

/// A test runs on a thread of its name; one that runs alone is named by its place.
fn line(place: &Location<'_>, reason: &str) -> String {
    match std::thread::current().name() {
        Some(name) if name != "main" => format!("{name} ({reason})\n"),
        _ => format!("{}:{} ({reason})\n", place.file(), place.line()),
    }
}

/// In one write, since tests append at the same time.
fn append(file: &Path, line: &str) {
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.append(true).create(true).open(file).unwrap();
    file.write_all(line.as_bytes()).unwrap();
}

#[test]
fn skipped_checks_are_listed_by_name_and_counted_once() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("new/skipped");
    let script = |what: &str| {
        let output = Command::new(root.join("scripts/skipped"))
            .arg(what)
            .env("SKIPPED_CHECKS", &file)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{what}: {text}");
        text
    };
    assert_eq!(script("begin"), "");
    assert_eq!(script("report"), "0 checks skipped\n");
    assert!(!is_installed("no-tool-of-this-name"));
    let here = line(Location::caller(), "without chromium");
    append(&file, &here);
    assert_eq!(script("report"), format!("1 check skipped:\n  {here}"));
    append(&file, "TestOfGo (without promtool)\n");
    append(&file, &here);
    let both = format!("2 checks skipped:\n  TestOfGo (without promtool)\n  {here}");
    let (mut listed, mut expected): (Vec<_>, Vec<_>) = (vec![], vec![]);
    let report = script("report");
    listed.extend(report.lines());
    expected.extend(both.lines());
    // Sorted as the machine sorts.
    listed.sort_unstable();
    expected.sort_unstable();
    assert_eq!(listed, expected);
    script("begin");
    assert_eq!(script("report"), "0 checks skipped\n");
}

#[test]
fn the_tests_begin_and_end_with_the_list_of_skipped_checks() {
    let output = Command::new("make")
        .args(["--no-print-directory", "--dry-run", "test"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let place = |what: &str| text.find(what).unwrap_or_else(|| panic!("{what}: {text}"));
    let order = [
        "scripts/skipped begin",
        "cargo test",
        "go test",
        "scripts/skipped report",
    ];
    assert!(order.map(place).is_sorted(), "{text}");
}
