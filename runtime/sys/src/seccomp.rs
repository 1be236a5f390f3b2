//! Seccomp filters (seccomp(2)): loading a filter, and evaluating one.

use std::collections::HashSet;
use std::io;

/// Maximum number of instructions that the kernel accepts (BPF_MAXINSNS).
const MAX_INSTRUCTIONS: usize = 4096;
/// SECCOMP_RET_ALLOW and SECCOMP_RET_LOG: the call goes on.
const ALLOWING: [u32; 2] = [libc::SECCOMP_RET_ALLOW, libc::SECCOMP_RET_LOG];
/// AUDIT_ARCH_* of this program's own calls.
#[cfg(target_arch = "x86_64")]
pub(crate) const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
pub(crate) const ARCH: u32 = 0xc000_00b7;

/// An instruction in the format of [`Filter::new`]: code, jump distances if the condition is true and if it is false,
/// operand.
pub(crate) const fn instruction(code: u16, if_true: u8, if_false: u8, k: u32) -> u64 {
    code as u64 | (if_true as u64) << 16 | (if_false as u64) << 24 | (k as u64) << 32
}

/// Loads a word of `struct seccomp_data`.
pub const fn load(offset: u32) -> u64 {
    instruction(0x20, 0, 0, offset)
}

/// Jumps depending on whether the loaded word equals `k`.
pub const fn jump_equal(k: u32, if_true: u8, if_false: u8) -> u64 {
    instruction(0x15, if_true, if_false, k)
}

/// Ends the program with one of SECCOMP_RET_*.
pub(crate) const fn ret(verdict: u32) -> u64 {
    instruction(0x06, 0, 0, verdict)
}

/// Offset of the call's number in `struct seccomp_data`.
pub const NUMBER: u32 = 0;
/// Offset of the architecture (AUDIT_ARCH_*) in `struct seccomp_data`.
pub const ARCHITECTURE: u32 = 4;

/// Instructions that allow these calls. For other calls, execution continues after these instructions.
pub fn allow_each(calls: impl IntoIterator<Item = u32>) -> impl Iterator<Item = u64> {
    calls.into_iter().flat_map(|call| [jump_equal(call, 0, 1), ret(libc::SECCOMP_RET_ALLOW)])
}

/// A program in the kernel's format. Its memory is not freed after loading, because the filter may forbid that.
pub struct Filter {
    program: Vec<libc::sock_filter>,
    flags: u32,
}

impl std::fmt::Debug for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Filter")
            .field("instructions", &self.program.len())
            .field("flags", &self.flags)
            .finish()
    }
}

/// A system call that is going to be made.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// Its number on this architecture.
    pub number: i64,
    /// Its first argument, where that is known beforehand.
    pub first: Option<u64>,
}

