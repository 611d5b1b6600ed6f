//! The container image that `make image ROOTFS=1` writes: what is in it, and that the program runs in it as a container
//! runtime would run it, without root and on a read-only file system.
//!
//! deploy/Dockerfile runs the same script and is the source of the settings, so what holds here holds for both images.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::scene::LATER;
use crate::support::{Process, SOON, World};

const PROJECT: &str = env!("CARGO_MANIFEST_DIR");
const DOCKERFILE: &str = include_str!("../../deploy/Dockerfile");
const PROGRAM: &str = "/usr/local/bin/hookstream";

/// Runs a command to its end.
///
/// # Panics
/// When it fails, with what it wrote.
#[track_caller]
fn done(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        text(&output.stderr)
    );
    text(&output.stdout)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// An image of the tested program, without the debug information that would make it slow to compress.
struct Image {
    folder: TempDir,
    archive: PathBuf,
}

impl Image {
    fn build() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let binary = folder.path().join("hookstream");
        done(
            Command::new("strip")
                .arg("-o")
                .arg(&binary)
                .arg(env!("CARGO_BIN_EXE_hookstream")),
        );
        let archive = folder.path().join("image.tar");
        Self::write(&binary, &archive);
        let signature = std::fs::read_to_string(folder.path().join("image.tar.sig")).unwrap();
        assert!(signature.ends_with("-\n"), "{signature:?}");
        Self { folder, archive }
    }

    fn write(binary: &Path, archive: &Path) {
        done(
            Command::new("make")
                .args(["--no-print-directory", "image", "ROOTFS=1", "TAG=test"])
                .arg(format!("BIN={}", binary.display()))
                .arg(format!("OUT={}", archive.display()))
                .arg("SIGN=sha256sum < FILE > FILE.sig")
                .env_remove("MAKEFLAGS")
                .current_dir(PROJECT),
        );
    }

    /// A file of the archive, which is JSON.
    fn json(&self, path: &str) -> Value {
        let content = done(Command::new("tar").arg("-xOf").arg(&self.archive).arg(path));
        serde_json::from_str(&content).unwrap()
    }

    fn manifest(&self) -> Value {
        self.json(&blob(&self.json("index.json")["manifests"][0]))
    }

    /// The image's configuration, as the OCI image specification has it.
    fn config(&self) -> Value {
        self.json(&blob(&self.manifest()["config"]))
    }

    /// Unpacks the layers, the lowest first, as a container runtime does.
    fn unpack(&self) -> PathBuf {
        let (blobs, root) = (
            self.folder.path().join("blobs"),
            self.folder.path().join("root"),
        );
        std::fs::create_dir_all(&root).unwrap();
        done(
            Command::new("tar")
                .arg("-xf")
                .arg(&self.archive)
                .arg("-C")
                .arg(self.folder.path()),
        );
        assert!(blobs.is_dir());
        for layer in self.manifest()["layers"].as_array().unwrap() {
            done(
                Command::new("tar")
                    .arg("-xzpf")
                    .arg(self.folder.path().join(blob(layer)))
                    .arg("-C")
                    .arg(&root),
            );
        }
        root
    }
}

/// Where the archive has what a descriptor describes.
fn blob(descriptor: &Value) -> String {
    let digest = descriptor["digest"].as_str().unwrap();
    format!("blobs/{}", digest.replace(':', "/"))
}

/// Paths of all files below a folder, from its top, and their mode.
fn files(root: &Path) -> BTreeMap<String, u32> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let meta = path.symlink_metadata().unwrap();
            if meta.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(root).unwrap().display().to_string();
                found.insert(format!("/{name}"), meta.permissions().mode() & 0o7777);
            }
        }
    }
    found
}

/// Each instruction of the Dockerfile's final stage, with its arguments.
fn final_stage() -> Vec<(String, String)> {
    let lines = DOCKERFILE.lines().filter(|line| !line.starts_with('#'));
    let joined = lines.collect::<Vec<_>>().join("\n").replace("\\\n", " ");
    let stage = joined.rsplit_once("\nFROM ").unwrap().1;
    let instructions = stage
        .lines()
        .skip(1)
        .filter_map(|line| line.split_once(' '));
    instructions
        .map(|(name, rest)| (name.to_owned(), rest.trim().to_owned()))
        .collect()
}

