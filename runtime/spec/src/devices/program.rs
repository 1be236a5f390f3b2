//! The device program of a cgroup v2 (BPF_PROG_TYPE_CGROUP_DEVICE), which gives the same answers as v1's controller.
//!
//! The kernel runs it at every open, mknod and access(2) of a device, with a `struct bpf_cgroup_dev_ctx`: type and access
//! in one word, major, minor. It returns 1 to allow and 0 to deny. The program finds the answers for the device by
//! binary search, first among the majors of the type and then among the minors of that major, and the bit for the access
//! among these. So its length depends on the number of ranges of devices with the same answers, and its running time
//! on the logarithm of that. All jumps lead forward, and each instruction can be reached: the kernel's verifier refuses
//! others.

mod assembler;
#[cfg(test)]
mod tests;

use super::DeviceRule;
use super::v1::{Answers, Controller, Devices, FIELD, Steps};
use crate::Error;
use assembler::{Assembler, Condition, Label, Register};
use std::collections::BTreeMap;

/// Maximum number of instructions of a program, because a jump leads at most so far. These suffice for
/// [`MAX_NODES`](super::MAX_NODES) devices of which no two have minors side by side; devices side by side with the same
/// answers count as one.
pub const MAX_INSTRUCTIONS: usize = 32_767;
/// Up to how many steps are compared one after the other. With more, they are divided in two.
const ONE_BY_ONE: usize = 20;
/// Offsets in `struct bpf_cgroup_dev_ctx`.
const ACCESS_AND_TYPE: i16 = 0;
const MAJOR: i16 = 4;
const MINOR: i16 = 8;
/// BPF_DEVCG_DEV_*.
const BLOCK: u32 = 1;
const CHAR: u32 = 2;
/// All of BPF_DEVCG_ACC_*.
const ACCESSES: u32 = 7;

/// A device program, for `sys::bpf`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program(Vec<u64>);

impl Program {
    /// Its instructions, each a `struct bpf_insn` as one little-endian number.
    pub fn instructions(&self) -> &[u64] {
        &self.0
    }

    /// Whether it allows every access, as a privileged container's does: a cgroup without a program does the same.
    pub fn allows_all(&self) -> bool {
        *self == constant(true)
    }
}

/// The program that answers as a v1 cgroup does after these rules were written to it, in this order; without rules
/// it allows everything.
///
/// # Errors
/// A rule that v1 would refuse; more devices than fit [`MAX_INSTRUCTIONS`].
pub fn program(rules: &[DeviceRule]) -> Result<Program, Error> {
    let controller = Controller::after(rules)?;
    let (blocks, chars) = (controller.devices('b')?, controller.devices('c')?);
    for (answers, allow) in [(Answers::ALL, true), (Answers::NONE, false)] {
        if [&blocks, &chars].into_iter().all(|devices| always(devices) == Some(answers)) {
            return Ok(constant(allow));
        }
    }
    Builder::default().build(&blocks, &chars).ok_or_else(|| {
        let want = format!(
            "the device program must have at most {MAX_INSTRUCTIONS} instructions, which suffices for {} \
             devices of any minor numbers; request fewer devices or folders",
            super::MAX_NODES
        );
        Error::unsupported(FIELD, format!("{} rules", rules.len()), want)
    })
}

/// Without any condition: what would follow could not be reached.
fn constant(allow: bool) -> Program {
    let mut code = Assembler::default();
    code.set(Register::Result, allow.into());
    code.exit();
    Program(code.finish().unwrap_or_default())
}

/// The answers, if they are the same for all these devices.
fn always(devices: &Devices) -> Option<Answers> {
    devices.constant()?.constant().copied()
}

/// What is still to be emitted: code that other code jumps to.
#[derive(Default)]
struct Builder<'a> {
    code: Assembler,
    /// Searches among the minors of one major or several.
    minors: BTreeMap<&'a Steps<Answers>, Label>,
    /// The ends of the program: the answer to the access.
    answers: BTreeMap<Answers, Label>,
}

