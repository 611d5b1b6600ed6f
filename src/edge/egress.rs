//! Decides which endpoints may be reached, so that a subscription cannot make hookstream send requests into the
//! internal network.
//!
//! [`EgressPolicy`] holds the rules and is pure. [`resolver::GuardedResolver`] applies them where a name becomes
//! addresses: it resolves once, checks every address, and returns only checked ones. So **the address checked is the
//! address dialled**, and a name cannot be rebound in between. Address literals bypass the resolver, so
//! [`EgressPolicy::check_url`] and [`EgressPolicy::check_target`] check them.
//!
//! # Rules, first match wins
//! What the operator denies comes first, then what the operator allows, then the built-in rules.
//!
//! | what | denied unless |
//! |---|---|
//! | scheme | `https`, or `http` with `--egress-allow-http` |
//! | user info in the URL | never allowed |
//! | port | in `--egress-ports` (an empty list allows any; 0 never) |
//! | a name in `--egress-deny-host` | never allowed |
//! | an address in `--egress-deny-cidr` | never allowed |
//! | a name of a metadata service or of the API of Kubernetes | in `--egress-allow-host` |
//! | a name with only internal meaning: one label, `.localhost`, `.local`, `.internal`, `.home.arpa`, `.svc` | in `--egress-allow-host`, or any `--egress-allow-cidr` is set; its addresses are then checked like any other's |
//! | a non-public address, by IANA's special-purpose registries or stricter | in `--egress-allow-cidr`, or its name is in `--egress-allow-host` |
//!
//! **Any** denied address of a name denies the name: filtering would let a name with one public address probe the
//! internal network. For an IPv4 address embedded in an IPv6 one (mapped, NAT64) the inner address is checked. Proxy
//! environment variables are ignored: a proxy would bypass the address check.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use http::Uri;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use url::{Host, Url};

use crate::config::{EgressSettings, HostPattern};

pub mod lookups;
pub mod resolver;

/// The rules, as configured by the operator.
#[derive(Clone, Debug)]
pub struct EgressPolicy {
    allow_http: bool,
    allow: Vec<IpNet>,
    deny: Vec<IpNet>,
    allow_hosts: Vec<HostPattern>,
    deny_hosts: Vec<HostPattern>,
    ports: Vec<RangeInclusive<u16>>,
}

impl EgressPolicy {
    /// Creates a policy from validated settings.
    #[must_use]
    pub fn new(settings: &EgressSettings) -> Self {
        Self {
            allow_http: settings.allow_http,
            allow: settings.allow_cidrs.clone(),
            deny: settings.deny_cidrs.clone(),
            allow_hosts: settings.allow_hosts.clone(),
            deny_hosts: settings.deny_hosts.clone(),
            ports: settings.ports.clone(),
        }
    }

    /// Whether plain `http` is allowed.
    #[must_use]
    pub fn allows_http(&self) -> bool {
        self.allow_http
    }

    /// Parses and checks the URL of a subscription.
    ///
    /// Stricter than the WHATWG parser, which silently drops tabs and treats a backslash as a slash: a URL is rejected
    /// when parsers disagree about its host.
    ///
    /// # Errors
    /// The first rule that it violates. The message contains at most the host, never path, query or user info.
    pub fn parse_url(&self, typed: &str) -> Result<Url, EgressDenied> {
        if typed
            .chars()
            .any(|c| c.is_control() || c.is_whitespace() || c == '\\')
        {
            return Err(EgressDenied::of("the url", Rule::Characters));
        }
        let url =
            Url::parse(typed).map_err(|error| EgressDenied::of("the url", Rule::NotAUrl(error)))?;
        self.check_url(&url)?;
        Ok(url)
    }

    /// Checks scheme, user info, port, and a host that is an address or a reserved name. Other names pass: their
    /// addresses are checked when they are dialled.
    ///
    /// # Errors
    /// The first rule that it violates.
    pub fn check_url(&self, url: &Url) -> Result<(), EgressDenied> {
        let target = Target {
            scheme: url.scheme(),
            user_info: !url.username().is_empty() || url.password().is_some(),
            host: url.host(),
            port: url.port_or_known_default(),
        };
        self.check(&target)
    }

