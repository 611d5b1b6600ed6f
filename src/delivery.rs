//! Delivery: commands become POSTs, and POSTs outcomes.

pub mod lane;
pub mod signing;
pub mod window;
