//! Seccomp profiles as data: our own RuntimeDefault, and Localhost files. `runtime/src/seccomp.rs` compiles
//! both.

mod calls;
mod default;
mod localhost;
mod profile;

pub use default::{RELEVANT_CAPS, runtime_default};
pub use localhost::parse_localhost;
pub use profile::{Action, Arch, ArgTest, Op, Profile, Rule};
