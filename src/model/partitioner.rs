//! The partition of a key, as Kafka's Java client and the producers of hookstream choose it.
//!
//! Known before a record is produced, so that records for a partition that cannot be written are held back.

/// The hash of a key, not negative.
#[must_use]
pub fn key_hash(key: &[u8]) -> u32 {
    murmur2(key) & 0x7fff_ffff
}

/// The partition of a topic with `count` partitions; `None` while the count is unknown.
#[must_use]
pub fn partition(hash: u32, count: i32) -> Option<i32> {
    let count = u32::try_from(count).ok().filter(|&count| count > 0)?;
    i32::try_from(hash % count).ok()
}

/// MurmurHash2 with the seed of Kafka's `Utils.murmur2`.
fn murmur2(data: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
    let mut words = data.chunks_exact(4);
    let mut hash = words.by_ref().fold(SEED ^ length, |hash, word| {
        let word = word
            .iter()
            .rev()
            .fold(0, |sum, &byte| (sum << 8) | u32::from(byte));
        let mixed: u32 = u32::wrapping_mul(word, M);
        hash.wrapping_mul(M) ^ (mixed ^ (mixed >> 24)).wrapping_mul(M)
    });
    let rest = words.remainder();
    if !rest.is_empty() {
        let word = rest
            .iter()
            .rev()
            .fold(0, |sum, &byte| (sum << 8) | u32::from(byte));
        hash = (hash ^ word).wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::{key_hash, murmur2, partition};

    #[test]
    fn the_hash_is_that_of_kafka() {
        // Kafka's UtilsTest.testMurmur2.
        let known: [(&[u8], i32); 6] = [
            (b"21", -973_932_308),
            (b"foobar", -790_332_482),
            (b"a-little-bit-long-string", -985_981_536),
            (b"a-little-bit-longer-string", -1_486_304_829),
            (
                b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8",
                -58_897_971,
            ),
            (b"abc", 479_470_107),
        ];
        for (key, hash) in known {
            assert_eq!(murmur2(key).cast_signed(), hash, "{key:?}");
        }
    }

    #[test]
    fn a_partition_is_known_when_the_count_is() {
        assert_eq!(partition(key_hash(b"abc"), 0), None);
        assert_eq!(partition(key_hash(b"abc"), -1), None);
        assert_eq!(partition(key_hash(b"abc"), 10), Some(7));
        assert_eq!(partition(key_hash(b"foobar"), 1), Some(0));
    }
}
