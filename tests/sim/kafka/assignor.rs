//! The cooperative-sticky assignment, as the leader of a group computes it (KIP-54, KIP-429).
//!
//! Members keep what they own as far as shares stay even. A partition that another member still owns is assigned to
//! nobody yet: its owner learns that it has lost it, gives it up and joins again, and the next generation assigns it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Tp;
use super::group::Subscription;

/// The assignment of a generation, by member.
pub type Assignment = Vec<(Arc<str>, Vec<Tp>)>;

/// Assigns the partitions of all topics wanted. `count` returns the number of partitions of a topic.
pub fn cooperative_sticky(
    members: &[(Arc<str>, Subscription)],
    count: impl Fn(&Arc<str>) -> i32,
) -> Assignment {
    let topics: BTreeSet<_> = members
        .iter()
        .flat_map(|(_, wants)| &wants.topics)
        .collect();
    let all = topics.iter().flat_map(|topic| {
        let each = 0..count(topic);
        each.map(|partition| Tp {
            topic: Arc::clone(topic),
            partition,
        })
    });
    let mut free: BTreeSet<Tp> = all.collect();
    let owners = owners(members, &free);
    let wants = |member: usize, tp: &Tp| members[member].1.topics.contains(&tp.topic);
    let mut shares: Vec<BTreeSet<Tp>> = vec![BTreeSet::new(); members.len()];
    for (tp, &owner) in &owners {
        if wants(owner, tp) {
            shares[owner].insert(tp.clone());
            free.remove(tp);
        }
    }
    for tp in free {
        let candidates = (0..members.len()).filter(|&member| wants(member, &tp));
        if let Some(least) = candidates.min_by_key(|&member| shares[member].len()) {
            shares[least].insert(tp);
        }
    }
    even_out(&mut shares, wants);
    let each = members.iter().zip(shares);
    each.enumerate()
        .map(|(member, ((id, _), share))| {
            // What another member still owns waits for the next generation.
            let held = |tp: &Tp| owners.get(tp).is_some_and(|&owner| owner != member);
            let now = share.into_iter().filter(|tp| !held(tp));
            (Arc::clone(id), now.collect())
        })
        .collect()
}

/// Who owns what. Of two claims the one of the later generation counts; of two equal ones none does.
fn owners(members: &[(Arc<str>, Subscription)], all: &BTreeSet<Tp>) -> BTreeMap<Tp, usize> {
    let mut claims: BTreeMap<Tp, (i32, Vec<usize>)> = BTreeMap::new();
    for (member, (_, wants)) in members.iter().enumerate() {
        for tp in wants.owned.iter().filter(|tp| all.contains(tp)) {
            let (generation, by) = claims.entry(tp.clone()).or_default();
            if wants.generation > *generation || by.is_empty() {
                *generation = wants.generation;
                by.clear();
            }
            if wants.generation == *generation {
                by.push(member);
            }
        }
    }
    let sole = |(tp, (_, by)): (Tp, (i32, Vec<usize>))| match *by {
        [one] => Some((tp, one)),
        _ => None,
    };
    claims.into_iter().filter_map(sole).collect()
}

/// Moves partitions from the largest shares to the smallest while that makes them more even.
fn even_out(shares: &mut [BTreeSet<Tp>], wants: impl Fn(usize, &Tp) -> bool) {
    while let Some((from, to, tp)) = uneven(shares, &wants) {
        shares[from].remove(&tp);
        shares[to].insert(tp);
    }
}

fn uneven(
    shares: &[BTreeSet<Tp>],
    wants: &impl Fn(usize, &Tp) -> bool,
) -> Option<(usize, usize, Tp)> {
    let mut order: Vec<usize> = (0..shares.len()).collect();
    order.sort_by_key(|&member| shares[member].len());
    for &from in order.iter().rev() {
        for &to in &order {
            if shares[from].len() < shares[to].len() + 2 {
                break;
            }
            if let Some(tp) = shares[from].iter().rev().find(|tp| wants(to, tp)) {
                return Some((from, to, tp.clone()));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: &str, owned: &[i32], generation: i32) -> (Arc<str>, Subscription) {
        let topic: Arc<str> = Arc::from("t");
        let owned = owned.iter().map(|&partition| Tp {
            topic: Arc::clone(&topic),
            partition,
        });
        let subscription = Subscription {
            topics: vec![Arc::clone(&topic)],
            owned: owned.collect(),
            generation,
        };
        (Arc::from(id), subscription)
    }

    fn shares(assignment: &Assignment) -> Vec<Vec<i32>> {
        let each = assignment.iter();
        each.map(|(_, share)| share.iter().map(|tp| tp.partition).collect())
            .collect()
    }

    #[test]
    fn what_moves_is_assigned_in_the_generation_after() {
        let members = [member("a", &[0, 1, 2, 3], 1), member("b", &[], -1)];
        let first = cooperative_sticky(&members, |_| 4);
        assert_eq!(shares(&first), [vec![0, 1], vec![]]);
        let members = [member("a", &[0, 1], 2), member("b", &[], 2)];
        let second = cooperative_sticky(&members, |_| 4);
        assert_eq!(shares(&second), [vec![0, 1], vec![2, 3]]);
    }

    #[test]
    fn an_old_claim_loses_and_equal_claims_cancel_each_other() {
        let members = [member("a", &[0, 1], 3), member("b", &[0, 1], 4)];
        let assignment = cooperative_sticky(&members, |_| 2);
        assert_eq!(shares(&assignment), [vec![], vec![0]]);
        let members = [member("a", &[0], 3), member("b", &[0], 3)];
        let assignment = cooperative_sticky(&members, |_| 1);
        assert_eq!(shares(&assignment), [vec![0], vec![]]);
    }

    #[test]
    fn shares_are_even_and_everything_is_assigned_after_two_generations() {
        for seed in 0..200 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let (count, partitions) = (rng.usize(1..6), rng.i32(0..20));
            let each = (0..count).map(|number| member(&number.to_string(), &[], 1));
            let mut members: Vec<_> = each.collect();
            for partition in 0..partitions {
                let owner = rng.usize(0..count);
                members[owner].1.owned.push(Tp {
                    topic: Arc::from("t"),
                    partition,
                });
            }
            for _ in 0..2 {
                let assigned = cooperative_sticky(&members, |_| partitions);
                for ((_, wants), (_, share)) in members.iter_mut().zip(assigned) {
                    wants.owned = share;
                    wants.generation += 1;
                }
            }
            let sizes = members.iter().map(|(_, wants)| wants.owned.len());
            let sizes: Vec<_> = sizes.collect();
            let total = usize::try_from(partitions).unwrap();
            assert_eq!(sizes.iter().sum::<usize>(), total);
            let spread = sizes.iter().max().unwrap() - sizes.iter().min().unwrap();
            assert!(spread <= 1, "{seed}: {sizes:?}");
        }
    }
}
