//! Tests of [`super::Group`].

use std::collections::BTreeSet;

use super::*;

fn tp(partition: i32) -> Tp {
    Tp {
        topic: Arc::from("t"),
        partition,
    }
}

/// Members that join by tokens equal to their numbers.
struct Scene {
    group: Group,
    now: Ms,
    replies: Replies,
}

impl Scene {
    fn new() -> Self {
        Self {
            group: Group::new(0),
            now: 0,
            replies: Vec::new(),
        }
    }

    fn join_as(&mut self, member: &str, token: u64) -> Result<(), (Code, Option<Arc<str>>)> {
        let join = Join {
            member: Arc::from(member),
            instance: None,
            subscription: Subscription {
                topics: vec![Arc::from("t")],
                owned: vec![tp(i32::try_from(token).unwrap())],
                generation: self.group.generation,
            },
            session: 1_000,
            rebalance: 5_000,
        };
        self.group
            .join(self.now, "m", join, Token(token), &mut self.replies)
    }

    /// A new member that has joined: its id.
    fn enter(&mut self, token: u64) -> Arc<str> {
        let (code, id) = self.join_as("", token).unwrap_err();
        assert_eq!(code, Code::MemberIdRequired);
        let id = id.unwrap();
        self.join_as(&id, token).unwrap();
        id
    }

    fn joined(&mut self) -> Vec<(u64, Joined)> {
        let all = std::mem::take(&mut self.replies).into_iter();
        all.filter_map(|(token, reply)| match reply {
            Reply::Joined(Ok(joined)) => Some((token.0, joined)),
            _ => None,
        })
        .collect()
    }

    fn sync(&mut self, id: &str, token: u64, all: Option<Vec<(Arc<str>, Vec<Tp>)>>) {
        let generation = self.group.generation;
        self.group
            .sync(
                self.now,
                id,
                generation,
                all,
                Token(token),
                &mut self.replies,
            )
            .unwrap();
    }
}

#[test]
fn a_rebalance_waits_for_the_members_and_begins_a_generation() {
    let mut scene = Scene::new();
    let a = scene.enter(1);
    let joined = scene.joined();
    assert_eq!(joined.len(), 1);
    assert_eq!(joined[0].1.generation, 1);
    let leads = joined[0].1.members.as_ref();
    assert!(leads.is_some(), "the first one leads");
    scene.sync(&a, 1, Some(vec![(Arc::clone(&a), vec![tp(0), tp(1)])]));
    assert_eq!(scene.group.phase(), Phase::Stable);
    let b = scene.enter(2);
    assert!(
        scene.joined().is_empty(),
        "the first one has not joined again"
    );
    let asked = scene.group.heartbeat(0, &a, 1);
    assert_eq!(asked, Err(Code::RebalanceInProgress));
    assert_eq!(
        scene.group.check_commit(0, &a, 1),
        Ok(()),
        "it may still commit"
    );
    scene.join_as(&a, 3).unwrap();
    assert_eq!(scene.joined().len(), 2);
    let early = scene.group.check_commit(0, &a, 2);
    assert_eq!(early, Err(Code::RebalanceInProgress));
    let late = scene.group.check_commit(0, &a, 1);
    assert_eq!(late, Err(Code::IllegalGeneration));
    scene.sync(&b, 2, None);
    assert!(scene.replies.is_empty());
    let shares = vec![(Arc::clone(&a), vec![tp(0)]), (Arc::clone(&b), vec![tp(1)])];
    scene.sync(&a, 3, Some(shares));
    assert_eq!(scene.replies.len(), 2);
}

#[test]
fn whoever_does_not_join_again_is_evicted() {
    let mut scene = Scene::new();
    let a = scene.enter(1);
    scene.sync(&a, 1, Some(Vec::new()));
    scene.enter(2);
    scene.joined();
    scene.now = 4_000;
    scene.group.heartbeat(scene.now, &a, 1).unwrap_err();
    scene.now = 5_000;
    scene.group.tick(scene.now, &mut scene.replies);
    let joined = scene.joined();
    assert_eq!(joined.len(), 1);
    assert_eq!(joined[0].1.generation, 2);
    let evicted = scene.group.check_commit(scene.now, &a, 1);
    assert_eq!(evicted, Err(Code::UnknownMemberId));
    assert_eq!(
        scene.group.check_transaction(&a, 1),
        Err(Code::UnknownMemberId)
    );
    assert_eq!(scene.group.check_transaction("", -1), Ok(()));
}

