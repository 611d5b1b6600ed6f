//! The settings of egress: which endpoints may be reached, and by way of which proxy.

use std::ops::RangeInclusive;
use std::sync::Arc;

use super::super::hosts::HostPattern;
use super::super::secrets::may_hold_credentials;
use super::super::settings::{EgressSettings, ProxySettings};
use super::{Reader, list, setting};

/// The settings that have no effect without `--egress-proxy`.
const OF_THE_PROXY: [&str; 3] = [
    "egress-proxy-user",
    "egress-proxy-password",
    "egress-proxy-lookups",
];

impl Reader<'_> {
    pub(super) fn egress(&mut self) -> Option<EgressSettings> {
        let allow_http = self.read("egress-allow-http", |text| text.parse().ok());
        let networks = |text: &str| list(text, |part| part.parse().ok());
        let allow_cidrs = self.computed("egress-allow-cidr", networks, Vec::new);
        let deny_cidrs = self.computed("egress-deny-cidr", networks, Vec::new);
        let hosts = |text: &str| list(text, HostPattern::parse);
        let allow_hosts = self.computed("egress-allow-host", hosts, Vec::new);
        let deny_hosts = self.computed("egress-deny-host", hosts, Vec::new);
        let ports = self.read("egress-ports", |text| match text {
            "any" => Some(Vec::new()),
            _ => list(text, ports).filter(|all| !all.is_empty()),
        });
        let proxy = self.egress_proxy();
        Some(EgressSettings {
            allow_http: allow_http?,
            allow_cidrs: allow_cidrs?,
            deny_cidrs: deny_cidrs?,
            allow_hosts: allow_hosts?,
            deny_hosts: deny_hosts?,
            ports: ports?,
            proxy: proxy?.map(Arc::new),
        })
    }

    /// `Some(None)` without a proxy.
    fn egress_proxy(&mut self) -> Option<Option<ProxySettings>> {
        let Some((text, source)) = self.layers.effective(setting("egress-proxy")?) else {
            let before = self.mistakes.len();
            for name in OF_THE_PROXY {
                let given = setting(name).and_then(|setting| self.layers.effective(setting));
                if given.is_some_and(|(text, _)| text != "false") {
                    self.mistakes
                        .push(format!("--{name} has no effect without --egress-proxy"));
                }
            }
            return (self.mistakes.len() == before).then_some(None);
        };
        if may_hold_credentials(text) {
            self.mistakes.push(format!(
                "--egress-proxy ({}): must not contain user info, a query or a fragment; use --egress-proxy-user and --egress-proxy-password",
                source.name()
            ));
            return None;
        }
        let uri = self.read("egress-proxy", proxy);
        let user = self.computed("egress-proxy-user", user, || None);
        let password = self.secret("egress-proxy-password");
        let looks_up = self.read("egress-proxy-lookups", |text| text.parse().ok());
        let login = match (user?, password?) {
            (None, None) => None,
            (Some(user), Some(password)) => Some((user, password)),
            _ => {
                self.mistakes.push(
                    "--egress-proxy-user and --egress-proxy-password need each other".to_owned(),
                );
                return None;
            }
        };
        Some(Some(ProxySettings {
            uri: uri?,
            login,
            looks_up: looks_up?,
        }))
    }
}

/// A port, or a range such as `8000-8999`.
fn ports(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last): (u16, u16) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    (0 < first && first <= last).then_some(first..=last)
}

fn proxy(text: &str) -> Option<http::Uri> {
    let url = url::Url::parse(text).ok()?;
    let is_proxy = url.scheme() == "http" && url.has_host() && url.path() == "/";
    is_proxy.then(|| url.as_str().parse().ok())?
}

/// Basic authentication separates user and password by a colon.
fn user(text: &str) -> Option<Option<String>> {
    let is_name =
        !text.is_empty() && !text.contains(|letter: char| letter == ':' || letter.is_control());
    is_name.then(|| Some(text.to_owned()))
}
