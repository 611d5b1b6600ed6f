//! Release: moves what is due from the tiers back to `webhook-commands`, or to a lower tier.

mod role;

pub use role::run;
