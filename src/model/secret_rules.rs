//! Which secrets of the delivering process a subscription may name: an operator's limits on `env:` and `file:`.
//!
//! Where several tenants write subscriptions, one must not sign or send with another's secret. So a directory or a prefix
//! can contain [`SUBSCRIBER`], which stands for the subscriber of the subscription. No two subscribers have places in
//! common:
//!
//! | of a | `{subscriber}` | because |
//! |---|---|---|
//! | directory | a whole component of the path, and the name as it is; `.` and `..` have no directory | a directory called `acme` is not part of `acme2` |
//! | prefix | the name with everything but letters and digits as `_` and two hex digits (`acme-eu` is `acme_2Deu`), followed by `__` | such a name holds no `__`, so no prefix begins another one |
//!
//! A path is compared component by component, and a path with `..` is refused. Where a path really leads, by way of links,
//! is checked when it is read (`edge::small_file`).

use std::fmt::Write as _;
use std::path::{Component, Path, PathBuf};

use super::subscription::{SecretSource, Subscription};

/// Stands for the subscriber.
pub const SUBSCRIBER: &str = "{subscriber}";
/// What follows [`SUBSCRIBER`] in a prefix.
const END_OF_NAME: &str = "__";
/// Forbids all.
const NONE: &str = "none";
/// The settings of this program may hold its own credentials.
const OWN_VARIABLES: &str = "HOOKSTREAM_";

/// The limits. The default allows everything but the settings of hookstream itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecretRules {
    /// `None`: any file.
    dirs: Option<Vec<PathBuf>>,
    /// `None`: any variable.
    prefixes: Option<Vec<String>>,
}

impl SecretRules {
    /// Limits from the settings; `None` is no limit.
    #[must_use]
    pub fn new(dirs: Option<Vec<PathBuf>>, prefixes: Option<Vec<String>>) -> Self {
        Self { dirs, prefixes }
    }

    /// Whether a subscriber may use a secret. Returns the directory that its file must be in, if there is a limit.
    ///
    /// # Errors
    /// One sentence that names the reference and the limit.
    pub fn check(
        &self,
        subscriber: &str,
        source: &SecretSource,
    ) -> Result<Option<PathBuf>, String> {
        match source {
            SecretSource::Literal(_) | SecretSource::Encrypted(_) => Ok(None),
            SecretSource::Env(name) => self.variable(subscriber, name).map(|()| None),
            SecretSource::File(path) => self.file(subscriber, path),
        }
    }

    /// What is wrong with the references of a subscription.
    pub fn problems<'s>(
        &'s self,
        subscription: &'s Subscription,
    ) -> impl Iterator<Item = String> + 's {
        let sources = subscription.sources();
        sources.filter_map(|source| self.check(&subscription.subscriber, source).err())
    }

    fn variable(&self, subscriber: &str, name: &str) -> Result<(), String> {
        let Some(prefixes) = &self.prefixes else {
            return match name.starts_with(OWN_VARIABLES) {
                true => Err(format!(
                    "env:{name} is a setting of hookstream, which is no secret of a subscription"
                )),
                false => Ok(()),
            };
        };
        let own: Vec<_> = prefixes
            .iter()
            .map(|prefix| prefix.replace(SUBSCRIBER, &in_variable(subscriber)))
            .collect();
        if own.iter().any(|prefix| name.starts_with(prefix)) {
            return Ok(());
        }
        Err(match own.is_empty() {
            true => format!("env:{name} is not allowed: --secret-env-prefix is none"),
            false => format!(
                "env:{name} is not allowed for this subscriber: the name must begin with {} (--secret-env-prefix)",
                own.join(" or ")
            ),
        })
    }

    fn file(&self, subscriber: &str, path: &Path) -> Result<Option<PathBuf>, String> {
        let Some(dirs) = &self.dirs else {
            return Ok(None);
        };
        let shown = path.display();
        if path.components().any(|part| part == Component::ParentDir) {
            return Err(format!(
                "file:{shown} is not allowed: with --secret-dirs a path must not contain .."
            ));
        }
        let own: Vec<_> = dirs.iter().filter_map(|dir| of(dir, subscriber)).collect();
        // The innermost one: what is inside of it is inside of the others.
        let found = own
            .iter()
            .filter(|dir| path.starts_with(dir) && path != **dir)
            .max_by_key(|dir| dir.components().count());
        if let Some(dir) = found {
            return Ok(Some(dir.clone()));
        }
        let own: Vec<_> = own.iter().map(|dir| dir.display().to_string()).collect();
        Err(match own.is_empty() {
            true => {
                format!(
                    "file:{shown} is not allowed: --secret-dirs has no directory for this subscriber"
                )
            }
            false => format!(
                "file:{shown} is not allowed for this subscriber: it must be in {} (--secret-dirs)",
                own.join(" or ")
            ),
        })
    }
}