    /// Does the same for a request's target when it is dialled. Guards against a caller that skipped
    /// [`check_url`](Self::check_url).
    ///
    /// # Errors
    /// The first rule that it violates.
    pub fn check_target(&self, uri: &Uri) -> Result<(), EgressDenied> {
        let scheme = uri.scheme_str().unwrap_or_default();
        let target = Target {
            scheme,
            user_info: uri
                .authority()
                .is_some_and(|authority| authority.as_str().contains('@')),
            host: uri.host().filter(|host| !host.is_empty()).map(host_of),
            port: uri.port_u16().or(match scheme {
                "https" => Some(443),
                "http" => Some(80),
                _ => None,
            }),
        };
        self.check(&target)
    }

    /// Checks the addresses of a name; any denied address denies the name. An empty list passes: there is nothing to
    /// dial.
    ///
    /// # Errors
    /// The first address that violates a rule.
    pub fn check_addresses(&self, host: &str, addresses: &[IpAddr]) -> Result<(), EgressDenied> {
        let is_allowed = self.allows_host(host);
        addresses.iter().try_for_each(|address| {
            self.check_address(*address, is_allowed)
                .map_err(|rule| EgressDenied::of(&format!("{host} ({address})"), rule))
        })
    }

    fn check(&self, target: &Target<'_>) -> Result<(), EgressDenied> {
        self.broken_rule(target).map_or(Ok(()), |rule| {
            let name = target
                .host
                .as_ref()
                .map_or_else(|| "the url".to_owned(), Host::to_string);
            Err(EgressDenied::of(&name, rule))
        })
    }

    fn broken_rule(&self, target: &Target<'_>) -> Option<Rule> {
        match target.scheme {
            "https" => {}
            "http" if self.allow_http => {}
            "http" => return Some(Rule::PlainHttp),
            _ => return Some(Rule::Scheme),
        }
        if target.user_info {
            return Some(Rule::UserInfo);
        }
        let port = target.port.unwrap_or(0);
        let mut ports = self.ports.iter();
        if port == 0 || !(self.ports.is_empty() || ports.any(|range| range.contains(&port))) {
            return Some(Rule::Port(port));
        }
        match target.host.as_ref() {
            None => Some(Rule::NoHost),
            Some(Host::Domain(name)) => self.reserved_name(name),
            Some(Host::Ipv4(address)) => self.check_address(IpAddr::V4(*address), false).err(),
            Some(Host::Ipv6(address)) => self.check_address(IpAddr::V6(*address), false).err(),
        }
    }

    fn allows_host(&self, name: &str) -> bool {
        self.allow_hosts.iter().any(|pattern| pattern.matches(name))
    }

    fn reserved_name(&self, name: &str) -> Option<Rule> {
        // No such name exists, but a resolver or a proxy that drops empty labels would make another one of it, after the
        // rules below have looked at this one.
        let labels = name.strip_suffix('.').unwrap_or(name);
        if labels.split('.').any(str::is_empty) {
            return Some(Rule::ReservedName("a name with an empty label"));
        }
        let mut denied = self.deny_hosts.iter();
        if let Some(pattern) = denied.find(|pattern| pattern.matches(name)) {
            return Some(Rule::DeniedHost(pattern.clone()));
        }
        if self.allows_host(name) {
            return None;
        }
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let mut services = SERVICES.iter();
        if let Some((_, why)) = services.find(|(service, _)| *service == name) {
            return Some(Rule::Service(why));
        }
        // Other internal names are useful only to an operator who allowed some internal network.
        if !self.allow.is_empty() {
            return None;
        }
        if !name.contains('.') {
            return Some(Rule::ReservedName("a name of one label"));
        }
        RESERVED_SUFFIXES
            .iter()
            .find(|(suffix, _)| name.ends_with(suffix))
            .map(|(_, why)| Rule::ReservedName(why))
    }

    /// `is_allowed`: the operator allows its name.
    fn check_address(&self, address: IpAddr, is_allowed: bool) -> Result<(), Rule> {
        let inner = match address {
            IpAddr::V6(v6) => inner_v4(v6).map(IpAddr::V4),
            IpAddr::V4(_) => None,
        };
        let faces = || std::iter::once(address).chain(inner);
        if let Some(net) = self
            .deny
            .iter()
            .find(|net| faces().any(|face| net.contains(&face)))
        {
            return Err(Rule::DenyList(*net));
        }
        if is_allowed {
            return Ok(());
        }
        if self
            .allow
            .iter()
            .any(|net| faces().any(|face| net.contains(&face)))
        {
            return Ok(());
        }
        not_public(inner.unwrap_or(address)).map_or(Ok(()), |why| Err(Rule::NotPublic(why)))
    }
}

struct Target<'a> {
    scheme: &'a str,
    user_info: bool,
    host: Option<Host<&'a str>>,
    port: Option<u16>,
}

