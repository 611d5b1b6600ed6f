//! The HTTP pages of the lag role: `/lag` and `/lag/history` as JSON, and the page for browsers.

use std::sync::Arc;

use http::StatusCode;
use serde::Serialize;

use super::figures::{Board, Query};
use crate::runtime::admin_http::{Page, Route};

/// The routes of the lag role, over the figures on `board`.
#[must_use]
pub fn routes(board: Arc<Board>) -> Vec<Route> {
    let past = Arc::clone(&board);
    vec![
        Route {
            path: "/lag/history",
            page: Box::new(move |_| json(&past.history())),
        },
        Route {
            path: "/lag",
            page: Box::new(move |query| lag(&board, query)),
        },
        Route {
            path: "/",
            page: Box::new(|_| page()),
        },
    ]
}

/// The page for browsers, which fetches only these.
fn page() -> Page {
    /// No resources from other hosts, and no requests to them.
    const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; frame-ancestors 'none'";
    Page {
        status: StatusCode::OK,
        content_type: "text/html; charset=utf-8",
        policy: Some(POLICY),
        body: include_str!("page.html").to_owned(),
    }
}

/// The figures that match the query.
fn lag(board: &Board, query: Option<&str>) -> Page {
    let query = match Query::parse(query.unwrap_or_default()) {
        Ok(query) => query,
        Err(mistake) => return plain(StatusCode::BAD_REQUEST, format!("{mistake}\n")),
    };
    let Some(figures) = board.get() else {
        let reason =
            "no figures: the lag role does not run in this process, or has not read anything yet\n";
        return plain(StatusCode::SERVICE_UNAVAILABLE, reason.to_owned());
    };
    json(&query.apply(&figures))
}

fn json(value: &impl Serialize) -> Page {
    match serde_json::to_string(value) {
        Ok(body) => Page {
            status: StatusCode::OK,
            content_type: "application/json",
            policy: None,
            body: body + "\n",
        },
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn plain(status: StatusCode, body: String) -> Page {
    Page {
        status,
        content_type: "text/plain",
        policy: None,
        body,
    }
}