impl Filter {
    /// Creates a filter from instructions, each as one number, and SECCOMP_FILTER_FLAG_* bits.
    ///
    /// # Errors
    /// InvalidInput for none or too many instructions.
    pub fn new(instructions: &[u64], flags: u32) -> io::Result<Self> {
        if instructions.is_empty() || instructions.len() > MAX_INSTRUCTIONS {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let decode = |i: &u64| {
            let [c0, c1, jt, jf, k0, k1, k2, k3] = i.to_le_bytes();
            let (code, k) = (u16::from_le_bytes([c0, c1]), u32::from_le_bytes([k0, k1, k2, k3]));
            libc::sock_filter { code, jt, jf, k }
        };
        Ok(Self { program: instructions.iter().map(decode).collect(), flags })
    }

    /// Loads it for the calling thread. It cannot be removed.
    ///
    /// # Errors
    /// EINVAL for a program or flags that the kernel refuses; EACCES with neither CAP_SYS_ADMIN nor
    /// no_new_privs.
    pub fn load(self) -> io::Result<()> {
        let mut program = self.program;
        let len = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let filter = libc::sock_fprog { len, filter: program.as_mut_ptr() };
        // SAFETY: the kernel reads `filter`, a `struct sock_fprog` that points at `len` instructions in
        // `program`; both live across the call, and it copies them.
        let done = unsafe {
            libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, self.flags, &raw const filter)
        };
        if done == 0 {
            // Freeing calls munmap or brk, for which the filter may kill the process. execve frees the
            // memory.
            std::mem::forget(program);
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Whether it allows all these calls, whatever their unknown arguments are. Also false if that cannot be
    /// determined.
    pub fn allows(&self, calls: &[Call]) -> bool {
        calls.iter().all(|call| self.allows_one(*call))
    }

    /// Follows every path that the call can take: both branches of a jump that depends on unknown data. Jumps
    /// lead only forward, so each path ends; where two paths meet in the same state, one is followed.
    fn allows_one(&self, call: Call) -> bool {
        // Offsets in struct seccomp_data.
        let known = |offset: u32| match (offset, call.first) {
            (NUMBER, _) => u32::try_from(call.number).ok(),
            (ARCHITECTURE, _) => Some(ARCH),
            (16, Some(first)) => u32::try_from(first & 0xffff_ffff).ok(),
            (20, Some(first)) => u32::try_from(first >> 32).ok(),
            _ => None,
        };
        let mut seen = HashSet::new();
        let mut open = vec![(0usize, None::<u32>)];
        while let Some((mut at, mut acc)) = open.pop() {
            loop {
                let Some(instruction) = self.program.get(at) else { return false };
                let k = instruction.k;
                at += 1;
                match instruction.code {
                    // ld [k], ld #k, and #k
                    0x20 => acc = known(k),
                    0x00 => acc = Some(k),
                    0x54 => acc = acc.map(|acc| acc & k),
                    // ja
                    0x05 => match usize::try_from(k) {
                        Ok(offset) => at += offset,
                        Err(_) => return false,
                    },
                    // jeq, jgt, jge, jset
                    code @ (0x15 | 0x25 | 0x35 | 0x45) => {
                        let holds = acc.map(|acc| match code {
                            0x15 => acc == k,
                            0x25 => acc > k,
                            0x35 => acc >= k,
                            _ => acc & k != 0,
                        });
                        let [holding, failing] =
                            [instruction.jt, instruction.jf].map(|offset| at + usize::from(offset));
                        match holds {
                            Some(holds) => at = if holds { holding } else { failing },
                            None => {
                                let ways = [(holding, acc), (failing, acc)];
                                open.extend(ways.into_iter().filter(|way| seen.insert(*way)));
                                break;
                            }
                        }
                    }
                    // ret #k
                    0x06 if ALLOWING.contains(&k) => break,
                    _ => return false,
                }
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_is_no_program() {
        assert_eq!(Filter::new(&[], 0).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(
            Filter::new(&vec![0x0006; MAX_INSTRUCTIONS + 1], 0).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
    }

    #[test]
    fn allowed_calls_are_determined() {
        let ask = |program: &[u64], number, first| {
            Filter::new(program, 0).unwrap().allows(&[Call { number, first }])
        };
        let (allow, kill) = (ret(0x7fff_0000), ret(0));
        // Call 7 is allowed when bit 0 of its first argument is not set; all others are.
        let program = [
            load(0),
            jump_equal(7, 0, 3),
            load(16),
            instruction(0x54, 0, 0, 1),
            jump_equal(0, 0, 1),
            allow,
            kill,
        ];
        // A call other than 7 skips the test of the argument.
        let program = [&program[..1], &[jump_equal(7, 1, 0), allow], &program[2..]].concat();
        assert!(ask(&program, 3, None));
        assert!(ask(&program, 7, Some(2)));
        assert!(!ask(&program, 7, Some(3)));
        assert!(!ask(&program, 7, None), "both branches count if the argument is not known");
        assert!(!ask(&[kill], 3, None));
        assert!(!ask(&[load(0)], 3, None), "a program without an end");
        assert!(!ask(&[instruction(0x07, 0, 0, 0), allow], 3, None), "an instruction that is not followed");
    }

    proptest::proptest! {
        #[test]
        fn any_program_is_judged(program in proptest::collection::vec(proptest::prelude::any::<u64>(), 1..60)) {
            Filter::new(&program, 0).unwrap().allows(&[Call { number: 1, first: None }]);
        }
    }
}
