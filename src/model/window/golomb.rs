//! Numbers as bits: exponential Golomb codes, for lengths that are about the same.
//!
//! A number costs about as many bits as numbers of the usual size need, and one that is a thousand times as large some
//! twenty more. The order says what is usual: numbers below 2^order take order + 1 bits. (Golomb, Run-length encodings,
//! IEEE Transactions on Information Theory 12, 1966; the exponential form is that of ITU-T H.264, section 9.1.) Bits are
//! in bytes, the lowest first. Pure.

/// The highest order.
pub(super) const MOST_ORDER: u32 = 15;

/// Zeros in front of the longest code.
const MOST_ZEROS: u32 = 40;

/// How many zeros the code of `value` begins with.
fn zeros(value: u64, order: u32) -> u32 {
    ((value >> order) + 1).ilog2()
}

/// What numbers with as many zeros and this order begin at.
fn first(zeros: u32, order: u32) -> u64 {
    ((1 << zeros) - 1) << order
}

/// The bits of a number's code.
pub(super) fn length(value: u64, order: u32) -> usize {
    2 * zeros(value, order) as usize + 1 + order as usize
}

/// The order for numbers of this mean.
pub(super) fn order(mean: u64) -> u32 {
    mean.max(1).ilog2().min(MOST_ORDER)
}

/// Appends numbers to bytes.
#[derive(Debug)]
pub(super) struct Writer<'a> {
    bytes: &'a mut Vec<u8>,
    /// Bits of the last byte that are used; 8 of none.
    used: u32,
}

impl<'a> Writer<'a> {
    pub(super) fn new(bytes: &'a mut Vec<u8>) -> Self {
        Self { bytes, used: 8 }
    }

    /// Appends the code of `value`, which is below 2^40.
    pub(super) fn write(&mut self, value: u64, order: u32) {
        let zeros = zeros(value, order);
        self.put(0, zeros);
        self.put(1, 1);
        self.put(value - first(zeros, order), zeros + order);
    }

    /// Appends the lowest bits of `value`.
    fn put(&mut self, value: u64, bits: u32) {
        for bit in 0..bits {
            if self.used == 8 {
                self.bytes.push(0);
                self.used = 0;
            }
            if let Some(last) = self.bytes.last_mut() {
                *last |= u8::from(value >> bit & 1 == 1) << self.used;
            }
            self.used += 1;
        }
    }
}

/// Takes numbers from bytes.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// The next number; `None` when it is cut off or longer than any that is written.
    pub(super) fn read(&mut self, order: u32) -> Option<u64> {
        let mut zeros = 0;
        while !self.bit()? {
            zeros += 1;
            if zeros > MOST_ZEROS {
                return None;
            }
        }
        let mut rest = 0;
        for bit in 0..zeros + order {
            rest |= u64::from(self.bit()?) << bit;
        }
        Some(first(zeros, order) + rest)
    }

    /// The bytes behind the last number.
    pub(super) fn rest(self) -> &'a [u8] {
        &self.bytes[self.at.div_ceil(8)..]
    }

    fn bit(&mut self) -> Option<bool> {
        let byte = self.bytes.get(self.at / 8)?;
        let bit = byte >> (self.at % 8) & 1;
        self.at += 1;
        Some(bit == 1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_and_takes_the_bits_it_should(
            numbers in proptest::collection::vec((0..40_u32, any::<u64>()), 0..40),
            order in 0..=MOST_ORDER,
        ) {
            let numbers: Vec<u64> = numbers.iter().map(|(bits, any)| any & ((1 << bits) - 1)).collect();
            let mut bytes = vec![9];
            let mut writer = Writer::new(&mut bytes);
            for &number in &numbers {
                writer.write(number, order);
            }
            let bits: usize = numbers.iter().map(|&number| length(number, order)).sum();
            prop_assert_eq!(bytes.len(), 1 + bits.div_ceil(8));
            bytes.push(7);
            let mut reader = Reader::new(&bytes[1..]);
            for &number in &numbers {
                prop_assert_eq!(reader.read(order), Some(number));
            }
            prop_assert_eq!(reader.rest(), [7]);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..30), order in 0..=MOST_ORDER) {
            let mut reader = Reader::new(&bytes);
            while let Some(number) = reader.read(order) {
                prop_assert!(number < 1 << (MOST_ZEROS + 1 + MOST_ORDER));
            }
        }
    }

    #[test]
    fn codes_are_those_of_the_standard() {
        // H.264, table 9-2: 0 is 1, 1 is 010, 2 is 011, 3 is 00100; here the bits behind the first 1 are reversed.
        let lengths: Vec<usize> = [0, 1, 2, 3, 6, 7].map(|number| length(number, 0)).into();
        assert_eq!(lengths, [1, 3, 3, 5, 5, 7]);
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes);
        for number in [0, 1, 3] {
            writer.write(number, 0);
        }
        assert_eq!(bytes, [0b0100_0101, 0]);
    }
}
