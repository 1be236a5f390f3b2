//! sys: see ARCHITECTURE.md.
