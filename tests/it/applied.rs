//! What `subscriptions apply` reports, and what delivery makes of references in headers.

use serde_json::{Value, json};

use crate::scene::{LATER, event, subscription, with, world};
use crate::support::{Receiver, World};

#[track_caller]
fn apply(world: &World, subscriptions: &[Value], extra: &[&str]) -> (i32, String) {
    let flags = [&["subscriptions", "apply", "-f", "-"], extra].concat();
    let output = world.run(&flags, &json!(subscriptions).to_string());
    (output.code, output.stderr)
}

#[test]
fn apply_warns_of_what_egress_will_refuse_and_refuses_it_when_strict() {
    let world = world("applied-warnings");
    let denied = subscription("acme", "https://10.0.0.5/x", &["**"]);
    let (code, strict) = apply(&world, std::slice::from_ref(&denied), &["--strict"]);
    assert_eq!(code, 1, "{strict}");
    assert!(strict.contains("private, RFC 1918"), "{strict}");
    let listed = world.run(&["subscriptions", "list", "-o", "json"], "");
    assert_eq!(listed.stdout.trim(), "[]", "nothing was written");

    let (code, warned) = apply(&world, &[denied], &[]);
    assert_eq!(code, 0, "{warned}");
    assert!(
        warned.contains("warning: \"acme\": url: 10.0.0.5 is denied"),
        "{warned}"
    );

    let typed = subscription("globex", "HTTPS://Globex.Example:443/a|b", &["**"]);
    let (code, noted) = apply(&world, &[typed], &["--strict"]);
    assert_eq!(code, 0, "{noted}");
    assert!(
        noted.contains("\"globex\": the url is used as https://globex.example/a%7Cb"),
        "{noted}"
    );
}

#[test]
fn a_header_that_refers_to_a_file_is_sent_with_its_content_and_shown_without() {
    let world = world("applied-headers");
    let receiver = Receiver::good();
    let place = tempfile::tempdir().unwrap();
    let token = place.path().join("token");
    let reference = format!("Bearer file:{}", token.display());
    let acme = with(
        subscription("acme", &receiver.url("/acme"), &["**"]),
        json!({"headers": {"authorization": reference, "x-tenant": "acme"}}),
    );
    let (code, stderr) = apply(&world, &[acme], &[]);
    assert_eq!(code, 0, "{stderr}");
    let shown = world.run(&["subscriptions", "show", "acme", "-o", "json"], "");
    let shown: Value = serde_json::from_str(&shown.stdout).unwrap();
    assert_eq!(shown["headers"]["authorization"], reference);

    let roles = crate::scene::start(&world, &[]);
    world.produce_event("1", &[], event("1", "a", "{}"));
    // Without the file the command waits, and nothing is sent.
    let line = roles.wait_for_line("cannot send, commands wait", LATER);
    assert!(line.contains("acme") && line.contains("token"), "{line}");
    assert!(receiver.seen().is_empty());
    std::fs::write(&token, "hush-hush\n").unwrap();
    let seen = receiver.wait_for(1, LATER);
    assert_eq!(seen[0].header("authorization"), Some("Bearer hush-hush"));
    assert_eq!(seen[0].header("x-tenant"), Some("acme"));
    roles.wait_for_line("can send again", LATER);
    let lines = roles.stderr();
    let refused = lines.iter().filter(|line| line.contains("cannot send"));
    assert_eq!(refused.count(), 1, "it is logged once");
    assert!(!lines.iter().any(|line| line.contains("hush-hush")));
    let refused = roles.metric("hookstream_refused_subscriptions_total{reason=\"secret\"}");
    assert!(refused.is_some_and(|count| count >= 1.0), "{refused:?}");
}
