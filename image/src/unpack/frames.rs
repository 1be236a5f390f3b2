//! Decompresses zstd streams (RFC 8878) of several frames, and bounds the memory of all decoders together.
//!
//! A decoder keeps as much of what it has made as the frame's window states, up to 128 MiB. RFC 8878 asks decoders for 8 MiB
//! and encoders not to need more, so that much every transfer may have, and their number is limited. Larger windows share
//! one room: a frame with one waits until a part of it is free. Frames with small windows never wait.
//!
//! Who waits gives back the transfer's place, and goes on without one, so that a slow layer with such a window holds up
//! only others of its kind. There are few of these; the next ones keep their places while they wait. Whoever has a part of
//! the room while others wait is cancelled if its registry sends nothing for some time ([`Sharer`]). Nobody who waits for
//! the room has what others need to leave it.

use super::gzip::Peek;
use super::{Sharer, ZSTD_MAGIC};
use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation as _, OutBuffer};

/// Largest window that needs no part of the room, in bytes.
const SMALL: u64 = 8 << 20;
/// Largest window, in bytes, and its logarithm. The decoder refuses larger ones.
const LARGEST: u64 = 1 << LARGEST_LOG;
const LARGEST_LOG: u32 = 27;
/// Longest header of a frame, in bytes.
const MAX_HEADER: usize = 18;
/// How long a frame waits for its part of the room. Those before it make progress, or their transfers are given up.
const PATIENCE: Duration = Duration::from_secs(3600);
/// How often a frame that waits looks whether its pull has been cancelled, and whether another is to be.
const LOOK: Duration = Duration::from_secs(1);
/// Maximum number of frames that wait. Each has a thread, and at most 64 transfers have a place and 16 have none (see `lane`).
const MAX_WAITING: usize = 80;

/// The memory for large windows of the whole process.
pub(super) static ROOM: Room = Room::new(LARGEST, PATIENCE);

/// Memory that large windows share, in the order of their requests.
#[derive(Debug)]
pub(super) struct Room {
    /// In bytes.
    size: u64,
    patience: Duration,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    used: u64,
    next_ticket: u64,
    waiting: VecDeque<u64>,
}

/// A part of the room, returned on drop.
#[derive(Debug)]
struct Part<'a> {
    room: &'a Room,
    bytes: u64,
    sharer: &'a dyn Sharer,
}

impl Room {
    const fn new(size: u64, patience: Duration) -> Self {
        let state = State { used: 0, next_ticket: 0, waiting: VecDeque::new() };
        Self { size, patience, state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Locks. Poison is ignored: no code panics while it holds the lock.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a part of so many bytes, for `sharer`. `is_cancelled` tells whether nobody needs it any more.
    ///
    /// # Errors
    /// `ResourceBusy` if too many wait, if it takes too long, or if it was cancelled.
    fn take<'a>(
        &'a self,
        bytes: u64,
        sharer: &'a dyn Sharer,
        is_cancelled: impl Fn() -> bool,
    ) -> io::Result<Part<'a>> {
        let mut state = self.state();
        if state.waiting.len() >= MAX_WAITING {
            return Err(self.busy(bytes, &format!("{MAX_WAITING} other layers wait for a part")));
        }
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.waiting.push_back(ticket);
        let must_wait =
            |state: &mut State| state.waiting.front() != Some(&ticket) || state.used + bytes > self.size;
        if must_wait(&mut state) {
            drop(state);
            sharer.leave_place();
            state = self.state();
        }
        let until = Instant::now() + self.patience;
        while must_wait(&mut state) && Instant::now() < until && !is_cancelled() {
            let waited = self.changed.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner);
            state = waited.0;
            // One of those who wait is enough.
            if waited.1.timed_out() && state.waiting.front() == Some(&ticket) {
                drop(state);
                sharer.cancel_idlest_with_memory();
                state = self.state();
            }
        }
        let has_part = !must_wait(&mut state);
        state.waiting.retain(|other| *other != ticket);
        if has_part {
            state.used += bytes;
        }
        drop(state);
        // The next one is the first now.
        self.changed.notify_all();
        if has_part {
            sharer.set_has_memory(true);
            return Ok(Part { room: self, bytes, sharer });
        }
        Err(self.busy(bytes, &format!("other layers have used them for {} s", self.patience.as_secs())))
    }

    fn busy(&self, bytes: u64, why: &str) -> io::Error {
        let reason = format!(
            "its zstd window has {} MiB, and of the {} MiB for large windows not enough are free: {why}: pull \
             again later, or compress it without --long and --ultra",
            bytes >> 20,
            self.size >> 20,
        );
        io::Error::new(io::ErrorKind::ResourceBusy, reason)
    }
}