impl<'a> Builder<'a> {
    /// `None` if it becomes too long.
    fn build(mut self, blocks: &'a Devices, chars: &'a Devices) -> Option<Program> {
        let code = &mut self.code;
        code.load(Register::Access, ACCESS_AND_TYPE);
        code.copy(Register::Type, Register::Access);
        code.and(Register::Type, 0xffff);
        code.shift_right(Register::Access, 16);
        code.load(Register::Major, MAJOR);
        code.load(Register::Minor, MINOR);
        // Neither happens on today's kernels.
        let deny = self.answers(Answers::NONE);
        self.code.jump_if(Register::Access, Condition::Greater, ACCESSES, deny);
        let block = self.code.label();
        self.code.jump_if(Register::Type, Condition::Equal, BLOCK, block);
        self.code.jump_if(Register::Type, Condition::Differs, CHAR, deny);
        self.majors(chars);
        self.code.place(block);
        self.majors(blocks);
        for (minors, label) in std::mem::take(&mut self.minors) {
            self.code.place(label);
            let steps: Vec<(u32, Label)> =
                minors.steps().iter().map(|(first, answers)| (*first, self.answers(*answers))).collect();
            search(&mut self.code, Register::Minor, &steps);
        }
        for (answers, label) in self.answers {
            self.code.place(label);
            answer(&mut self.code, answers);
        }
        Some(Program(self.code.finish().filter(|code| code.len() <= MAX_INSTRUCTIONS)?))
    }

    /// Searches for the major number.
    fn majors(&mut self, devices: &'a Devices) {
        let steps: Vec<(u32, Label)> =
            devices.steps().iter().map(|(first, minors)| (*first, self.minors(minors))).collect();
        search(&mut self.code, Register::Major, &steps);
    }

    /// Where the search among these minors is.
    fn minors(&mut self, minors: &'a Steps<Answers>) -> Label {
        match minors.constant() {
            Some(answers) => self.answers(*answers),
            None => *self.minors.entry(minors).or_insert_with(|| self.code.label()),
        }
    }

    /// Where these answers are given.
    fn answers(&mut self, answers: Answers) -> Label {
        *self.answers.entry(answers).or_insert_with(|| self.code.label())
    }
}

/// Ends the program with the answer for the access.
fn answer(code: &mut Assembler, answers: Answers) {
    match answers {
        Answers::NONE => code.set(Register::Result, 0),
        Answers::ALL => code.set(Register::Result, 1),
        Answers(bits) => {
            code.set(Register::Result, bits.into());
            code.shift_right_by(Register::Result, Register::Access);
            code.and(Register::Result, 1);
        }
    }
    code.exit();
}

/// Jumps to the label of the step that the number in the register belongs to. Already known about the number: it is not
/// below the first of these steps, and it is below the step that comes after the last of them, if there is one.
fn search(code: &mut Assembler, register: Register, steps: &[(u32, Label)]) {
    if steps.len() <= ONE_BY_ONE {
        return one_by_one(code, register, steps.to_vec());
    }
    let (below, above) = steps.split_at(steps.len() / 2);
    let upper = code.label();
    code.jump_if(register, Condition::AtLeast, above[0].0, upper);
    search(code, register, below);
    code.place(upper);
    search(code, register, above);
}

/// [`search`] without dividing.
fn one_by_one(code: &mut Assembler, register: Register, mut steps: Vec<(u32, Label)>) {
    // A single number between two steps that lead to the same place takes one comparison instead of two, and what
    // is around it becomes one step.
    let mut at = 1;
    while at + 1 < steps.len() {
        let ((number, label), (next, around)) = (steps[at], steps[at + 1]);
        if next == number + 1 && steps[at - 1].1 == around {
            code.jump_if(register, Condition::Equal, number, label);
            steps.drain(at..at + 2);
        } else {
            at += 1;
        }
    }
    for pair in steps.windows(2) {
        code.jump_if(register, Condition::Below, pair[1].0, pair[0].1);
    }
    if let Some((_, last)) = steps.last() {
        code.jump(*last);
    }
}
