//! Subscriptions that other commands are about.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::change::unknown;
use super::select::{Label, shown, with_labels};
use super::stored::Stored;
use crate::cli::exit::{CliError, Exit};
use crate::config::Settings;
use crate::edge::kafka::subscription_log::Freshness;
use crate::model::subscription::Subscription;

/// Which ones: those named, those of a subscriber, those with labels, or all.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chosen {
    pub(crate) id: Option<String>,
    pub(crate) subscriber: Option<String>,
    pub(crate) selector: Vec<Label>,
    pub(crate) all: bool,
}

impl Chosen {
    /// Whether nothing says which ones.
    pub(crate) fn is_none(&self) -> bool {
        let Self {
            id,
            subscriber,
            selector,
            all,
        } = self;
        id.is_none() && subscriber.is_none() && selector.is_empty() && !all
    }
}

/// Reads them.
///
/// # Errors
/// [`CliError`]: the topic cannot be read, or there is none.
pub(crate) fn chosen(
    settings: &Settings,
    chosen: &Chosen,
) -> Result<Vec<Arc<Subscription>>, CliError> {
    let stored = Stored::read(settings, Freshness::Latest)?;
    let mut ids: BTreeSet<&str> = match &chosen.id {
        Some(id) => [id.as_str()].into(),
        None => with_labels(&stored, &chosen.selector),
    };
    if let Some(id) = &chosen.id
        && stored.fold.get(id).is_none()
    {
        return Err(unknown(&[id]));
    }
    if let Some(subscriber) = &chosen.subscriber {
        let of = |id: &&str| {
            let found = stored.fold.get(id);
            found.is_some_and(|found| *found.subscriber == **subscriber)
        };
        ids.retain(of);
    }
    let found: Vec<Arc<Subscription>> = ids
        .into_iter()
        .filter_map(|id| stored.fold.get(id).map(Arc::clone))
        .collect();
    if found.is_empty() {
        let what = match (&chosen.subscriber, chosen.selector.is_empty()) {
            (Some(subscriber), true) => format!("belongs to {subscriber:?}"),
            (Some(subscriber), false) => {
                format!("of {subscriber:?} has {}", shown(&chosen.selector))
            }
            (None, false) => format!("has {}", shown(&chosen.selector)),
            (None, true) => "exists".to_owned(),
        };
        let message = format!("no subscription {what}");
        return Err(CliError::new(Exit::Failure, message));
    }
    Ok(found)
}
