//! File contents that compress like those of real images, the same for the same seed: text, machine code, and files that
//! are compressed already.

/// Bytes of the repetitions that a file may refer to.
const WINDOW: usize = 16 << 10;
/// Different words of texts, and different instructions of code.
const WORDS: usize = 6000;
const INSTRUCTIONS: usize = 350;

/// Makes contents.
#[derive(Debug)]
pub(super) struct Content {
    state: u64,
    words: Vec<Vec<u8>>,
    instructions: Vec<Vec<u8>>,
}

impl Content {
    pub(super) fn new(seed: u64) -> Self {
        let (words, instructions) = (Vec::new(), Vec::new());
        let mut this = Self { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, words, instructions };
        // Common letters first.
        let letters = b"etaoinsrhldcumfpgwybvkxjqz_0123456789ETAOINSRHLDC";
        this.words = (0..WORDS)
            .map(|_| {
                let length = 2 + this.skewed(12);
                (0..length).map(|_| letters[this.skewed(letters.len())]).collect()
            })
            .collect();
        this.instructions = (0..INSTRUCTIONS)
            .map(|_| {
                let length = 1 + this.skewed(6);
                (0..length).map(|_| this.next().to_le_bytes()[0]).collect()
            })
            .collect();
        this
    }

    /// xorshift64.
    fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// A number below `limit`.
    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit.max(1) as u64).unwrap_or_default()
    }

    /// A number below `limit`, mostly a small one, as the ranks of words in a text are.
    fn skewed(&mut self, limit: usize) -> usize {
        (0..3).fold(self.below(limit), |limit, _| self.below(limit + 1))
    }

    /// Sizes of so many files, with this sum in bytes.
    pub(super) fn sizes(&mut self, files: u32, sum: u64) -> Vec<u64> {
        let weights: Vec<u64> = (0..files)
            .map(|_| match self.below(100) {
                0 => 900 + self.below(1200),
                1..=11 => 60 + self.below(160),
                _ => 1 + self.below(16),
            })
            .map(|weight| weight as u64)
            .collect();
        let all: u64 = weights.iter().sum();
        weights.iter().map(|weight| weight * sum / all.max(1)).collect()
    }

    /// The content of one file.
    pub(super) fn file(&mut self, size: usize) -> Vec<u8> {
        match self.below(100) {
            0..=3 => self.noise(size),
            4..=51 => self.text(size),
            _ => self.code(size),
        }
    }

    fn noise(&mut self, size: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(size + 8);
        while bytes.len() < size {
            bytes.extend_from_slice(&self.next().to_le_bytes()[..6]);
        }
        bytes.truncate(size);
        bytes
    }

    fn text(&mut self, size: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(size + 256);
        while bytes.len() < size {
            if self.below(24) == 0 {
                self.repeat(&mut bytes, 90);
            }
            let word = self.skewed(WORDS);
            bytes.extend_from_slice(&self.words[word]);
            let between: &[u8] = match self.below(20) {
                0 => b"\n",
                1 => b"\n    ",
                2 => b", ",
                3 => b".",
                4 => b"(",
                _ => b" ",
            };
            bytes.extend_from_slice(between);
        }
        bytes.truncate(size);
        bytes
    }

    fn code(&mut self, size: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(size + 256);
        while bytes.len() < size {
            match self.below(22) {
                0 => self.repeat(&mut bytes, 60),
                1 => bytes.extend_from_slice(&[0; 24]),
                _ => {}
            }
            let instruction = self.skewed(INSTRUCTIONS);
            bytes.extend_from_slice(&self.instructions[instruction]);
            let operand = self.next().to_le_bytes();
            match self.below(9) {
                0 => bytes.push(operand[0]),
                1 => bytes.extend_from_slice(&[operand[0] & 0x7f, operand[1] & 3, 0, 0]),
                _ => {}
            }
        }
        bytes.truncate(size);
        bytes
    }

    /// Repeats something of the last [`WINDOW`] bytes.
    fn repeat(&mut self, bytes: &mut Vec<u8>, longest: usize) {
        let length = 8 + self.below(longest);
        if bytes.len() > 2 * length {
            let from = bytes.len() - length - self.below(WINDOW.min(bytes.len() - 2 * length));
            bytes.extend_from_within(from..from + length);
        }
    }
}
