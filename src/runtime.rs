//! What every role needs from its process: context, health, shutdown, the admin HTTP server and the metrics registry.

pub mod admin_http;
pub mod context;
pub mod health;
pub mod hold;
pub mod metrics;
pub mod panics;
pub mod recommit;
pub mod shutdown;
