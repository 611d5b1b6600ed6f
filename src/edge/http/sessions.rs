//! TLS sessions to be resumed, by host.
//!
//! A handshake that resumes a session needs no signature and no verification of certificates: the most expensive parts.
//! rustls's own store remembers 32 hosts by default, and forgets those first that it has known for longest. This one
//! remembers the hosts used last, as many as a thread is likely to send to, and takes memory only for these.
//!
//! A ticket of TLS 1.3 is used once, so that two connections cannot be linked by who sees them (RFC 8446, C.4).

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::NamedGroup;
use rustls::client::{
    ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue,
};
use rustls::pki_types::ServerName;

/// The hosts that are surely remembered; at most twice as many are. Each takes up to 10 KB: mostly its certificates, as
/// the connections have sent them that the tickets are of.
const HOSTS: usize = 2048;
/// Tickets of one host; the oldest is forgotten first. Servers send one or two per connection.
const TICKETS: usize = 4;

/// The resumption of a client's sessions.
pub(super) fn resumption() -> Resumption {
    Resumption::store(Arc::new(Sessions(Mutex::new(Recent::new(HOSTS)))))
}

struct Sessions(Mutex<Recent<ServerName<'static>, Host>>);

#[derive(Default)]
struct Host {
    /// The group of the key exchange that it has chosen.
    group: Option<NamedGroup>,
    tls12: Option<Tls12ClientSessionValue>,
    tickets: VecDeque<Tls13ClientSessionValue>,
}

impl Sessions {
    fn hosts(&self) -> MutexGuard<'_, Recent<ServerName<'static>, Host>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Without the sessions, which are secret.
impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sessions")
    }
}

impl ClientSessionStore for Sessions {
    fn set_kx_hint(&self, name: ServerName<'static>, group: NamedGroup) {
        self.hosts().get_or_insert(name).group = Some(group);
    }

    fn kx_hint(&self, name: &ServerName<'_>) -> Option<NamedGroup> {
        self.hosts().get(&name.to_owned())?.group
    }

    fn set_tls12_session(&self, name: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.hosts().get_or_insert(name).tls12 = Some(value);
    }

    fn tls12_session(&self, name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.hosts().get(&name.to_owned())?.tls12.clone()
    }

    fn remove_tls12_session(&self, name: &ServerName<'static>) {
        if let Some(host) = self.hosts().get(name) {
            host.tls12 = None;
        }
    }

    fn insert_tls13_ticket(&self, name: ServerName<'static>, value: Tls13ClientSessionValue) {
        let mut hosts = self.hosts();
        let tickets = &mut hosts.get_or_insert(name).tickets;
        if tickets.len() >= TICKETS {
            tickets.pop_front();
        }
        tickets.push_back(value);
    }

    fn take_tls13_ticket(&self, name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.hosts().get(name)?.tickets.pop_back()
    }
}

/// A map that remembers the `most` keys used last, and at most as many others.
struct Recent<K, V> {
    most: usize,
    young: HashMap<K, V, foldhash::fast::RandomState>,
    /// Not used since `young` was empty.
    old: HashMap<K, V, foldhash::fast::RandomState>,
}

impl<K: Eq + Hash + Clone, V: Default> Recent<K, V> {
    fn new(most: usize) -> Self {
        Self {
            most,
            young: HashMap::default(),
            old: HashMap::default(),
        }
    }

    fn get(&mut self, key: &K) -> Option<&mut V> {
        if !self.young.contains_key(key) {
            let (key, value) = self.old.remove_entry(key)?;
            self.make_room();
            self.young.insert(key, value);
        }
        self.young.get_mut(key)
    }

    fn get_or_insert(&mut self, key: K) -> &mut V {
        let known = self.get(&key).is_some();
        if !known {
            self.make_room();
        }
        self.young.entry(key).or_default()
    }

    fn make_room(&mut self) {
        if self.young.len() >= self.most {
            self.old = std::mem::take(&mut self.young);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn those_used_last_are_remembered_and_not_many_others(
            most in 1..8_usize,
            uses in proptest::collection::vec(0..20_u8, 1..200),
        ) {
            let mut recent: Recent<u8, u8> = Recent::new(most);
            let mut order: Vec<u8> = Vec::new();
            for key in uses {
                let known = recent.get(&key).map(|value| *value);
                if let Some(at) = order.iter().rposition(|one| *one == key) {
                    prop_assert!(order.len() - at > most || known == Some(key), "{key} is forgotten");
                    order.remove(at);
                }
                prop_assert!(known.is_none_or(|value| value == key));
                *recent.get_or_insert(key) = key;
                order.push(key);
                prop_assert!(recent.young.len() + recent.old.len() <= 2 * most);
            }
        }
    }
}