#[test]
fn the_image_has_the_settings_and_the_files_of_the_dockerfile() {
    let image = Image::build();
    let config = image.config();
    let settings = &config["config"];
    let stage = final_stage();
    let one = |wanted: &str| -> &str {
        let mut found = stage.iter().filter(|(name, _)| name == wanted);
        let (_, rest) = found.next().unwrap();
        assert!(found.next().is_none(), "one {wanted}");
        rest
    };

    assert_eq!(settings["User"], one("USER"));
    assert_eq!(settings["User"], "65532:65532");
    let entrypoint: Value = serde_json::from_str(one("ENTRYPOINT")).unwrap();
    assert_eq!(settings["Entrypoint"], entrypoint);
    assert_eq!(entrypoint, serde_json::json!([PROGRAM]));
    assert_eq!(
        settings["ExposedPorts"],
        serde_json::json!({"9400/tcp": {}})
    );
    let labels = &settings["Labels"];
    for (name, value) in [
        ("title", "hookstream"),
        ("version", env!("CARGO_PKG_VERSION")),
        ("licenses", env!("CARGO_PKG_LICENSE")),
    ] {
        assert_eq!(labels[format!("org.opencontainers.image.{name}")], value);
    }
    for name in ["revision", "source"] {
        assert!(
            labels[format!("org.opencontainers.image.{name}")].is_string(),
            "{name}"
        );
    }

    let root = image.unpack();
    let files = files(&root);
    // What the Dockerfile copies from its build stage is what the archive has.
    let copied: Vec<&str> = stage
        .iter()
        .filter(|(name, _)| name == "COPY")
        .map(|(_, rest)| rest.rsplit_once(' ').unwrap().1)
        .collect();
    assert_eq!(copied, ["/", PROGRAM], "{stage:?}");
    assert_eq!(files.get(PROGRAM), Some(&0o755));
    // Programs are the loader and hookstream: no shell.
    let programs: Vec<_> = files
        .iter()
        .filter(|(_, mode)| **mode & 0o111 != 0)
        .collect();
    assert_eq!(programs.len(), 2, "{programs:?}");
    assert!(
        programs
            .iter()
            .all(|(name, _)| *name == PROGRAM || name.contains("/ld-linux")),
        "{programs:?}"
    );
    assert!(files.values().all(|mode| mode & 0o6022 == 0), "{files:?}");
    let users = std::fs::read_to_string(root.join("etc/passwd")).unwrap();
    assert!(users.contains("\nhookstream:x:65532:65532:"), "{users}");
}

#[test]
fn the_same_program_makes_the_same_image() {
    let image = Image::build();
    let again = image.folder.path().join("again.tar");
    Image::write(&image.folder.path().join("hookstream"), &again);
    let (first, second) = (std::fs::read(&image.archive), std::fs::read(&again));
    assert!(first.unwrap() == second.unwrap(), "the archives differ");
}

/// A name server that knows one name, on an address of its own: the port cannot be chosen in `resolv.conf`.
fn name_server(known: &'static str) -> Ipv4Addr {
    let [.., third, fourth] = std::process::id().to_be_bytes();
    let address = Ipv4Addr::new(127, 53, third, fourth);
    let socket = UdpSocket::bind((address, 53)).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        // It ends with the tests.
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            if let Some(reply) = reply(&buffer[..length], known) {
                socket.send_to(&reply, from).unwrap();
            }
        }
    });
    address
}

