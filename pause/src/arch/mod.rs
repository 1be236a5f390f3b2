//! The parts that differ between processors: entry point, system call instruction and call numbers.

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
pub(crate) use aarch64::{nr, syscall4};
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::{nr, syscall4};
