//! The paths of all filters as one tree, walked once per event.
//!
//! At each object the walk iterates over the members or the tree's branches, whichever are fewer. So its cost is
//! bounded by the size of the event, however many paths there are.

use serde_json::Value;

use super::map::Map;
use crate::model::event::{Attribute, Event};
use crate::model::subscription::filter::Leaf;

/// A path that some filter uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct PathId(u32);

/// All paths, with reference counts: a path is removed with the last filter that uses it.
#[derive(Debug, Default)]
pub(super) struct Paths {
    root: Node,
    next: u32,
    free: Vec<u32>,
}

#[derive(Debug, Default)]
struct Node {
    children: Map<Box<str>, Node>,
    /// Its id, and the number of filters that use it.
    end: Option<(PathId, usize)>,
}

impl Paths {
    pub(super) fn acquire(&mut self, path: &[Box<str>]) -> PathId {
        let mut node = &mut self.root;
        for segment in path {
            node = node.children.entry(segment.clone()).or_default();
        }
        if let Some((id, count)) = &mut node.end {
            *count += 1;
            return *id;
        }
        let id = PathId(self.free.pop().unwrap_or_else(|| {
            self.next += 1;
            self.next
        }));
        node.end = Some((id, 1));
        id
    }

    pub(super) fn release(&mut self, path: &[Box<str>]) {
        self.free
            .extend(release(&mut self.root, path).map(|id| id.0));
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.root.children.is_empty()
    }

    /// The values of each path that exists in the event.
    pub(super) fn resolve<'e>(&self, event: &'e Event<'_>) -> Resolved<'e> {
        let mut pairs = Vec::new();
        if !self.root.children.is_empty() {
            for (name, value) in event.attributes() {
                let Some(node) = self.root.children.get(name).filter(|_| name != "data") else {
                    continue;
                };
                match (value, node.end) {
                    (Attribute::Text(text), Some((id, _))) => pairs.push((id, Leaf::String(text))),
                    (Attribute::Json(value), _) => walk(node, value, &mut pairs),
                    _ => {}
                }
            }
            if let Some(node) = self.root.children.get("data") {
                walk(node, event.data(), &mut pairs);
            }
        }
        Resolved::new(pairs)
    }
}

/// Returns the id when no filter uses the path any more.
fn release(node: &mut Node, path: &[Box<str>]) -> Option<PathId> {
    let Some((first, rest)) = path.split_first() else {
        let (id, count) = node.end.as_mut()?;
        let id = *id;
        *count -= 1;
        if *count > 0 {
            return None;
        }
        node.end = None;
        return Some(id);
    };
    let child = node.children.get_mut(first)?;
    let freed = release(child, rest);
    if child.end.is_none() && child.children.is_empty() {
        node.children.remove(first);
    }
    freed
}

fn walk<'e>(node: &Node, value: &'e Value, pairs: &mut Vec<(PathId, Leaf<'e>)>) {
    if let Value::Array(items) = value
        && !items.is_empty()
    {
        return items.iter().for_each(|item| walk(node, item, pairs));
    }
    if let Some((id, _)) = node.end {
        pairs.push((id, Leaf::of(value)));
    }
    let Value::Object(members) = value else {
        return;
    };
    if node.children.len() < members.len() {
        for (name, child) in &node.children {
            if let Some(member) = members.get(&**name) {
                walk(child, member, pairs);
            }
        }
    } else {
        for (name, member) in members {
            if let Some(child) = node.children.get(name.as_str()) {
                walk(child, member, pairs);
            }
        }
    }
}

/// The values of the paths in one event.
#[derive(Debug)]
pub(super) struct Resolved<'e> {
    leaves: Vec<Leaf<'e>>,
    /// Sorted; each with the end of its range of `leaves`, which starts at the end of the previous one.
    ends: Vec<(PathId, usize)>,
}

impl<'e> Resolved<'e> {
    fn new(mut pairs: Vec<(PathId, Leaf<'e>)>) -> Self {
        pairs.sort_by_key(|(id, _)| *id);
        let mut ends: Vec<(PathId, usize)> = Vec::new();
        for (at, (id, _)) in pairs.iter().enumerate() {
            match ends.last_mut().filter(|last| last.0 == *id) {
                Some(last) => last.1 = at + 1,
                None => ends.push((*id, at + 1)),
            }
        }
        Self {
            leaves: pairs.into_iter().map(|(_, leaf)| leaf).collect(),
            ends,
        }
    }

    /// The number of paths that exist in the event.
    pub(super) fn paths(&self) -> usize {
        self.ends.len()
    }

    /// Empty if the path does not exist in the event.
    pub(super) fn leaves(&self, path: PathId) -> &[Leaf<'e>] {
        self.ends
            .binary_search_by_key(&path, |(id, _)| *id)
            .map_or(&[], |at| self.leaves_of(at))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (PathId, &[Leaf<'e>])> {
        self.ends
            .iter()
            .enumerate()
            .map(|(at, (id, _))| (*id, self.leaves_of(at)))
    }

    fn leaves_of(&self, at: usize) -> &[Leaf<'e>] {
        let start = at.checked_sub(1).map_or(0, |before| self.ends[before].1);
        &self.leaves[start..self.ends[at].1]
    }
}
