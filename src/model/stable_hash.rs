//! A hash that is written to Kafka: the same in all versions and on all machines, which the standard library's is not.

/// The 64-bit FNV-1a hash of some bytes. Not for keys that somebody may want to collide.
#[must_use]
pub fn fnv1a(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
