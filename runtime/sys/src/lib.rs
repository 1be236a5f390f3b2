//! sys: see ARCHITECTURE.md.

pub mod netns;