#[test]
fn a_member_without_heartbeats_is_evicted_and_the_group_becomes_empty() {
    let mut scene = Scene::new();
    let a = scene.enter(1);
    scene.sync(&a, 1, Some(Vec::new()));
    assert_eq!(scene.group.deadline(), Some(1_000));
    scene.group.tick(999, &mut scene.replies);
    assert_eq!(scene.group.phase(), Phase::Stable);
    scene.group.tick(1_000, &mut scene.replies);
    assert_eq!(scene.group.phase(), Phase::Empty);
    assert_eq!(scene.group.empty_since(), Some(1_000));
    assert_eq!(scene.group.check_commit(1_000, "", -1), Ok(()));
}

#[test]
fn a_static_member_returns_without_a_rebalance_and_fences_its_predecessor() {
    let mut scene = Scene::new();
    let join = Join {
        member: Arc::from(""),
        instance: Some(Arc::from("one")),
        subscription: Subscription::default(),
        session: 1_000,
        rebalance: 1_000,
    };
    scene
        .group
        .join(0, "m", join.clone(), Token(1), &mut scene.replies)
        .unwrap();
    let first = scene.joined().remove(0).1.member;
    scene.sync(&first, 1, Some(vec![(Arc::clone(&first), vec![tp(0)])]));
    scene
        .group
        .join(0, "m", join, Token(2), &mut scene.replies)
        .unwrap();
    let second = scene.joined().remove(0).1;
    assert_eq!(second.generation, 1);
    assert_ne!(second.member, first);
    scene.sync(&second.member, 3, None);
    assert!(
        scene
            .replies
            .contains(&(Token(3), Reply::Synced(Ok(vec![tp(0)]))))
    );
    assert_eq!(
        scene.group.heartbeat(0, &first, 1),
        Err(Code::UnknownMemberId)
    );
}

#[test]
fn offsets_of_a_transaction_are_held_back_and_the_later_commit_wins() {
    let mut offsets = Offsets::default();
    let empty: Arc<str> = Arc::from("");
    offsets.commit(0, tp(0), 1, &empty);
    offsets.stage(0, 7, tp(0), 2, &empty);
    assert_eq!(offsets.get(&tp(0), true), Err(Code::UnstableOffsetCommit));
    assert_eq!(offsets.get(&tp(0), false).unwrap().unwrap().position, 1);
    offsets.end(7, false);
    assert_eq!(offsets.get(&tp(0), true).unwrap().unwrap().position, 1);
    offsets.stage(0, 7, tp(0), 2, &empty);
    offsets.commit(0, tp(0), 3, &empty);
    offsets.end(7, true);
    assert_eq!(offsets.get(&tp(0), true).unwrap().unwrap().position, 3);
}

#[test]
fn one_member_has_a_partition_in_any_generation_whatever_happens() {
    for seed in 0..200 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut scene = Scene::new();
        let mut ids: Vec<Arc<str>> = Vec::new();
        let mut last = 0;
        for step in 1..80 {
            match rng.u8(0..6) {
                0 if ids.len() < 5 => {
                    let id = scene.enter(step);
                    ids.push(id);
                }
                1 | 2 => {
                    let id = ids.get(rng.usize(0..=ids.len())).cloned();
                    if let Some(id) = id {
                        scene.join_as(&id, step).ok();
                    }
                }
                3 => {
                    scene.now += rng.i64(0..2_000);
                    scene.group.tick(scene.now, &mut scene.replies);
                }
                4 => {
                    if let Some(id) = ids.get(rng.usize(0..=ids.len())) {
                        scene.group.leave(scene.now, id, &mut scene.replies).ok();
                    }
                }
                _ => {
                    for id in &ids {
                        scene
                            .group
                            .heartbeat(scene.now, id, scene.group.generation)
                            .ok();
                    }
                }
            }
            for (token, joined) in scene.joined() {
                if let Some(members) = joined.members {
                    let each = (0..).zip(&members);
                    let all = each.map(|(number, (id, _))| (Arc::clone(id), vec![tp(number)]));
                    let (generation, token) = (joined.generation, Token(token));
                    let (group, replies) = (&mut scene.group, &mut scene.replies);
                    group
                        .sync(
                            scene.now,
                            &joined.member,
                            generation,
                            Some(all.collect()),
                            token,
                            replies,
                        )
                        .ok();
                }
            }
            assert!(scene.group.generation >= last, "generations only grow");
            last = scene.group.generation;
            let mut seen = BTreeSet::new();
            for (id, assigned) in scene.group.assignments() {
                for tp in assigned {
                    assert!(seen.insert(tp.clone()), "{seed}: {tp:?} twice, of {id}");
                }
            }
        }
    }
}
