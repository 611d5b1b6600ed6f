//! The case table, the operator's lists, and the resolver over made-up answers.

use std::future::{Ready, ready};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use hyper_util::client::legacy::connect::dns::Name;
use tower_service::Service;

use super::resolver::{GuardedResolver, MAX_ANSWERS, ResolveError};
use super::*;

const CASES: &str = include_str!("../../../tests/data/egress-cases.tsv");

/// Rows of the table that are about behaviour, and the test that shows each.
const BEHAVIOUR: [(&str, &str); 11] = [
    (
        "CNAME chain ending",
        "getaddrinfo yields final addresses only: any_bad_answer_denies",
    ),
    (
        "CNAME to kubernetes",
        "the same, with --egress-deny-cidr: the_deny_list_wins_over_the_allow_list",
    ),
    (
        "rebinding",
        "a_name_is_resolved_once_and_just_the_checked_answers_are_dialled",
    ),
    (
        "302 Location",
        "http: a_redirect_is_an_answer_and_is_not_followed",
    ),
    (
        "307 Location",
        "http: a_redirect_is_an_answer_and_is_not_followed",
    ),
    ("Alt-Svc", "http: nothing reads it"),
    (
        "HTTP_PROXY",
        "http: nothing reads the environment; hyper-util's proxy feature is off",
    ),
    (
        "DNS answer empty",
        "an_empty_answer_is_an_error_of_its_own; http: failure classes",
    ),
    (
        "DNS answer with 500",
        "only_the_first_answers_are_judged_and_dialled",
    ),
    (
        "header value with CR",
        "http: a_header_cannot_be_injected; config and command check as they load",
    ),
    ("custom header named", "subscription"),
];

fn policy(settings: &EgressSettings) -> EgressPolicy {
    EgressPolicy::new(settings)
}

