//! stub
pub mod lane;
pub mod outcome;
pub mod signing;
pub mod window;