/// The directory of a subscriber; `None` if it has none.
fn of(dir: &Path, subscriber: &str) -> Option<PathBuf> {
    let mut own = PathBuf::new();
    for part in dir.components() {
        if part.as_os_str() == SUBSCRIBER {
            let mut name = Path::new(subscriber).components();
            let is_name =
                matches!(name.next(), Some(Component::Normal(_))) && name.next().is_none();
            own.push(Some(subscriber).filter(|_| is_name)?);
        } else {
            own.push(part);
        }
    }
    Some(own)
}

/// The name of a subscriber as a part of the name of a variable.
fn in_variable(subscriber: &str) -> String {
    let mut name = String::with_capacity(subscriber.len());
    for byte in subscriber.bytes() {
        if byte.is_ascii_alphanumeric() {
            name.push(char::from(byte));
        } else {
            // Writing to a text does not fail.
            write!(name, "_{byte:02X}").ok();
        }
    }
    name
}

/// Reads `--secret-dirs`.
#[must_use]
pub fn parse_dirs(text: &str) -> Option<Vec<PathBuf>> {
    if text.trim() == NONE {
        return Some(Vec::new());
    }
    text.split(',').map(|part| dir(part.trim())).collect()
}

fn dir(text: &str) -> Option<PathBuf> {
    let path = Path::new(text);
    let is_clean = path.is_absolute()
        && path.components().all(|part| match part {
            Component::Normal(name) => {
                let name = name.to_string_lossy();
                name == SUBSCRIBER || !name.contains(['{', '}'])
            }
            Component::RootDir => true,
            Component::ParentDir | Component::CurDir | Component::Prefix(_) => false,
        });
    is_clean.then(|| path.components().collect())
}

/// Reads `--secret-env-prefix`.
#[must_use]
pub fn parse_prefixes(text: &str) -> Option<Vec<String>> {
    if text.trim() == NONE {
        return Some(Vec::new());
    }
    text.split(',').map(|part| prefix(part.trim())).collect()
}