/// Decides between a literal and a name as hyper-util's connector does.
fn host_of(host: &str) -> Host<&str> {
    let bare = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(host);
    match bare.parse() {
        Ok(IpAddr::V4(address)) => Host::Ipv4(address),
        Ok(IpAddr::V6(address)) => Host::Ipv6(address),
        Err(_) => Host::Domain(bare),
    }
}

/// The IPv4 address embedded in an IPv6 one: IPv4-mapped (RFC 4291) and NAT64 (RFC 6052), through which networks
/// without IPv4 reach public hosts. Other embeddings are denied.
fn inner_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    const NAT64: Ipv6Net = v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96);
    let [.., a, b, c, d] = address.octets();
    address.to_ipv4_mapped().or_else(|| {
        NAT64
            .contains(&address)
            .then_some(Ipv4Addr::new(a, b, c, d))
    })
}

/// Why webhooks may not be sent to an address; `None` if it is public.
fn not_public(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(v4) => NOT_PUBLIC_V4
            .iter()
            .find(|(net, _)| net.contains(&v4))
            .map(|(_, why)| *why),
        IpAddr::V6(v6) => NOT_PUBLIC_V6
            .iter()
            .find(|(net, _)| net.contains(&v6))
            .map(|(_, why)| *why)
            .or_else(|| (!GLOBAL_UNICAST_V6.contains(&v6)).then_some("outside 2000::/3, IANA")),
    }
}

/// Names behind which credentials or control of a whole platform are.
const SERVICES: [(&str, &str); 13] = [
    ("metadata", "a metadata service"),
    (
        "metadata.google.internal",
        "the metadata service of Google Cloud",
    ),
    ("metadata.goog", "the metadata service of Google Cloud"),
    ("metadata.azure.internal", "the metadata service of Azure"),
    ("metadata.azure.com", "the metadata service of Azure"),
    ("metadata.packet.net", "the metadata service of Equinix"),
    (
        "metadata.tencentyun.com",
        "the metadata service of Tencent Cloud",
    ),
    ("instance-data", "the metadata service of AWS"),
    ("instance-data.ec2.internal", "the metadata service of AWS"),
    ("kubernetes", "the API of Kubernetes"),
    ("kubernetes.default", "the API of Kubernetes"),
    ("kubernetes.default.svc", "the API of Kubernetes"),
    (
        "kubernetes.default.svc.cluster.local",
        "the API of Kubernetes",
    ),
];

const RESERVED_SUFFIXES: [(&str, &str); 5] = [
    (".svc", "the name of a Service of Kubernetes"),
    (".localhost", "a .localhost name, RFC 6761"),
    (".local", "a .local name, RFC 6762"),
    (".internal", "an .internal name, reserved by ICANN"),
    (".home.arpa", "a .home.arpa name, RFC 8375"),
];

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6(s: [u16; 8], prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(
        Ipv6Addr::new(s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7]),
        prefix,
    )
}

/// All of IANA's special-purpose registry (RFC 6890), even blocks that it marks as global, because no webhook endpoint
/// is there; and one address where clouds run a metadata service.
const NOT_PUBLIC_V4: [(Ipv4Net, &str); 19] = [
    (v4(0, 0, 0, 0, 8), "this network, RFC 791"),
    (v4(10, 0, 0, 0, 8), "private, RFC 1918"),
    (v4(100, 64, 0, 0, 10), "shared, RFC 6598"),
    (v4(127, 0, 0, 0, 8), "loopback, RFC 1122"),
    (v4(168, 63, 129, 16, 32), "the platform service of Azure"),
    (v4(169, 254, 0, 0, 16), "link-local, RFC 3927"),
    (v4(172, 16, 0, 0, 12), "private, RFC 1918"),
    (v4(192, 0, 0, 0, 24), "protocol assignments, RFC 6890"),
    (v4(192, 0, 2, 0, 24), "documentation, RFC 5737"),
    (v4(192, 31, 196, 0, 24), "AS112, RFC 7535"),
    (v4(192, 52, 193, 0, 24), "AMT, RFC 7450"),
    (v4(192, 88, 99, 0, 24), "6to4 relay, RFC 7526"),
    (v4(192, 168, 0, 0, 16), "private, RFC 1918"),
    (v4(192, 175, 48, 0, 24), "AS112, RFC 7534"),
    (v4(198, 18, 0, 0, 15), "benchmarking, RFC 2544"),
    (v4(198, 51, 100, 0, 24), "documentation, RFC 5737"),
    (v4(203, 0, 113, 0, 24), "documentation, RFC 5737"),
    (v4(224, 0, 0, 0, 4), "multicast, RFC 5771"),
    (v4(240, 0, 0, 0, 4), "reserved, RFC 1112"),
];

