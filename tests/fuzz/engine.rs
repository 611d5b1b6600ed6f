//! Makes inputs: mutations of seeds, and of inputs whose outcome was new.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::targets::Target;

/// Beyond it, an input is cut.
const MAX_INPUT: usize = 64 * 1024;
/// Inputs that are kept besides the seeds.
const MAX_POOL: usize = 4_000;

/// What parsers of all kinds trip over.
const TOKENS: &[&[u8]] = &[
    b"",
    b"\0",
    b"\n",
    b"\r\n",
    b"\n\n",
    b"\xff",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"\xe2\x80\xa8",
    b"\"",
    b"\\",
    b"\\u0000",
    b"\\ud800",
    b"{",
    b"}",
    b"[",
    b"]",
    b"[[[[[[[[[[[[[[[[",
    b"{\"a\":",
    b",",
    b":",
    b"null",
    b"true",
    b"0",
    b"-0",
    b"-1",
    b"1e309",
    b"1e-400",
    b"0.1",
    b"18446744073709551616",
    b"9223372036854775807",
    b"-9223372036854775808",
    b"4294967296",
    b"99999999999999999999999999",
    b"NaN",
    b"**",
    b"*",
    b".",
    b"..",
    b"\\.",
    b"%",
    b"%00",
    b"%2e%2e",
    b"@",
    b"#",
    b"?",
    b"//",
    b"::1",
    b"[::ffff:127.0.0.1]",
    b"127.1",
    b"0x7f.1",
    b"2130706433",
    b"169.254.169.254",
    b"localhost",
    b"xn--",
    b"env:",
    b"file:/",
    b"whsec_",
    b"whsk_",
    b"enc:v1:",
    b"data.",
    b"ce_",
    b"\xc3\xa9",
    b" ",
    b"\t",
    b"Mon, 01 Jan 2035 00:00:00 GMT",
    b"2026-11-27T18:00:00Z",
    b"9999-12-31T23:59:60Z",
    b"Retry-After: 5\r\n",
    b"HTTP/1.1 200",
];

pub struct Engine {
    seeds: &'static [&'static [u8]],
    pool: Vec<Vec<u8>>,
    seen: HashSet<u64>,
    random: fastrand::Rng,
    next_seed: usize,
}

impl Engine {
    pub fn new(target: &Target, seed: u64) -> Self {
        let mut hasher = DefaultHasher::new();
        target.name.hash(&mut hasher);
        Self {
            seeds: target.seeds,
            pool: target.seeds.iter().map(|seed| seed.to_vec()).collect(),
            seen: HashSet::new(),
            random: fastrand::Rng::with_seed(seed ^ hasher.finish()),
            next_seed: 0,
        }
    }

    /// The number of different outcomes so far.
    pub fn outcomes(&self) -> usize {
        self.seen.len()
    }

    /// The next input: the seeds as they are, then mutations.
    pub fn next_input(&mut self) -> Vec<u8> {
        if let Some(seed) = self.seeds.get(self.next_seed) {
            self.next_seed += 1;
            return seed.to_vec();
        }
        // The shorter of two: long inputs take longer and lead to the same outcomes, but are not left out.
        let [one, other] = [(); 2].map(|()| self.random.usize(..self.pool.len()));
        let is_shorter = self.pool[one].len() < self.pool[other].len();
        let at = if is_shorter { one } else { other };
        let mut input = self.pool[at].clone();
        for _ in 0..1 << self.random.usize(..4) {
            self.mutate(&mut input);
        }
        input.truncate(MAX_INPUT);
        input
    }

    /// Keeps an input whose outcome is new.
    pub fn learn(&mut self, input: Vec<u8>, outcome: u64) {
        if self.seen.insert(outcome) && self.pool.len() < self.seeds.len() + MAX_POOL {
            self.pool.push(input);
        }
    }

    fn place(&mut self, input: &[u8]) -> usize {
        self.random.usize(..=input.len())
    }

    /// A part of an input, mostly a short one.
    fn part(&mut self, input: &[u8]) -> std::ops::Range<usize> {
        let from = self.place(input);
        let most = [4, 16, 64, 1 << 16][self.random.usize(..4)];
        let length = self.random.usize(..=most.min(input.len() - from));
        from..from + length
    }

    fn mutate(&mut self, input: &mut Vec<u8>) {
        match self.random.u8(..10) {
            0 if !input.is_empty() => {
                let at = self.random.usize(..input.len());
                input[at] ^= 1 << self.random.u8(..8);
            }
            1 if !input.is_empty() => {
                let at = self.random.usize(..input.len());
                input[at] = self.random.u8(..);
            }
            2 => {
                let part = self.part(input);
                input.drain(part);
            }
            3 => {
                let part = self.part(input);
                let copy = input[part].to_vec();
                let at = self.place(input);
                input.splice(at..at, copy);
            }
            // The same part many times: depth and length.
            4 => {
                let part = self.part(input);
                let times = 1 << self.random.usize(..9);
                let copy = input[part].repeat(times);
                let at = self.place(input);
                input.splice(at..at, copy.into_iter().take(MAX_INPUT));
            }
            5 => {
                let other = self.random.usize(..self.pool.len());
                let other = self.pool[other].clone();
                let copy = other[self.part(&other)].to_vec();
                let at = self.place(input);
                input.splice(at..at, copy);
            }
            6 => {
                let other = self.random.usize(..self.pool.len());
                let other = self.pool[other].clone();
                let from = self.place(&other);
                let at = self.place(input);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            // A value in the place of another one.
            7 => {
                let token = TOKENS[self.random.usize(..TOKENS.len())];
                let part = self.part(input);
                input.splice(part, token.iter().copied());
            }
            _ => {
                let token = TOKENS[self.random.usize(..TOKENS.len())];
                let at = self.place(input);
                input.splice(at..at, token.iter().copied());
            }
        }
    }
}

/// What tells outcomes apart: their words, without numbers and what they quote.
pub fn outcome_hash(outcome: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    for (at, part) in outcome.split(['"', '\'', '`']).enumerate() {
        if at % 2 == 0 {
            let words = part.chars().filter(|letter| !letter.is_ascii_digit());
            words.take(200).for_each(|letter| letter.hash(&mut hasher));
        }
    }
    hasher.finish()
}
