//! Who may read the pages: with `--http-token-file`, whoever has a token of that file. Probes stay open, since the kubelet
//! has none.
//!
//! The file has one token per line, so that a new one can be added before the old one is removed; it is read for each
//! request. A token comes as `Authorization: Bearer TOKEN`, or as the password of any user (`Basic`), which browsers can
//! send.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::AUTHORIZATION;
use http::{HeaderMap, StatusCode};
use ring::digest::{SHA256, digest};

use crate::edge::small_file::{self, MAX_SECRET_BYTES};

/// The shortest token, characters: a shorter one can be guessed.
const MIN_TOKEN: usize = 16;

/// The limits of access.
#[derive(Clone, Debug, Default)]
pub struct Access {
    tokens: Option<PathBuf>,
}

/// Why a request is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) status: StatusCode,
    pub(super) text: &'static str,
}

impl Access {
    /// `tokens`: the file of tokens; without one, everybody may read.
    ///
    /// # Errors
    /// What is wrong with the file, without its content.
    pub fn new(tokens: Option<PathBuf>) -> Result<Self, String> {
        if let Some(path) = &tokens {
            read(path)
                .map_err(|problem| format!("--http-token-file {}: {problem}", path.display()))?;
        }
        Ok(Self { tokens })
    }

    /// Checks the headers of a request. Reads a file, so it may block.
    pub(super) fn check(&self, headers: &HeaderMap) -> Result<(), Refused> {
        let Some(path) = &self.tokens else {
            return Ok(());
        };
        let tokens = read(path).map_err(|problem| {
            tracing::warn!(path = %path.display(), "no page is served: the tokens cannot be read: {problem}");
            Refused {
                status: StatusCode::SERVICE_UNAVAILABLE,
                text: "the tokens cannot be read, see the log\n",
            }
        })?;
        match given(headers).is_some_and(|token| is_one_of(&token, &tokens)) {
            true => Ok(()),
            false => Err(Refused {
                status: StatusCode::UNAUTHORIZED,
                text: "a token of --http-token-file is required, as Authorization: Bearer TOKEN\n",
            }),
        }
    }
}

fn read(path: &Path) -> Result<Vec<String>, String> {
    let text = small_file::read_text(path, MAX_SECRET_BYTES).map_err(|error| error.to_string())?;
    let lines = text.lines().map(str::trim);
    let tokens: Vec<String> = lines
        .filter(|line| !line.is_empty())
        .map(str::to_owned)
        .collect();
    if tokens.is_empty() {
        return Err("it contains no token".to_owned());
    }
    if tokens.iter().any(|token| token.len() < MIN_TOKEN) {
        return Err(format!("a token is shorter than {MIN_TOKEN} characters"));
    }
    Ok(tokens)
}

/// The token of a request.
fn given(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, rest) = value.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.trim().to_owned());
    }
    if scheme.eq_ignore_ascii_case("basic") {
        let both = STANDARD.decode(rest.trim()).ok()?;
        let both = String::from_utf8(both).ok()?;
        return both.split_once(':').map(|(_, token)| token.to_owned());
    }
    None
}

/// Compares digests: how long that takes says nothing about the tokens.
fn is_one_of(token: &str, tokens: &[String]) -> bool {
    let of = |text: &str| digest(&SHA256, text.as_bytes());
    let wanted = of(token);
    let equal = tokens.iter().map(|one| of(one).as_ref() == wanted.as_ref());
    equal.fold(false, |found, equal| found | equal)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "first-token-0123456789";
    const OTHER: &str = "other-token-0123456789";

    fn check(access: &Access, authorization: Option<&str>) -> Result<(), StatusCode> {
        let mut headers = HeaderMap::new();
        if let Some(value) = authorization {
            headers.insert(AUTHORIZATION, value.parse().unwrap());
        }
        access.check(&headers).map_err(|refused| refused.status)
    }

    #[test]
    fn whoever_has_a_token_may_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("{ONE}\n\n  {OTHER} \n")).unwrap();
        let access = Access::new(Some(file.path().to_owned())).unwrap();
        let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
        for (authorization, expected) in [
            (Some(format!("Bearer {ONE}")), Ok(())),
            (Some(format!("bearer  {OTHER}")), Ok(())),
            (Some(basic(&format!("me:{ONE}"))), Ok(())),
            (
                Some(basic(&format!("{ONE}:"))),
                Err(StatusCode::UNAUTHORIZED),
            ),
            (
                Some("Bearer wrong".to_owned()),
                Err(StatusCode::UNAUTHORIZED),
            ),
            (Some("Bearer ".to_owned()), Err(StatusCode::UNAUTHORIZED)),
            (Some(ONE.to_owned()), Err(StatusCode::UNAUTHORIZED)),
            (Some("Basic %%".to_owned()), Err(StatusCode::UNAUTHORIZED)),
            (None, Err(StatusCode::UNAUTHORIZED)),
        ] {
            assert_eq!(
                check(&access, authorization.as_deref()),
                expected,
                "{authorization:?}"
            );
        }
        // A token is removed, and then the file.
        std::fs::write(file.path(), OTHER).unwrap();
        let bearer = format!("Bearer {ONE}");
        assert_eq!(check(&access, Some(&bearer)), Err(StatusCode::UNAUTHORIZED));
        std::fs::remove_file(file.path()).unwrap();
        let bearer = format!("Bearer {OTHER}");
        assert_eq!(
            check(&access, Some(&bearer)),
            Err(StatusCode::SERVICE_UNAVAILABLE)
        );
    }

    #[test]
    fn without_a_file_everybody_may_read_and_with_a_bad_one_nothing_starts() {
        assert_eq!(check(&Access::default(), None), Ok(()));
        let file = tempfile::NamedTempFile::new().unwrap();
        for (content, problem) in [("\n", "contains no token"), ("hunter2", "shorter than 16")] {
            std::fs::write(file.path(), content).unwrap();
            let error = Access::new(Some(file.path().to_owned())).unwrap_err();
            assert!(
                error.contains(problem) && !error.contains("hunter2"),
                "{error}"
            );
        }
        let missing = Access::new(Some("/nonexistent".into())).unwrap_err();
        assert!(
            missing.contains("--http-token-file /nonexistent"),
            "{missing}"
        );
    }
}
