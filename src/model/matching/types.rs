//! Type patterns: exact ones in a hash map, wildcards in a tree of segments.

use super::conditions::Bucket;
use super::map::Map;
use crate::model::subscription::TypePattern;
use crate::model::subscription::filter::Segment;

/// The buckets of all patterns.
#[derive(Debug, Default)]
pub(super) struct Types {
    exact: Map<Box<str>, Bucket>,
    wildcards: Node,
}

#[derive(Debug, Default)]
struct Node {
    literals: Map<Box<str>, Node>,
    one: Option<Box<Node>>,
    any: Option<Box<Node>>,
    /// This node was entered by `**`, so it stays reached for any further segment.
    stays: bool,
    bucket: Bucket,
}

impl Node {
    fn is_empty(&self) -> bool {
        self.literals.is_empty()
            && self.one.is_none()
            && self.any.is_none()
            && self.bucket.is_empty()
    }

    fn change<R>(&mut self, segments: &[Segment], change: impl FnOnce(&mut Bucket) -> R) -> R {
        let Some((first, rest)) = segments.split_first() else {
            return change(&mut self.bucket);
        };
        match first {
            Segment::Literal(text) => {
                let child = self.literals.entry(text.clone()).or_default();
                let result = child.change(rest, change);
                if child.is_empty() {
                    self.literals.remove(text);
                }
                result
            }
            Segment::One => change_boxed(&mut self.one, false, rest, change),
            Segment::Any => change_boxed(&mut self.any, true, rest, change),
        }
    }
}

fn change_boxed<R>(
    slot: &mut Option<Box<Node>>,
    stays: bool,
    rest: &[Segment],
    change: impl FnOnce(&mut Bucket) -> R,
) -> R {
    let child = slot.get_or_insert_with(|| {
        Box::new(Node {
            stays,
            ..Node::default()
        })
    });
    let result = child.change(rest, change);
    if child.is_empty() {
        *slot = None;
    }
    result
}

impl Types {
    /// Changes the bucket of a pattern; creates it on demand, and removes it when empty.
    pub(super) fn change<R>(
        &mut self,
        pattern: &TypePattern,
        change: impl FnOnce(&mut Bucket) -> R,
    ) -> R {
        match pattern {
            TypePattern::Exact(text) => {
                let bucket = self.exact.entry(text.clone()).or_default();
                let result = change(bucket);
                if bucket.is_empty() {
                    self.exact.remove(text);
                }
                result
            }
            TypePattern::Wildcard(segments) => self.wildcards.change(segments, change),
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.wildcards.is_empty()
    }

    /// Visits the bucket of each matching pattern once.
    pub(super) fn matching<'t>(&'t self, event_type: &str, mut visit: impl FnMut(&'t Bucket)) {
        if let Some(bucket) = self.exact.get(event_type) {
            visit(bucket);
        }
        if self.wildcards.is_empty() {
            return;
        }
        let mut reached = Vec::new();
        enter(&self.wildcards, &mut reached);
        for segment in event_type.split('.') {
            let mut next = Vec::new();
            for node in reached {
                if node.stays {
                    enter(node, &mut next);
                }
                node.one.iter().for_each(|child| enter(child, &mut next));
                node.literals
                    .get(segment)
                    .into_iter()
                    .for_each(|child| enter(child, &mut next));
            }
            // Several `**` reach the same node in several ways; without this, the number of ways would multiply.
            next.sort_unstable_by_key(|node| std::ptr::from_ref::<Node>(node));
            next.dedup_by_key(|node| std::ptr::from_ref::<Node>(node));
            reached = next;
        }
        reached.into_iter().for_each(|node| visit(&node.bucket));
    }
}

/// Enters a node, and those reachable from it by a `**` that matches no segment.
fn enter<'t>(node: &'t Node, reached: &mut Vec<&'t Node>) {
    let mut node = Some(node);
    while let Some(here) = node {
        reached.push(here);
        node = here.any.as_deref();
    }
}
