//! The CRI services.
mod convert;