/// 127.0.0.1 for the known name, no record for anything else.
fn reply(query: &[u8], known: &str) -> Option<Vec<u8>> {
    const HEADER: usize = 12;
    const A: [u8; 2] = [0, 1];
    let question = query.get(HEADER..)?;
    let end = question.iter().position(|byte| *byte == 0)? + 1;
    let name: Vec<u8> = known
        .split('.')
        .flat_map(|part| [&[part.len() as u8], part.as_bytes()].concat())
        .collect();
    let has_it = question[..end - 1] == name && question.get(end..end + 2)? == A;
    // The id of the query; a response, with one question and at most one record.
    let mut reply = [
        &query[..2],
        &[0x81, 0x80, 0, 1, 0, u8::from(has_it), 0, 0, 0, 0],
    ]
    .concat();
    reply.extend_from_slice(question.get(..end + 4)?);
    if has_it {
        // The name of the question, A, IN, 60 seconds, four bytes.
        reply.extend_from_slice(&[0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
    }
    Some(reply)
}

/// What makes a container of a root file system, as far as the program sees it: the root, read only, the user and the
/// environment of the image.
struct Container {
    root: PathBuf,
    settings: Value,
}

impl Container {
    fn command<S: AsRef<str>>(&self, environment: &[&str], arguments: &[S]) -> Command {
        // Each of these becomes the next one, so its process id is the program's.
        const SCRIPT: &str = r#"
            root=$1 user=$2
            shift 2
            mount --bind "$root" "$root"
            mount -o remount,bind,ro "$root"
            exec chroot --userspec="$user" "$root" "$@""#;
        let texts = |value: &'static str| -> Vec<String> {
            let found = self.settings[value].as_array().unwrap().iter();
            found.map(|one| one.as_str().unwrap().to_owned()).collect()
        };
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--", "sh", "-euc", SCRIPT, "sh"])
            .arg(&self.root)
            .arg(self.settings["User"].as_str().unwrap())
            .args(texts("Entrypoint"))
            .args(arguments.iter().map(AsRef::as_ref))
            .env_clear();
        let variables = texts("Env");
        for variable in variables
            .iter()
            .map(String::as_str)
            .chain(environment.iter().copied())
        {
            let (name, value) = variable.split_once('=').unwrap();
            // The tools around the program are found by the path of this machine.
            if name != "PATH" {
                command.env(name, value);
            }
        }
        command.env("PATH", std::env::var_os("PATH").unwrap());
        command
    }

    fn run<S: AsRef<str>>(&self, environment: &[&str], arguments: &[S]) -> Output {
        let mut command = self.command(environment, arguments);
        command.stdin(Stdio::null()).output().unwrap()
    }
}

/// Mounting and changing the root need root.
#[track_caller]
fn is_root() -> bool {
    let is_root = done(Command::new("id").arg("-u")).trim() == "0";
    if !is_root {
        crate::skipped::skip("without root");
    }
    is_root
}

#[test]
fn the_program_runs_in_the_image_without_root_on_a_read_only_file_system() {
    if !is_root() {
        return;
    }
    let image = Image::build();
    let root = image.unpack();
    // The folder of the test is nobody else's.
    std::fs::set_permissions(image.folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    // As a container runtime mounts them.
    let server = name_server("kafka.by-dns.test");
    std::fs::write(
        root.join("etc/resolv.conf"),
        format!("nameserver {server}\n"),
    )
    .unwrap();
    std::fs::write(root.join("etc/hosts"), "127.0.0.1 kafka.by-file.test\n").unwrap();
    let container = Container {
        root,
        settings: image.config()["config"].clone(),
    };

    let version = container.run(&[], &["--version"]);
    let expected = concat!("hookstream ", env!("CARGO_PKG_VERSION"));
    assert!(text(&version.stdout).starts_with(expected), "{version:?}");

    let mut world = World::new("image");
    world.create_topics_by_program(2, &[]);
    let port = world.brokers.rsplit_once(':').unwrap().1.to_owned();
    let arguments = |world: &World, command: &[&str]| -> Vec<String> {
        // Certificate authorities are needed where http is not allowed.
        let settings = world
            .args()
            .into_iter()
            .filter(|argument| argument != "--egress-allow-http");
        command
            .iter()
            .map(|word| (*word).to_owned())
            .chain(settings)
            .collect()
    };

    // Names are found in files and by DNS, with nothing but the C library.
    world.bootstrap = format!("kafka.by-file.test:{port}");
    let check = container.run(&[], &arguments(&world, &["topics", "check"]));
    assert!(check.status.success(), "{}", text(&check.stderr));
    world.bootstrap = format!("unknown.test:{port}");
    let unknown = container.run(&[], &arguments(&world, &["topics", "check"]));
    assert_eq!(unknown.status.code(), Some(4), "{}", text(&unknown.stderr));
    world.bootstrap = format!("kafka.by-dns.test:{port}");

    // The role is ready once it has loaded certificate authorities; without any it ends.
    let deliver = arguments(
        &world,
        &[
            "deliver",
            "--instance",
            "image",
            "--http-listen",
            "127.0.0.1:0",
        ],
    );
    let mut process = Process::of("deliver", container.command(&[], &deliver));
    process.wait_for_line("ready role=", LATER);
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    assert!(
        status.contains("\nUid:\t65532\t65532\t65532\t65532\n"),
        "{status}"
    );
    process.sigterm();
    assert_eq!(process.wait_exit(SOON).code(), Some(0));
    let without = ["SSL_CERT_FILE=/nowhere", "SSL_CERT_DIR=/nowhere"];
    let mut process = Process::of("deliver", container.command(&without, &deliver));
    process.wait_for_line("no certificate authorities found", LATER);
    assert_eq!(process.wait_exit(SOON).code(), Some(1));
}

#[test]
fn a_binary_with_a_path_of_the_machine_that_built_it_is_not_published() {
    let folder = tempfile::tempdir().unwrap();
    let (out, binary) = (folder.path().join("out"), folder.path().join("binary"));
    let source = Path::new(PROJECT).join("src/main.rs");
    for path in [source.as_path(), Path::new("/cargo/registry/src/a.rs")] {
        std::fs::write(&binary, format!("a\0binary{}\0", path.display())).unwrap();
        let output = Command::new(Path::new(PROJECT).join("scripts/dist"))
            .env("BIN", &binary)
            .env("OUT", &out)
            .env("CARGO_HOME", "/cargo")
            .output()
            .unwrap();
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(message.contains("of this machine"), "{message}");
        assert!(!out.exists(), "nothing is written");
    }
}

#[test]
fn what_is_published_has_a_bill_of_materials_checksums_and_a_signature_of_each() {
    let folder = tempfile::tempdir().unwrap();
    let (out, binary) = (folder.path().join("out"), folder.path().join("binary"));
    std::fs::write(&binary, "a binary").unwrap();
    let script = Path::new(PROJECT).join("scripts/dist");
    done(
        Command::new(script)
            .env("BIN", &binary)
            .env("OUT", &out)
            .env("SIGN", "sha256sum < FILE > FILE.sig"),
    );
    let bill = std::fs::read_to_string(out.join("hookstream.cdx.json")).unwrap();
    let bill: Value = serde_json::from_str(&bill).unwrap();
    assert_eq!(bill["bomFormat"], "CycloneDX");
    let components = bill["components"].as_array().unwrap();
    let named = |name: &str| components.iter().find(|one| one["name"] == name);
    for name in ["rdkafka-sys", "rustls", "ring", "serde"] {
        let one = named(name).unwrap_or_else(|| panic!("{name} is linked"));
        let hash = one["hashes"][0]["content"].as_str().unwrap();
        assert!(hash.len() == 64 && one["licenses"][0]["expression"].is_string());
        assert_eq!(one["scope"], "required");
    }
    assert!(named("proptest").is_none(), "tests are not in it");
    done(
        Command::new("sha256sum")
            .args(["--check", "--status", "SHA256SUMS"])
            .current_dir(&out),
    );
    for file in ["hookstream", "hookstream.cdx.json", "SHA256SUMS"] {
        let signature = std::fs::read(out.join(format!("{file}.sig"))).unwrap();
        assert!(!signature.is_empty(), "{file}");
    }
}