fn strict() -> EgressPolicy {
    policy(&EgressSettings {
        ports: vec![443..=443, 8443..=8443],
        ..EgressSettings::default()
    })
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn addresses(text: &str) -> Vec<IpAddr> {
    text.split(", ").map(|one| one.parse().unwrap()).collect()
}

#[test]
fn every_case_of_the_table_comes_out_as_it_says() {
    let strict = strict();
    let mut seen = 0;
    for line in CASES.lines().skip(1) {
        let [case, expected, why] = line.splitn(3, '\t').collect::<Vec<_>>()[..] else {
            panic!("{line:?}")
        };
        let (kind, rest) = case.split_once(' ').unwrap();
        let denied = match kind {
            "url" => strict.parse_url(rest).err(),
            "addr" => strict
                .check_addresses("an.example.org", &addresses(rest))
                .err(),
            "dns" => {
                let (host, answers) = rest.split_once(" -> ").unwrap();
                strict.check_addresses(host, &addresses(answers)).err()
            }
            "behaviour" => {
                assert!(
                    BEHAVIOUR.iter().any(|(prefix, _)| rest.starts_with(prefix)),
                    "no test is named for {rest:?}"
                );
                continue;
            }
            _ => panic!("unknown kind in {line:?}"),
        };
        assert_eq!(
            denied.is_some(),
            expected == "denied",
            "{case}: expected {expected} ({why}), got {denied:?}"
        );
        seen += 1;
    }
    assert!(seen >= 80, "the table shrank to {seen} cases");
}

#[test]
fn a_target_is_judged_like_its_url() {
    let strict = strict();
    for line in CASES.lines().skip(1) {
        let Some((case, expected)) = line
            .strip_prefix("url ")
            .and_then(|rest| rest.split_once('\t'))
        else {
            continue;
        };
        // Only what went through the URL parser is ever dialled.
        let Ok(url) = Url::parse(case) else { continue };
        let Ok(uri) = url.as_str().parse::<Uri>() else {
            continue;
        };
        let denied = strict.check_target(&uri).is_err();
        assert_eq!(
            denied,
            strict.check_url(&url).is_err(),
            "{case} ({expected})"
        );
    }
}

#[test]
fn a_real_tab_or_line_end_in_a_url_is_refused() {
    for typed in [
        "https://hooks.example.com\t.evil.example.org/",
        "https://hooks.example.com/\n",
        " https://hooks.example.com/",
    ] {
        assert!(
            strict()
                .parse_url(typed)
                .unwrap_err()
                .to_string()
                .contains("control character"),
            "{typed:?}"
        );
    }
}

#[test]
fn nat64_is_judged_by_the_address_behind_it() {
    let strict = strict();
    assert_eq!(
        strict.check_addresses("a", &addresses("64:ff9b::808:808")),
        Ok(())
    );
    for bad in [
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::808:808",
        "::ffff:0:808:808",
        "2001:0:808:808::1",
        "4000::1",
    ] {
        assert!(
            strict.check_addresses("a", &addresses(bad)).is_err(),
            "{bad}"
        );
    }
}

#[test]
fn the_allow_list_opens_networks_and_the_names_inside_them() {
    let open = policy(&EgressSettings {
        allow_http: true,
        allow_cidrs: nets(&["10.0.0.0/8", "::1/128"]),
        ..EgressSettings::default()
    });
    for url in [
        "http://10.1.2.3:9/",
        "http://[::ffff:10.1.2.3]/",
        "http://[::1]/",
        "http://receiver.default.svc.cluster.local/",
        "http://receiver/",
    ] {
        assert!(open.parse_url(url).is_ok(), "{url}");
    }
    assert!(
        open.parse_url("http://127.0.0.1/").is_err(),
        "another network stays closed"
    );
    assert!(
        open.check_addresses("receiver", &addresses("10.1.2.3, 127.0.0.1"))
            .is_err()
    );
}

#[test]
fn the_operators_lists_of_hosts_come_before_the_built_in_rules() {
    let hosts = |all: &[&str]| {
        all.iter()
            .map(|text| HostPattern::parse(text).unwrap())
            .collect()
    };
    let own = policy(&EgressSettings {
        allow_hosts: hosts(&["*.corp.internal", "hooks", "kubernetes.default.svc"]),
        deny_hosts: hosts(&["*.evil.example", "x.corp.internal"]),
        deny_cidrs: vec!["10.9.0.0/16".parse().unwrap()],
        ports: vec![443..=443, 8000..=8002],
        ..EgressSettings::default()
    });
    for (url, expected) in [
        ("https://a.corp.internal/", None),
        ("https://hooks:8001/", None),
        ("https://kubernetes.default.svc/", None),
        ("https://good.example/", None),
        (
            "https://good.example:8003/",
            Some("port 8003 is not listed"),
        ),
        (
            "https://a.evil.example/",
            Some("--egress-deny-host *.evil.example"),
        ),
        (
            "https://A.EVIL.example./",
            Some("--egress-deny-host *.evil.example"),
        ),
        (
            "https://x.corp.internal/",
            Some("--egress-deny-host x.corp.internal"),
        ),
        ("https://other.internal/", Some("an .internal name")),
        ("https://other/", Some("a name of one label")),
    ] {
        let found = own.parse_url(url).err().map(|denied| denied.to_string());
        match expected {
            None => assert_eq!(found, None, "{url}"),
            Some(text) => assert!(
                found.as_ref().is_some_and(|f| f.contains(text)),
                "{url}: {found:?}"
            ),
        }
    }
    let address = |host: &str, address: &str| {
        own.check_addresses(host, &[address.parse().unwrap()])
            .is_ok()
    };
    assert!(address("a.corp.internal", "10.1.2.3"));
    assert!(address("A.Corp.Internal.", "10.1.2.3"));
    assert!(
        !address("a.corp.internal", "10.9.2.3"),
        "the operator's deny comes first"
    );
    assert!(!address("good.example", "10.1.2.3"));
}

#[test]
fn metadata_services_and_the_api_of_kubernetes_are_refused_by_name_whatever_network_is_allowed() {
    let everything = policy(&EgressSettings {
        allow_cidrs: vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()],
        ..EgressSettings::default()
    });
    for name in [
        "kubernetes.default.svc",
        "Kubernetes.Default.SVC.",
        "kubernetes.default.svc.cluster.local",
        "kubernetes.default",
        "kubernetes",
        "metadata.google.internal",
        "metadata",
        "instance-data.ec2.internal",
    ] {
        for own in [&everything, &policy(&EgressSettings::default())] {
            let denied = own.parse_url(&format!("https://{name}/")).unwrap_err();
            assert!(
                denied.to_string().contains("--egress-allow-host"),
                "{denied}"
            );
        }
    }
    let default = policy(&EgressSettings {
        ports: vec![443..=443],
        ..EgressSettings::default()
    });
    assert!(default.parse_url("https://web.prod.svc/").is_err());
    assert!(everything.parse_url("https://web.prod.svc/").is_ok());
}

#[test]
fn a_name_with_an_empty_label_evades_no_rule_about_names() {
    let pattern = |text: &str| HostPattern::parse(text).unwrap();
    for settings in [
        EgressSettings::default(),
        EgressSettings {
            allow_cidrs: nets(&["10.0.0.0/8"]),
            deny_hosts: vec![pattern("corp.example")],
            allow_hosts: vec![pattern("localhost")],
            ..EgressSettings::default()
        },
    ] {
        let policy = policy(&settings);
        for name in [
            "localhost..",
            "metadata.google.internal..",
            "kubernetes..default.svc",
            "corp.example..",
            "a.example...",
        ] {
            let denied = policy.parse_url(&format!("https://{name}/")).unwrap_err();
            assert!(
                denied.to_string().contains("empty label"),
                "{name}: {denied}"
            );
        }
        assert!(policy.parse_url("https://hooks.example.com./").is_ok());
    }
}

