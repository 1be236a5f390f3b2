//! Debian's runc as the reference.
