//! See ARCHITECTURE.md.
mod container;
mod executor;
mod podns;
mod process;
mod user;
mod worker;
fn main() {}
