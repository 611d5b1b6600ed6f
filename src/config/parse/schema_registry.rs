//! The settings of the Schema Registry. Credentials are named, never given: a flag is visible to all users of a machine.

use super::super::secrets::{SecretRef, may_hold_credentials, secret_ref};
use super::super::settings::{RegistryAuth, SchemaRegistrySettings};
use super::{Reader, setting};

/// The settings that have no effect without `--schema-registry`.
const FURTHER: [&str; 4] = [
    "schema-registry-user",
    "schema-registry-password",
    "schema-registry-token",
    "schema-registry-ca-file",
];

impl Reader<'_> {
    /// `Some(None)` without a registry.
    pub(super) fn schema_registry(&mut self) -> Option<Option<SchemaRegistrySettings>> {
        let Some((text, source)) = self.layers.effective(setting("schema-registry")?) else {
            return self.without_registry().then_some(None);
        };
        if may_hold_credentials(text) {
            self.mistakes.push(format!(
                "--schema-registry ({}): must not contain user info, a query or a fragment; use --schema-registry-user and --schema-registry-password, or --schema-registry-token",
                source.name()
            ));
            return None;
        }
        let url = self.read("schema-registry", base_url);
        let user = self.computed("schema-registry-user", user, || None);
        let password = self.secret("schema-registry-password");
        let token = self.secret("schema-registry-token");
        let ca_file = self.computed(
            "schema-registry-ca-file",
            |text| Some(Some(text.into())),
            || None,
        );
        let auth = match (user?, password?, token?) {
            (None, None, None) => None,
            (Some(user), Some(password), None) => Some(RegistryAuth::Basic { user, password }),
            (None, None, Some(token)) => Some(RegistryAuth::Bearer(token)),
            (_, _, Some(_)) => {
                self.mistakes.push("--schema-registry-token excludes --schema-registry-user and --schema-registry-password".to_owned());
                return None;
            }
            (_, _, None) => {
                self.mistakes.push("--schema-registry-user and --schema-registry-password need each other; use --schema-registry-token for a bearer token".to_owned());
                return None;
            }
        };
        Some(Some(SchemaRegistrySettings {
            url: url?,
            auth,
            ca_file: ca_file?,
        }))
    }

    /// Whether none of the further settings is given.
    fn without_registry(&mut self) -> bool {
        let before = self.mistakes.len();
        for name in FURTHER {
            let given = setting(name).and_then(|setting| self.layers.effective(setting));
            if given.is_some() {
                self.mistakes
                    .push(format!("--{name} has no effect without --schema-registry"));
            }
        }
        self.mistakes.len() == before
    }

    /// Where a secret is; `Some(None)` when it is not given. What is not the name of a place may be the secret itself, and
    /// is not quoted.
    pub(super) fn secret(&mut self, name: &'static str) -> Option<Option<SecretRef>> {
        let Some((text, source)) = self.layers.effective(setting(name)?) else {
            return Some(None);
        };
        let found = secret_ref(text);
        if found.is_none() {
            self.wrong.insert(name);
            self.mistakes.push(format!(
                "--{name} ({}): must say where the secret is, and not hold it; allowed: env:NAME or file:PATH",
                source.name()
            ));
        }
        found.map(Some)
    }
}

/// The base URL, without a slash at its end.
fn base_url(text: &str) -> Option<String> {
    let url = url::Url::parse(text).ok()?;
    let is_http = matches!(url.scheme(), "http" | "https") && url.has_host();
    is_http.then(|| url.as_str().trim_end_matches('/').to_owned())
}

/// Basic authentication separates user and password by a colon.
fn user(text: &str) -> Option<Option<String>> {
    let is_name =
        !text.is_empty() && !text.contains(|letter: char| letter == ':' || letter.is_control());
    is_name.then(|| Some(text.to_owned()))
}
