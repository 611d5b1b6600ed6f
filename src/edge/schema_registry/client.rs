//! Asks a registry for one schema, and for those that it refers to.

use std::collections::HashSet;
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, HeaderValue, USER_AGENT};
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use thiserror::Error;
use tokio::time::timeout;

use crate::config::{RegistryAuth, SchemaRegistrySettings, SecretRef};
use crate::edge::http::{self as trust, HttpSetupError};
use crate::edge::secret_text;
use crate::model::schema::{Definition, Language, MAX_SCHEMA_BYTES, Reference, SchemaId, Unusable};

/// Time of one request, connecting included.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The largest response, bytes: a schema with every character escaped.
const MAX_RESPONSE_BYTES: usize = 6 * MAX_SCHEMA_BYTES;
/// Schemas that one refers to, directly or not.
const MAX_REFERENCES: usize = 500;
/// References of references.
const MAX_REFERENCE_DEPTH: usize = 32;
/// The registry's error code of an id that does not exist.
const NO_SUCH_SCHEMA: u32 = 40403;

/// Why the registry cannot be asked at all.
#[derive(Debug, Error)]
pub enum SetupError {
    /// The certificates.
    #[error("--schema-registry: {0}")]
    Tls(#[from] HttpSetupError),
    /// The credentials.
    #[error("{0}")]
    Secret(String),
    /// The thread.
    #[error("cannot start the thread of the schema registry: {0}")]
    Thread(std::io::Error),
}

/// What the registry says.
#[derive(Debug)]
pub(super) enum Answer {
    Found(Definition),
    Missing,
    Unusable(Unusable),
    /// It says something else, or nothing.
    Failed(String),
}

/// Why there is no answer.
#[derive(Debug)]
enum Fault {
    NoSuchSchema,
    Unusable(Unusable),
    Other(String),
}

impl From<String> for Fault {
    fn from(reason: String) -> Self {
        Self::Other(reason)
    }
}

/// A schema, as the registry returns it.
#[derive(Deserialize)]
struct Found {
    schema: String,
    #[serde(rename = "schemaType")]
    language: Option<String>,
    references: Option<Vec<Named>>,
}

/// The name of another schema.
#[derive(Deserialize)]
struct Named {
    name: String,
    subject: String,
    version: u32,
}

#[derive(Deserialize)]
struct Refusal {
    error_code: u32,
}

#[derive(Debug)]
pub(super) struct Client {
    http: legacy::Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    url: String,
    auth: Option<RegistryAuth>,
}

impl Client {
    pub(super) fn new(
        settings: &SchemaRegistrySettings,
        ca_file: Option<&Path>,
    ) -> Result<Self, SetupError> {
        let plain = settings.url.starts_with("http:");
        let tls = trust::trusted(settings.ca_file.as_deref().or(ca_file), plain)?;
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(TIMEOUT));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let http = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(20))
            .build(connector);
        let client = Self {
            http,
            url: settings.url.clone(),
            auth: settings.auth.clone(),
        };
        // What cannot be read now is reported at once.
        authorization(client.auth.as_ref()).map_err(SetupError::Secret)?;
        Ok(client)
    }

    /// Asks for a schema.
    pub(super) async fn schema(&self, id: SchemaId) -> Answer {
        match self.definition(id).await {
            Ok(definition) => Answer::Found(definition),
            Err(Fault::NoSuchSchema) => Answer::Missing,
            Err(Fault::Unusable(reason)) => Answer::Unusable(reason),
            Err(Fault::Other(reason)) => Answer::Failed(reason),
        }
    }

    async fn definition(&self, id: SchemaId) -> Result<Definition, Fault> {
        let kind = match id {
            SchemaId::Number(_) => "ids",
            SchemaId::Guid(_) => "guids",
        };
        let found = self.get(&format!("/schemas/{kind}/{id}"), true).await?;
        let language = Language::named(found.language.as_deref()).map_err(Fault::Unusable)?;
        let mut references = References {
            size: found.schema.len(),
            ..References::default()
        };
        // The value of a JSON Schema is read without it.
        if language != Language::Json {
            let named = found.references.unwrap_or_default();
            self.resolve(named, &mut references, 0).await?;
        }
        Ok(Definition {
            language,
            text: found.schema,
            references: references.found,
        })
    }

    /// Adds schemas that another one refers to, each behind those that it refers to itself. Of two with one name, the
    /// first one holds, as in Confluent's own clients.
    fn resolve<'a>(
        &'a self,
        named: Vec<Named>,
        into: &'a mut References,
        depth: usize,
    ) -> Pin<Box<dyn Future<Output = Result<(), Fault>> + Send + 'a>> {
        Box::pin(async move {
            for one in named {
                if !into.names.insert(one.name.clone()) {
                    continue;
                }
                if depth >= MAX_REFERENCE_DEPTH || into.names.len() > MAX_REFERENCES {
                    let limit = "it refers to too many schemas, or too deep";
                    return Err(Fault::Unusable(Unusable::Malformed(limit.to_owned())));
                }
                let subject = utf8_percent_encode(&one.subject, NON_ALPHANUMERIC);
                // A version that was deleted is still part of what refers to it.
                let path = format!("/subjects/{subject}/versions/{}?deleted=true", one.version);
                let found = self.get(&path, false).await?;
                into.size += found.schema.len();
                if into.size > MAX_SCHEMA_BYTES {
                    return Err(Fault::Unusable(Unusable::TooLarge { size: into.size }));
                }
                let further = found.references.unwrap_or_default();
                self.resolve(further, into, depth + 1).await?;
                into.found.push(Reference {
                    name: one.name,
                    text: found.schema,
                });
            }
            Ok(())
        })
    }

    /// Asks for a schema. `by_id`: 40403 means that there is none.
    async fn get(&self, path: &str, by_id: bool) -> Result<Found, Fault> {
        let asked = async {
            let authorization = match self.auth.clone() {
                None => None,
                // A file system may hang.
                auth => {
                    let read = tokio::task::spawn_blocking(move || authorization(auth.as_ref()));
                    read.await
                        .map_err(|error| format!("reading the credentials: {error}"))??
                }
            };
            let mut request = Request::get(format!("{}{path}", self.url))
                .header(
                    ACCEPT,
                    "application/vnd.schemaregistry.v1+json, application/json",
                )
                .header(
                    USER_AGENT,
                    concat!("hookstream/", env!("CARGO_PKG_VERSION")),
                );
            if let Some(authorization) = authorization {
                request = request.header(AUTHORIZATION, authorization);
            }
            let request = request
                .body(Empty::new())
                .map_err(|error| format!("the request is not valid: {error}"))?;
            let response = self
                .http
                .request(request)
                .await
                .map_err(|error| chain(&error))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_RESPONSE_BYTES);
            let body = body
                .collect()
                .await
                .map_err(|error| format!("reading the response: {error}"))?;
            Ok::<_, String>((status, body.to_bytes()))
        };
        let (status, body) = match timeout(TIMEOUT, asked).await {
            Ok(answered) => answered.map_err(|reason| format!("GET {path}: {reason}"))?,
            Err(_) => return Err(format!("GET {path}: no response within {TIMEOUT:?}").into()),
        };
        judge(status, &body, by_id).map_err(|fault| match fault {
            Fault::Other(reason) => Fault::Other(format!("GET {path}: {reason}")),
            fault => fault,
        })
    }
}