/// The only block that IANA has allocated for global unicast.
const GLOBAL_UNICAST_V6: Ipv6Net = v6([0x2000, 0, 0, 0, 0, 0, 0, 0], 3);

/// Special-purpose blocks inside [`GLOBAL_UNICAST_V6`], and those outside it that need a specific name.
const NOT_PUBLIC_V6: [(Ipv6Net, &str); 16] = [
    (v6([0, 0, 0, 0, 0, 0, 0, 0], 128), "unspecified, RFC 4291"),
    (v6([0, 0, 0, 0, 0, 0, 0, 1], 128), "loopback, RFC 4291"),
    (
        v6([0, 0, 0, 0, 0, 0, 0, 0], 96),
        "IPv4-compatible, RFC 4291",
    ),
    (
        v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48),
        "local NAT64, RFC 8215",
    ),
    (v6([0x100, 0, 0, 0, 0, 0, 0, 0], 64), "discard, RFC 6666"),
    (
        v6([0x100, 0, 0, 1, 0, 0, 0, 0], 64),
        "dummy prefix, RFC 9780",
    ),
    (
        v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23),
        "protocol assignments with Teredo and ORCHID, RFC 2928",
    ),
    (
        v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32),
        "documentation, RFC 3849",
    ),
    (v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16), "6to4, RFC 3056"),
    (
        v6([0x2620, 0x4f, 0x8000, 0, 0, 0, 0, 0], 48),
        "AS112, RFC 7534",
    ),
    (
        v6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20),
        "documentation, RFC 9637",
    ),
    (
        v6([0x5f00, 0, 0, 0, 0, 0, 0, 0], 16),
        "segment routing, RFC 9602",
    ),
    (
        v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7),
        "unique local, RFC 4193",
    ),
    (
        v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10),
        "link-local, RFC 4291",
    ),
    (
        v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10),
        "site-local, RFC 3879",
    ),
    (v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8), "multicast, RFC 4291"),
];

/// A target that the rules deny. Displays as one sentence: the host or address, the rule, and the flag that would allow
/// it, if any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressDenied {
    subject: Box<str>,
    rule: Rule,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Rule {
    Characters,
    NotAUrl(url::ParseError),
    Scheme,
    PlainHttp,
    UserInfo,
    NoHost,
    Port(u16),
    ReservedName(&'static str),
    Service(&'static str),
    DeniedHost(HostPattern),
    DenyList(IpNet),
    NotPublic(&'static str),
}

impl EgressDenied {
    fn of(subject: &str, rule: Rule) -> Self {
        Self {
            subject: subject.into(),
            rule,
        }
    }
}

impl fmt::Display for EgressDenied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { subject, rule } = self;
        write!(f, "{subject} is denied: ")?;
        match rule {
            Rule::Characters => f.write_str("it holds a blank, a control character or a backslash"),
            Rule::NotAUrl(error) => write!(f, "it is not an absolute url ({error})"),
            Rule::Scheme => f.write_str("its scheme is not https"),
            Rule::PlainHttp => {
                f.write_str("its scheme is http; --egress-allow-http would allow it")
            }
            Rule::UserInfo => f.write_str("its url holds a user name or password"),
            Rule::NoHost => f.write_str("it names no host"),
            Rule::Port(0) => f.write_str("port 0 cannot be dialled"),
            Rule::Port(port) => write!(
                f,
                "port {port} is not listed; --egress-ports would allow it"
            ),
            Rule::ReservedName(why) => {
                write!(
                    f,
                    "it is {why}; --egress-allow-cidr with the network it is in, or --egress-allow-host, would allow it"
                )
            }
            Rule::Service(why) => write!(
                f,
                "it is {why}; only --egress-allow-host with this name would allow it"
            ),
            Rule::DeniedHost(pattern) => write!(f, "--egress-deny-host {pattern} forbids it"),
            Rule::DenyList(net) => write!(f, "--egress-deny-cidr {net} forbids it"),
            Rule::NotPublic(why) => write!(
                f,
                "the address is not public ({why}); --egress-allow-cidr would allow it"
            ),
        }
    }
}

impl std::error::Error for EgressDenied {}

#[cfg(test)]
mod tests;
