//! Small scenarios on a real Kafka, beside the model of the same size.

pub fn print() {}