/// Schemas that another one refers to.
#[derive(Default)]
struct References {
    found: Vec<Reference>,
    names: HashSet<String>,
    size: usize,
}

/// What a response says.
fn judge(status: StatusCode, body: &[u8], by_id: bool) -> Result<Found, Fault> {
    if status.is_success() {
        return serde_json::from_slice(body).map_err(|_| {
            "the response is not a schema; is this the URL of a registry?"
                .to_owned()
                .into()
        });
    }
    let code = serde_json::from_slice(body).map(|refusal: Refusal| refusal.error_code);
    let code = code.ok();
    if status == StatusCode::NOT_FOUND && code == Some(NO_SUCH_SCHEMA) && by_id {
        return Err(Fault::NoSuchSchema);
    }
    let code = code.map_or_else(String::new, |code| format!(", error code {code}"));
    let hint = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            "; check --schema-registry-user and --schema-registry-password, or --schema-registry-token"
        }
        StatusCode::NOT_FOUND if code.is_empty() => {
            "; check the path of --schema-registry, such as /apis/ccompat/v7"
        }
        status if status.is_redirection() => "; redirects are not followed",
        _ => "",
    };
    Err(format!("status {}{code}{hint}", status.as_u16()).into())
}

/// The header for these credentials.
fn authorization(auth: Option<&RegistryAuth>) -> Result<Option<HeaderValue>, String> {
    let (setting, text) = match auth {
        None => return Ok(None),
        Some(RegistryAuth::Basic { user, password }) => {
            let setting = "--schema-registry-password";
            let password = secret(setting, password)?;
            let both = STANDARD.encode(format!("{user}:{password}"));
            (setting, format!("Basic {both}"))
        }
        Some(RegistryAuth::Bearer(token)) => {
            let setting = "--schema-registry-token";
            (setting, format!("Bearer {}", secret(setting, token)?))
        }
    };
    let mut header = HeaderValue::try_from(text)
        .map_err(|_| format!("{setting}: the secret contains a control character"))?;
    header.set_sensitive(true);
    Ok(Some(header))
}

fn secret(setting: &str, from: &SecretRef) -> Result<String, String> {
    secret_text::read(from).map_err(|problem| format!("{setting}: {problem}"))
}

/// An error with its causes; one of TLS in our own words.
fn chain(error: &legacy::Error) -> String {
    if let Some(reason) = trust::tls_reason(error) {
        return format!(
            "the tls handshake failed: {reason}; --schema-registry-ca-file holds the certificates to trust"
        );
    }
    trust::with_causes(error)
}