fn prefix(text: &str) -> Option<String> {
    let is_part = |part: &str| {
        let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        part.bytes().all(is_letter)
    };
    let is_start = text.starts_with(|letter: char| letter.is_ascii_alphabetic() || letter == '_');
    let is_valid = match text.split_once(SUBSCRIBER) {
        None => is_part(text),
        // Otherwise the variables of one subscriber could begin like those of another one.
        Some((before, after)) => {
            is_part(before) && is_part(after) && after.starts_with(END_OF_NAME)
        }
    };
    (is_start && is_valid).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(dirs: &str, prefixes: &str) -> SecretRules {
        SecretRules::new(
            Some(parse_dirs(dirs).unwrap()),
            Some(parse_prefixes(prefixes).unwrap()),
        )
    }

    fn file(path: &str) -> SecretSource {
        SecretSource::File(Path::new(path).into())
    }

    fn env(name: &str) -> SecretSource {
        SecretSource::Env(name.into())
    }

    #[test]
    fn a_file_is_in_the_directory_of_its_subscriber() {
        let rules = rules("/run/shared,/run/tenants/{subscriber}/keys", "none");
        for (subscriber, path, dir) in [
            ("acme", "/run/shared/a", Some("/run/shared")),
            ("acme", "/run/shared/deep/er/a", Some("/run/shared")),
            ("acme", "/run/./shared//a", Some("/run/shared")),
            (
                "acme",
                "/run/tenants/acme/keys/a",
                Some("/run/tenants/acme/keys"),
            ),
            ("acme", "/run/tenants/acme2/keys/a", None),
            ("acme", "/run/tenants/acme/a", None),
            ("acme", "/run/shared", None),
            ("acme", "/run/shared2/a", None),
            ("acme", "/run/shared/../tenants/other/keys/a", None),
            ("acme", "/run/tenants/acme/keys/../../other/keys/a", None),
            ("acme", "/etc/passwd", None),
            ("..", "/run/keys/a", None),
            ("..", "/run/tenants/../keys/a", None),
            (".", "/run/tenants/keys/a", None),
            (
                "a:b",
                "/run/tenants/a:b/keys/a",
                Some("/run/tenants/a:b/keys"),
            ),
        ] {
            let found = rules.check(subscriber, &file(path));
            assert_eq!(
                found.clone().ok().flatten(),
                dir.map(PathBuf::from),
                "{path}: {found:?}"
            );
            assert_eq!(found.is_ok(), dir.is_some(), "{path}");
        }
    }

    #[test]
    fn a_variable_begins_with_the_prefix_of_its_subscriber_and_of_no_other() {
        let rules = rules("none", "SHARED_,WH_{subscriber}__");
        for (subscriber, name, is_allowed) in [
            ("acme", "SHARED_KEY", true),
            ("acme", "WH_acme__KEY", true),
            ("acme", "WH_ACME__KEY", false),
            ("acme", "WH_acme_KEY", false),
            ("acme", "WH_acme_5Feu__KEY", false),
            ("acme_eu", "WH_acme_5Feu__KEY", true),
            ("acme-eu", "WH_acme_2Deu__KEY", true),
            ("acme", "PATH", false),
        ] {
            let found = rules.check(subscriber, &env(name));
            assert_eq!(found.is_ok(), is_allowed, "{subscriber} {name}: {found:?}");
        }
    }

    #[test]
    fn no_subscriber_has_a_variable_of_another_one() {
        let names = [
            "a", "a_", "a__", "a_b", "a_5F", "a_5Fb", "ab", "A", "-", "a-", "a.b", "a:b",
        ];
        let rules = rules("none", "W_{subscriber}__");
        for one in names {
            let own = format!("W_{}__KEY", in_variable(one));
            for other in names {
                let found = rules.check(other, &env(&own));
                assert_eq!(found.is_ok(), one == other, "{own} of {one} for {other}");
            }
        }
    }

    #[test]
    fn without_limits_everything_is_allowed_but_the_settings_of_this_program() {
        let rules = SecretRules::default();
        assert_eq!(rules.check("a", &file("/etc/../x")), Ok(None));
        assert_eq!(rules.check("a", &env("KEY")), Ok(None));
        let error = rules.check("a", &env("HOOKSTREAM_X")).unwrap_err();
        assert!(error.contains("is a setting of hookstream"), "{error}");
    }

    #[test]
    fn limits_that_would_not_separate_are_refused() {
        for text in [
            "",
            "relative",
            "/a/../b",
            "/a,",
            "/a/x{subscriber}",
            "/a/{other}",
        ] {
            assert!(parse_dirs(text).is_none(), "{text}");
        }
        for text in [
            "",
            "1A",
            "A-",
            "A,",
            "A_{subscriber}",
            "A_{subscriber}_",
            "A_{subscriber}x__",
            "{subscriber}__",
            "A_{subscriber}__{subscriber}__",
        ] {
            assert!(parse_prefixes(text).is_none(), "{text}");
        }
    }
}
