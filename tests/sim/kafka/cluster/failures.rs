//! Brokers that stop, start and hand over.

use std::sync::Arc;

use super::{Cluster, Kind, Timer};
use crate::kafka::log::Ms;
use crate::kafka::{Code, Node, Reply, Tp};

impl Cluster {
    /// A broker dies: it answers nothing from now on, and keeps its partitions until the controller notices.
    pub fn kill(&mut self, now: Ms, node: Node) {
        self.down(now, node, self.settings.fence_after);
    }

    /// A broker stops in an orderly way: it hands over first, and nothing is lost.
    pub fn stop(&mut self, now: Ms, node: Node) {
        self.down(now, node, 0);
        self.advance(now);
    }

    fn down(&mut self, now: Ms, node: Node, notice: Ms) {
        let Some(broker) = self.brokers.get_mut(&node).filter(|broker| broker.up) else {
            return;
        };
        broker.up = false;
        broker.turn += 1;
        let turn = broker.turn;
        self.start(now + notice, Timer::Fence(node, turn));
    }

    /// A broker starts. It leads what nobody leads at once, and is in sync again after a while.
    pub fn start_broker(&mut self, now: Ms, node: Node) {
        let Some(broker) = self.brokers.get_mut(&node).filter(|broker| !broker.up) else {
            return;
        };
        broker.up = true;
        broker.turn += 1;
        let (turn, was_fenced) = (broker.turn, broker.fenced);
        broker.fenced = false;
        if !was_fenced {
            // What was waiting for it at the others goes on, and what it had in memory is lost.
            self.hand_over(now, node);
        }
        let delay = self.between(self.settings.catch_up);
        self.start(now + delay, Timer::InSync(node, turn));
    }

    /// The controller notices that a broker is gone.
    pub(super) fn fence(&mut self, now: Ms, node: Node, turn: u64) {
        let Some(broker) = self.brokers.get_mut(&node) else {
            return;
        };
        if broker.turn != turn || broker.up {
            return;
        }
        broker.fenced = true;
        self.hand_over(now, node);
    }

    /// Takes a broker's partitions and coordinators away from it.
    fn hand_over(&mut self, now: Ms, node: Node) {
        for tp in self.all_partitions() {
            let Ok(partition) = self.partition_mut(&tp) else {
                continue;
            };
            // The last in-sync replica stays the one that may lead (no unclean election).
            if partition.in_sync.len() > 1 {
                partition.in_sync.remove(&node);
            }
            if partition.leader == Some(node) {
                self.elect(&tp);
            } else {
                self.catch_up(&tp);
            }
        }
        let seats: Vec<_> = self
            .seats
            .iter()
            .map(|(key, seat)| (*key, seat.leader))
            .collect();
        for ((kind, number), leader) in seats {
            if leader == Some(node) {
                self.move_seat(now, kind, number, None);
            }
        }
    }

    fn all_partitions(&self) -> Vec<Tp> {
        let each = self.topics.iter();
        let all = each.flat_map(|(name, topic)| {
            (0..).zip(&topic.partitions).map(|(partition, _)| Tp {
                topic: Arc::clone(name),
                partition,
            })
        });
        all.collect()
    }

    /// What the remaining replicas have is now what all in-sync replicas have.
    fn catch_up(&mut self, tp: &Tp) {
        let Ok(partition) = self.partition(tp) else {
            return;
        };
        let end = partition.log.bounds().end;
        let topic = self.topics[&tp.topic].id;
        self.replicated(tp, topic, end);
    }

    /// Another in-sync replica leads, which has what was replicated, and no more.
    fn elect(&mut self, tp: &Tp) {
        let running = self.running();
        let Ok(partition) = self.partition_mut(tp) else {
            return;
        };
        let replicas = partition.replicas.iter().copied();
        let mut able =
            replicas.filter(|node| partition.in_sync.contains(node) && running.contains(node));
        partition.leader = able.next();
        let high = partition.log.bounds().high;
        partition.log.truncate(high);
        let waiting = std::mem::take(&mut partition.waiting);
        let lost = Reply::Appended(Err(Code::NotLeaderForPartition));
        let lost = waiting.into_keys().map(|(_, token)| (token, lost.clone()));
        self.finished.extend(lost);
        self.moved(tp);
    }

    /// Moves the leadership of a partition to another in-sync replica, if there is one.
    pub fn move_leader(&mut self, tp: &Tp) {
        let running = self.running();
        let Ok(partition) = self.partition(tp) else {
            return;
        };
        let present = partition.leader;
        let able = partition.in_sync.iter().copied();
        let able: Vec<_> = able
            .filter(|node| Some(*node) != present && running.contains(node))
            .collect();
        if able.is_empty() {
            return;
        }
        let next = able[self.rng.usize(0..able.len())];
        self.elect(tp);
        if let Ok(partition) = self.partition_mut(tp) {
            partition.leader = Some(next);
        }
    }

    /// Moves a coordinator to another broker, if there is one.
    pub fn move_coordinator(&mut self, now: Ms, kind: Kind, key: &str) {
        let number = self.seat_number(key);
        self.move_seat(now, kind, number, self.seats[&(kind, number)].leader);
    }

    fn move_seat(&mut self, now: Ms, kind: Kind, number: i32, avoid: Option<Node>) {
        let running = self.running();
        let load = self.between(self.settings.load);
        let Some(seat) = self.seats.get_mut(&(kind, number)) else {
            return;
        };
        let mut able = seat.replicas.iter().copied();
        let next = able.find(|node| running.contains(node) && Some(*node) != avoid);
        if next.is_none() && avoid.is_some() {
            return;
        }
        seat.leader = next;
        seat.ready = now + load;
        if kind == Kind::Group {
            let names = self.groups.keys().map(Arc::clone);
            let names: Vec<_> = names
                .filter(|name| self.seat_number(name) == number)
                .collect();
            for name in names {
                if let Some(group) = self.groups.get_mut(&name) {
                    group.moved(now + load, &mut self.finished);
                }
                self.watch_group(&name);
            }
        }
    }

    /// A broker has caught up.
    pub(super) fn in_sync(&mut self, now: Ms, node: Node, turn: u64) {
        if self
            .brokers
            .get(&node)
            .is_none_or(|broker| broker.turn != turn || !broker.up)
        {
            return;
        }
        for tp in self.all_partitions() {
            let Ok(partition) = self.partition_mut(&tp) else {
                continue;
            };
            if partition.replicas.contains(&node) {
                // While nobody leads, only the last in-sync replica may.
                if partition.leader.is_some() {
                    partition.in_sync.insert(node);
                } else if partition.in_sync.contains(&node) {
                    self.elect(&tp);
                }
            }
            // Leaderless ones may have come in another order.
            if self
                .partition(&tp)
                .is_ok_and(|partition| partition.leader.is_some())
            {
                self.rejoin(&tp);
            }
            self.catch_up(&tp);
        }
        let empty: Vec<_> = self
            .seats
            .iter()
            .filter(|(_, seat)| seat.leader.is_none())
            .collect();
        let empty: Vec<_> = empty.into_iter().map(|(key, _)| *key).collect();
        for (kind, number) in empty {
            self.move_seat(now, kind, number, None);
        }
    }

    /// Running replicas of a partition with a leader are in sync after a while; here at once.
    fn rejoin(&mut self, tp: &Tp) {
        let running = self.running();
        if let Ok(partition) = self.partition_mut(tp) {
            let replicas = partition.replicas.iter().copied();
            let more: Vec<_> = replicas.filter(|node| running.contains(node)).collect();
            partition.in_sync.extend(more);
        }
    }
}
