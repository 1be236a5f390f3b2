//! cri-api: see ARCHITECTURE.md.