impl Drop for Part<'_> {
    fn drop(&mut self) {
        self.sharer.set_has_memory(false);
        self.room.state().used -= self.bytes;
        self.room.changed.notify_all();
    }
}

/// Reads the content of all frames.
pub(super) struct Frames<'a, R> {
    input: &'a mut R,
    decoder: Decoder<'static>,
    in_frame: bool,
    room: &'a Room,
    /// For the window of the decoder.
    part: Option<Part<'a>>,
    sharer: &'a dyn Sharer,
}

impl<'a, R: Peek> Frames<'a, R> {
    /// `sharer` is the transfer of the layer.
    pub(super) fn new(input: &'a mut R, room: &'a Room, sharer: &'a dyn Sharer) -> io::Result<Self> {
        Ok(Self { input, decoder: decoder()?, in_frame: false, room, part: None, sharer })
    }

    /// Prepares for the next frame; `false` if there is none.
    fn begin(&mut self) -> io::Result<bool> {
        let head = self.input.peek(MAX_HEADER);
        if head.is_empty() {
            return Ok(false);
        }
        // The decoder tells what is wrong with what is no frame, or with a window that is too large.
        let window = window(head).filter(|window| (SMALL + 1..=LARGEST).contains(window)).unwrap_or(0);
        let has = self.part.as_ref().map_or(0, |part| part.bytes);
        if window > has || window == 0 && has > 0 {
            // The old memory is freed before more is waited for: who waits must not have what others wait for.
            self.decoder = decoder()?;
            self.part = None;
            let is_cancelled = || self.input.is_cut_off();
            self.part =
                (window > 0).then(|| self.room.take(window, self.sharer, is_cancelled)).transpose()?;
        } else {
            self.decoder.reinit()?;
        }
        self.in_frame = true;
        Ok(true)
    }
}

/// A decoder with the limit [`LARGEST`]. The default limit of zstd allows a window of one byte more.
fn decoder() -> io::Result<Decoder<'static>> {
    let mut decoder = Decoder::new()?;
    decoder.set_parameter(DParameter::WindowLogMax(LARGEST_LOG))?;
    Ok(decoder)
}

/// How many bytes the decoder keeps of a frame that begins like this: its window, or all of its content if that is
/// less. `None` if it is no frame with content.
fn window(head: &[u8]) -> Option<u64> {
    let (&descriptor, rest) = head.strip_prefix(ZSTD_MAGIC)?.split_first()?;
    let is_single_segment = descriptor & 1 << 5 != 0;
    let (window, rest) = if is_single_segment {
        (u64::MAX, rest)
    } else {
        let (&byte, rest) = rest.split_first()?;
        let base = 1u64 << (10 + (byte >> 3));
        (base + base / 8 * u64::from(byte & 7), rest)
    };
    let dictionary_id = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let rest = rest.get(dictionary_id..)?;
    let size = match descriptor >> 6 {
        0 if is_single_segment => u64::from(*rest.first()?),
        0 => return Some(window),
        1 => u64::from(u16::from_le_bytes(*rest.first_chunk()?)) + 256,
        2 => u64::from(u32::from_le_bytes(*rest.first_chunk()?)),
        _ => u64::from_le_bytes(*rest.first_chunk()?),
    };
    Some(window.min(size))
}

