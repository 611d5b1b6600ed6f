//! hookstream without Kubernetes: the systemd unit and the compose file say what the program understands.
//!
//! No container is started here and systemd does not run the unit: the tools that read the files check them, and the
//! program takes their settings.

use std::process::Command;

use serde_json::Value;

use crate::skipped::have;

const PROJECT: &str = env!("CARGO_MANIFEST_DIR");
const HOOKSTREAM: &str = env!("CARGO_BIN_EXE_hookstream");
const UNIT: &str = include_str!("../../deploy/systemd/hookstream@.service");
const CREDENTIALS: &str = include_str!("../../deploy/systemd/credentials.conf");
const ENVIRONMENT: &str = include_str!("../../deploy/systemd/hookstream.env.example");

/// How the program ended and what it wrote.
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

/// Runs the program with these settings and nothing else, to its end.
fn program<'a>(
    settings: impl IntoIterator<Item = (&'a str, &'a str)>,
    arguments: &[&str],
) -> Ended {
    let output = Command::new(HOOKSTREAM)
        .args(arguments)
        .env_clear()
        .envs(settings)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ended {
        code: output.status.code(),
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    }
}

/// The settings are valid with these further arguments, and each is one: the program warns of variables that it does not
/// know. Returns what `config` prints.
#[track_caller]
fn assert_valid<'a>(
    settings: impl IntoIterator<Item = (&'a str, &'a str)>,
    arguments: &[&str],
) -> String {
    let ended = program(settings, &[&["config"], arguments].concat());
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    ended.stdout
}

/// The value of a key of the unit that is there once.
fn unit(key: &str) -> &'static str {
    let mut values = UNIT
        .lines()
        .filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let value = values.next().unwrap_or_else(|| panic!("{key} is set"));
    assert!(values.next().is_none(), "{key} is set once");
    value
}

#[test]
fn systemd_accepts_the_unit_and_finds_it_hardened() {
    // What the documentation claims.
    const HIGHEST_EXPOSURE: &str = "15";
    if !have("systemd-analyze") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // Where the program is installed it need not be here.
    let here = |text: &str| text.replace("/usr/local/bin/hookstream", HOOKSTREAM);
    let drop_ins = folder.path().join("hookstream@.service.d");
    std::fs::create_dir(&drop_ins).unwrap();
    std::fs::write(folder.path().join("hookstream@.service"), here(UNIT)).unwrap();
    std::fs::write(drop_ins.join("credentials.conf"), here(CREDENTIALS)).unwrap();
    let analyze = |arguments: &[&str]| {
        let output = Command::new("systemd-analyze")
            .args(arguments)
            .current_dir(folder.path())
            .env_remove("SYSTEMD_UNIT_PATH")
            .output()
            .unwrap();
        let messages = String::from_utf8_lossy(&output.stderr).into_owned();
        let report = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.success(), messages, report)
    };
    for role in ["fanout", "deliver", "release", "lag", "run"] {
        // An unknown key is a message, not a failure.
        let (_, messages, _) = analyze(&["verify", &format!("./hookstream@{role}.service")]);
        assert_eq!(messages, "", "systemd-analyze verify, role {role}");
    }
    let offline = [
        "security",
        "--offline=true",
        &format!("--threshold={HIGHEST_EXPOSURE}"),
        "./hookstream@deliver.service",
    ];
    let (is_below, messages, report) = analyze(&offline);
    assert!(is_below, "{messages}{report}");
}

#[test]
fn the_unit_waits_for_a_drain_and_does_not_restart_on_a_wrong_setting() {
    let brokers = ("HOOKSTREAM_BROKERS", "kafka:9092");
    let settings = program([brokers], &["config", "-o", "json"]);
    let settings: Value = serde_json::from_str(&settings.stdout).unwrap();
    let drain = settings
        .as_array()
        .unwrap()
        .iter()
        .find(|setting| setting["name"] == "drain-deadline")
        .unwrap();
    let drain: humantime::Duration = drain["value"].as_str().unwrap().parse().unwrap();
    let stop: humantime::Duration = unit("TimeoutStopSec").parse().unwrap();
    assert!(stop.as_secs() >= drain.as_secs() + 15, "{stop}, {drain}");

    assert_eq!(unit("Restart"), "on-failure");
    let status: i32 = unit("RestartPreventExitStatus").parse().unwrap();
    for wrong in [
        program([("HOOKSTREAM_BROKERS", "")], &["deliver"]),
        program([brokers], &["no-such-role"]),
    ] {
        assert_eq!(wrong.code, Some(status), "{}", wrong.stderr);
    }
}

#[test]
fn the_example_environment_is_valid() {
    let settings = ENVIRONMENT
        .lines()
        // Those that are commented out are to be valid too.
        .map(|line| line.trim_start_matches('#'))
        .filter(|line| line.starts_with("HOOKSTREAM_"))
        .map(|line| line.split_once('=').unwrap());
    // The password is not among them: the drop-in passes it.
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("kafka-password"), "hunter2").unwrap();
    let start = CREDENTIALS
        .lines()
        .find_map(|line| line.strip_prefix("ExecStart=/usr/local/bin/hookstream %i "))
        .unwrap()
        .replace("%d", folder.path().to_str().unwrap());
    let arguments: Vec<&str> = start.split(' ').collect();
    let printed = assert_valid(settings, &arguments);
    assert!(printed.contains("webhooks-1"), "{printed}");
}

/// deploy/compose.yaml, its merge keys resolved.
fn compose() -> Value {
    let text = std::fs::read_to_string(format!("{PROJECT}/deploy/compose.yaml")).unwrap();
    serde_saphyr::from_str(&text).unwrap()
}

#[test]
fn the_compose_file_starts_the_program_with_valid_settings_once_kafka_is_ready() {
    let compose = compose();
    let services = compose["services"].as_object().unwrap();
    let mut ours = 0;
    for (name, service) in services {
        let image = service["image"].as_str().unwrap();
        let (_, tag) = image.rsplit_once(':').unwrap();
        assert_ne!(tag, "latest", "{name}");
        if !image.starts_with("hookstream:") {
            continue;
        }
        ours += 1;
        let build = &service["build"];
        let dockerfile = build["dockerfile"].as_str().unwrap();
        assert!(
            std::path::Path::new(PROJECT).join(dockerfile).is_file(),
            "{name}: {dockerfile}"
        );
        assert_eq!(build["context"], "..", "{name}");
        let settings = service["environment"].as_object().unwrap();
        let settings = settings
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str().unwrap()));
        assert_valid(settings, &[]);
        let command = service["command"].as_array().unwrap().iter();
        let mut command: Vec<_> = command.map(|word| word.as_str().unwrap()).collect();
        command.push("--help");
        let help = program([], &command);
        assert_eq!(help.code, Some(0), "{name}: {}", help.stderr);
        assert_eq!(
            service["depends_on"]["kafka"]["condition"], "service_healthy",
            "{name}"
        );
    }
    assert_eq!(ours, 2, "services that run hookstream");
    assert!(services["kafka"]["healthcheck"]["test"].is_array());
}

#[test]
fn the_compose_file_has_the_kafka_that_is_tested() {
    let versions = include_str!("../../scripts/kafka-jars/pom.xml");
    let (_, rest) = versions.split_once("<kafka.version>").unwrap();
    let (version, _) = rest.split_once('<').unwrap();
    let image = compose()["services"]["kafka"]["image"].clone();
    assert_eq!(image, format!("apache/kafka:{version}"));
}
