//! The few BPF instructions that the device program consists of (RFC 9669), with jumps to labels.
//!
//! Arithmetic and comparisons are those of 32 bits (comparisons: Linux 5.1), because constants are 32 bits long and those
//! of 64-bit instructions are extended by their sign.

/// BPF_JMP32 and the conditions of a jump: JEQ, JGT, JGE, JNE, JLT, compared with a constant, without sign.
const JUMP_32: u8 = 0x06;
/// BPF_JMP | BPF_JA.
const JUMP: u8 = 0x05;
/// BPF_JMP | BPF_EXIT.
const EXIT: u8 = 0x95;
/// BPF_LDX | BPF_MEM | BPF_W.
const LOAD: u8 = 0x61;
/// BPF_ALU: MOV of a constant and of a register, AND with a constant, RSH by a constant and by a register.
const SET: u8 = 0xb4;
const COPY: u8 = 0xbc;
const AND: u8 = 0x54;
const SHIFT: u8 = 0x74;
const SHIFT_BY: u8 = 0x7c;

/// The registers that the program uses.
#[derive(Debug, Clone, Copy)]
pub(super) enum Register {
    /// What the program returns.
    Result = 0,
    /// Points at the context when the program begins.
    Context = 1,
    /// What is done to the device.
    Access = 2,
    /// The device's type.
    Type = 3,
    /// The device's major number.
    Major = 4,
    /// The device's minor number.
    Minor = 5,
}

/// When a jump is made: the register is … the constant.
#[derive(Debug, Clone, Copy)]
pub(super) enum Condition {
    /// JEQ.
    Equal = 0x10,
    /// JGT.
    Greater = 0x20,
    /// JGE.
    AtLeast = 0x30,
    /// JNE.
    Differs = 0x50,
    /// JLT.
    Below = 0xa0,
}

/// A place in the code that jumps lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Label(usize);

/// Code under construction.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    /// Instructions; the distances of jumps are still missing.
    code: Vec<u64>,
    /// Each jump, by its place in the code, and where it leads.
    jumps: Vec<(usize, Label)>,
    /// Where each label is, once it is placed.
    places: Vec<usize>,
}

impl Assembler {
    fn push(&mut self, operation: u8, to: Register, from: Register, offset: i16, constant: u32) {
        let registers = to as u64 | (from as u64) << 4;
        let offset = u64::from(offset.cast_unsigned());
        self.code.push(u64::from(operation) | registers << 8 | offset << 16 | u64::from(constant) << 32);
    }

    /// to = constant
    pub(super) fn set(&mut self, to: Register, constant: u32) {
        self.push(SET, to, Register::Result, 0, constant);
    }

    /// to = from
    pub(super) fn copy(&mut self, to: Register, from: Register) {
        self.push(COPY, to, from, 0, 0);
    }

    /// to = the word of the context at this offset
    pub(super) fn load(&mut self, to: Register, offset: i16) {
        self.push(LOAD, to, Register::Context, offset, 0);
    }

    /// to &= constant
    pub(super) fn and(&mut self, to: Register, constant: u32) {
        self.push(AND, to, Register::Result, 0, constant);
    }

    /// to >>= bits
    pub(super) fn shift_right(&mut self, to: Register, bits: u32) {
        self.push(SHIFT, to, Register::Result, 0, bits);
    }

    /// to >>= bits
    pub(super) fn shift_right_by(&mut self, to: Register, bits: Register) {
        self.push(SHIFT_BY, to, bits, 0, 0);
    }

    /// Jumps if the condition holds for the register and the constant.
    pub(super) fn jump_if(&mut self, register: Register, condition: Condition, constant: u32, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.push(JUMP_32 | condition as u8, register, Register::Result, 0, constant);
    }

    /// Jumps always.
    pub(super) fn jump(&mut self, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.push(JUMP, Register::Result, Register::Result, 0, 0);
    }

    /// Ends the program with [`Register::Result`].
    pub(super) fn exit(&mut self) {
        self.push(EXIT, Register::Result, Register::Result, 0, 0);
    }

    /// A label that [`Assembler::place`] places later.
    pub(super) fn label(&mut self) -> Label {
        self.places.push(0);
        Label(self.places.len() - 1)
    }

    /// Places a label before the next instruction.
    pub(super) fn place(&mut self, label: Label) {
        self.places[label.0] = self.code.len();
    }

    /// The code with all distances; `None` if a jump would lead backward or further than a jump can.
    pub(super) fn finish(mut self) -> Option<Vec<u64>> {
        for (at, label) in self.jumps {
            // From the next instruction.
            let distance = self.places[label.0].checked_sub(at + 1)?;
            let distance = i16::try_from(distance).ok()?;
            self.code[at] |= u64::from(distance.cast_unsigned()) << 16;
        }
        Some(self.code)
    }
}