#[test]
fn the_deny_list_wins_over_the_allow_list() {
    let policy = policy(&EgressSettings {
        allow_cidrs: nets(&["10.0.0.0/8"]),
        deny_cidrs: nets(&["10.96.0.0/12", "93.184.215.0/24"]),
        ..EgressSettings::default()
    });
    assert_eq!(policy.check_addresses("a", &addresses("10.1.0.1")), Ok(()));
    for bad in [
        "10.96.0.1",
        "::ffff:10.96.0.1",
        "64:ff9b::a60:1",
        "93.184.215.14",
    ] {
        let denied = policy
            .check_addresses("a", &addresses(bad))
            .unwrap_err()
            .to_string();
        assert!(denied.contains("--egress-deny-cidr"), "{bad}: {denied}");
    }
}

#[test]
fn an_empty_port_list_is_any_port_but_zero() {
    let any = policy(&EgressSettings::default());
    assert!(any.parse_url("https://hooks.example.com:6379/").is_ok());
    assert!(any.parse_url("https://hooks.example.com:0/").is_err());
}

#[test]
fn a_denial_names_host_rule_and_flag_and_nothing_secret() {
    let strict = strict();
    let told = |url: &str| strict.parse_url(url).unwrap_err().to_string();
    assert_eq!(
        told("https://10.0.0.5/hook/s3cret?token=s3cret"),
        "10.0.0.5 is denied: the address is not public (private, RFC 1918); --egress-allow-cidr would allow it"
    );
    assert_eq!(
        strict
            .check_addresses("a.example.org", &addresses("127.0.0.1"))
            .unwrap_err()
            .to_string(),
        "a.example.org (127.0.0.1) is denied: the address is not public (loopback, RFC 1122); --egress-allow-cidr would allow it"
    );
    assert!(
        told("https://a.example.org:22/")
            .ends_with("port 22 is not listed; --egress-ports would allow it")
    );
    assert!(told("http://a.example.org/").ends_with("--egress-allow-http would allow it"));
    assert!(!told("https://user:s3cret@a.example.org/").contains("s3cret"));
    assert!(!told("https://a.example.org:99999/s3cret").contains("s3cret"));
}

/// Answers with the next list at each look-up.
#[derive(Clone)]
struct Scripted {
    answers: Arc<Vec<Vec<SocketAddr>>>,
    lookups: Arc<AtomicUsize>,
}

impl Scripted {
    fn new(answers: &[&[&str]]) -> Self {
        let parse = |list: &&[&str]| {
            list.iter()
                .map(|one| SocketAddr::new(one.parse().unwrap(), 0))
                .collect()
        };
        Self {
            answers: Arc::new(answers.iter().map(parse).collect()),
            lookups: Arc::default(),
        }
    }
}

impl Service<Name> for Scripted {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Ready<io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Name) -> Self::Future {
        let nth = self.lookups.fetch_add(1, Ordering::Relaxed);
        ready(Ok(self.answers[nth].clone().into_iter()))
    }
}

async fn resolve(scripted: &Scripted) -> Result<Vec<IpAddr>, ResolveError> {
    let mut guarded = GuardedResolver::over(Arc::new(strict()), scripted.clone());
    Ok(guarded
        .call("hooks.example.com".parse().unwrap())
        .await?
        .map(|answer| answer.ip())
        .collect())
}

#[tokio::test]
async fn a_name_is_resolved_once_and_just_the_checked_answers_are_dialled() {
    let rebinding = Scripted::new(&[&["93.184.215.14"], &["127.0.0.1"]]);
    assert_eq!(
        resolve(&rebinding).await.unwrap(),
        addresses("93.184.215.14")
    );
    assert_eq!(
        rebinding.lookups.load(Ordering::Relaxed),
        1,
        "one attempt asked more than once"
    );
    assert!(
        matches!(resolve(&rebinding).await, Err(ResolveError::Denied(_))),
        "the next connection must check anew"
    );
}

#[tokio::test]
async fn any_bad_answer_denies() {
    let mixed = Scripted::new(&[&["93.184.215.14", "2606:4700:4700::1111", "10.0.0.5"]]);
    assert!(matches!(
        resolve(&mixed).await,
        Err(ResolveError::Denied(_))
    ));
}

#[tokio::test]
async fn only_the_first_answers_are_judged_and_dialled() {
    let mut many = vec!["93.184.215.14"; 500];
    many[MAX_ANSWERS] = "10.0.0.5";
    assert_eq!(
        resolve(&Scripted::new(&[&many])).await.unwrap().len(),
        MAX_ANSWERS
    );
    many[MAX_ANSWERS - 1] = "10.0.0.5";
    assert!(matches!(
        resolve(&Scripted::new(&[&many])).await,
        Err(ResolveError::Denied(_))
    ));
}

#[tokio::test]
async fn an_empty_answer_is_an_error_of_its_own() {
    assert!(matches!(
        resolve(&Scripted::new(&[&[]])).await,
        Err(ResolveError::NoAddress)
    ));
}