impl<R: Peek> Read for Frames<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while !into.is_empty() && (self.in_frame || self.begin()?) {
            let input = self.input.fill_buf()?;
            let is_end = input.is_empty();
            let (mut taken, mut made) = (InBuffer::around(input), OutBuffer::around(&mut *into));
            let hint = self.decoder.run(&mut taken, &mut made)?;
            let (taken, made) = (taken.pos(), made.pos());
            self.input.consume(taken);
            self.in_frame = hint > 0;
            if made > 0 {
                return Ok(made);
            }
            if is_end && self.in_frame {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "incomplete frame"));
            }
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, Cursor, Write as _};
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
    use zstd::zstd_safe::CParameter;

    impl Peek for Cursor<Vec<u8>> {
        fn peek(&mut self, length: usize) -> &[u8] {
            let rest = self.fill_buf().unwrap();
            &rest[..rest.len().min(length)]
        }

        fn is_cut_off(&self) -> bool {
            false
        }
    }

    const NEVER: fn() -> bool = || false;

    impl Sharer for () {
        fn leave_place(&self) {}
        fn set_has_memory(&self, _has: bool) {}
        fn cancel_idlest_with_memory(&self) {}
    }

    /// Counts the calls.
    #[derive(Debug, Default)]
    struct Counts {
        waits: AtomicUsize,
        has_memory: AtomicBool,
        cancels: AtomicUsize,
    }

    impl Sharer for Counts {
        fn leave_place(&self) {
            self.waits.fetch_add(1, Relaxed);
        }
        fn set_has_memory(&self, has: bool) {
            assert_ne!(self.has_memory.swap(has, Relaxed), has);
        }
        fn cancel_idlest_with_memory(&self) {
            self.cancels.fetch_add(1, Relaxed);
        }
    }

    /// A frame with this window. Like most programs that compress a stream, it does not state the size.
    fn frame(content: &[u8], window_log: u32) -> Vec<u8> {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.set_parameter(CParameter::WindowLog(window_log)).unwrap();
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn decoded(stream: Vec<u8>, room: &Room) -> io::Result<Vec<u8>> {
        let (mut input, mut content) = (Cursor::new(stream), Vec::new());
        Frames::new(&mut input, room, &())?.read_to_end(&mut content)?;
        Ok(content)
    }

    #[test]
    fn the_window_is_that_of_the_header() {
        assert_eq!(window(&frame(b"x", 23)), Some(8 << 20));
        assert_eq!(window(&frame(b"x", 27)), Some(128 << 20));
        // With a size of one, two and four bytes, all in a single segment.
        for size in [5, 255, 256, 300, 70_000] {
            let whole = zstd::bulk::compress(&vec![7; size], 1).unwrap();
            assert_eq!(window(&whole), Some(size as u64));
        }
        // Window and size, with a dictionary's number between them.
        let head = |descriptor: u8, rest: &[u8]| [ZSTD_MAGIC, &[descriptor], rest].concat();
        assert_eq!(window(&head(0b1100_0011, &[0x81, 1, 2, 3, 4, 0, 0, 16, 0, 0, 0, 0, 0])), Some(1 << 20));
        assert_eq!(window(&head(0, &[0x81])), Some(((1 << 26) / 8) * 9));
        assert_eq!(window(&head(0, &[0xff])), Some(((1 << 41) / 8) * 15));
        for head in
            [head(0, &[]), head(0xc3, &[0x81, 1, 2, 3, 4, 0]), b"\x50\x2a\x4d\x18....".to_vec(), vec![]]
        {
            assert_eq!(window(&head), None, "{head:?}");
        }
    }

    #[test]
    fn large_windows_share_the_room() {
        let room = Room::new(64 << 20, Duration::ZERO);
        let (small, large) = (frame(b"small ", 23), frame(b"large ", 26));
        let mixed = [&small[..], &large, &large, &small, &large].concat();
        assert_eq!(decoded(mixed.clone(), &room).unwrap(), b"small large large small large ");
        assert_eq!(room.state().used, 0);
        // Others have the room.
        let part = room.take(1, &(), NEVER).unwrap();
        assert_eq!(decoded(small, &room).unwrap(), b"small ");
        let error = decoded(mixed, &room).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
        assert!(error.to_string().contains("64 MiB"), "{error}");
        drop(part);
        // One larger than any room is refused and not waited for.
        let error = decoded(frame(b"x", 28), &room).unwrap_err();
        assert!(error.to_string().contains("too much memory"), "{error}");
        // Nor is one whose content is one byte larger, in a single segment with a size of four bytes.
        let size = (u32::try_from(LARGEST).unwrap() + 1).to_le_bytes();
        let single = [ZSTD_MAGIC, &[0b1010_0000], &size, &[1, 0, 0]].concat();
        assert_eq!(window(&single), Some(LARGEST + 1));
        let error = decoded(single, &room).unwrap_err();
        assert!(error.to_string().contains("too much memory"), "{error}");
        assert!(room.state().waiting.is_empty());
    }

    #[test]
    fn who_is_cancelled_waits_no_longer() {
        let room = Room::new(10, Duration::from_secs(3600));
        let _part = room.take(8, &(), NEVER).unwrap();
        assert_eq!(room.take(10, &(), || true).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        assert!(room.state().waiting.is_empty());
    }

    #[test]
    fn parts_are_given_in_the_order_of_requests() {
        let room = Room::new(10, Duration::from_secs(3600));
        let part = room.take(8, &(), NEVER).unwrap();
        std::thread::scope(|scope| {
            let waits = |number| {
                while room.state().waiting.len() < number {
                    std::thread::yield_now()
                }
            };
            let large = scope.spawn(|| drop(room.take(10, &(), NEVER).unwrap()));
            waits(1);
            // It would fit, but then the large one might wait for ever.
            let small = scope.spawn(|| drop(room.take(1, &(), NEVER).unwrap()));
            waits(2);
            assert!(!small.is_finished());
            drop(part);
            large.join().unwrap();
            small.join().unwrap();
        });
        assert_eq!(room.state().used, 0);
        room.state().waiting.extend(0..MAX_WAITING as u64);
        assert_eq!(room.take(1, &(), NEVER).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
    }

    #[test]
    fn who_waits_leaves_its_place_and_cancels_who_is_idle() {
        let room = Room::new(64 << 20, Duration::from_secs(3600));
        let read = |stream: Vec<u8>, sharer: &Counts| {
            let (mut input, mut content) = (Cursor::new(stream), Vec::new());
            Frames::new(&mut input, &room, sharer).unwrap().read_to_end(&mut content).unwrap();
            content
        };
        // A small window, for which the room is given back, between large ones.
        let stream = [frame(b"a", 26), frame(b"b", 23), frame(b"c", 26)].concat();
        let (first, next) = (Counts::default(), Counts::default());
        assert_eq!(read(stream.clone(), &first), b"abc");
        assert_eq!(first.waits.load(Relaxed), 0, "there was room");
        let part = room.take(64 << 20, &first, NEVER).unwrap();
        assert!(first.has_memory.load(Relaxed));
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| read(stream.clone(), &next));
            while next.cancels.load(Relaxed) == 0 {
                std::thread::sleep(Duration::from_millis(5));
            }
            assert!(!next.has_memory.load(Relaxed));
            drop(part);
            assert_eq!(waits.join().unwrap(), b"abc");
        });
        assert_eq!(next.waits.load(Relaxed), 1);
        assert!(!first.has_memory.load(Relaxed) && !next.has_memory.load(Relaxed));
        assert_eq!(room.state().used, 0);
    }
}
