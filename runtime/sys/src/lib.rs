//! sys: see ARCHITECTURE.md.

pub mod malloc;
pub mod netns;
